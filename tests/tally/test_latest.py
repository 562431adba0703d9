"""The latest row: the greatest (event timestamp, a, b, packed bytes), whatever the order of the rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tally.latest import Positions, sorted_positions

Row = tuple[int, int, int, int, bytes]
"""Code, timestamp, a, b, packed bytes."""

FEW = st.tuples(
    st.integers(0, 3),
    st.integers(-2, 2),
    st.integers(0, 1),
    st.integers(0, 1),
    st.sampled_from([b"", b"a", b"ab", b"\xff"]),
)
WIDE = st.tuples(
    st.one_of(st.integers(0, 3), st.integers(2**15, 2**17), st.integers(2**31, 2**40)),
    st.one_of(st.integers(-(2**62), 2**62), st.integers(-5, 5)),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.binary(max_size=3),
)  # fmt: skip


def positions_of(rows: list[Row], *, packed: bool = True) -> Positions:
    """Positions by `sorted_positions`."""
    code, time, a, b = (np.array([row[at] for row in rows], np.int64) for at in range(4))
    return sorted_positions(code, time, a, b, (lambda at: [rows[i][4] for i in at.tolist()]) if packed else None)


@pytest.mark.parametrize(
    "rows", [st.lists(FEW, max_size=30), st.lists(WIDE, max_size=12), st.lists(st.one_of(FEW, WIDE))]
)
@given(data=st.data())
def test_rows_are_sorted_as_tuples(rows: st.SearchStrategy[list[Row]], data: st.DataObject) -> None:
    """Many ties or none, codes and times too wide for one integer: the order of Python's tuples."""
    drawn = data.draw(rows)
    positions = positions_of(drawn)
    assert sorted(positions.tolist()) == list(range(len(drawn)))
    assert [drawn[i] for i in positions.tolist()] == sorted(drawn)


def test_many_rows_of_wide_codes_and_times() -> None:
    """Thousands of rows, where NumPy's sorts are no longer stable by themselves, on both ways of sorting."""
    dice = random.Random(3)
    for codes, times in (([0, 1, 2**16, 2**16 + 1, 2**33], [-(2**62), 0, 2**62]), ([0, 1, 2], [-1, 0, 1])):
        rows = [
            (
                dice.choice(codes),
                dice.choice(times) + dice.randint(0, 40),
                dice.randint(0, 3),
                dice.randint(0, 9),
                bytes([n % 7]),
            )
            for n in range(3_000)
        ]
        assert [rows[i] for i in positions_of(rows).tolist()] == sorted(rows)


def backwards(work: Callable[[slice], object], slices: Sequence[slice]) -> None:
    """Blocks in another order: none may need another one's."""
    for one in reversed(slices):
        work(one)


@pytest.mark.parametrize("span", [2**10, 2**60])
def test_rows_of_many_blocks(span: int) -> None:
    """As many rows as several threads sort, with ties and without: the order of `numpy.lexsort`, for codes of either width."""
    rng = np.random.default_rng(0)
    codes, times = rng.integers(0, 200, 300_001), rng.integers(-span, span, 300_001)
    a, b = rng.integers(0, 3, 300_001), rng.permutation(300_001)
    expected = np.lexsort((b, a, times, codes))
    assert (sorted_positions(codes, times, a, b) == expected).all()
    assert (sorted_positions(codes.astype(np.int32), times, a, b, None, backwards) == expected).all()


@given(st.lists(FEW, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_the_latest_row_does_not_depend_on_the_order(rows: list[Row], dice: random.Random) -> None:
    """Shuffled, the last row of each code is the same one."""
    shuffled = rows.copy()
    dice.shuffle(shuffled)
    latest = {rows[i][0]: rows[i] for i in positions_of(rows).tolist()}
    assert {shuffled[i][0]: shuffled[i] for i in positions_of(shuffled).tolist()} == latest
    assert latest == {row[0]: row for row in sorted(rows)}


@given(st.lists(FEW, max_size=30))
def test_without_bytes_full_ties_keep_any_order(rows: list[Row]) -> None:
    """All but the bytes decide as before."""
    positions = positions_of(rows, packed=False)
    assert sorted(positions.tolist()) == list(range(len(rows)))
    assert [rows[i][:4] for i in positions.tolist()] == sorted(row[:4] for row in rows)


@given(st.lists(FEW, max_size=30))
def test_bytes_are_asked_only_of_full_ties(rows: list[Row]) -> None:
    """Packing is paid for by rows that need it: those that tie in everything else."""
    asked: list[int] = []

    def packed(at: Positions) -> list[bytes]:
        asked.extend(at.tolist())
        return [rows[i][4] for i in at.tolist()]

    arrays = [np.array([row[at] for row in rows], np.int64) for at in range(4)]
    sorted_positions(arrays[0], arrays[1], arrays[2], arrays[3], packed)
    heads = [row[:4] for row in rows]
    assert sorted(asked) == [i for i, head in enumerate(heads) if heads.count(head) > 1]
