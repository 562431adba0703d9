"""Labels: the rows that a training set is asked for, from whatever they come in, checked against a service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from ingestion.arrow import TYPES, conform, to_column
from tally.columns import Column
from tally.dtypes import Dtype
from tally.errors import DataError
from tally.plan import Field, Service
from tally.served import EVIDENCE_COLUMN
from training.digests import TableDigest

_BATCH_ROWS: Final = 1 << 17
_REMEDIES: Final[dict[Dtype, str]] = {
    "Float64": 'pd.to_numeric(labels["{0}"])',
    "Float32": 'pd.to_numeric(labels["{0}"])',
    "Int64": 'labels["{0}"].astype("Int64")',
    "Int32": 'labels["{0}"].astype("Int32")',
    "Bool": 'labels["{0}"].astype("boolean")',
    "String": 'labels["{0}"].astype("string")',
    "Bytes": 'labels["{0}"].str.encode("utf-8")',
    "UnixTimestamp": 'pd.to_datetime(labels["{0}"], utc=True)',
}


@dataclass(frozen=True)
class Labels:
    """`table`: every label column, those that the service reads with the dtypes that it declares, times in UTC µs.

    `columns`: what the service reads, by name. `as_of`: int64 µs, one per row. `evidence`: the JSON texts of the column
    `tally.served.EVIDENCE_COLUMN`, where the labels have it. `digest`: of the table (`training.digests`). `path`: where
    they were read, None for those that came from memory. `notes`: sentences on what was taken for granted.
    """

    table: pa.Table
    columns: dict[str, Column]
    as_of: NDArray[np.int64]
    evidence: list[str] | None
    digest: str
    path: Path | None
    notes: tuple[str, ...]


def read_labels(source: Any, service: Service, timestamp: str) -> Labels:
    """Labels for `service` from a pandas frame, an Arrow table, a Parquet file or folder, or a Dask frame.

    `timestamp` is the column of instants: naive ones are UTC, other zones are converted, nanoseconds floored. Rows keep
    their order; those of a folder come file by file, in the order of the files' names. Raises DataError, naming the column,
    how many rows and the remedy, for columns that are missing, twice there, of the wrong type, called like a feature, and
    for keys or times that are null.
    """
    reader = LabelReader(source, service, timestamp)
    return labels_of(reader.conform(together(list(label_tables(source)))), reader)


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of several, which may differ where one has nothing but nulls. Raises DataError."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"The labels do not have the same columns throughout ({error}); write them alike.") from error


def labels_of(table: pa.Table, reader: LabelReader) -> Labels:
    """Labels in memory, from the one table that a reader has made conform."""
    columns = {field.name: to_column(field.dtype, table.column(field.name)) for field in reader.fields}
    as_of = columns.pop(reader.timestamp).values
    evidence = table.column(EVIDENCE_COLUMN).to_pylist() if EVIDENCE_COLUMN in table.column_names else None
    return Labels(table, columns, as_of, evidence, reader.digest, reader.path, reader.notes)


class LabelReader:
    """Makes tables of labels that follow each other conform to a service, and knows what is to be said of them all.

    `rows` is how many there were so far, `evidence` whether they have the column of evidence.
    """

    def __init__(self, source: Any, service: Service, timestamp: str) -> None:
        """`source` is where the labels come from, as given to `read_labels`."""
        self.timestamp = timestamp
        when = Field(timestamp, "UnixTimestamp")
        self.fields = tuple(dict.fromkeys((*service.keys, *service.request, when)))
        self.path = Path(source).resolve() if isinstance(source, str | Path) else None
        self._index = _index_names(source)
        self._service = service
        self._present = {*(field.name for field in service.keys), timestamp}
        self.rows = 0
        self.evidence = False
        self._schema: Any = None
        self._digest = TableDigest()
        self._naive: dict[str, None] = {}
        self._finer: Counter[str] = Counter()

    @property
    def digest(self) -> str:
        """Of all tables so far (`training.digests`)."""
        return self._digest.hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what was taken for granted."""
        naive = [f"Label column {name} has no time zone: its times were taken as UTC." for name in self._naive]
        finer = [
            f"Label column {name} is finer than a microsecond in {rows:,} rows: they were floored."
            for name, rows in self._finer.items()
        ]
        return (*naive, *finer)

    def conform(self, table: pa.Table) -> pa.Table:
        """The next labels with the dtypes that the service declares. Raises as `read_labels`."""
        # Neither metadata nor how the rows came in pieces may reach the exported file.
        table = pa.table([_one_chunk(column) for column in table.columns], names=table.column_names)
        _check_names(table, self._service, self.timestamp, self._index)
        for field in self.fields:
            at = table.column_names.index(field.name)
            array = _one_chunk(table.column(at))
            values = _conformed(field, array, self._service, self.rows)
            if field.name in self._present:
                _check_present(field.name, values, self.rows)
            self._note(field.name, array)
            table = table.set_column(at, pa.field(field.name, values.type), values)
        self.evidence = EVIDENCE_COLUMN in table.column_names
        if self.evidence:
            at = table.column_names.index(EVIDENCE_COLUMN)
            values = conform("String", _one_chunk(table.column(at)), EVIDENCE_COLUMN)
            _check_present(EVIDENCE_COLUMN, values, self.rows)
            table = table.set_column(at, pa.field(EVIDENCE_COLUMN, values.type), values)
        table = self._alike(table)
        self._digest.add(table)
        self.rows += table.num_rows
        return table

    def _alike(self, table: pa.Table) -> pa.Table:
        if self._schema is None:
            self._schema = table.schema
        try:
            return table.cast(self._schema)
        except (pa.ArrowException, ValueError) as error:
            raise DataError(
                f"The labels from row {self.rows:,} on do not have the columns of those before ({error}); write them alike."
            ) from error

    def _note(self, name: str, array: pa.Array) -> None:
        if pa.types.is_timestamp(array.type):
            if array.type.tz is None:
                self._naive[name] = None
            if array.type.unit == "ns":
                ticks = pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
                finer = int((ticks % 1000 != 0).sum())
                self._finer.update({name: finer} if finer else {})


