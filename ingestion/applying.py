"""From messages of a topic to their effects in Redis, on every view that reads the topic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import numpy as np
from confluent_kafka import Message

from connections import Client
from ingestion import stream
from ingestion.arrow import to_columns
from ingestion.dead_letters import Letter
from ingestion.decoding import schema_hash
from ingestion.intake import Intake, schema_of
from ingestion.kafka import headers_of
from ingestion.patience import Patience
from ingestion.redis_store import LatestWriter, TileWriter
from ingestion.stream import Counts
from tally.columns import Column
from tally.events import FOR_VIEW, create_times, named_in
from tally.functions import Transformation, load
from tally.plan import Plan, Source, View


@dataclass(frozen=True, slots=True)
class Reader:
    """A view that reads a topic: its source, its function, and what writes it to Redis."""

    view: View
    source: Source
    function: Transformation | None
    writer: LatestWriter | TileWriter

    @property
    def named_in(self) -> tuple[str, ...]:
        """See `tally.events.named_in`."""
        return named_in(self.writer.project, self.view.name)


def reader_of(plan: Plan, view: View, redis: Client, writer: bytes, patience: Patience) -> Reader:
    """A view as its reader, which writes under the name `writer` and waits for Redis. Raises DefinitionError."""
    kind = LatestWriter if view.kind == "latest" else TileWriter
    writes = kind(redis, plan.project, view, patience, writer)
    return Reader(view, plan.source(view.source), load(view.function) if view.function else None, writes)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Well-formed messages of one topic: their columns, and of each its partition, offset and CreateTime (µs)."""

    columns: Mapping[str, Column]
    partition: stream.Integers
    offset: stream.Integers
    create_time: stream.Integers

    def take(self, rows: stream.Integers) -> _Batch:
        """The messages at `rows`."""
        columns = {name: column.take(rows) for name, column in self.columns.items()}
        return _Batch(columns, self.partition[rows], self.offset[rows], self.create_time[rows])


class Applier:
    """Applies messages to the `readers` of their topic, in a thread for each, and adds to the `counts` of each view."""

    def __init__(self, readers: Mapping[str, Sequence[Reader]], intake: Intake, counts: Mapping[str, Counts]) -> None:
        self._readers, self._intake, self._counts = readers, intake, counts
        self._threads = self._new_threads()

    def apply(
        self, topic: str, messages: Sequence[Message], partition: stream.Integers, offset: stream.Integers
    ) -> list[Letter]:
        """Apply messages of a topic, whose offsets rise in each partition, to every view; the dead letters among them.

        Meanwhile the intake may read ahead. Raises ReplacedError when Redis has to be looked at: then some of it may be applied.
        """
        readers = self._readers[topic]
        values = list(map(Message.value, messages))
        stamps = map(Message.timestamp, messages)
        times = np.fromiter(map(itemgetter(1), stamps), np.int64, len(messages))  # ms, -1: not known
        create_time = create_times(times)
        only_for = _only_for(messages)
        letters: list[tuple[int, Letter]] = []
        for schema in dict.fromkeys(schema_of(reader.source) for reader in readers):
            table, good, bad = self._intake.decoded(topic, schema, values)
            columns = to_columns(schema[0], table)
            alike = [reader for reader in readers if schema_of(reader.source) == schema]
            own = schema_hash(alike[0].source) if bad else ""
            ours = {value for reader in alike for value in reader.named_in}
            refused = {row: reason for row, reason in bad.items() if row not in only_for or only_for[row] in ours}
            letters += [(row, Letter(messages[row], "", reason, own)) for row, reason in refused.items()]
            # One view computes while Redis merges another's deltas.
            batch = _Batch(columns, partition[good], offset[good], create_time[good])
            replays = {int(np.searchsorted(good, row)): views for row, views in only_for.items() if row not in bad}
            outcomes = self._threads.map(partial(_apply_to, batch=batch, only_for=replays), alike)
            self._intake.read_ahead()
            for reader, (counts, reasons) in zip(alike, outcomes, strict=True):
                counts.refused.update(reason.split(": ")[0] for reason in refused.values())
                counts.duplicate += len(bad) - len(refused)
                self._counts[reader.view.name].add(counts)
                for row, reason in reasons.items():
                    place = int(good[row])
                    letters.append((place, Letter(messages[place], reader.view.name, reason, reader.view.hash)))
        return [letter for _, letter in sorted(letters, key=itemgetter(0))]

    def settle(self) -> None:
        """After `apply` has failed: wait for what the threads of other views still send."""
        self._threads.shutdown()
        self._threads = self._new_threads()

    def close(self) -> None:
        """Wait for the threads."""
        self._threads.shutdown()

    def _new_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max(map(len, self._readers.values())), "tally-view")


def _only_for(messages: Sequence[Message]) -> dict[int, str]:
    """The rows that count for some views only, and what says for which (`tally.events.FOR_VIEW`)."""
    result = {}
    with_headers = [(row, headers) for row, headers in enumerate(headers_of(messages)) if headers]
    for row, headers in with_headers:
        for name, value in headers:
            if name == FOR_VIEW and value:
                result[row] = value.decode(errors="replace")
    return result


def _apply_to(reader: Reader, batch: _Batch, only_for: Mapping[int, str]) -> tuple[Counts, dict[int, str]]:
    """Apply a batch to one view: (what became of each message, the reasons for those that it refuses)."""
    name = reader.view.name
    ours = reader.named_in
    others = [row for row, views in only_for.items() if views not in ours]
    if others:
        # Replays of what other views had refused, or other projects: this one has counted the originals, or refused them itself.
        kept = np.setdiff1d(np.arange(len(batch.partition)), others)
        counts, reasons = _apply_to(reader, batch.take(kept), {})
        counts.duplicate += len(others)
        return counts, {int(kept[row]): reason for row, reason in reasons.items()}
    counts, reasons = Counts(), dict[int, str]()
    if len(batch.partition):
        events, reasons = stream.events_of(
            reader.view, reader.function, batch.columns, batch.partition, batch.offset, batch.create_time
        )
        if isinstance(reader.writer, TileWriter):
            counts = stream.merge(events, reader.writer.merge)
        else:
            # An older row than the stored one is applied too: the greatest row stands for all of them.
            reader.writer.put(*stream.latest_rows(events))
            counts.applied = len(events)
    counts.refused.update(reason.removeprefix(f"{name}: ") for reason in reasons.values())
    return counts, reasons
