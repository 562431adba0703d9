"""Arrow tables to Tally's columns and back, without a null ever changing a dtype."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.compute as pc  # type: ignore[import-untyped, unused-ignore]

from tally.columns import Column, canonical
from tally.dtypes import VARIABLE_WIDTH, Dtype
from tally.errors import DataError
from tally.plan import Field

INSTANT: Final = pa.timestamp("us", tz="UTC")
TYPES: Final[dict[Dtype, pa.DataType]] = {
    "Float64": pa.float64(),
    "Float32": pa.float32(),
    "Int64": pa.int64(),
    "Int32": pa.int32(),
    "Bool": pa.bool_(),
    "String": pa.string(),
    "Bytes": pa.binary(),
    "UnixTimestamp": INSTANT,
}
"""How each dtype is kept in Arrow, Parquet and Delta."""


def schema_of(fields: Iterable[Field]) -> pa.Schema:
    """The Arrow schema of `fields`, in their order."""
    return pa.schema([(field.name, TYPES[field.dtype]) for field in fields])


def to_column(dtype: Dtype, array: pa.Array | pa.ChunkedArray) -> Column:
    """The column of an Arrow array of type `TYPES[dtype]` (strings and bytes may be of the large or view kind)."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    valid = np.ones(len(array), np.bool_)
    if array.null_count:
        valid = array.is_valid().to_numpy(zero_copy_only=False)
    if dtype in VARIABLE_WIDTH:
        return Column(dtype, array.to_numpy(zero_copy_only=False), valid)
    if dtype == "UnixTimestamp":
        array = array.cast(pa.int64())
    if array.null_count:
        array = array.fill_null(False if dtype == "Bool" else 0)
    return canonical(dtype, array.to_numpy(zero_copy_only=False), valid)


def to_columns(fields: Iterable[Field], table: pa.Table) -> dict[str, Column]:
    """The columns `fields` of a table that has them with the types of `TYPES`."""
    return {field.name: to_column(field.dtype, table.column(field.name)) for field in fields}


def from_column(column: Column) -> pa.Array:
    """The Arrow array of a column, of type `TYPES[column.dtype]`."""
    mask = None if column.valid.all() else ~column.valid
    if column.dtype == "UnixTimestamp":
        return pa.array(column.values, pa.int64(), mask=mask).cast(INSTANT)
    return pa.array(column.values, TYPES[column.dtype], mask=mask)


def from_columns(columns: Mapping[str, Column]) -> pa.Table:
    """The table of `columns`, in their order."""
    return pa.table({name: from_column(column) for name, column in columns.items()})


def conform(dtype: Dtype, array: pa.Array, where: str) -> pa.Array:
    """An array that came from elsewhere (a warehouse) as `TYPES[dtype]`, losing no value; timestamps are floored.

    Integers and decimals become floats by rounding to the nearest. NaN becomes null. Raises DataError, naming `where`,
    for a type or a value that does not fit.
    """
    try:
        return _conform(dtype, array)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        detail = str(error).splitlines()[0]
        raise DataError(
            f"{where} holds {array.type} values that do not fit {dtype} ({detail}); "
            "change the field's dtype, or the column's type."
        ) from error


def _conform(dtype: Dtype, array: pa.Array) -> pa.Array:
    kind, wanted = array.type, TYPES[dtype]
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if kind.equals(wanted):
        return _without_nan(array) if pa.types.is_floating(wanted) else array
    if pa.types.is_null(kind):
        return pa.nulls(len(array), wanted)
    exact = pa.types.is_integer(kind) or pa.types.is_decimal(kind)
    if dtype in ("Float64", "Float32") and pa.types.is_decimal(kind):
        return array.cast(pa.string()).cast(wanted)  # Arrow's own cast multiplies by a rounded power of ten
    if dtype in ("Float64", "Float32") and (exact or pa.types.is_floating(kind)):
        return _without_nan(array.cast(wanted, safe=False))
    if dtype in ("Int64", "Int32") and (exact or pa.types.is_floating(kind)):
        return array.cast(wanted)
    if dtype == "UnixTimestamp" and pa.types.is_timestamp(kind):
        return _floored(array)
    if dtype == "UnixTimestamp" and pa.types.is_date(kind):
        return array.cast(pa.timestamp("us")).cast(wanted)
    same_family = (
        (dtype == "String" and (pa.types.is_large_string(kind) or pa.types.is_string_view(kind)))
        or (dtype == "Bytes" and (pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)))
    )  # fmt: skip
    if same_family:
        return array.cast(wanted)
    raise ValueError("no conversion keeps their meaning")


def _without_nan(array: Any) -> Any:
    return pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)


def _floored(array: Any) -> Any:
    ticks = array.cast(pa.int64())  # UTC, whatever the type's zone
    if array.type.unit == "ns":
        valid = np.ones(len(ticks), np.bool_) if ticks.null_count == 0 else ticks.is_valid().to_numpy(False)
        micros = ticks.fill_null(0).to_numpy(zero_copy_only=False) // 1000
        return pa.array(micros, pa.int64(), mask=~valid).cast(INSTANT)
    if array.type.unit != "us":
        ticks = pc.multiply_checked(ticks, {"s": 1_000_000, "ms": 1000}[array.type.unit])
    return ticks.cast(INSTANT)
