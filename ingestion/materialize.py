"""Offline store to Redis: latest rows, and windows with the fences from which the stream goes on.

Whatever runs at the same time, and however often this runs, Redis ends the same: a latest row gives way only to a greater
one, and tiles only to tiles that hold every event they hold.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray

from connections import Client
from ingestion.offline import high_watermarks
from ingestion.progress import advance_progress, witness, writer_name
from ingestion.reading import Rows, read_rows
from ingestion.redis_calls import load_library
from ingestion.redis_store import (
    LatestWriter,
    TileWriter,
    mark_view,
)
from tally.aggregates import EventOrder
from tally.latest import sorted_positions
from tally.layout import entity_texts, pack_tiles
from tally.plan import Plan, View
from tally.tiles import TileLayout, build

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""(keys written, keys in all)."""
Integers = NDArray[np.int64]

_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class Written:
    """What a load did: `rows` were read and counted in, `keys` have a value, `kept` of them had the same, or a newer one.

    `refused` counts the rows that were left out, by reason.
    """

    rows: int
    keys: int
    kept: int
    refused: dict[str, int]

    def __str__(self) -> str:
        kept = f", of which Redis had {self.kept:,} already, or newer" if self.kept else ""
        refused = "".join(f"; refused {count:,}: {reason}" for reason, count in self.refused.items())
        return f"{self.rows:,} rows gave {self.keys:,} keys{kept}{refused}"


def materialize_view(
    plan: Plan, view: View, offline_uri: str, redis: Client, *, end: int, progress: Progress | None = None
) -> Written:
    """Write each entity's latest row as of `end` (µs, inclusive) to Redis, unless it has expired by then.

    Windows are bootstrapped as a whole, `end` or not: their fences promise every event up to the watermark.
    Raises NotReadyError when the source was never ingested, UnavailableError when Redis cannot be reached.
    """
    if view.kind == "window":
        return bootstrap_view(plan, view, offline_uri, redis, progress=progress)
    rows = read_rows(plan, view, offline_uri, end=end)
    load_library(redis)
    name = writer_name()
    witness(redis, plan.project, (), {}, name)
    written = _write_latest(plan, view, rows, redis, progress, name, end=end)
    mark_view(redis, plan.project, view, {"how": "materialize", "version": rows.version, "end": end})
    return written


def bootstrap_view(
    plan: Plan, view: View, offline_uri: str, redis: Client, *, progress: Progress | None = None
) -> Written:
    """Write all that the offline store has of a stream view to Redis, so that the stream can go on behind it.

    Every key carries the greatest offset landed per partition as its fences, whether or not an event of its own lies there:
    events up to them are in it. Raises as `materialize_view`.
    """
    rows = read_rows(plan, view, offline_uri)
    source = plan.source(view.source)
    watermarks = high_watermarks(plan, source, offline_uri, rows.version)
    load_library(redis)
    name = writer_name()
    witness(redis, plan.project, (), {}, name)
    if view.kind == "window":
        written = _write_tiles(plan, view, rows, watermarks, redis, progress, name)
    else:
        written = _write_latest(plan, view, rows, redis, progress, name, end=None)
    offsets = {str(partition): offset for partition, offset in sorted(watermarks.items())}
    mark_view(redis, plan.project, view, {"how": "bootstrap", "version": rows.version, "offsets": offsets})
    if view.kind == "latest" or not written.kept:
        # Tiles that were kept are ahead in one partition and may be behind in another: the stream has to read that again.
        positions = {(source.topic, partition): offset + 1 for partition, offset in watermarks.items()}
        advance_progress(redis, plan.project, [view], positions, writer=name)
    else:
        log.warning(
            "%s: %d keys stay as they are, for the stream has brought them events beyond the offline store. They lack what the topic had "
            "deleted before the stream began with this definition, if it had: then stop all workers, run tally ingest, and "
            "this again", view.name, written.kept,
        )  # fmt: skip
    return written


