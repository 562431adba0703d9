"""Extraction: Snowflake tables to the offline store, a little at a time, losing and doubling nothing.

Landing tables (as Snowflake's Kafka connector makes them) are read beyond the greatest offset landed per partition. The
connector may land an older offset late, or one twice: rows up to the watermark are counted, and a partition whose count has
grown is read again and held against what is there; (partition, offset) decides what is the same event.

Batch tables are read from the greatest created time on (where there is none, event time), that instant included: rows that
are there already are recognised by all their values, so ties are neither lost nor doubled. Where the warehouse has another
number of older rows than the store, rows were added or deleted behind the watermark, and the table is read whole.
"""
# ruff: noqa: S608 - identifiers cannot be bound: they are quoted (`quoted`); every value is bound.

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, time
from functools import cached_property
from itertools import chain
from typing import Any, Final

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.compute as pc  # type: ignore[import-untyped, unused-ignore]
import pyarrow.dataset as ds  # type: ignore[import-untyped, unused-ignore]
import snowflake.connector
from deltalake import DeltaTable
from numpy.typing import NDArray

from ingestion.arrow import INSTANT, conform, schema_of
from ingestion.decoding import Decoder, from_landing
from ingestion.delta import open_table, read_columns, write_table
from ingestion.offline import (
    IDENTITY,
    OFFSET,
    PARTITION,
    REJECTED,
    Extracted,
    extracted,
    rejected_name,
    source_fields,
    source_hash,
)
from tally.errors import DataError, NotReadyError, UnavailableError
from tally.events import FOR_VIEW
from tally.plan import Field, Plan, Source
from tally.time import instant, to_datetime

Progress = Callable[[str, int, int | None], None]
"""(source, rows done, rows in all or None where that is not known)."""

_SLICE: Final = 50_000
_NO_SUCH_OBJECT: Final = 2003
_PARTITION: Final = '"RECORD_METADATA":"partition"::int'
_OFFSET: Final = '"RECORD_METADATA":"offset"::bigint'
_TOPIC: Final = '"RECORD_METADATA":"topic"::varchar'
_FOR_VIEW: Final = f'"RECORD_METADATA":"headers"."{FOR_VIEW}"::varchar'


@dataclass(frozen=True, slots=True)
class Ingested:
    """What one run did to one source.

    `rows` were added, `rejected` messages put aside with their reasons, `duplicates` are events that lay in the landing
    table more than once. `version` is the offline table's. `watermark` is the greatest offset per partition (landing
    tables), or the greatest created or event time in µs. `whole` says that the table was read from the beginning.
    """

    source: str
    rows: int
    rejected: int
    duplicates: int
    version: int
    watermark: dict[int, int] | int | None
    whole: bool


def ingest(
    plan: Plan,
    source_names: Sequence[str] | None,
    connect_args: Mapping[str, Any],
    offline_uri: str,
    *,
    full: bool = False,
    progress: Progress | None = None,
) -> list[Ingested]:
    """Bring what is new in these sources' tables (None: all) into the offline store; one commit for each source.

    `connect_args` are those of `snowflake.connector.connect` (`Settings.snowflake_connect_args()`). `full` reads whole
    tables and replaces what is kept; earlier versions stay readable. A run that fails leaves its source as it was.
    Raises DataError for a missing table or column or a type that does not fit, NotReadyError when the definitions have
    changed since the last run (then `full` is needed), UnavailableError when Snowflake or the store cannot be reached.
    """
    names = [source.name for source in plan.sources] if source_names is None else source_names
    sources = [plan.source(name) for name in names]
    report = progress or (lambda _source, _done, _total: None)
    with closing(_connect(connect_args)) as connection:
        return [_ingest_one(connection, plan, source, offline_uri, report, full=full) for source in sources]


