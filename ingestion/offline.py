"""The offline store: one Delta table per source, and the rows of a view read from it.

Landing tables (sources with a topic) are kept decoded: who the event is (`_partition`, `_offset`), when it came
(`_create_time`, `_landed_at`), the view that it is for where it is for one only (`_only_view`, see `tally.events.FOR_VIEW`), and the message's fields with
their types. Messages that do not decode lie beside them in
``<source>__rejected``, with their reasons. Batch tables hold the typed columns that the views need.

Each commit carries what the extraction knew: its watermark, and a hash of what the rows were decoded as.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.dataset as ds  # type: ignore[import-untyped, unused-ignore]
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from numpy.typing import NDArray

from ingestion.arrow import INSTANT, TYPES, to_column, to_columns
from ingestion.gather import gathered
from ingestion.messages import view_rows
from tally.columns import Column
from tally.errors import DataError, NotReadyError, UnavailableError
from tally.events import UNKNOWN_TIME
from tally.functions import Transformation, load, parameters
from tally.plan import Field, Plan, Source, View, digest
from tally.time import from_datetime, to_datetime

PARTITION: Final = "_partition"
OFFSET: Final = "_offset"
CREATE_TIME: Final = "_create_time"
LANDED_AT: Final = "_landed_at"
ONLY_VIEW: Final = "_only_view"
IDENTITY: Final = pa.schema(
    [
        pa.field("_topic", pa.string()),
        pa.field(PARTITION, pa.int32()),
        pa.field(OFFSET, pa.int64()),
        pa.field(CREATE_TIME, INSTANT),
        pa.field(LANDED_AT, INSTANT),
        pa.field(ONLY_VIEW, pa.string()),
    ]
)
"""Columns that say which event a landed row is, and when it came."""
REJECTED: Final = pa.schema([*IDENTITY, pa.field("content", pa.binary()), pa.field("reason", pa.string())])
METADATA_KEY: Final = "tally"
_THREADS: Final = 4
# delta-rs blocks a thread of its runtime while it waits for a batch, and what makes the batch may read and write tables too.
# The runtime, made when the first table is used, has a thread for each core: on a machine with one core that would be for ever.
os.environ.setdefault("TOKIO_WORKER_THREADS", str(max(_THREADS, os.cpu_count() or 1)))
_WRITER: Final = "tally-ingest"


@dataclass(frozen=True)
class Rows:
    """All rows of one view, after the event function and refusals, in no particular order.

    `columns` are `View.columns`; `timestamp` (µs), `a`, `b` and `arrival` (µs) have shape (n,). (a, b) break ties:
    (partition, offset) for stream rows, (created in µs or 0, 0) for warehouse rows. `arrival` is when a row became visible
    online, as far as it is known (`unknown_arrivals`): Kafka's CreateTime for stream rows, or when it had landed in the
    warehouse; `created` for warehouse rows; where there is neither, the event timestamp.
    `refused` counts rows that were left out, by reason; `version` is the version of the Delta table that was read.
    """

    columns: dict[str, Column]
    timestamp: NDArray[np.int64]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    arrival: NDArray[np.int64]
    refused: dict[str, int]
    version: int

    def take(self, positions: NDArray[np.int64]) -> Rows:
        """The rows at `positions`."""
        return Rows(
            {name: column.take(positions) for name, column in self.columns.items()},
            self.timestamp[positions],
            self.a[positions],
            self.b[positions],
            self.arrival[positions],
            self.refused,
            self.version,
        )


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a commit says of the extraction that made it.

    `schema_hash` is `source_hash` of the definitions in use. For landing tables `offsets` is the greatest offset landed
    per partition (bad messages included), and `landed` the number of rows that the warehouse had up to there, so that rows
    which land late are noticed. For batch tables `instant` is the greatest created or event time (µs), None without any.
    """

    schema_hash: str
    offsets: dict[int, int]
    landed: dict[int, int]
    instant: int | None

    def to_metadata(self) -> dict[str, str]:
        """As the custom metadata of a commit."""
        return {METADATA_KEY: json.dumps(asdict(self))}

    @staticmethod
    def from_metadata(text: str) -> Extracted:
        """From the text that `to_metadata` made."""
        document = json.loads(text)
        offsets, landed = ({int(k): v for k, v in document[name].items()} for name in ("offsets", "landed"))
        return Extracted(document["schema_hash"], offsets, landed, document["instant"])


