"""Codes of entity keys: equal keys, and only they, have equal codes."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from tally.columns import column
from tally.dtypes import Dtype
from training.keys import key_codes

NUMBERS = st.one_of(
    st.integers(0, 9), st.integers(2**62, 2**62 + 9), st.sampled_from([-(2**63), 2**63 - 1, -1, 2**31, -(2**31) - 1])
)
KEYS = st.lists(st.tuples(NUMBERS, st.sampled_from(["", "a", "é"]), NUMBERS), max_size=12)


@given(KEYS, KEYS, st.integers(1, 3))
@example([(4, "", 0), (2, "", 0), (4, "", 0)], [(2, "", 0), (3, "", 0), (5, "", 0), (-(2**63), "", 0)], 1)
@example([(-(2**63), "", 0), (2**63 - 1, "", 0)], [(0, "", 0), (-1, "", 0)], 1)
def test_codes_tell_keys_apart(
    rows: list[tuple[int, str, int]], labels: list[tuple[int, str, int]], width: int
) -> None:
    """Numbers close together, far apart and at the ends of int64, alone or with other parts: rows and labels alike."""
    rows, labels = [one[:width] for one in rows], [one[:width] for one in labels]  # type: ignore[misc]
    dtypes: tuple[Dtype, ...] = ("Int64", "String", "Int64")
    columns = [
        [column(dtype, [one[part] for one in keys]) for part, dtype in enumerate(dtypes[:width])]
        for keys in (rows, labels)
    ]
    codes = key_codes(columns[0], [columns[1]])
    of_row = codes.rows.tolist()
    assert all(0 <= code < codes.count for code in of_row)
    assert all((one == two) == (rows[i] == rows[j]) for i, one in enumerate(of_row) for j, two in enumerate(of_row))
    known = dict(zip(rows, of_row, strict=True))
    for key, code in zip(labels, codes.labels[0].tolist(), strict=True):
        assert code == known[key] if key in known else -1 <= code < codes.count and code not in of_row


def test_many_keys_are_told_apart() -> None:
    """Rows of several blocks, integers close together: as NumPy's own codes."""
    values = np.random.default_rng(0).integers(-1000, 1000, 300_000)
    codes = key_codes([column("Int64", values)], [[column("Int64", values[::-1])]])
    expected = values - values.min()
    assert (codes.rows == expected).all()
    assert (codes.labels[0] == expected[::-1]).all()
