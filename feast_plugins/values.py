"""Columns to and from Feast's protobuf values.

Feast's value for a timestamp is a whole number of seconds: what lies below is floored on this path, and on no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from feast.protos.feast.types.Value_pb2 import Value

from tally.columns import Column, column
from tally.dtypes import Dtype
from tally.errors import DataError
from tally.time import SECOND, instant

_FIELDS: Final[dict[Dtype, str]] = {
    "Float64": "double_val",
    "Float32": "float_val",
    "Int64": "int64_val",
    "Int32": "int32_val",
    "Bool": "bool_val",
    "String": "string_val",
    "Bytes": "bytes_val",
    "UnixTimestamp": "unix_timestamp_val",
}


def to_values(source: Column) -> list[Value]:
    """One protobuf value per row; an empty one where null."""
    field = _FIELDS[source.dtype]
    numbers = source.values // SECOND if source.dtype == "UnixTimestamp" else source.values
    return [
        Value(**{field: item}) if ok else Value()
        for item, ok in zip(numbers.tolist(), source.valid.tolist(), strict=True)
    ]


def add_values(target: Any, dtype: Dtype, items: Sequence[Any]) -> None:
    """Append `to_values` of `Column.items` to a repeated field, without the copy that `extend` makes of each."""
    field = _FIELDS[dtype]
    if dtype == "UnixTimestamp":
        items = [None if item is None else item // SECOND for item in items]
    for item in items:
        value = target.add()
        if item is not None:
            setattr(value, field, item)


def from_values(dtype: Dtype, values: Sequence[Value | None], name: str) -> Column:
    """A column of `dtype` from protobuf values. Raises DataError, naming `name`, when one is of another type."""
    return column(dtype, [None if value is None else opened(value) for value in values], name)


def opened(value: Value) -> Any:
    """What a protobuf value holds, None for nothing; a timestamp in microseconds UTC."""
    kind = value.WhichOneof("val")
    if kind is None:
        return None
    held = getattr(value, kind)
    return held * SECOND if kind == "unix_timestamp_val" else held


def request_items(dtype: Dtype, items: Sequence[Any], name: str) -> list[Any]:
    """Request values as Python values: protobuf values are opened, and ISO texts, as JSON has them, become timestamps."""
    values: list[Any] = []
    for item in items:
        if isinstance(item, Value):
            item = opened(item)
        if dtype == "UnixTimestamp" and isinstance(item, str):
            try:
                item = instant(datetime.fromisoformat(item))
            except ValueError as error:
                raise DataError(
                    f"{name}: {item!r} is not an ISO-8601 timestamp such as 2013-12-01T10:00:00Z."
                ) from error
        values.append(item)
    return values
