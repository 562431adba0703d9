"""Landing tables, as Snowflake's Kafka connector makes them: messages, decoded, each event once.

They are read beyond the greatest offset landed per partition. The connector may land an older offset late, or one twice: rows
up to the watermark are counted, and their offsets summed. Where either is another than it was (rows came, or old ones were
deleted, or both), the partition's offsets are held against those that are here; (partition, offset) decides what is the same
event.
"""

# ruff: noqa: S608 - identifiers cannot be bound: they are quoted (`quoted`); every value is bound.

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.compute as pc  # type: ignore[import-untyped, unused-ignore]
import pyarrow.dataset as ds  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray

from ingestion.arrow import INSTANT, schema_of
from ingestion.decoding import Decoder, from_landing
from ingestion.delta import open_table, read_columns, write_table
from ingestion.extraction import Extraction, Ingested
from ingestion.offline import IDENTITY, OFFSET, PARTITION, REJECTED, Extracted, rejected_name, source_hash
from tally.errors import DataError
from tally.events import FOR_VIEW, UNKNOWN_TIME, create_times
from tally.plan import Field

_PARTITION: Final = '"RECORD_METADATA":"partition"::int'
_OFFSET: Final = '"RECORD_METADATA":"offset"::bigint'
_TOPIC: Final = '"RECORD_METADATA":"topic"::varchar'
_FOR_VIEW: Final = f'"RECORD_METADATA":"headers"."{FOR_VIEW}"::varchar'

_Seen = tuple[int, int]
"""(number of rows, sum of their offsets)."""
_NONE: Final[_Seen] = (0, 0)


@dataclass(frozen=True, slots=True)
class _Late:
    """Offsets of a partition that landed behind its watermark, rising; `rows` lie in the table from the first to the last."""

    offsets: NDArray[np.int64]
    first: int
    last: int
    rows: int


