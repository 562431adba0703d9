"""Batch tables of the warehouse: rows as they are.

They are read from the greatest created time on (where there is none, event time), that instant included: rows that are there
already are recognised by all their values, so ties are neither lost nor doubled. Where the warehouse has another number of
older rows than the store, or lacks one that the store has at that instant, rows were added, changed or deleted behind the
watermark, and the table is read whole.
"""

# ruff: noqa: S608 - identifiers cannot be bound: they are quoted (`quoted`); every value is bound.

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time
from itertools import chain
from typing import Any, Final

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.compute as pc  # type: ignore[import-untyped, unused-ignore]
import pyarrow.dataset as ds  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray

from ingestion.arrow import INSTANT, schema_of
from ingestion.delta import read_columns
from ingestion.extraction import Extraction, Ingested, quoted
from ingestion.offline import Extracted, source_fields, source_hash
from tally.errors import DataError
from tally.plan import Field
from tally.time import instant, to_datetime

_BITS: Final = {INSTANT: pa.int64(), pa.float64(): pa.int64(), pa.float32(): pa.int32()}
"""As what values are compared: years that datetimes do not hold, and zeros with their signs."""
_AT_LEAST: Final = ">= CAST(? AS TIMESTAMP_NTZ)"
_AT_MOST: Final = "<= CAST(? AS TIMESTAMP_NTZ)"
"""Cast, for Snowflake would make a date of a text that it compares with dates."""


class _RowsAreGoneError(Exception):
    """The store has rows at the watermark, or without a time, that the warehouse has no more."""


@dataclass
class BatchTable(Extraction):
    """Rows of a warehouse table, as they are."""

    def run(self) -> Ingested:
        """Take what is new, in one commit."""
        try:
            return self._run()
        except _RowsAreGoneError:
            self.known, self.rows = None, 0
            return self._run()

    def _run(self) -> Ingested:
        fields = source_fields(self.plan, self.source)
        if not fields:
            raise DataError(
                f"Source {self.source.name} is used by no feature view, so there is nothing to extract; leave it out."
            )
        existing = self.column_names()
        names = [self.column(f.name, existing) for f in fields]
        clock_field = Field(self.source.created or self.source.timestamp, "UnixTimestamp")
        clock = self.column(clock_field.name, existing)
        if self.known is not None and self._differs_behind(clock, clock_field.name, self.known.instant):
            self.known = None
        since = None if self.known is None else self.known.instant
        where, values = (
            ("", []) if since is None else (f" WHERE {clock} {_AT_LEAST} OR {clock} IS NULL", [_literal(since)])
        )
        count, newest = self.query(f"SELECT COUNT(*), MAX({clock}) FROM {self.table_name}{where}", values)[0]
        until = since if newest is None else self._micros(newest, clock_field.name)
        knows = Extracted(source_hash(self.plan, self.source), {}, {}, until)
        columns = ", ".join(f"{name} AS {quoted(f.name)}" for name, f in zip(names, fields, strict=True))
        sql = f"SELECT {columns} FROM {self.table_name}"
        if until is not None:
            # Up to the instant that was seen: what comes meanwhile is the next run's.
            lower = "" if since is None else f"{clock} {_AT_LEAST} AND "
            sql += f" WHERE ({lower}{clock} {_AT_MOST}) OR {clock} IS NULL"
            values = [*values, _literal(until) + "999"]  # to the last nanosecond of that microsecond
        batches = self._fresh(self.slices(sql, values, fields), clock_field.name, since, int(count))
        if self.known is not None:
            first = next(batches, None)
            if first is None:
                assert self.table is not None
                return self._ingested(self.table.version(), until)
            batches = chain([first], batches)
        return self._ingested(self.write(schema_of(fields), batches, knows), until)

    def _ingested(self, version: int, until: int | None) -> Ingested:
        return Ingested(self.source.name, self.rows, 0, 0, version, until, self.known is None)

    def _micros(self, moment: Any, clock: str) -> int:
        if not isinstance(moment, date):
            raise DataError(
                f"Column {clock} of {self.table_name} holds {type(moment).__name__} values, which are no times, so what is new "
                f"cannot be told by it; give source {self.source.name} a column of timestamps or dates."
            )
        return instant(moment if isinstance(moment, datetime) else datetime.combine(moment, time()))

    def _differs_behind(self, clock: str, name: str, instant: int | None) -> bool:
        """Whether the warehouse has another number of rows before the watermark than the store."""
        if instant is None:
            return True
        assert self.table is not None
        sql = f"SELECT COUNT(*) FROM {self.table_name} WHERE {clock} < CAST(? AS TIMESTAMP_NTZ)"
        there = self.query(sql, [_literal(instant)])
        before = ds.field(name) < _scalar(instant)
        here = read_columns(self.table, [name], before).num_rows
        return bool(there[0][0] != here)

    def _fresh(self, pieces: Iterator[pa.Table], clock: str, since: int | None, total: int) -> Iterator[pa.RecordBatch]:
        """The pieces without the rows at the watermark, or without a time, that are here already, each as often as it is."""
        here = self._rows_here(clock, since)
        done = 0
        for piece in pieces:
            done += piece.num_rows
            if since is not None:
                unsure = _at_or_null(piece.column(clock), since)
                if unsure.any():
                    piece = piece.filter(pa.array(~_already(piece, unsure, here)))
            self.rows += piece.num_rows
            yield from piece.combine_chunks().to_batches()
            self.progress(self.source.name, done, total)
        if here.total():
            raise _RowsAreGoneError

    def _rows_here(self, clock: str, since: int | None) -> Counter[tuple[Any, ...]]:
        if since is None:
            return Counter()
        assert self.table is not None
        names = [field.name for field in source_fields(self.plan, self.source)]
        at = (ds.field(clock) == _scalar(since)) | ds.field(clock).is_null()
        return Counter(_tuples(read_columns(self.table, names, at)))


def _scalar(micros: int) -> Any:
    return pa.scalar(micros, pa.int64()).cast(INSTANT)


def _literal(micros: int) -> str:
    """An instant as text that Snowflake reads as a timestamp of any kind in a session whose time zone is UTC."""
    return to_datetime(micros).replace(tzinfo=None).isoformat(" ", "microseconds")


def _at_or_null(clock: pa.ChunkedArray, since: int) -> NDArray[np.bool_]:
    ticks = clock.cast(pa.int64())
    unsure: NDArray[np.bool_] = pc.fill_null(pc.equal(ticks, since), True).to_numpy()
    return unsure


def _already(piece: pa.Table, unsure: NDArray[np.bool_], here: Counter[tuple[Any, ...]]) -> NDArray[np.bool_]:
    """Which of the unsure rows are in `here`; each takes one away there."""
    already = np.zeros(piece.num_rows, np.bool_)
    positions = np.flatnonzero(unsure)
    for position, row in zip(positions.tolist(), _tuples(piece.take(positions)), strict=True):
        if here[row] > 0:
            here[row] -= 1
            already[position] = True
    return already


def _tuples(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    columns = [c.combine_chunks().view(_BITS.get(c.type, c.type)) for c in table.columns]
    return zip(*(column.to_pylist() for column in columns), strict=True)