def label_tables(source: Any) -> Iterator[pa.Table]:
    """The labels as they come, in their order, some at a time where they are not in memory; at least one table.

    Raises DataError for what is neither a frame nor a table nor Parquet.
    """
    if isinstance(source, str | Path):
        yield from _parquet(Path(source))
    elif isinstance(source, pa.Table):
        yield source
    elif isinstance(source, pd.DataFrame):
        yield _from_pandas(source)
    elif type(source).__module__.partition(".")[0] == "dask" and hasattr(source, "compute"):
        for number in range(source.npartitions):
            yield _from_pandas(source.get_partition(number).compute())
    else:
        raise DataError(
            f"Labels must be a pandas or Dask frame, a pyarrow Table or the path of Parquet, not {type(source).__name__}."
        )


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _parquet(path: Path) -> Iterator[pa.Table]:
    if not path.exists():
        raise DataError(f"There are no labels at {path}; give a Parquet file, or a folder of them.")
    try:
        found = ds.dataset(path, format="parquet", partitioning="hive")
        files = sorted(found.files)
        if not files:
            raise DataError(
                f"There are no labels in the folder {path}: it holds no Parquet file; write some with to_parquet."
            )
        _check_alike(found)
        ordered = ds.dataset(files, schema=found.schema, format="parquet", partitioning="hive")
        yield ordered.schema.empty_table()
        for batch in ordered.to_batches(batch_size=_BATCH_ROWS, batch_readahead=2, fragment_readahead=1):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        detail = str(error).splitlines()[0].rsplit("': ", 1)[-1].rstrip(".")  # Arrow names the file, some times over
        raise DataError(
            f"The labels at {path} are not Parquet that can be read ({detail}); write them with to_parquet."
        ) from error


def _check_alike(found: ds.FileSystemDataset) -> None:
    """Every file of a folder has the columns of the first: a column that only some have would be lost, or half null."""
    fragments = sorted(found.get_fragments(), key=lambda fragment: fragment.path)
    first = fragments[0].physical_schema.names
    for fragment in fragments[1:]:
        other = sorted(set(fragment.physical_schema.names) ^ set(first))
        if other:
            raise DataError(
                f"The label files {fragments[0].path} and {fragment.path} do not have the same columns: "
                f"only one of them has {', '.join(other)}; write both with the same columns."
            )