@dataclass
class LandingTable(Extraction):
    """Messages: decoded, each event once."""

    duplicates: int = 0
    rejected: list[pa.RecordBatch] = field(default_factory=list)

    @cached_property
    def _decode(self) -> Decoder:
        return from_landing(self.source)

    def run(self) -> Ingested:
        """Take what is new, in one commit."""
        existing = self.column_names()
        for name in ("RECORD_METADATA", "RECORD_CONTENT"):
            self.column(name, existing)
        old = self.known or Extracted("", {}, {}, None)
        fresh, behind, newest = self._count(old)
        offsets = old.offsets | newest
        landed, sums = (
            {p: behind.get(p, _NONE)[i] + fresh.get(p, _NONE)[i] for p in offsets} for i in range(len(_NONE))
        )
        changed = [p for p, seen in behind.items() if seen != (old.landed.get(p, 0), old.sums.get(p, 0))]
        late = {p: found for p in changed if (found := self._late(p, old.offsets[p])) is not None}
        knows = Extracted(source_hash(self.plan, self.source), offsets, landed, None, sums)
        total = sum(count for count, _ in fresh.values()) + sum(one.rows for one in late.values())
        as_before = (landed, sums) == (old.landed, old.sums)
        if self.table is not None and self.known is not None and total == 0 and as_before:
            return self._ingested(self.table.version(), offsets)
        schema = pa.schema([*IDENTITY, *schema_of(self.source.message)])
        version = self.write(schema, self._batches(old, offsets, late, total), knows)
        return self._ingested(version, offsets)

    def _ingested(self, version: int, offsets: dict[int, int]) -> Ingested:
        rejected = sum(batch.num_rows for batch in self.rejected)
        return Ingested(self.source.name, self.rows, rejected, self.duplicates, version, offsets, self.known is None)

    def _count(self, old: Extracted) -> tuple[dict[int, _Seen], dict[int, _Seen], dict[int, int]]:
        """(rows beyond the watermark, rows up to it, greatest offset beyond it) per partition."""
        watermark, values = _case(old.offsets)
        sql = (
            f'SELECT {_TOPIC} AS "t", {_PARTITION} AS "p", {_OFFSET} > {watermark} AS "fresh", COUNT(*) AS "n", '
            f'SUM({_OFFSET}) AS "sum", MIN({_OFFSET}) AS "first", MAX({_OFFSET}) AS "last" '
            f"FROM {self.table_name} WHERE {_TOPIC} = ? OR {_TOPIC} IS NULL GROUP BY 1, 2, 3"
        )
        fresh: dict[int, _Seen] = {}
        behind: dict[int, _Seen] = {}
        newest: dict[int, int] = {}
        for topic, partition, is_fresh, count, total, first, last in self.query(sql, (*values, self.source.topic)):
            if topic is None or partition is None or first is None or first < 0:
                raise DataError(
                    f"{count} rows of {self.table_name} have no topic, partition or offset of Kafka's in RECORD_METADATA, so "
                    "the same event could not be told from another; delete them, or have the connector write its metadata."
                )
            (fresh if is_fresh else behind)[int(partition)] = (int(count), int(total))
            if is_fresh:
                newest[int(partition)] = int(last)
        return fresh, behind, newest

    def _batches(
        self, old: Extracted, offsets: dict[int, int], late: Mapping[int, _Late], total: int
    ) -> Iterator[pa.RecordBatch]:
        # Up to the offsets that were counted: what lands meanwhile is the next run's.
        lower, lower_values = _case(old.offsets)
        upper, upper_values = _case(offsets)
        again = f" OR ({_PARTITION} = ? AND {_OFFSET} BETWEEN ? AND ?)" * len(late)
        again_values = [value for partition, one in late.items() for value in (partition, one.first, one.last)]
        sql = (
            f'SELECT {_PARTITION} AS "p", {_OFFSET} AS "o", '
            'COALESCE("RECORD_METADATA":"CreateTime"::bigint, "RECORD_METADATA":"LogAppendTime"::bigint) AS "c", '
            '"RECORD_METADATA":"SnowflakeConnectorPushTime"::bigint AS "l", '
            f'{_FOR_VIEW} AS "v", TO_JSON("RECORD_CONTENT") AS "content" '
            f"FROM {self.table_name} WHERE {_TOPIC} = ? AND {_OFFSET} <= {upper} "
            f"AND ({_OFFSET} > {lower}{again}) ORDER BY 1, 2"
        )
        numbers = tuple(Field(name, "Int64") for name in ("p", "o", "c", "l"))
        fields = (*numbers, Field("v", "String"), Field("content", "String"))
        done = 0
        last = (-1, -1)
        for piece in self.slices(sql, (self.source.topic, *upper_values, *lower_values, *again_values), fields):
            done += piece.num_rows
            partition, offset = (piece.column(name).to_numpy() for name in ("p", "o"))
            repeated = _repeats(partition, offset, last)
            self.duplicates += int(repeated.sum())
            last = (int(partition[-1]), int(offset[-1]))
            kept = ~repeated
            for number, one in late.items():
                kept &= (partition != number) | (offset > old.offsets[number]) | np.isin(offset, one.offsets)
            yield from self._decoded(piece.filter(pa.array(kept)))
            self.progress(self.source.name, done, total)
        self._put_aside()

    def _late(self, partition: int, watermark: int) -> _Late | None:
        """What a partition has up to the watermark that is not here."""
        sql = (
            f'SELECT {_OFFSET} AS "o" FROM {self.table_name} WHERE {_TOPIC} = ? AND {_PARTITION} = ? AND {_OFFSET} <= ?'
        )
        values = (self.source.topic, partition, watermark)
        pieces = [piece.column("o").to_numpy() for piece in self.slices(sql, values, [Field("o", "Int64")])]
        if not pieces:
            return None
        there = np.concatenate(pieces)
        missing = np.setdiff1d(there, self._offsets_here(partition))
        first, last = (int(missing[0]), int(missing[-1])) if len(missing) else (0, -1)
        read = (there >= first) & (there <= last)
        others = there[~read]  # of those that are read, `_batches` counts the duplicates
        self.duplicates += len(others) - len(np.unique(others))
        return _Late(missing, first, last, int(read.sum())) if len(missing) else None

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


def _case(by_partition: Mapping[int, int]) -> tuple[str, list[int]]:
    """SQL for the bound of a row's partition, -1 for others, and the values to bind to it."""
    if not by_partition:
        return "-1", []
    branches = " ".join(["WHEN ? THEN ?"] * len(by_partition))
    return f"CASE {_PARTITION} {branches} ELSE -1 END", [value for pair in by_partition.items() for value in pair]


def _repeats(partition: NDArray[np.int64], offset: NDArray[np.int64], last: tuple[int, int]) -> NDArray[np.bool_]:
    """Which rows, sorted by (partition, offset), are the same event as the one before; `last` came before them all."""
    before_partition = np.concatenate([[last[0]], partition[:-1]])
    before_offset = np.concatenate([[last[1]], offset[:-1]])
    same: NDArray[np.bool_] = (partition == before_partition) & (offset == before_offset)
    return same


def _from_millis(millis: pa.ChunkedArray) -> pa.Array:
    micros = create_times(pc.fill_null(millis, -1).to_numpy())
    return pa.array(micros, pa.int64(), mask=micros == UNKNOWN_TIME).cast(INSTANT)


def _without(batch: pa.RecordBatch, known: set[tuple[int, int]]) -> pa.RecordBatch:
    pairs = zip(batch.column(PARTITION).to_pylist(), batch.column(OFFSET).to_pylist(), strict=True)
    return batch.filter(pa.array([pair not in known for pair in pairs], pa.bool_()))
