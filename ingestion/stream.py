"""A micro-batch of messages as writes to one view, and what became of every event. Pure: the writes go through a callable.

An event is `(topic, partition, offset)`. A delta covers all events of one entity in the batch: of each partition those from
the first offset to the last, its *extent*. Redis applies it once (law 5). Of a batch, each event of a view ends in exactly one of four ways:
applied, duplicate, too late, or refused with a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingestion.messages import view_rows
from ingestion.redis_store import APPLIED, EXTENT, Delta, Reply
from tally.aggregates import EventOrder
from tally.columns import Column
from tally.errors import DataError, TallyError
from tally.functions import Transformation
from tally.latest import sorted_positions
from tally.layout import entity_texts
from tally.plan import View
from tally.tiles import Records, TileLayout, build

Integers = NDArray[np.int64]
_LEAST, _GREATEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(slots=True)
class Counts:
    """What became of the events of one view. `refused` counts by reason; `consumed` is the sum of all.

    `conflicts` counts deltas of which a part had been applied before, so that the rest was sent again.
    """

    applied: int = 0
    duplicate: int = 0
    too_late: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    conflicts: int = 0

    @property
    def consumed(self) -> int:
        """Every event ended in one of the four ways."""
        return self.applied + self.duplicate + self.too_late + self.refused.total()

    def add(self, other: Counts) -> None:
        """Count `other`'s events here too."""
        self.applied += other.applied
        self.duplicate += other.duplicate
        self.too_late += other.too_late
        self.refused.update(other.refused)
        self.conflicts += other.conflicts


@dataclass(frozen=True)
class Events:
    """n accepted events of one view: `entity` (n,) are positions in `entities`, `columns` are the view's."""

    view: View
    entities: list[bytes]
    entity: Integers
    order: EventOrder
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.entity)

    def take(self, rows: NDArray[Any]) -> Events:
        """The events at `rows` (a mask or positions)."""
        positions = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        columns = {name: column.take(positions) for name, column in self.columns.items()}
        return Events(self.view, self.entities, self.entity[positions], self.order.take(positions), columns)


def rising(partition: Integers, offset: Integers) -> list[slice]:
    """Stretches of a sequence of messages within which each partition's offsets rise.

    They fall where a partition was taken away and given back in the middle of a batch. Across the fall there may be
    messages that nobody has read yet, so a delta must not span it.
    """
    by_partition = np.argsort(partition, kind="stable")
    falls = (np.diff(offset[by_partition]) <= 0) & (np.diff(partition[by_partition]) == 0)
    if not falls.any():
        return [slice(0, len(partition))]
    cut = int(by_partition[1:][falls].min())
    rest = rising(partition[cut:], offset[cut:])
    return [slice(0, cut), *(slice(s.start + cut, s.stop + cut) for s in rest)]


def events_of(
    view: View,
    function: Transformation | None,
    columns: Mapping[str, Column],
    partition: Integers,
    offset: Integers,
    create_time: Integers | None = None,
) -> tuple[Events, dict[int, str]]:
    """(accepted events, reason for each row that is refused) of well-formed messages, decoded to `columns`.

    `create_time` (µs) is that of `tally.events.refusals`. Raises DataError naming the messages when the view's function fails on them.
    """
    try:
        produced, accepted, reasons = view_rows(view, function, columns, len(partition), create_time)
    except TallyError:
        raise
    except Exception as error:
        reference = view.function.reference if view.function else view.name
        raise DataError(
            f"{view.name}: {reference} failed ({type(error).__name__}: {error}) on {len(partition)} messages of "
            f"partitions {sorted(set(partition.tolist()))}, offsets {offset.min()} to {offset.max()}; nothing of them was "
            "applied: correct the function, run feast apply, and start again."
        ) from error
    if not accepted.all():
        rows = np.flatnonzero(accepted)
        produced = {name: column.take(rows) for name, column in produced.items()}
        partition, offset = partition[rows], offset[rows]
    entities, entity = _number_entities([produced[key.name] for key in view.keys])
    order = EventOrder(produced[view.timestamp].values, partition, offset)
    return Events(view, entities, entity, order, produced), reasons


def _number_entities(keys: Sequence[Column]) -> tuple[list[bytes], Integers]:
    """(the distinct entities' texts, position of each row's entity among them)."""
    number = np.zeros(len(keys[0]), np.int64)
    count = min(len(number), 1)
    for key in keys:
        if key.values.dtype == object:
            seen: dict[Any, int] = {}
            codes = np.fromiter(
                [seen.setdefault(value, len(seen)) for value in key.values.tolist()], np.int64, len(key)
            )
            distinct = len(seen)
        else:
            codes, values = _codes(key.values.astype(np.int64, copy=False))
            distinct = len(values)
        if count > 1:  # keeps the numbers small
            number, numbers = _codes(number * distinct + codes)
            count = len(numbers)
        else:
            number, count = codes, distinct
    row = np.empty(count, np.int64)
    row[number] = np.arange(len(number))
    return entity_texts([key.take(row) for key in keys]), number


def _codes(values: Integers) -> tuple[Integers, Integers]:
    """(for each value how many distinct ones are below it, the distinct ones by rising order); without sorting if close together."""
    if len(values):
        least, greatest = int(values.min()), int(values.max())
        if greatest - least < len(values):
            distance = values - least
            present = np.zeros(greatest - least + 1, np.bool_)
            present[distance] = True
            below = np.cumsum(present) - 1
            return below[distance], np.flatnonzero(present) + least
    distinct, codes = np.unique(values, return_inverse=True)
    return codes, distinct