def table_uri(offline_uri: str, name: str) -> str:
    """Where the table of a source is."""
    return f"{offline_uri.rstrip('/')}/{name}"


def rejected_name(source: Source) -> str:
    """The table of a source's messages that do not decode."""
    return f"{source.name}__rejected"


def source_fields(plan: Plan, source: Source) -> tuple[Field, ...]:
    """The typed columns that are kept of a source: its message's fields, or what its batch views need, by name.

    Raises DataError when two views give one column different dtypes.
    """
    if source.topic:
        return source.message
    dtypes: dict[str, tuple[Any, str]] = {}
    for view in plan.views:
        if view.source != source.name:
            continue
        for field in view.columns:
            dtype, owner = dtypes.setdefault(field.name, (field.dtype, view.name))
            if dtype != field.dtype:
                raise DataError(
                    f"Column {field.name} of {source.table} is {dtype} in {owner} and {field.dtype} in {view.name}; "
                    "give it one dtype in both feature views."
                )
    return tuple(Field(name, dtype) for name, (dtype, _) in sorted(dtypes.items()))


def source_hash(plan: Plan, source: Source) -> str:
    """Hash of what a source's rows are decoded as: rows that are kept under another hash must be extracted again."""
    fields = [[field.name, field.dtype] for field in source_fields(plan, source)]
    return digest([fields, source.topic, source.timestamp, source.created, IDENTITY.names, asdict(source.encoding)])


def open_table(offline_uri: str, name: str) -> DeltaTable | None:
    """The latest version of a table, or None when there is none. Raises UnavailableError when the store cannot be read."""
    try:
        return DeltaTable(table_uri(offline_uri, name))
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        raise UnavailableError(
            f"The offline table {table_uri(offline_uri, name)} cannot be read ({error}); check TALLY_OFFLINE_URI."
        ) from error


def open_version(offline_uri: str, name: str, version: int | None) -> DeltaTable:
    """A source's table at `version` (None: the latest).

    Raises NotReadyError when the source was never ingested, DataError when it has no such version.
    """
    table = open_table(offline_uri, name)
    if table is None:
        raise NotReadyError(
            f"Source {name} has no offline table at {table_uri(offline_uri, name)}; run: tally ingest {name}"
        )
    newest = table.version()
    if version is None or version == newest:
        return table
    if not 0 <= version < newest:
        raise DataError(f"Offline table {name} has versions 0 to {newest}, not {version}; choose one of these.")
    try:
        table.load_as_version(version)
    except DeltaError as error:
        raise DataError(f"Version {version} of offline table {name} is no longer kept ({error}).") from error
    return table


def version_at(offline_uri: str, name: str, instant: int) -> int:
    """The version that a source's table had at `instant` (µs): the newest that was committed at or before it.

    Raises NotReadyError when the source was never ingested, DataError when the table is younger or its log does not
    reach back that far.
    """
    commits = open_version(offline_uri, name, None).history()
    at_or_before = [commit["version"] for commit in commits if commit["timestamp"] * 1000 <= instant]
    if at_or_before:
        return int(max(at_or_before))
    first = min(commit["timestamp"] for commit in commits)
    raise DataError(
        f"Offline table {name} has no version as old as {to_datetime(instant).isoformat()}; the oldest that is known was "
        f"committed at {to_datetime(first * 1000).isoformat()}: choose a later instant."
    )


def table_identity(offline_uri: str, name: str) -> str:
    """What tells a source's table from one that was made anew in its place. Raises NotReadyError without a table."""
    return str(open_version(offline_uri, name, None).metadata().id)


def extracted(table: DeltaTable, name: str) -> Extracted:
    """What the last extraction into this version of the table knew. Raises NotReadyError when no commit says."""
    # The newest table's history: delta-rs numbers that of an older version wrongly. The newest commit comes first.
    for commit in DeltaTable(table.table_uri).history():
        if commit["version"] <= table.version() and METADATA_KEY in commit:
            return Extracted.from_metadata(commit[METADATA_KEY])
    raise NotReadyError(
        f"No commit of offline table {name} carries an extraction's watermark; run: tally ingest --full {name}"
    )