def _from_pandas(frame: pd.DataFrame) -> pa.Table:
    _check_once([str(name) for name in frame.columns])
    arrays = []
    for name in frame.columns:
        try:
            array = pa.array(frame[name], from_pandas=True)
        except (pa.ArrowException, OverflowError, ValueError) as error:
            kinds = frame[name].dropna().map(lambda item: type(item).__name__).value_counts()
            held = ", ".join(f"{kind} in {count:,}" for kind, count in kinds.items())
            raise DataError(
                f"Label column {name} mixes types or holds values that Arrow has no type for: {held} of {len(frame):,} "
                "rows; convert it to one type, or drop it from the labels."
            ) from error
        arrays.append(array)
    return pa.table(arrays, names=[str(name) for name in frame.columns])


def _index_names(source: Any) -> list[str]:
    index = getattr(source, "index", None)
    return [str(name) for name in getattr(index, "names", None) or [getattr(index, "name", None)] if name is not None]


def _check_once(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"The labels have more than one column {twice[0]!r}; rename or drop all but one.")


def _check_names(table: pa.Table, service: Service, timestamp: str, index: Sequence[str]) -> None:
    names = table.column_names
    _check_once(names)
    needed = (*service.keys, *service.request, Field(timestamp, "UnixTimestamp"))
    missing = [field for field in needed if field.name not in names]
    if missing:
        wanted = ", ".join(dict.fromkeys(f"{field.name} ({field.dtype})" for field in needed))
        remedy = "add it, or rename the column that holds it"
        if missing[0].name == timestamp:
            remedy = 'name the column of instants with timestamp="..." (--timestamp)'
        if missing[0].name in index:
            remedy = "it is in the frame's index: labels.reset_index() makes it a column"
        raise DataError(
            f"The labels have no column {missing[0].name!r}. Service {service.name} needs {wanted}; "
            f"the labels have {', '.join(names) or 'no columns'}; {remedy}."
        )
    features = {field.name for field in service.outputs}
    taken = [name for name in names if name in features]
    if taken:
        raise DataError(
            f"The label column {taken[0]!r} has the name of a feature of service {service.name}; "
            "rename or drop it, so that the training set has one column of that name."
        )


def _conformed(field: Field, array: pa.Array, service: Service, before: int) -> pa.Array:
    try:
        return conform(field.dtype, array, f"Label column {field.name}")
    except DataError as error:
        misfits = _misfits(field.dtype, array)
        first = f", first {_shown(array[misfits[0]])} in row {before + misfits[0]}" if len(misfits) else ""
        raise DataError(
            f"Label column {field.name} holds {array.type} values that do not fit {field.dtype}, which service "
            f"{service.name} reads there, in {len(misfits):,} of {before + len(array):,} rows{first}; "
            f"convert it, for example with {_REMEDIES[field.dtype].format(field.name)}."
        ) from error


def _misfits(dtype: Dtype, array: pa.Array) -> list[int]:
    """The rows whose values `conform` refuses: some of a number's or an instant's, all of another type's."""
    there = pc.is_valid(array)
    kind = array.type
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and dtype in ("Int64", "Int32"):
        back = array.cast(TYPES[dtype], safe=False).cast(kind, safe=False)
        there = pc.fill_null(pc.not_equal(back, array), False)
        if pa.types.is_uint64(kind):  # whose upper half wraps there and back
            there = pc.or_(there, pc.fill_null(pc.greater(array, pa.scalar(2**63 - 1, kind)), False))
    elif pa.types.is_timestamp(kind) and dtype == "UnixTimestamp":
        most = (2**63 - 1) // {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}[kind.unit]
        ticks = array.cast(pa.int64())
        there = pc.fill_null(pc.or_(pc.greater(ticks, most), pc.less(ticks, -most)), False)
    rows: list[int] = pc.indices_nonzero(there).to_pylist()
    return rows


def _shown(item: pa.Scalar) -> str:
    """A value as Python spells it; the number behind an instant that Python's datetimes do not reach."""
    return str(item.value) if pa.types.is_timestamp(item.type) else repr(item.as_py())


def _check_present(name: str, values: pa.Array, before: int) -> None:
    if values.null_count:
        first = before + int(pc.index(values.is_null(), True).as_py())
        raise DataError(
            f"Label column {name} is null in {values.null_count:,} of {before + len(values):,} rows, first in row {first}; "
            "every label needs its keys and its time: drop these rows or fill them in."
        )