def latest_rows(events: Events) -> tuple[list[bytes], list[bytes]]:
    """(entities, packed rows): for each entity the event that is greatest by (timestamp, partition, offset)."""
    if len(events) == 0:
        return [], []
    order = events.order
    position = sorted_positions(events.entity, order.timestamp, order.partition, order.offset)
    last = np.append(events.entity[position][1:] != events.entity[position][:-1], True)
    chosen = events.take(position[last])
    order = chosen.order
    packed = events.view.row_layout.pack(order.timestamp, order.partition, order.offset, chosen.columns)
    return [events.entities[number] for number in chosen.entity.tolist()], packed


@dataclass(frozen=True)
class Deltas:
    """One delta per entity. `extent` (n,) says which (entity, partition) each event is in; the rest is per extent or delta.

    `owner` and `events_of_extent`: the delta of each extent, and its number of events. `records` of delta i begin at
    `starts[i]`, and `rows_in_record` says how many events each holds.
    """

    events: Events
    extent: Integers
    owner: Integers
    events_of_extent: Integers
    records: Records
    rows_in_record: Integers
    starts: Integers

    @cached_property
    def packed(self) -> list[Delta]:
        """What is sent, one per delta."""
        order, count = self.events.order, len(self.starts)
        delta = self.owner[self.extent]
        first, last = np.full((2, len(self.owner)), [[_GREATEST], [_LEAST]])
        newest, entity = np.full((2, count), _LEAST)
        np.minimum.at(first, self.extent, order.offset)
        np.maximum.at(last, self.extent, order.offset)
        np.maximum.at(newest, delta, order.timestamp)
        entity[delta] = self.events.entity
        extents = np.zeros(len(self.owner), EXTENT)
        extents["partition"][self.extent] = order.partition
        extents["first"], extents["last"] = first, last
        pieces = zip(
            map(self.events.entities.__getitem__, entity.tolist()),
            _cut(newest.astype("<i8"), np.arange(count)),
            _cut(extents, np.searchsorted(self.owner, np.arange(count))),
            self.events.view.tile_layout.pack(self.records, self.starts),
            strict=True,
        )
        return list(map(Delta._make, pieces))

    def settle(self, replies: Sequence[Reply]) -> tuple[Counts, Events | None]:
        """(what became of the events, those to send again because others of their delta had been applied before)."""
        counts = Counts(applied=len(self.events))
        fences: dict[int, list[int]] = {}
        for number, reply in enumerate(replies):
            if isinstance(reply, int):
                continue
            if reply[0] == APPLIED:
                late = self._too_late(number, reply[1:])
                counts.too_late += late
                counts.applied -= late
            else:
                fences[number] = reply[1:]
        if not fences:
            return counts, None
        counts.conflicts = len(fences)
        behind = np.zeros(len(replies), np.bool_)
        behind[list(fences)] = True
        fence = np.full(len(self.owner), _GREATEST)
        fence[behind[self.owner]] = np.concatenate(list(fences.values()))
        again = self.events.order.offset > fence[self.extent]
        unapplied = int(self.events_of_extent[behind[self.owner]].sum())
        counts.applied -= unapplied
        counts.duplicate += unapplied - int(again.sum())
        return counts, self.events.take(again)

    def _too_late(self, number: int, positions: Sequence[int]) -> int:
        """Events whose tile was dropped at the level that reaches back farthest: no window could see them any more."""
        at = self.starts[number] + np.array(positions, np.int64)
        farthest = self.records["level"][at] == _farthest_level(self.events.view.tile_layout)
        return int(self.rows_in_record[at][farthest].sum())


def _cut(array: NDArray[Any], starts: Integers) -> Iterator[bytes]:
    """The bytes of each stretch of an array, from each start to the next."""
    raw, width = array.tobytes(), array.itemsize
    cuts = [start * width for start in starts.tolist()]
    return (raw[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(raw)], strict=True))


def _farthest_level(layout: TileLayout) -> int:
    return max(range(len(layout.levels)), key=lambda level: (layout.levels[level][1], layout.levels[level][0]))


def deltas_of(events: Events) -> Deltas:
    """One delta per entity of a set of events that is not empty."""
    partition, partitions = _codes(events.order.partition)
    extent, extents = _codes(events.entity * len(partitions) + partition)
    owner, entities = _codes(extents // len(partitions))
    record_key, records, rows_in_record = build(events.view.tile_layout, events.entity, events.order, events.columns)
    starts: Integers = np.asarray(np.searchsorted(record_key, entities), np.int64)
    return Deltas(events, extent, owner, np.bincount(extent), records, rows_in_record, starts)


def merge(events: Events, send: Callable[[Sequence[Delta]], Sequence[Reply]]) -> Counts:
    """Send the deltas of `events`, and again what is new in those of which a part had been applied before.

    A fence only rises, and each round sends strictly less, so this ends whoever else is writing.
    """
    counts = Counts()
    remaining: Events | None = events
    while remaining is not None and len(remaining):
        deltas = deltas_of(remaining)
        settled, remaining = deltas.settle(send(deltas.packed))
        counts.add(settled)
    return counts