def write_table(
    offline_uri: str,
    name: str,
    table: DeltaTable | None,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    *,
    overwrite: bool,
    metadata: dict[str, str],
) -> int:
    """Append `batches` to `table` (None: make it), or replace its rows, in one commit; the version that this made.

    Batches are written as they come, so memory stays bounded. What `batches` raises is raised here, and nothing is
    committed then, nor when another writer committed after `table` was opened (UnavailableError: run again).
    """
    raised: list[BaseException] = []

    def watched() -> Iterator[pa.RecordBatch]:
        try:
            yield from _one_ahead(batches)
        except BaseException as error:
            raised.append(error)  # delta-rs would hide it in an error of its own
            raise

    uri = table_uri(offline_uri, name)
    run = -1 if table is None else table.transaction_version(_WRITER)
    replaced = overwrite and table is not None
    try:
        write_deltalake(
            uri if table is None else table,
            pa.RecordBatchReader.from_batches(schema, watched()),
            mode="error" if table is None else "overwrite" if replaced else "append",
            schema_mode="overwrite" if replaced else None,
            commit_properties=CommitProperties(
                custom_metadata=metadata,
                app_transactions=[Transaction(_WRITER, 0 if run is None else run + 1)],
            ),
        )
    except Exception as error:
        if raised:  # on one core delta-rs raises a plain Exception then
            raise raised[0] from None
        if not isinstance(error, (DeltaError, OSError)):
            raise
        if isinstance(error, CommitFailedError):
            raise UnavailableError(
                f"Offline table {name} was written by another extraction at the same time, so this one changed nothing; "
                f"run again: tally ingest {name}"
            ) from error
        raise UnavailableError(
            f"The offline table {uri} cannot be written ({error}); check TALLY_OFFLINE_URI."
        ) from error
    return DeltaTable(uri).version()