def _write_latest(
    plan: Plan, view: View, rows: Rows, redis: Client, progress: Progress | None, name: bytes, *, end: int | None
) -> Written:
    codes, entities = _entities(view, rows)
    chosen = latest_positions(view, rows, codes)
    if view.ttl and end is not None:
        chosen = chosen[end - rows.timestamp[chosen] <= view.ttl]
    writer = LatestWriter(redis, plan.project, view, writer=name)

    def put(start: int, stop: int) -> int:
        part = chosen[start:stop]
        stored = writer.put([entities[code] for code in codes[part].tolist()], _packed(view, rows, part))
        return int(stored.sum())

    stored = _in_parts(len(chosen), put, progress)
    return Written(len(rows.timestamp), len(chosen), len(chosen) - stored, rows.refused)


def latest_positions(view: View, rows: Rows, codes: Integers) -> Integers:
    """Position of the latest row of each entity code that occurs, by rising code; the rule is `tally.latest`'s."""
    order = sorted_positions(codes, rows.timestamp, rows.a, rows.b, lambda positions: _packed(view, rows, positions))
    ordered = codes[order]
    return order[np.append(ordered[1:] != ordered[:-1], True)] if len(order) else order


def _packed(view: View, rows: Rows, positions: Integers) -> list[bytes]:
    fields = {field.name: rows.columns[field.name].take(positions) for field in view.fields}
    return view.row_layout.pack(rows.timestamp[positions], rows.a[positions], rows.b[positions], fields)


def _write_tiles(
    plan: Plan, view: View, rows: Rows, fences: Mapping[int, int], redis: Client, progress: Progress | None, name: bytes
) -> Written:
    codes, entities = _entities(view, rows)
    newest, values = tile_values(view, rows, codes, len(entities), fences)
    writer = TileWriter(redis, plan.project, view, writer=name)
    stored = _in_parts(
        len(newest),
        lambda start, stop: int(writer.load(entities[start:stop], values[start:stop]).sum()),
        progress,
    )
    return Written(len(rows.timestamp), len(entities), len(entities) - stored, rows.refused)


def tile_values(
    view: View, rows: Rows, codes: Integers, count: int, fences: Mapping[int, int]
) -> tuple[Integers, list[bytes]]:
    """(newest event timestamp, packed tiles) of each of the entities 0..count-1, each of which has a row.

    Holds the tiles that some window as of the entity's newest event, or later, can see.
    """
    layout = view.tile_layout
    newest = np.full(count, np.iinfo(np.int64).min)
    np.maximum.at(newest, codes, rows.timestamp)
    # Nothing older is in a tile that stays; a long history is cut before it costs anything.
    recent = np.flatnonzero(rows.timestamp >= newest[codes] - layout.longest)
    order = EventOrder(rows.timestamp, rows.a, rows.b).take(recent)
    columns = {name: rows.columns[name].take(recent) for name in layout.columns}
    owners, records, _ = build(layout, codes[recent], order, columns)
    visible = records["tile"] >= _oldest(layout, records["level"], newest[owners])
    sizes = np.bincount(owners[visible], minlength=count)
    blocks = layout.pack(records[visible], np.cumsum(sizes) - sizes)
    values = [
        pack_tiles(view.tag, moment, fences, block) for moment, block in zip(newest.tolist(), blocks, strict=True)
    ]
    return newest, values


def _oldest(layout: TileLayout, level: NDArray[np.uint8], newest: Integers) -> Integers:
    oldest = np.zeros(len(level), np.int64)
    for number in range(len(layout.levels)):
        of_level = level == number
        oldest[of_level] = layout.oldest_tile(number, newest[of_level])
    return oldest


def _entities(view: View, rows: Rows) -> tuple[Integers, list[bytes]]:
    """(code of each row's entity, the entities' key texts by code)."""
    texts = entity_texts([rows.columns[key.name] for key in view.keys])
    encoded = pa.array(texts, pa.large_binary()).dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def _in_parts(count: int, write: Callable[[int, int], int], progress: Progress | None) -> int:
    """The sum of what `write(start, stop)` returns for stretches of 0..count."""
    stored = 0
    for start in range(0, count, _AT_ONCE):
        stop = min(start + _AT_ONCE, count)
        stored += write(start, stop)
        if progress is not None:
            progress(stop, count)
    return stored
