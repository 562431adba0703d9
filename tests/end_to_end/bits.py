"""Answers of any path as texts that are equal only if dtype, nulls and every bit are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from ingestion.arrow import from_column
from tally.columns import Column

Bits = dict[str, list[str | None]]


def of_columns(columns: Mapping[str, Column]) -> Bits:
    """Of a client's or the builder's answer."""
    return of_table(pa.table({name: from_column(column) for name, column in columns.items()}), columns)


def of_table(table: pa.Table, names: Iterable[str]) -> Bits:
    """Of the columns `names`, each with its Arrow type in front."""
    return {name: [str(table.schema.field(name).type), *map(shown, _values(table.column(name)))] for name in names}


def shown(item: Any) -> str | None:
    """A value as text; a float by its bits, a timestamp as microseconds."""
    if item is None:
        return None
    return item.hex() if isinstance(item, float) else repr(item)


def _values(column: pa.ChunkedArray) -> list[Any]:
    plain = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
    values: list[Any] = plain.to_pylist()
    return values
