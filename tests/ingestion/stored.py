"""Offline tables for the tests of ingestion, written as the extraction writes them, and naive oracles."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from ingestion.arrow import INSTANT, from_column, schema_of
from ingestion.delta import open_table, write_table
from ingestion.messages import decode_table
from ingestion.offline import IDENTITY, Extracted, source_fields, source_hash
from tally.columns import column
from tally.plan import Field, Plan, Source
from tally.tiles import Aggregation

Message = tuple[int, int, Mapping[str, Any]]
"""(partition, offset, the object that was sent)."""


def message(partition: int, offset: int, **fields: Any) -> Message:
    """A message of topic flights.departures; CreateTime is its offset in seconds."""
    return partition, offset, fields


def put_messages(
    plan: Plan, source: Source, uri: str, messages: Sequence[Message], *, schema_hash: str | None = None
) -> int:
    """Append messages to a landing table, as one extraction does; the version that this makes."""
    table = open_table(uri, source.name)
    decoded, rows, bad = decode_table(source.message, [json.dumps(fields).encode() for _, _, fields in messages])
    assert not bad
    assert len(rows) == len(messages)
    offsets: dict[int, int] = {}
    for partition, offset, _ in messages:
        offsets[partition] = max(offset, offsets.get(partition, 0))
    identity = pa.Table.from_arrays(
        [
            pa.array([source.topic] * len(messages), pa.string()),
            pa.array([p for p, _, _ in messages], pa.int32()),
            pa.array([o for _, o, _ in messages], pa.int64()),
            pa.array([o * 1_000_000 for _, o, _ in messages], pa.int64()).cast(INSTANT),
            pa.nulls(len(messages), INSTANT),
            pa.nulls(len(messages), pa.string()),
        ],
        schema=IDENTITY,
    )
    for name in decoded.column_names:
        identity = identity.append_column(decoded.schema.field(name), decoded.column(name))
    knows = Extracted(schema_hash or source_hash(plan, source), offsets, {}, None)
    return write_table(
        uri,
        source.name,
        table,
        identity.schema,
        identity.combine_chunks().to_batches(),
        overwrite=False,
        metadata=knows.to_metadata(),
    )


def put_rows(plan: Plan, source: Source, uri: str, rows: Sequence[Mapping[str, Any]]) -> int:
    """Append rows to a batch table, as one extraction does; the version that this makes."""
    fields: tuple[Field, ...] = source_fields(plan, source)
    arrays = [from_column(column(f.dtype, [row.get(f.name) for row in rows], f.name)) for f in fields]
    data = pa.Table.from_arrays(arrays, schema=schema_of(fields))
    return write_table(
        uri,
        source.name,
        open_table(uri, source.name),
        data.schema,
        data.to_batches(),
        overwrite=False,
        metadata=Extracted(source_hash(plan, source), {}, {}, None).to_metadata(),
    )


Event = tuple[int, int, int, Any]
"""(timestamp µs, partition, offset, value)."""


def aggregate(aggregation: Aggregation, events: Sequence[Event], as_of: int) -> Any:
    """What a windowed feature is, in plain loops and standard-library arithmetic."""
    lower = as_of - aggregation.window.length
    lower -= lower % aggregation.window.hop
    inside = sorted(event for event in events if lower <= event[0] <= as_of and event[3] is not None)
    values = [event[3] for event in inside]
    if aggregation.function == "count":
        return len(values)
    if not values or (aggregation.function == "std" and len(values) < 2):
        return None
    if aggregation.function == "sum":
        return sum(values) if aggregation.dtype == "Int64" else math.fsum(values)
    if aggregation.function == "std":
        return statistics.stdev([Fraction(value) for value in values])
    if aggregation.function in ("first", "last"):
        return values[0 if aggregation.function == "first" else -1]
    return min(values) if aggregation.function == "min" else max(values)


def bits(value: Any) -> Any:
    """A value so that == means equal bits."""
    return float(value).hex() if isinstance(value, float | np.floating) else value
