"""A model of the fence protocol: anything that may happen between Kafka, workers and Redis, one step at a time.

The steps write to a real Redis through the real library and writers; beside them stands a naive oracle, which knows only
the set of messages. What is modelled is when a write happens and who still believes to own a partition: workers that read
again what was applied, die between two writes, lose an answer, or write long after their partition went to another; and a
server that comes back as it was a while ago. A clock of its own moves events and the expiry of keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from redis import Redis

from ingestion import redis_store, stream
from ingestion.progress import advance_progress, begin_progress, progress, witness, writer_name
from ingestion.redis_calls import ReplacedError
from ingestion.redis_store import BEHIND, LatestWriter, Reply, TileWriter
from ingestion.stream import Deltas, Events
from tally.aggregates import output_dtype
from tally.layout import fences_of
from tally.plan import Field, Source, View, hashed_view
from tally.tiles import Aggregation
from tally.time import SECOND
from tally.windows import Window
from tests import oracle
from tests.ingestion import streams
from tests.ingestion.streams import Message

PROJECT = "model"
PARTITIONS, WORKERS = 3, 4
COLUMNS = (Field("at", "UnixTimestamp"), Field("who", "String"), Field("v", "Float64"))
SOURCE = Source("events", "EVENTS", "", "", "at", "", "events", COLUMNS)
SHORT, LONG = Window(20 * SECOND, 5 * SECOND), Window(100 * SECOND, 25 * SECOND)
_FUNCTIONS = ("count", "sum", "min", "first", "last")


def _windows() -> View:
    aggregations = tuple(
        Aggregation(f"{function}_{window.length}", "v", "Float64", function, window, output_dtype(function, "Float64"))
        for function in _FUNCTIONS
        for window in (SHORT, LONG)
    )
    keys = (Field("who", "String"),)
    return hashed_view(
        View(
            "windows",
            "window",
            "events",
            keys,
            (),
            COLUMNS,
            "at",
            "",
            0,
            True,
            True,
            None,
            aggregations,
            future_tolerance=0,
        ),
        SOURCE,
    )


def _latest() -> View:
    keys, fields = (Field("who", "String"),), (Field("v", "Float64"),)
    return hashed_view(
        View("last", "latest", "events", keys, fields, COLUMNS, "at", "", 0, True, True, None, ()), SOURCE
    )


WINDOWS, LATEST = _windows(), _latest()
LONGEST = WINDOWS.tile_layout.longest


@dataclass
class Batch:
    """Messages that a worker has read and not yet finished: what is left of them, and the answers so far."""

    messages: list[Message]
    deltas: Deltas | None
    replies: list[Reply | None]

    @classmethod
    def of(cls, messages: list[Message]) -> Batch:
        """Nothing sent yet."""
        batch = cls(messages, None, [])
        batch.send_next(streams.events_of(WINDOWS, messages))
        return batch

    def send_next(self, events: Events | None) -> None:
        """These events are what is left; None: nothing."""
        self.deltas = stream.deltas_of(events) if events is not None and len(events) else None
        self.replies = [None] * len(self.deltas.packed) if self.deltas else []


@dataclass
class Worker:
    """What one worker believes: its partitions and the offset to read next of each, what it has read, and its batches.

    `arriving` are partitions that it was given and has not begun, `new` those of which Redis had no progress then;
    `finished` is the offset after its last batch of each.
    """

    name: bytes = field(default_factory=writer_name)
    arriving: dict[int, int] = field(default_factory=dict)
    new: set[int] = field(default_factory=set)
    positions: dict[int, int] = field(default_factory=dict)
    finished: dict[int, int] = field(default_factory=dict)
    read: list[Message] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)

    def lose(self, partition: int) -> None:
        """It was given to another. What was read of it stays."""
        for known in (self.arriving, self.positions, self.finished):
            known.pop(partition, None)
        self.new.discard(partition)


@dataclass
class Load:
    """A bootstrap that has read the offline store: the messages up to its watermarks."""

    watermarks: dict[int, int]
    messages: list[Message]
    name: bytes = field(default_factory=writer_name)
    is_written: bool = False


@dataclass(frozen=True)
class Snapshot:
    """All that the server held at some time, and what was true of it."""

    values: dict[bytes, bytes]
    expires: dict[str, int]
    ever_expired: set[str]
    put: dict[str, Message]
    reached: dict[int, int]


class FenceProtocol(RuleBasedStateMachine):
    """Fails as soon as Redis holds anything but what the oracle computes from the messages behind the fences."""

    redis: ClassVar[Redis]
    library: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushall()
        self.redis.function_load(self.library, replace=True)
        self.now = 1_357_000_000 * SECOND
        self.topic: list[list[Message]] = [[] for _ in range(PARTITIONS)]
        self.workers: list[Worker] = []
        self.loads: list[Load] = []
        self.snapshots: list[Snapshot] = []
        self.expires: dict[str, int] = {}
        self.ever_expired: set[str] = set()
        self.put: dict[str, Message] = {}
        self.unseen: set[str] = {"hot", "cold"}
        self.reached = dict.fromkeys(range(PARTITIONS), 0)

    # The world

    @initialize(whos=st.lists(st.sampled_from(["hot", "cold"]), min_size=6, max_size=12))
    def some_messages(self, whos: list[str]) -> None:
        """A topic that is not empty, on which the first of two workers has begun."""
        for number, who in enumerate(whos):
            self._produce(number % PARTITIONS, who, number * SECOND // 2, float(number))
        self.join()
        self.join()
        self.workers[0].arriving = dict.fromkeys(range(PARTITIONS), 0)
        self.workers[0].new = set(range(PARTITIONS))

    @rule(
        partition=st.integers(0, PARTITIONS - 1),
        whos=st.lists(st.sampled_from(["hot", "hot", "cold"]), min_size=1, max_size=4),
        age=st.sampled_from(
            [0, 0, 1, 5 * SECOND - 1, 5 * SECOND, 20 * SECOND, 99 * SECOND, 101 * SECOND, 130 * SECOND]
        ),
        value=st.sampled_from([None, -0.0, 0.1, 0.1, 0.7, -0.1, 1e17, 2.0**-90]),
    )
    def produce(self, partition: int, whos: list[str], age: int, value: float | None) -> None:
        """Messages of a hot key and a cold one in any partition; some are late."""
        for who in whos:
            self._produce(partition, who, age, value)

    def _produce(self, partition: int, who: str, age: int, value: float | None) -> None:
        messages = self.topic[partition]
        messages.append(Message(partition, len(messages), {"at": self.now - age, "who": who, "v": value}))

    @rule(seconds=st.sampled_from([1, 4, 5, 30, 130]))
    def time_passes(self, seconds: int) -> None:
        """Keys expire that nobody wrote for the longest window and its hop."""
        self.now += seconds * SECOND
        self._expire()

    def _expire(self) -> None:
        self.unseen = {"hot", "cold"}
        for who, at in list(self.expires.items()):
            if at <= self.now:
                self.redis.delete(WINDOWS.prefix(PROJECT) + who.encode())
                self.ever_expired.add(who)
                del self.expires[who]

    @rule()
    def snapshot(self) -> None:
        """The server writes down what it holds, or a replica has come so far."""
        keys: Any = self.redis.keys()
        values: Any = {key: self.redis.dump(key) for key in keys}
        self.snapshots.append(
            Snapshot(values, dict(self.expires), set(self.ever_expired), dict(self.put), dict(self.reached))
        )

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """The server is started from what it has written down, or the replica is promoted; its memory is empty."""
        self._come_back(self.snapshots.pop(data.draw(st.integers(0, len(self.snapshots) - 1), label="snapshot")))

    def _come_back(self, was: Snapshot) -> None:
        self.redis.flushdb()
        for key, value in was.values.items():
            self.redis.restore(key, 0, value)
        self.redis.function_load(self.library, replace=True)
        self.expires, self.ever_expired = dict(was.expires), set(was.ever_expired)
        self.put, self.reached = dict(was.put), dict(was.reached)
        self._expire()

    # Who owns what

    @precondition(lambda self: len(self.workers) < WORKERS)
    @rule()
    def join(self) -> None:
        """Another worker; it owns nothing until the next rebalance."""
        worker = Worker()
        assert witness(self.redis, PROJECT, (), {}, worker.name)
        self.workers.append(worker)

    @rule(data=st.data())
    def rebalance(self, data: st.DataObject) -> None:
        """Partitions go to other workers, or are given back. Whoever had one keeps what it has read: it may be a zombie."""
        for partition in range(PARTITIONS):
            if data.draw(st.booleans(), label=f"{partition} moves"):
                owner = data.draw(st.integers(0, len(self.workers) - 1), label=f"owner of {partition}")
                behind = data.draw(st.integers(0, 3), label="its committed offset lies behind by")
                self._give(partition, self.workers[owner], behind)

    @rule(data=st.data(), behind=st.integers(0, 3))
    def give_back(self, data: st.DataObject, behind: int) -> None:
        """A worker loses all partitions that it has begun, and gets them back before it looks."""
        worker = data.draw(st.sampled_from(self.workers), label="worker")
        for partition in list(worker.positions):
            self._give(partition, worker, behind)

    def _give(self, partition: int, owner: Worker, behind: int) -> None:
        """Its committed offset lies `behind` by so many messages."""
        for worker in self.workers:
            worker.lose(partition)
        owner.arriving[partition] = max(0, self.reached[partition] - behind)
        if ("events", partition) not in progress(self.redis, PROJECT, WINDOWS):
            owner.new.add(partition)

    @precondition(lambda self: len(self.workers) > 1)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        """A worker dies with all that it has read; its partitions are idle until the next rebalance."""
        self.workers.pop(data.draw(st.integers(0, len(self.workers) - 1), label="worker"))

    # What a worker does

    @rule(data=st.data(), most=st.integers(1, 5), interrupted=st.sampled_from([False, False, True]))
    def read(self, data: st.DataObject, most: int, interrupted: bool) -> None:  # noqa: FBT001
        """Take messages of each partition it owns, and make batches of them as the worker's loop does.

        Interrupted, it first reads on, maybe after a rebalance that took a partition away and gave it back.
        """
        worker = data.draw(st.sampled_from(self.workers), label="worker")
        self._arrive(worker)
        for partition, position in worker.positions.items():
            messages = self.topic[partition][position : position + most]
            worker.read += messages
            worker.positions[partition] += len(messages)
        if not interrupted:
            self._begin(worker)

    def _arrive(self, worker: Worker) -> None:
        self._start_progress({p: at for p, at in worker.arriving.items() if p in worker.new})
        worker.new = set()
        worker.positions |= worker.arriving
        worker.finished |= worker.arriving
        worker.arriving = {}

    def _begin(self, worker: Worker) -> None:
        partition = np.array([m.partition for m in worker.read], np.int64)
        offset = np.array([m.offset for m in worker.read], np.int64)
        if worker.read:
            worker.batches += [Batch.of(worker.read[one]) for one in stream.rising(partition, offset)]
        worker.read = []

    @rule(data=st.data(), most=st.integers(1, 3), answered=st.sampled_from([True, True, False]))
    def send(self, data: st.DataObject, most: int, answered: bool) -> None:  # noqa: FBT001
        """Send some deltas of the batch at hand. Where no answer comes, they will be sent again."""
        busy = [worker for worker in self.workers if worker.batches]
        if busy:
            self._send(data.draw(st.sampled_from(busy), label="worker"), most, answered=answered)

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """Send all of the batch at hand, until it is in Redis, and advance the progress."""
        busy = [worker for worker in self.workers if worker.batches]
        if busy:
            self._finish(data.draw(st.sampled_from(busy), label="worker"))

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        """Ask the server, as every second between batches, whether it still holds what was finished."""
        self._look(data.draw(st.sampled_from(self.workers), label="worker"))

    def _look(self, worker: Worker) -> None:
        self._arrive(worker)
        if worker.batches:
            return  # what a server has answered, it may have forgotten, too
        places = _places(worker.finished)
        if places and not witness(self.redis, PROJECT, [WINDOWS, LATEST], places, worker.name):
            self._go_back(worker)

    def _go_back(self, worker: Worker) -> None:
        note(f"{worker.name!r} goes back")
        found = progress(self.redis, PROJECT, WINDOWS)
        worker.finished = {p: min(offset, found.get(("events", p), 0)) for p, offset in worker.finished.items()}
        worker.positions = dict(worker.finished)
        worker.read, worker.batches = [], []
        self._start_progress({p: at for p, at in worker.finished.items() if ("events", p) not in found})
        assert witness(self.redis, PROJECT, [WINDOWS, LATEST], _places(worker.finished), worker.name)

    def _start_progress(self, positions: dict[int, int]) -> None:
        begin_progress(self.redis, PROJECT, [WINDOWS, LATEST], _places(positions))

    def _go_on(self, worker: Worker) -> None:
        self._arrive(worker)
        for partition, position in worker.positions.items():
            worker.read += self.topic[partition][position:]
            worker.positions[partition] = len(self.topic[partition])
        self._begin(worker)
        while worker.batches:
            self._finish(worker)

    def _all_go_on(self) -> None:
        for partition in range(PARTITIONS):
            self._produce(partition, "hot", 0, (0.1, 0.7, -0.1)[partition])
        for worker in self.workers:
            self._go_on(worker)

    def _finish(self, worker: Worker) -> None:
        left = len(worker.batches)
        while len(worker.batches) == left:
            self._send(worker, len(worker.batches[0].replies), answered=True)

    def _send(self, worker: Worker, most: int, *, answered: bool) -> None:
        self._arrive(worker)
        try:
            self._send_witnessed(worker, most, answered=answered)
        except ReplacedError:
            self._go_back(worker)

    def _send_witnessed(self, worker: Worker, most: int, *, answered: bool) -> None:
        batch = worker.batches[0]
        if batch.deltas is not None:
            waiting = [i for i, reply in enumerate(batch.replies) if reply is None][:most]
            packed = [batch.deltas.packed[i] for i in waiting]
            replies = TileWriter(self.redis, PROJECT, WINDOWS, writer=worker.name).merge(packed)
            for delta, reply in zip(packed, replies, strict=True):
                note(f"{delta.entity!r}: {np.frombuffer(delta.extents, redis_store.EXTENT).tolist()} -> {reply}")
                if isinstance(reply, int) or reply[0] != BEHIND:
                    self._written(delta.entity.decode())
            if not answered:
                return
            for i, reply in zip(waiting, replies, strict=True):
                batch.replies[i] = reply
            if None not in batch.replies:
                _, again = batch.deltas.settle([reply for reply in batch.replies if reply is not None])
                assert again is None or len(again) < len(batch.deltas.events), "the same events are asked for again"
                batch.send_next(again)
        if batch.deltas is None:
            ends = {m.partition: m.offset + 1 for m in batch.messages}
            self._put(batch.messages, worker.name)
            self._advance(ends, worker.name)
            worker.finished |= {partition: end for partition, end in ends.items() if partition in worker.finished}
            worker.batches.pop(0)

    def _put(self, messages: list[Message], writer: bytes) -> None:
        rows = stream.latest_rows(streams.events_of(LATEST, messages))
        LatestWriter(self.redis, PROJECT, LATEST, writer=writer).put(*rows)
        for message in messages:
            known = self.put.get(message.fields["who"])
            if known is None or _order(message) > _order(known):
                self.put[message.fields["who"]] = message

    def _advance(self, positions: dict[int, int], writer: bytes) -> None:
        advance_progress(self.redis, PROJECT, [WINDOWS, LATEST], _places(positions), writer=writer)
        self.unseen = {"hot", "cold"}
        for partition, position in positions.items():
            self.reached[partition] = max(self.reached[partition], position)

    # Loads beside the stream

    @rule(watermarks=st.lists(st.sampled_from([-1, 0, 99, 99]), min_size=PARTITIONS, max_size=PARTITIONS))
    def read_offline(self, watermarks: list[int]) -> None:
        """A bootstrap reads what has landed in the offline store: a beginning of each partition."""
        found = {p: min(mark, len(self.topic[p]) - 1) for p, mark in enumerate(watermarks)}
        found = {p: mark for p, mark in found.items() if mark >= 0}
        load = Load(found, [m for p, mark in found.items() for m in self.topic[p][: mark + 1]])
        assert witness(self.redis, PROJECT, (), {}, load.name)
        self.loads.append(load)

    @precondition(lambda self: self.loads)
    @rule(data=st.data(), dies=st.booleans())
    def load(self, data: st.DataObject, dies: bool) -> None:  # noqa: FBT001
        """It writes what it has read, long after maybe, then advances the progress; or it dies in between."""
        load = self.loads.pop(data.draw(st.integers(0, len(self.loads) - 1), label="load"))
        try:
            if load.is_written:
                self._advance({partition: mark + 1 for partition, mark in load.watermarks.items()}, load.name)
            else:
                self._load(load, dies=dies)
        except ReplacedError:
            note("the load is given up")

    def _load(self, load: Load, *, dies: bool) -> None:
        values = streams.expected_values(WINDOWS, load.messages, load.watermarks)
        entities = sorted(values)[:1] if dies else sorted(values)
        writer = TileWriter(self.redis, PROJECT, WINDOWS, writer=load.name)
        stored = writer.load(entities, [values[entity] for entity in entities])
        for entity, was_stored in zip(entities, stored.tolist(), strict=True):
            note(f"{entity!r}: {load.watermarks} -> {was_stored}")
            if was_stored:
                self._written(entity.decode())
        if not dies:
            self._put(load.messages, load.name)
            if stored.all():
                load.is_written = True
                self.loads.append(load)

    # What must hold

    def _written(self, who: str) -> None:
        self.unseen.add(who)
        self.expires[who] = self.now + LONGEST
        left: Any = self.redis.pttl(WINDOWS.prefix(PROJECT) + who.encode())
        assert LONGEST // 1000 - 60_000 < left <= LONGEST // 1000, f"{who} expires in {left} ms"

    @invariant()
    def redis_holds_what_lies_behind_its_fences(self) -> None:
        """Windows of every key as of now and later, by bits; bytes too, unless the key was gone in between."""
        while self.unseen:  # nothing else has changed since the last look
            who = self.unseen.pop()
            key = WINDOWS.prefix(PROJECT) + who.encode()
            value: Any = self.redis.get(key)
            fences = fences_of(value) if value else {}
            own = [m for messages in self.topic for m in messages if m.fields["who"] == who]
            behind = [m for m in own if m.offset <= fences.get(m.partition, -1)]
            finished = [m for m in own if m.offset < self.reached[m.partition]]
            self._same_features(who, key, value, [m for m in own if m in behind or m in finished])
            if who not in self.ever_expired:
                assert all(m in behind for m in finished), f"{who}: fences {fences} lie before {self.reached}"
                if behind:
                    assert value == streams.expected_values(WINDOWS, behind, fences)[who.encode()], f"{who}: bytes"

    def _same_features(self, who: str, key: bytes, value: bytes | None, messages: Sequence[Message]) -> None:
        for as_of in (self.now, self.now + 7 * SECOND, self.now + 90 * SECOND):
            found = streams.features(WINDOWS, key, value, as_of)
            expected = streams.oracle_features(WINDOWS, who, as_of, messages)
            for name, wanted in expected.items():
                assert oracle.same(found[name], wanted), f"{who} {name}: {found[name]} is stored, {wanted} is true"

    @invariant()
    def the_greatest_row_stays(self) -> None:
        """Of all rows that anybody has written."""
        for who, message in self.put.items():
            key = LATEST.prefix(PROJECT) + who.encode()
            value: Any = self.redis.get(key)
            rows = LATEST.row_layout.unpack([value], [key])
            assert (rows.timestamp[0], rows.a[0], rows.b[0]) == _order(message), f"{who}: not the latest row"
            assert oracle.same(rows.columns["v"].to_list()[0], message.fields["v"]), f"{who}: not the latest value"

    @invariant()
    def progress_is_where_batches_ended(self) -> None:
        """It never falls, whoever is late."""
        found = progress(self.redis, PROJECT, WINDOWS)
        assert {p: found.get(("events", p), 0) for p in range(PARTITIONS)} == self.reached, "progress"

    def teardown(self) -> None:
        """All go on to the end, twice, for the server forgets the first time; then everything is there, once."""
        self.snapshot()
        self._all_go_on()
        self._come_back(self.snapshots.pop())
        if len(self.topic[0]) % 2:  # they find out by a look; else by a write
            for worker in self.workers:
                self._look(worker)
        self._all_go_on()
        last = Worker(arriving=dict(self.reached), new={p for p, offset in self.reached.items() if offset == 0})
        assert witness(self.redis, PROJECT, (), {}, last.name)
        self._go_on(last)
        self.redis_holds_what_lies_behind_its_fences()
        self.the_greatest_row_stays()
        assert self.reached == {p: len(messages) for p, messages in enumerate(self.topic)}


def _places(offsets: dict[int, int]) -> dict[tuple[str, int], int]:
    return {("events", partition): offset for partition, offset in offsets.items()}


def _order(message: Message) -> tuple[int, int, int]:
    return message.fields["at"], message.partition, message.offset


def machine(redis: Redis, library: str) -> type[FenceProtocol]:
    """The model on this server, with this text as the function library."""

    class Machine(FenceProtocol):
        pass

    Machine.redis, Machine.library = redis, library
    return Machine
