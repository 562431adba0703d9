"""Labels: the rows that a training set is asked for, from whatever they come in, checked against a service."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingestion.arrow import conform, from_column, to_column
from tally.columns import Column
from tally.dtypes import VARIABLE_WIDTH
from tally.errors import DataError
from tally.layout import EVIDENCE_COLUMN
from tally.plan import Field, Service


@dataclass(frozen=True)
class Labels:
    """`table`: every label column, those that the service reads with the dtypes that it declares, times in UTC µs.

    `columns`: what the service reads, by name. `as_of`: int64 µs, one per row. `evidence`: the JSON texts of the column
    `tally.layout.EVIDENCE_COLUMN`, where the labels have it. `digest`: SHA-256 of all that decides the features.
    """

    table: pa.Table
    columns: dict[str, Column]
    as_of: NDArray[np.int64]
    evidence: list[str] | None
    digest: str


def read_labels(source: Any, service: Service, timestamp: str) -> Labels:
    """Labels for `service` from a pandas frame, an Arrow table, a Parquet file or folder, or a Dask frame.

    `timestamp` is the column of instants: naive ones are UTC, other zones are converted, nanoseconds floored. Rows keep
    their order. Raises DataError, naming the column and the remedy, for columns that are missing, twice there, of the wrong
    type, called like a feature, and for keys or times that are null.
    """
    table = _table(source)
    _check_names(table, service, timestamp)
    columns: dict[str, Column] = {}
    when = Field(timestamp, "UnixTimestamp")
    for field in dict.fromkeys((*service.keys, *service.request, when)):
        at = table.column_names.index(field.name)
        array = table.column(at).combine_chunks()
        values = to_column(field.dtype, conform(field.dtype, array, f"Label column {field.name}"))
        if field in service.keys or field == when:
            _check_present(field.name, values)
        columns[field.name] = values
        table = table.set_column(at, pa.field(field.name, from_column(values).type), from_column(values))
    as_of = columns[timestamp].values
    evidence = _evidence(table)
    own = {field.name: columns[field.name] for field in (*service.keys, *service.request)}
    return Labels(table, own, as_of, evidence, _digest(columns, evidence))


def _table(source: Any) -> pa.Table:
    if isinstance(source, str | Path):
        return _parquet(Path(source))
    if type(source).__module__.partition(".")[0] in ("dask", "dask_expr") and hasattr(source, "compute"):
        source = source.compute()
    if isinstance(source, pa.Table):
        table = source
    elif isinstance(source, pd.DataFrame):
        table = _from_pandas(source)
    else:
        raise DataError(
            f"Labels must be a pandas or Dask frame, a pyarrow Table or the path of Parquet, not {type(source).__name__}."
        )
    return table.replace_schema_metadata(None)


def _parquet(path: Path) -> pa.Table:
    if not path.exists():
        raise DataError(f"There are no labels at {path}; give a Parquet file, or a folder of them.")
    try:
        return pq.read_table(path).replace_schema_metadata(None)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"The labels at {path} are not Parquet that can be read ({error}).") from error


def _from_pandas(frame: pd.DataFrame) -> pa.Table:
    _check_once([str(name) for name in frame.columns])
    arrays = []
    for name in frame.columns:
        try:
            array = pa.array(frame[name], from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, ValueError) as error:
            raise DataError(
                f"Label column {name} mixes types or holds values that Arrow has no type for ({error}); "
                "convert it, or drop it from the labels."
            ) from error
        arrays.append(array)
    return pa.table(arrays, names=[str(name) for name in frame.columns])


def _check_once(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"The labels have more than one column {twice[0]!r}; rename or drop all but one.")


def _check_names(table: pa.Table, service: Service, timestamp: str) -> None:
    names = table.column_names
    _check_once(names)
    needed = (*service.keys, *service.request, Field(timestamp, "UnixTimestamp"))
    missing = [field for field in needed if field.name not in names]
    if missing:
        wanted = ", ".join(dict.fromkeys(f"{field.name} ({field.dtype})" for field in needed))
        hint = '; the column of instants can be named with timestamp="..."' if missing[-1].name == timestamp else ""
        raise DataError(
            f"The labels have no column {missing[0].name!r}. Service {service.name} needs {wanted}; "
            f"the labels have {', '.join(names) or 'no columns'}{hint}."
        )
    features = {field.name for field in service.outputs}
    taken = [name for name in names if name in features]
    if taken:
        raise DataError(
            f"The label column {taken[0]!r} has the name of a feature of service {service.name}; "
            "rename or drop it, so that the training set has one column of that name."
        )


def _check_present(name: str, values: Column) -> None:
    absent = np.flatnonzero(~values.valid)
    if len(absent):
        raise DataError(
            f"Label column {name} is null in {len(absent):,} of {len(values):,} rows, first in row {int(absent[0])}; "
            "every label needs its keys and its time: drop these rows or fill them in."
        )


def _evidence(table: pa.Table) -> list[str] | None:
    if EVIDENCE_COLUMN not in table.column_names:
        return None
    values = to_column("String", conform("String", table.column(EVIDENCE_COLUMN).combine_chunks(), EVIDENCE_COLUMN))
    _check_present(EVIDENCE_COLUMN, values)
    texts: list[str] = values.values.tolist()
    return texts


def _digest(columns: dict[str, Column], evidence: Sequence[str] | None) -> str:
    state = hashlib.sha256()
    for name in sorted(columns):
        values = columns[name]
        state.update(f"{name}:{values.dtype}:{len(values)}".encode())
        state.update(np.packbits(values.valid).tobytes())
        if values.dtype in VARIABLE_WIDTH:
            _add_texts(state, values.values.tolist())
        else:
            state.update(np.ascontiguousarray(values.values).tobytes())
    if evidence is not None:
        _add_texts(state, evidence)
    return state.hexdigest()


def _add_texts(state: Any, texts: Sequence[Any]) -> None:
    encoded = [text.encode() if isinstance(text, str) else text or b"" for text in texts]
    state.update(np.array([len(text) for text in encoded], np.int64).tobytes())
    state.update(b"".join(encoded))
