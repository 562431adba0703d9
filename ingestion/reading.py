"""The rows of a view, read from the offline table of its source."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.dataset as ds  # type: ignore[import-untyped, unused-ignore]
from deltalake import DeltaTable
from numpy.typing import NDArray

from ingestion.arrow import TYPES, to_column, to_columns
from ingestion.delta import between, count_rows, open_version, read_columns
from ingestion.messages import view_rows
from ingestion.offline import CREATE_TIME, LANDED_AT, OFFSET, ONLY_VIEW, PARTITION, checked
from tally.columns import Column
from tally.errors import NotReadyError
from tally.events import UNKNOWN_TIME, named_in
from tally.functions import Transformation, load, parameters
from tally.plan import Plan, Source, View


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
            checked(plan, source, table)
            function = None if view.function is None else load(view.function)
            wanted = {field.name for field in view.columns} | set(() if function is None else parameters(function))
            names = (PARTITION, OFFSET, CREATE_TIME, *(f.name for f in source.message if f.name in wanted))
            if count_rows(table, ds.field(CREATE_TIME).is_null()):
                names = (*names, LANDED_AT)
        else:
            _check_columns(source, view, table)
            function, names = None, tuple(field.name for field in view.columns)
        # An event function may move the time: then only its answer can be compared.
        condition = _between_or_null(view.timestamp, start, end) if function is None else None
        if source.topic:
            ours = ds.field(ONLY_VIEW).is_null() | ds.field(ONLY_VIEW).isin(named_in(plan.project, view.name))
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
        missing = count_rows(table, no_time)
        neither = count_rows(table, no_time & ds.field(LANDED_AT).is_null()) if missing else 0
        found = {
            "no CreateTime: when it had landed was taken": missing - neither,
            "no CreateTime and no time of landing: the event time was taken": neither,
        }
    elif view.created:
        missing = count_rows(table, ds.field(view.created).is_null())
        found = {f"no {view.created}: the event time was taken": missing}
    else:
        found = {"the source names no created column: the event time was taken": count_rows(table)}
    return {reason: count for reason, count in found.items() if count}


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


def _between_or_null(column: str, start: int | None, end: int | None) -> Any:
    # Rows without a time are refused, and counted, later.
    condition = between(column, start, end)
    return None if condition is None else condition | ds.field(column).is_null()


def _inside(timestamp: NDArray[np.int64], start: int | None, end: int | None) -> NDArray[np.bool_]:
    inside = np.ones(len(timestamp), np.bool_)
    if start is not None:
        inside &= timestamp >= start
    if end is not None:
        inside &= timestamp <= end
    return inside