def _connect(connect_args: Mapping[str, Any]) -> Any:
    try:
        return snowflake.connector.connect(**connect_args)
    except snowflake.connector.errors.Error as error:
        account = connect_args.get("account", "")
        raise UnavailableError(
            f"Snowflake account {account!r} cannot be reached ({error.msg}); check SNOWFLAKE_ACCOUNT and its companions."
        ) from error
    except (OSError, ValueError, TypeError) as error:  # of the key file: absent, of another form, another passphrase
        key = connect_args.get("private_key_file")
        if key is None:
            raise
        raise UnavailableError(
            f"The private key {key} cannot be used ({error}); check SNOWFLAKE_PRIVATE_KEY_FILE (PKCS 8 in PEM) and "
            "SNOWFLAKE_PRIVATE_KEY_PASSPHRASE."
        ) from error


def _ingest_one(
    connection: Any, plan: Plan, source: Source, offline_uri: str, progress: Progress, *, full: bool
) -> Ingested:
    table = open_table(offline_uri, source.name)
    known = None if table is None or full else extracted(table, source.name)
    if known is not None and known.schema_hash != source_hash(plan, source):
        raise NotReadyError(
            f"Source {source.name} was extracted under other definitions (columns or dtypes have changed); "
            f"run: tally ingest --full {source.name}"
        )
    kind = _Landing if source.topic else _Batch
    return kind(connection, plan, source, offline_uri, table, known, progress).run()


@dataclass
class _Extraction:
    """One run for one source. `known` is what the run before knew, None: read the table whole."""

    connection: Any
    plan: Plan
    source: Source
    offline_uri: str
    table: DeltaTable | None
    known: Extracted | None
    progress: Progress
    rows: int = 0

    @property
    def table_name(self) -> str:
        """The table as SQL names it: quoted, exactly as given."""
        parts = (self.source.database, self.source.schema, self.source.table)
        return ".".join(quoted(part) for part in parts if part)

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a small result."""
        with self._asking() as cursor:
            return list(cursor.execute(sql, tuple(values)).fetchall())

    def slices(self, sql: str, values: Sequence[Any], fields: Sequence[Field]) -> Iterator[pa.Table]:
        """A large result as tables of at most `_SLICE` rows, its columns as `fields`."""
        with self._asking() as cursor:
            cursor.execute(sql, tuple(values))
            for batch in cursor.fetch_arrow_batches():
                for start in range(0, batch.num_rows, _SLICE):
                    piece = batch.slice(start, _SLICE).combine_chunks()
                    arrays = [
                        conform(f.dtype, piece.column(i).combine_chunks(), f"Column {f.name} of {self.table_name}")
                        for i, f in enumerate(fields)
                    ]
                    yield pa.Table.from_arrays(arrays, schema=schema_of(fields))

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        try:
            with self.connection.cursor() as cursor:
                yield cursor
        except snowflake.connector.errors.ProgrammingError as error:
            if error.errno == _NO_SUCH_OBJECT:
                raise DataError(
                    f"Source {self.source.name}: Snowflake has no table {self.table_name} that this role may read; check its "
                    "name (as quoted here, letter case matters), and SNOWFLAKE_DATABASE and SNOWFLAKE_SCHEMA."
                ) from error
            raise DataError(f"Source {self.source.name}: Snowflake refused a query: {error.msg}") from error
        except snowflake.connector.errors.Error as error:
            raise UnavailableError(
                f"Snowflake failed while {self.table_name} was read ({error.msg}); nothing was changed, run it again."
            ) from error

    def column_names(self) -> list[str]:
        """Names of the table's columns."""
        with self._asking() as cursor:
            cursor.execute(f"SELECT * FROM {self.table_name} LIMIT 0")
            return [column.name for column in cursor.description]

    def column(self, name: str, existing: Sequence[str]) -> str:
        """A column as SQL names it: with that spelling, or the only one that differs in letter case."""
        found = [name] if name in existing else [e for e in existing if e.upper() == name.upper()]
        if len(found) != 1:
            raise DataError(
                f"Table {self.table_name} has no column {name}, which source {self.source.name} needs; "
                f"it has {', '.join(existing)}."
            )
        return quoted(found[0])

    def write(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch], knows: Extracted) -> int:
        """Commit `batches`, with what is known once they are in."""
        return write_table(
            self.offline_uri,
            self.source.name,
            self.table,
            schema,
            batches,
            overwrite=self.known is None,
            metadata=knows.to_metadata(),
        )


