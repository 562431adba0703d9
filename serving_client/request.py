"""Rows of a request as columns: every key and request field of the service, checked, with errors that name the row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tally.columns import Column, column
from tally.dtypes import STORAGE, Dtype
from tally.errors import DataError
from tally.plan import Field
from tally.time import from_datetime

_NONE: Final[set[type]] = set()
Values = Sequence[Any] | NDArray[Any]
Rows = Sequence[Mapping[str, Any]] | Mapping[str, Values]

_EXACT: Final[dict[Dtype, frozenset[type]]] = {
    "Float64": frozenset({float}),
    "Int64": frozenset({int}),
    "Int32": frozenset({int}),
    "Bool": frozenset({bool}),
    "String": frozenset({str}),
    "Bytes": frozenset({bytes}),
    "UnixTimestamp": frozenset({datetime}),
}
"""Python types whose lists are converted as they are; all else goes through `tally.columns.column`."""


def columns_of(rows: Rows, fields: Sequence[Field]) -> tuple[int, dict[str, Column]]:
    """(number of rows, a column for each of `fields`) of a sequence of mappings or a mapping of columns.

    Raises DataError, naming column and row, for a missing column, a value of the wrong type, or unequal lengths.
    """
    if isinstance(rows, Mapping):
        return _from_columns(rows, fields)
    given: object = rows
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise DataError(
            f"Rows must be a list of dicts or a dict of columns, not {type(rows).__name__}; "
            f"each row needs {described(fields)}."
        )
    columns = {}
    for field in fields:
        try:
            items = [row[field.name] for row in rows]
        except (KeyError, TypeError, IndexError):
            raise _incomplete(rows, field, fields) from None
        columns[field.name] = checked(field, items)
    return len(rows), columns


def _from_columns(rows: Mapping[str, Values], fields: Sequence[Field]) -> tuple[int, dict[str, Column]]:
    missing = next((f for f in fields if f.name not in rows), None)
    if missing is not None:
        raise DataError(
            f"The request lacks the column {missing.name!r} ({missing.dtype}); it needs {described(fields)}."
        )
    alone = next(
        (f.name for f in fields if not hasattr(rows[f.name], "__len__") or isinstance(rows[f.name], str | bytes)), None
    )
    if alone is not None:
        kind = type(rows[alone]).__name__
        raise DataError(f"The column {alone!r} is one {kind}; a dict holds columns, give a row as [{{...}}].")
    lengths = {f.name: len(rows[f.name]) for f in fields}
    if len(set(lengths.values())) > 1:
        raise DataError(f"The columns of a request must have one length; these have {lengths}.")
    return next(iter(lengths.values()), 0), {f.name: checked(f, rows[f.name]) for f in fields}


def _incomplete(rows: Sequence[Any], field: Field, fields: Sequence[Field]) -> DataError:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            return DataError(f"Row {number} is {type(row).__name__}, not a dict; each row needs {described(fields)}.")
        if field.name not in row:
            break
    return DataError(
        f"Row {number} lacks the column {field.name!r} ({field.dtype}); each row needs {described(fields)}."
    )


def described(fields: Sequence[Field]) -> str:
    """`fields` as a user reads them."""
    return ", ".join(f"{f.name} ({f.dtype})" for f in fields) or "no columns"


def checked(field: Field, data: Values) -> Column:
    """The column of `data`. Raises DataError naming the column, and the row that does not fit."""
    if type(data) is list and set(map(type, data)) == _EXACT.get(field.dtype, _NONE):
        fast = _exact(field.dtype, data)
        if fast is not None:
            return fast
    try:
        return column(field.dtype, data, field.name)
    except DataError as error:
        raise _misfit(field, data) or error from error


def _exact(dtype: Dtype, data: list[Any]) -> Column | None:
    try:
        if dtype in ("String", "Bytes"):
            values = np.empty(len(data), object)
            values[:] = data
        elif dtype == "UnixTimestamp":
            values = np.fromiter(map(from_datetime, data), np.int64, len(data))
        else:
            values = np.array(data, STORAGE[dtype])
    except OverflowError:
        return None
    valid = np.ones(len(data), np.bool_)
    if dtype == "Float64" and np.isnan(values).any():
        return None
    return Column(dtype, values, valid)


def _misfit(field: Field, data: Values) -> DataError | None:
    for number, item in enumerate(data):
        try:
            column(field.dtype, [item], field.name)
        except DataError as error:
            return DataError(f"Row {number}, column {error}")
    return None


def require_keys(fields: Sequence[Field], columns: Mapping[str, Column]) -> None:
    """Raises DataError, naming column and row, when an entity key is null."""
    for field in fields:
        valid = columns[field.name].valid
        if not valid.all():
            raise null_key(field, int(np.flatnonzero(~valid)[0]))


def null_key(field: Field, row: int) -> DataError:
    """The error for an entity key that is null."""
    return DataError(
        f"Row {row}: the entity key {field.name!r} is null; give a {field.dtype} value, or leave the row out."
    )
