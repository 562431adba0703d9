"""Batches become one table: the rows that they had, numbers in one piece."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion.gather import gathered

AT = datetime(2013, 1, 1, tzinfo=UTC)
KINDS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "long": (pa.int64(), [2**60 + 1, -1]),
    "short": (pa.int32(), [7, -(2**31)]),
    "byte": (pa.int8(), [1]),
    "float": (pa.float64(), [0.1, -0.0]),
    "single": (pa.float32(), [0.5]),
    "time": (pa.timestamp("us", "UTC"), [AT]),
    "truth": (pa.bool_(), [True, False]),
    "text": (pa.string(), ["", "é"]),
    "bytes": (pa.binary(), [b"\x00"]),
    "decimal": (pa.decimal128(9, 2), [Decimal("1.25")]),
    "list": (pa.list_(pa.int64()), [[1, None]]),
    "nothing": (pa.null(), [None]),
}
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in KINDS.items()])
ROW = st.fixed_dictionaries({name: st.sampled_from([None, *values]) for name, (_, values) in KINDS.items()})


@given(st.lists(st.tuples(st.lists(ROW, max_size=9), st.integers(0, 9)), max_size=5), st.integers(0, 3))
def test_all_rows_are_there(pieces: list[tuple[list[dict[str, Any]], int]], spare: int) -> None:
    """Batches of any length, slices, nulls, every kind of type; room to spare or none: as Arrow's own table."""
    batches = [pa.RecordBatch.from_pylist(rows, SCHEMA).slice(start) for rows, start in pieces]
    expected = pa.Table.from_batches(batches, SCHEMA)
    found = gathered(SCHEMA, iter(batches), expected.num_rows + spare)
    found.validate(full=True)
    assert found.schema == SCHEMA
    assert found.to_pylist() == expected.to_pylist()
    assert found.column("long").num_chunks == 1


def test_more_rows_than_announced_are_refused() -> None:
    """Nothing is cut off."""
    batch = pa.RecordBatch.from_pylist([{"long": 1}] * 3, pa.schema([("long", pa.int64())]))
    with pytest.raises(ValueError, match="broadcast"):
        gathered(batch.schema, [batch], 2)