@dataclass
class _Landing(_Extraction):
    """Messages: decoded, each event once."""

    duplicates: int = 0
    rejected: list[pa.RecordBatch] = field(default_factory=list)

    @cached_property
    def _decode(self) -> Decoder:
        return from_landing(self.source)

    def run(self) -> Ingested:
        existing = self.column_names()
        for name in ("RECORD_METADATA", "RECORD_CONTENT"):
            self.column(name, existing)
        old = self.known or Extracted("", {}, {}, None)
        fresh, behind, newest = self._count(old)
        late = [partition for partition, count in behind.items() if count > old.landed.get(partition, 0)]
        offsets = old.offsets | newest
        landed = {p: behind.get(p, 0) + fresh.get(p, 0) for p in offsets}
        knows = Extracted(source_hash(self.plan, self.source), offsets, landed, None)
        total = sum(fresh.values()) + sum(behind[partition] for partition in late)
        if self.table is not None and self.known is not None and total == 0:
            return self._ingested(self.table.version(), offsets)
        schema = pa.schema([*IDENTITY, *schema_of(self.source.message)])
        version = self.write(schema, self._batches(old, offsets, late, total), knows)
        return self._ingested(version, offsets)

    def _ingested(self, version: int, offsets: dict[int, int]) -> Ingested:
        rejected = sum(batch.num_rows for batch in self.rejected)
        return Ingested(self.source.name, self.rows, rejected, self.duplicates, version, offsets, self.known is None)

    def _count(self, old: Extracted) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
        """(rows beyond the watermark, rows up to it, greatest offset beyond it) per partition."""
        watermark, values = _case(old.offsets)
        sql = (
            f'SELECT {_PARTITION} AS "p", {_OFFSET} > {watermark} AS "fresh", COUNT(*) AS "n", MAX({_OFFSET}) AS "last" '
            f"FROM {self.table_name} WHERE {_TOPIC} = %s GROUP BY 1, 2"
        )
        fresh: dict[int, int] = {}
        behind: dict[int, int] = {}
        newest: dict[int, int] = {}
        for partition, is_fresh, count, last in self.query(sql, (*values, self.source.topic)):
            if partition is None or last is None:
                raise DataError(
                    f"{count} rows of {self.table_name} have no partition or no offset in RECORD_METADATA, so the same event "
                    "could not be told from another; delete them, or have the connector write its metadata."
                )
            (fresh if is_fresh else behind)[int(partition)] = int(count)
            if is_fresh:
                newest[int(partition)] = int(last)
        return fresh, behind, newest

    def _batches(
        self, old: Extracted, offsets: dict[int, int], late: Sequence[int], total: int
    ) -> Iterator[pa.RecordBatch]:
        # Up to the offsets that were counted: what lands meanwhile is the next run's.
        lower, lower_values = _case(old.offsets)
        upper, upper_values = _case(offsets)
        again = f" OR {_PARTITION} IN ({', '.join(['%s'] * len(late))})" if late else ""
        sql = (
            f'SELECT {_PARTITION} AS "p", {_OFFSET} AS "o", '
            'COALESCE("RECORD_METADATA":"CreateTime"::bigint, "RECORD_METADATA":"LogAppendTime"::bigint) AS "c", '
            '"RECORD_METADATA":"SnowflakeConnectorPushTime"::bigint AS "l", '
            f'{_FOR_VIEW} AS "v", TO_JSON("RECORD_CONTENT") AS "content" '
            f"FROM {self.table_name} WHERE {_TOPIC} = %s AND {_OFFSET} <= {upper} "
            f"AND ({_OFFSET} > {lower}{again}) ORDER BY 1, 2"
        )
        numbers = tuple(Field(name, "Int64") for name in ("p", "o", "c", "l"))
        fields = (*numbers, Field("v", "String"), Field("content", "String"))
        here = {partition: self._offsets_here(partition) for partition in late}
        done = 0
        last = (-1, -1)
        for piece in self.slices(sql, (self.source.topic, *upper_values, *lower_values, *late), fields):
            done += piece.num_rows
            partition, offset = (piece.column(name).to_numpy() for name in ("p", "o"))
            repeated = _repeats(partition, offset, last)
            self.duplicates += int(repeated.sum())
            last = (int(partition[-1]), int(offset[-1]))
            kept = ~repeated
            for one, known in here.items():
                kept &= ~((partition == one) & (offset <= old.offsets[one]) & np.isin(offset, known))
            yield from self._decoded(piece.filter(pa.array(kept)))
            self.progress(self.source.name, done, total)
        self._put_aside()

    def _offsets_here(self, partition: int) -> NDArray[np.int64]:
        assert self.table is not None
        condition = ds.field(PARTITION) == partition
        found = read_columns(self.table, [OFFSET], condition).column(OFFSET).to_numpy()
        rejects = open_table(self.offline_uri, rejected_name(self.source))
        if rejects is None:
            return np.asarray(found, np.int64)
        return np.concatenate([found, read_columns(rejects, [OFFSET], condition).column(OFFSET).to_numpy()])

    def _decoded(self, piece: pa.Table) -> Iterator[pa.RecordBatch]:
        contents = piece.column("content").combine_chunks().cast(pa.binary())
        decoded, rows, bad = self._decode(contents.to_pylist())
        identity = pa.Table.from_arrays(
            [
                pa.array([self.source.topic] * piece.num_rows, pa.string()),
                piece.column("p").cast(pa.int32()),
                piece.column("o"),
                _from_millis(piece.column("c")),
                _from_millis(piece.column("l")),
                piece.column("v"),
            ],
            schema=IDENTITY,
        )
        if bad:
            wrong = list(bad)
            refused = identity.take(wrong).append_column("content", contents.take(pa.array(wrong)))
            refused = refused.append_column("reason", pa.array(list(bad.values()), pa.string()))
            self.rejected += refused.combine_chunks().to_batches()
            identity = identity.take(rows)
        self.rows += len(rows)
        for name in decoded.column_names:
            identity = identity.append_column(decoded.schema.field(name), decoded.column(name))
        yield from identity.combine_chunks().to_batches()

    def _put_aside(self) -> None:
        """Commit the rejected messages. This comes first: a run that fails after it finds them there and goes on."""
        name = rejected_name(self.source)
        table = open_table(self.offline_uri, name)
        batches = self.rejected
        if table is not None and self.known is not None and batches:
            there = read_columns(table, [PARTITION, OFFSET])
            known = set(zip(*(there.column(c).to_pylist() for c in (PARTITION, OFFSET)), strict=True))
            batches = [_without(batch, known) for batch in batches]
        if batches or (table is not None and self.known is None):
            write_table(self.offline_uri, name, table, REJECTED, batches, overwrite=self.known is None, metadata={})