def _one_ahead(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches, made in a thread of their own while the one before is used.

    delta-rs asks for them from inside its runtime, where no other Delta table can be read or written; that thread can.
    """
    iterator = iter(batches)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield batch


def high_watermarks(plan: Plan, source: Source, offline_uri: str, version: int | None = None) -> dict[int, int]:
    """Partition -> greatest offset landed (bad messages included) in a landing table, at `version`.

    Raises NotReadyError when it was never ingested, or under another definition of the message.
    """
    table = open_version(offline_uri, source.name, version)
    return _checked(plan, source, table).offsets


def read_rows(
    plan: Plan,
    view: View,
    offline_uri: str,
    *,
    version: int | None = None,
    start: int | None = None,
    end: int | None = None,
) -> Rows:
    """The rows of `view` whose event timestamp lies in `start..end` (µs, both inclusive; None: no bound).

    `version` is a version of the source's Delta table (None: the latest). Reads only the columns that the view needs, and
    prunes files by time where the event function cannot change it; rows out of the range are then not counted as refused.
    Raises NotReadyError when the source was never ingested or under another definition, DataError for an unknown version.
    """
    reading = Reading.of(plan, view, open_version(offline_uri, view.source, version), start, end)
    data = read_columns(reading.table, reading.columns, reading.condition)
    if reading.events:
        once = first_of_each(*_identity(data))
        data = data if once is None else data.take(once)
    rows, refused = reading.decode(data)
    return dataclasses.replace(rows, refused=refused.counts())


@dataclass(frozen=True, slots=True)
class Refused:
    """Rows that were left out: (a, b) of each, as in `Rows`, and why."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    reasons: NDArray[np.object_]

    def counts(self) -> dict[str, int]:
        """How many rows were left out, by reason."""
        return dict(sorted(Counter(self.reasons.tolist()).items()))


@dataclass(frozen=True)
class Reading:
    """How the rows of a view are read from a version of its source's table.

    `columns` are needed of it, `condition` (a pyarrow expression, or None) holds for the rows that can matter. Where
    `events` is True, rows with one (a, b) are one event that was delivered more than once.
    """

    plan: Plan
    view: View
    table: DeltaTable
    columns: tuple[str, ...]
    condition: Any
    events: bool
    function: Transformation | None
    start: int | None
    end: int | None

    @staticmethod
    def of(plan: Plan, view: View, table: DeltaTable, start: int | None, end: int | None) -> Reading:
        """The reading of the rows with event timestamps in `start..end`; see `read_rows` for what it raises."""
        source = plan.source(view.source)
        names: tuple[str, ...]
        if source.topic:
            _checked(plan, source, table)
            function = None if view.function is None else load(view.function)
            wanted = {field.name for field in view.columns} | set(() if function is None else parameters(function))
            names = (PARTITION, OFFSET, CREATE_TIME, *(f.name for f in source.message if f.name in wanted))
            if _count(table, ds.field(CREATE_TIME).is_null()):
                names = (*names, LANDED_AT)
        else:
            _check_columns(source, view, table)
            function, names = None, tuple(field.name for field in view.columns)
        # An event function may move the time: then only its answer can be compared.
        condition = _between_or_null(view.timestamp, start, end) if function is None else None
        if source.topic:
            ours = ds.field(ONLY_VIEW).is_null() | (ds.field(ONLY_VIEW) == view.name)
            condition = ours if condition is None else condition & ours
        return Reading(plan, view, table, names, condition, bool(source.topic), function, start, end)

    def decode(self, data: pa.Table) -> tuple[Rows, Refused]:
        """The rows of the view that `data` (these columns of the table) holds, and those that were left out.

        `Rows.refused` is empty: one event may be refused in several pieces of a table, and counts once.
        """
        if self.events:
            fields = [field for field in self.plan.source(self.view.source).message if field.name in self.columns]
            a, b = _identity(data)
            landed = to_column("UnixTimestamp", data.column(CREATE_TIME))
            created: Column | None = landed
            made = np.where(landed.valid, landed.values, UNKNOWN_TIME)
            if LANDED_AT in self.columns:
                created = _either(landed, to_column("UnixTimestamp", data.column(LANDED_AT)))
        else:
            fields = list(self.view.columns)
            made = None
        columns, accepted, reasons = view_rows(self.view, self.function, to_columns(fields, data), data.num_rows, made)
        timestamp = columns[self.view.timestamp].values
        if not self.events:
            b = np.zeros(len(timestamp), np.int64)
            created = columns[self.view.created] if self.view.created else None
            a = b if created is None else created.values
        arrival = timestamp if created is None else np.where(created.valid, created.values, timestamp)
        bad = np.array(list(reasons), np.int64)
        refused = Refused(a[bad], b[bad], np.array(list(reasons.values()), object))
        if self.function is not None:
            accepted &= _inside(timestamp, self.start, self.end)
        if not accepted.all():
            kept = np.flatnonzero(accepted)
            columns = {name: column.take(kept) for name, column in columns.items()}
            timestamp, a, b, arrival = timestamp[kept], a[kept], b[kept], arrival[kept]
        return Rows(columns, timestamp, a, b, arrival, {}, self.table.version()), refused


def unknown_arrivals(plan: Plan, view: View, table: DeltaTable) -> dict[str, int]:
    """How many rows of a version of the source's table do not say when they became visible, by what was taken instead."""
    if plan.source(view.source).topic:
        no_time = ds.field(CREATE_TIME).is_null()
        missing = _count(table, no_time)
        neither = _count(table, no_time & ds.field(LANDED_AT).is_null()) if missing else 0
        found = {
            "no CreateTime: when it had landed was taken": missing - neither,
            "no CreateTime and no time of landing: the event time was taken": neither,
        }
    elif view.created:
        missing = _count(table, ds.field(view.created).is_null())
        found = {f"no {view.created}: the event time was taken": missing}
    else:
        found = {"the source names no created column: the event time was taken": _count(table, None)}
    return {reason: count for reason, count in found.items() if count}


def _count(table: DeltaTable, condition: Any) -> int:
    try:
        return int(table.to_pyarrow_dataset().count_rows(filter=condition))
    except (DeltaError, OSError) as error:
        raise UnavailableError(f"The offline table {table.table_uri} cannot be read ({error}).") from error


def _either(one: Column, other: Column) -> Column:
    """`one`, and where it is null `other`."""
    return Column(one.dtype, np.where(one.valid, one.values, other.values), one.valid | other.valid)


def _identity(data: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return data.column(PARTITION).to_numpy().astype(np.int64), data.column(OFFSET).to_numpy()


def _check_columns(source: Source, view: View, table: DeltaTable) -> None:
    kept = {field.name: field.type for field in pa.schema(table.schema().to_arrow())}
    for field in view.columns:
        if kept.get(field.name) != TYPES[field.dtype]:
            raise NotReadyError(
                f"Offline table {source.name} (version {table.version()}) has no column {field.name} of dtype "
                f"{field.dtype}, which {view.name} needs; run: tally ingest --full {source.name}"
            )


def rows_table(
    uri: str, columns: Sequence[str], timestamp: str, start: datetime | None, end: datetime | None
) -> pa.Table:
    """The raw `columns` of the table at `uri` whose `timestamp` lies in `start..end`, both inclusive; None: no bound.

    Rows without a timestamp are left out where there is a bound. Raises NotReadyError when there is no such table.
    """
    root, _, name = uri.rstrip("/").rpartition("/")
    bounds = [None if moment is None else from_datetime(moment) for moment in (start, end)]
    return read_columns(open_version(root, name, None), columns, _between(timestamp, bounds[0], bounds[1]))


def first_of_each(partition: NDArray[np.int64], offset: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Positions, rising, of one row for each (partition, offset); None when no pair occurs twice."""
    if len(offset) == 0:
        return None
    first = int(offset.min())
    span = int(offset.max()) - first + 1
    if (int(partition.max()) + 1) * span < 2**63:  # one number each, which sorts several times faster than two
        numbers = partition * span + (offset - first)
        numbers.sort()
        if not (numbers[1:] == numbers[:-1]).any():
            return None
    order = np.lexsort((offset, partition))
    again = (np.diff(partition[order]) == 0) & (np.diff(offset[order]) == 0)
    return np.delete(np.arange(len(order)), order[1:][again]) if again.any() else None


def _checked(plan: Plan, source: Source, table: DeltaTable) -> Extracted:
    known = extracted(table, source.name)
    if known.schema_hash != source_hash(plan, source):
        raise NotReadyError(
            f"Offline table {source.name} (version {table.version()}) was extracted under another definition of its "
            f"message; run: tally ingest --full {source.name}"
        )
    return known


def read_columns(table: DeltaTable, columns: Iterable[str], condition: Any = None) -> pa.Table:
    """These columns of the rows for which `condition` (a pyarrow expression) holds. Raises UnavailableError."""
    try:
        dataset = table.to_pyarrow_dataset()
        at_most = sum(fragment.count_rows() for fragment in dataset.get_fragments(filter=condition))
        # Little is read ahead: what is read is copied at once, and its memory is used again for what is read next.
        scanner = dataset.scanner(columns=list(columns), filter=condition, batch_readahead=2, fragment_readahead=1)
        return gathered(scanner.projected_schema, scanner.to_batches(), at_most)
    except (DeltaError, OSError) as error:
        raise UnavailableError(f"The offline table {table.table_uri} cannot be read ({error}).") from error


def _between(column: str, start: int | None, end: int | None) -> Any:
    """The condition for a time in `start..end` (µs, inclusive); None without bounds."""
    condition = None
    if start is not None:
        condition = ds.field(column) >= pa.scalar(start, pa.int64()).cast(INSTANT)
    if end is not None:
        upper = ds.field(column) <= pa.scalar(end, pa.int64()).cast(INSTANT)
        condition = upper if condition is None else condition & upper
    return condition


def _between_or_null(column: str, start: int | None, end: int | None) -> Any:
    # Rows without a time are refused, and counted, later.
    condition = _between(column, start, end)
    return None if condition is None else condition | ds.field(column).is_null()


def _inside(timestamp: NDArray[np.int64], start: int | None, end: int | None) -> NDArray[np.bool_]:
    inside = np.ones(len(timestamp), np.bool_)
    if start is not None:
        inside &= timestamp >= start
    if end is not None:
        inside &= timestamp <= end
    return inside
