"""Latest rows for the tests of their bytes: any fields, any values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tally.columns import Column, column
from tally.dtypes import DTYPES, Dtype
from tally.layout import RowLayout

VIEW_HASH = "0123456789abcdef" * 2
Row = tuple[int, int, int, list[Any]]
"""Event timestamp, a, b, a value for each field."""

INT64 = st.integers(-(2**63), 2**63 - 1)
ITEMS: dict[Dtype, st.SearchStrategy[Any]] = {
    "Float64": st.floats(allow_nan=False),
    "Float32": st.floats(allow_nan=False, width=32),
    "Int64": INT64,
    "Int32": st.integers(-(2**31), 2**31 - 1),
    "Bool": st.booleans(),
    "String": st.text(max_size=6),
    "Bytes": st.binary(max_size=6),
    "UnixTimestamp": INT64,
}


def sized_layouts() -> st.SearchStrategy[RowLayout]:
    """Layouts of one to twenty fields: up to three bytes of null bits."""
    dtypes = st.lists(st.sampled_from(DTYPES), min_size=1, max_size=20)
    return dtypes.map(lambda some: RowLayout(tuple((f"n{i}", dtype) for i, dtype in enumerate(some)), VIEW_HASH))


def rows_of(layout: RowLayout, min_size: int = 0, max_size: int = 5) -> st.SearchStrategy[list[Row]]:
    """Rows of a layout with nulls in them."""
    values = st.tuples(*(st.one_of(st.none(), ITEMS[dtype]) for _, dtype in layout.fields)).map(list)
    return st.lists(st.tuples(INT64, INT64, INT64, values), min_size=min_size, max_size=max_size)


def pack(layout: RowLayout, rows: Sequence[Row]) -> list[bytes]:
    """The stored bytes of rows."""
    stamps = [np.array([row[at] for row in rows], np.int64) for at in range(3)]
    columns = {name: column(dtype, [row[3][n] for row in rows]) for n, (name, dtype) in enumerate(layout.fields)}
    return layout.pack(stamps[0], stamps[1], stamps[2], columns)


def same_columns(one: Column, other: Column) -> None:
    """Asserts that two columns are equal to the byte."""
    assert one.dtype == other.dtype
    assert one.valid.tolist() == other.valid.tolist()
    assert one.values.dtype == other.values.dtype
    if one.values.dtype == object:
        assert one.values.tolist() == other.values.tolist()
    else:
        assert one.values.tobytes() == other.values.tobytes()