@dataclass
class _Batch(_Extraction):
    """Rows of a warehouse table, as they are."""

    def run(self) -> Ingested:
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
        where, values = ("", []) if since is None else (f" WHERE {clock} >= %s OR {clock} IS NULL", [_literal(since)])
        count, newest = self.query(f"SELECT COUNT(*), MAX({clock}) FROM {self.table_name}{where}", values)[0]
        until = since if newest is None else _micros(newest)
        knows = Extracted(source_hash(self.plan, self.source), {}, {}, until)
        columns = ", ".join(f"{name} AS {quoted(f.name)}" for name, f in zip(names, fields, strict=True))
        sql = f"SELECT {columns} FROM {self.table_name}"
        if until is not None:
            # Up to the instant that was seen: what comes meanwhile is the next run's.
            lower = "" if since is None else f"{clock} >= %s AND "
            sql += f" WHERE ({lower}{clock} < %s) OR {clock} IS NULL"
            values = [*values, _literal(until + 1)]
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

    def _differs_behind(self, clock: str, name: str, instant: int | None) -> bool:
        """Whether the warehouse has another number of rows before the watermark than the store."""
        if instant is None:
            return True
        assert self.table is not None
        there = self.query(f"SELECT COUNT(*) FROM {self.table_name} WHERE {clock} < %s", [_literal(instant)])
        before = ds.field(name) < _scalar(instant)
        here = read_columns(self.table, [name], before).num_rows
        return bool(there[0][0] != here)

    def _fresh(self, pieces: Iterator[pa.Table], clock: str, since: int | None, total: int) -> Iterator[pa.RecordBatch]:
        """The pieces without the rows at the watermark, or without a time, that are here already, each as often as it is."""
        here: Counter[tuple[Any, ...]] | None = None
        done = 0
        for piece in pieces:
            done += piece.num_rows
            if self.known is not None and since is not None:
                unsure = _at_or_null(piece.column(clock), since)
                if unsure.any():
                    here = self._rows_here(piece.column_names, clock, since) if here is None else here
                    piece = piece.filter(pa.array(~_already(piece, unsure, here)))
            self.rows += piece.num_rows
            yield from piece.combine_chunks().to_batches()
            self.progress(self.source.name, done, total)

    def _rows_here(self, names: Sequence[str], clock: str, since: int) -> Counter[tuple[Any, ...]]:
        assert self.table is not None
        at = (ds.field(clock) == _scalar(since)) | ds.field(clock).is_null()
        return Counter(_tuples(read_columns(self.table, names, at)))


def quoted(name: str) -> str:
    """An identifier for SQL, exactly as given. Raises DataError for what can be no name."""
    if not name or not name.isprintable():
        raise DataError(
            f"{name!r} cannot be the name of a table or column in Snowflake; check the source's definition."
        )
    return '"' + name.replace('"', '""') + '"'


def _case(by_partition: Mapping[int, int]) -> tuple[str, list[int]]:
    """SQL for the bound of a row's partition, -1 for others, and the values to bind to it."""
    if not by_partition:
        return "-1", []
    branches = " ".join(["WHEN %s THEN %s"] * len(by_partition))
    return f"CASE {_PARTITION} {branches} ELSE -1 END", [value for pair in by_partition.items() for value in pair]


def _repeats(partition: NDArray[np.int64], offset: NDArray[np.int64], last: tuple[int, int]) -> NDArray[np.bool_]:
    """Which rows, sorted by (partition, offset), are the same event as the one before; `last` came before them all."""
    before_partition = np.concatenate([[last[0]], partition[:-1]])
    before_offset = np.concatenate([[last[1]], offset[:-1]])
    same: NDArray[np.bool_] = (partition == before_partition) & (offset == before_offset)
    return same


def _from_millis(millis: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.multiply_checked(millis, 1000).cast(INSTANT)


def _without(batch: pa.RecordBatch, known: set[tuple[int, int]]) -> pa.RecordBatch:
    pairs = zip(batch.column(PARTITION).to_pylist(), batch.column(OFFSET).to_pylist(), strict=True)
    return batch.filter(pa.array([pair not in known for pair in pairs], pa.bool_()))


def _micros(moment: date | datetime) -> int:
    return instant(moment if isinstance(moment, datetime) else datetime.combine(moment, time()))


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
    columns = [c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c for c in table.columns]
    return zip(*(column.to_pylist() for column in columns), strict=True)
