"""The consumer: which messages to read, in what batches, and when they count as read.

Redis knows how far each definition has come (`ingestion.progress`); the consumer group's committed offsets are a copy for
Kafka's own tools. Reading starts at the lower of the two, and at the beginning of the topic for a definition without
progress: what is read twice is applied once (law 5), so starting early is always safe. Both move only after the effects are
in Redis and the dead letters are in Kafka.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, Final

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from connections import Client, RefusedError
from ingestion import redis_store, stream
from ingestion.arrow import to_columns
from ingestion.avro import WriterSchema
from ingestion.dead_letters import DeadLetters, Letter
from ingestion.decoding import Decoder, from_topic, schema_hash
from ingestion.patience import Patience, StoppedWhileAwayError
from ingestion.positions import begin
from ingestion.progress import advance_progress, begin_progress, is_empty, progress_of_each, witness, writer_name
from ingestion.redis_calls import ReplacedError, load_library
from ingestion.redis_store import LatestWriter, TileWriter
from ingestion.report import KAFKA, REGISTRY, Place, Progress, State, Summary, TopicCounts
from ingestion.stream import Counts
from ingestion.wires import Messages
from tally.columns import Column
from tally.errors import DefinitionError, NotReadyError, UnavailableError
from tally.events import FOR_VIEW, UNKNOWN_TIME
from tally.functions import Transformation, load
from tally.plan import Encoding, Field, Plan, Source, View
from tally.time import MILLISECOND

log = logging.getLogger(__name__)

_Schema = tuple[tuple[Field, ...], Encoding]
"""What decides what a message says: sources of one topic that agree on it are decoded once."""

_Received = tuple[Mapping[str, Sequence[Message]], Sequence[Message]]
"""(the messages of each topic, what came beside them: errors and ends of partitions)."""

MAX_BATCH: Final = 200_000
"""A worker that is behind takes all that librdkafka has fetched, at most 64 MiB: the more events of an entity are in a batch,
the less each of them costs. One that keeps up takes what has come since the last batch, which is little."""
POLL_SECONDS: Final = 0.1
COMMIT_SECONDS: Final = 1.0
REPORT_SECONDS: Final = 10.0
KAFKA_SECONDS: Final = 10.0
START_SECONDS: Final = 1.0
"""As long as a worker that waits for Kafka does not see that it is to stop."""
SESSION_MILLISECONDS: Final = 10_000
"""How long the partitions of a worker that died lie idle. librdkafka's own value, 45 s, is long for live features, and a
worker that is declared dead too soon does no harm: what it still writes lies behind the fences."""
CRITICAL: Final = 2
"""librdkafka's log level (syslog's numbers): what is less comes to `_on_error`, too, and from there to the log."""
_REFUSALS: Final = (KafkaError._AUTHENTICATION, KafkaError._SSL)  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class _Reader:
    view: View
    topic: str
    source: Source
    function: Transformation | None
    writer: LatestWriter | TileWriter


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


def _only_for(messages: Sequence[Message]) -> dict[int, str]:
    """The rows that count for one view only, and which (`tally.events.FOR_VIEW`)."""
    result = {}
    with_headers = [found for found in enumerate(map(Message.headers, messages)) if found[1]]
    for row, headers in with_headers:
        for name, value in headers:
            if name == FOR_VIEW and value:
                result[row] = value.decode(errors="replace")
    return result


def _told_apart(received: Sequence[Message]) -> _Received:
    errors = [
        message for message, error in zip(received, map(Message.error, received), strict=True) if error is not None
    ]
    messages = [message for message in received if message.error() is None] if errors else received
    topics = list(map(Message.topic, messages))
    if len(set(topics)) == 1:
        return {topics[0]: messages}, errors
    by_topic: dict[str, list[Message]] = {}
    for topic, message in zip(topics, messages, strict=True):
        by_topic.setdefault(topic, []).append(message)
    return by_topic, errors


def run(
    plan: Plan,
    view_names: Iterable[str] | None,
    kafka_config: Mapping[str, Any],
    redis: Client,
    *,
    until_end: bool = False,
    skip_expired: bool = False,
    group: str | None = None,
    stop: threading.Event | None = None,
    on_batch: Callable[[Progress], None] | None = None,
    writer_schema: WriterSchema | None = None,
    state: State | None = None,
) -> Summary:
    """Apply the messages of every stream view (or of those named) to Redis until `stop` is set.

    With `until_end` the run ends when every message that was in the topics when it began is applied, whichever worker of
    the group did it. `kafka_config` are librdkafka's properties. `writer_schema` asks a schema registry what Avro messages
    were written with; None: they all have the definition's schema. `state` is kept up to date for other threads.

    A worker waits for Kafka and Redis, also at its start; a run that is to end does not begin without them, and raises
    UnavailableError. At the start neither waits for one that refuses us: RefusedError. Raises NotReadyError for a topic that
    is missing and for events that neither Redis nor the topic has any more (`skip_expired`: goes on without them),
    DefinitionError for a view that is not a stream.
    """
    views = stream_views(plan, view_names)
    stop = stop or threading.Event()
    worker = _Worker(
        plan,
        views,
        dict(kafka_config),
        redis,
        group or f"tally-{plan.project}",
        stop,
        on_batch,
        writer_schema,
        state or State(),
    )
    return worker.run(until_end=until_end, skip_expired=skip_expired)


def stream_views(plan: Plan, names: Iterable[str] | None) -> list[View]:
    """The views that `run` serves. Raises NotReadyError for unknown names, DefinitionError for views without a topic."""
    if names is None:
        return [view for view in plan.views if view.stream and view.online and plan.source(view.source).topic]
    views = [plan.view(name) for name in dict.fromkeys(names)]
    for view in views:
        if not view.stream or not plan.source(view.source).topic:
            raise DefinitionError(
                f"Feature view {view.name} has no Kafka topic (its source is {view.source}); leave it out, and load it "
                "with feast materialize."
            )
    return views


class _Worker:
    def __init__(
        self,
        plan: Plan,
        views: Sequence[View],
        config: dict[str, Any],
        redis: Client,
        group: str,
        stop: threading.Event,
        on_batch: Callable[[Progress], None] | None,
        writer_schema: WriterSchema | None,
        state: State,
    ) -> None:
        self._plan, self._redis, self._stop, self._on_batch = plan, redis, stop, on_batch
        self._config, self._group = config, group
        self._servers = str(config.get("bootstrap.servers", ""))
        self._readers: dict[str, list[_Reader]] = {}
        self._decoders: dict[_Schema, Decoder] = {}
        self._ahead: _Received = {}, ()
        self._is_behind = False
        self._decoded: dict[tuple[str, _Schema], tuple[list[bytes | None], Messages]] = {}
        self.state = state
        self._patience = Patience(stop, state)
        self._kafka_patience, self._registry_patience = Patience(stop, state, KAFKA), Patience(stop, state, REGISTRY)
        self._name = writer_name()
        for view in views:
            source = plan.source(view.source)
            writer = (LatestWriter if view.kind == "latest" else TileWriter)(
                redis, plan.project, view, self._patience, self._name
            )
            reader = _Reader(view, source.topic, source, load(view.function) if view.function else None, writer)
            self._readers.setdefault(source.topic, []).append(reader)
            if (source.message, source.encoding) not in self._decoders:
                decode = from_topic(source, writer_schema)
                self._decoders[source.message, source.encoding] = decode
        self._next: dict[Place, int] = {}
        self._threads = self._new_threads()
        self._failure: Exception | None = None
        self._last_error = ""
        self._is_refused = False
        self._warned_at: dict[int, float] = {}
        self._reading = self._closing = False
        self._skip_expired = False
        self._committed_at = self._reported_at = 0.0
        self._dead_letters = DeadLetters(config)
        self.summary = state.summary = Summary(
            {topic: TopicCounts() for topic in self._readers}, {view.name: Counts() for view in views}
        )

    def run(self, *, until_end: bool, skip_expired: bool) -> Summary:
        started = time.monotonic()
        self._skip_expired = skip_expired
        if not self._readers:
            return self.summary
        session = int(self._config.get("session.timeout.ms", SESSION_MILLISECONDS))
        self._consumer = Consumer(
            {
                "log_level": CRITICAL,
                "fetch.queue.backoff.ms": 10,  # a full queue is drained in less than librdkafka's second
                "session.timeout.ms": session,
                "heartbeat.interval.ms": min(3_000, session // 4),
                **self._config,
                "group.id": self._group,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "partition.assignment.strategy": "cooperative-sticky",
                "error_cb": self._on_error,
                "on_commit": self._on_commit,
            },
            logger=log,
        )
        try:
            if until_end:
                partitions = self._check_topics(KAFKA_SECONDS)
                self._meet_redis()
            else:
                partitions = self._kafka_patience.outlast(partial(self._check_topics, START_SECONDS), (RefusedError,))
                self._kafka_patience.answered()
                self._patience.outlast(self._meet_redis, (RefusedError,))
                self._patience.answered()
            targets = self._high_watermarks(partitions) if until_end else {}
            self._reading = True
            self._consumer.subscribe(
                sorted(self._readers), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            self._loop(targets if until_end else None)
            self._commit(asynchronous=False)
        except StoppedWhileAwayError:
            away = " and ".join(self.state.away)
            log.warning("stopped while %s was away: the last batch was not committed and will be read again", away)
        finally:
            self.summary.seconds = time.monotonic() - started
            if self._reading:
                self._report()
            self._closing = True
            self._consumer.close()
            self._threads.shutdown()
        return self.summary

    def _new_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max(map(len, self._readers.values()), default=1), "tally-view")

    # What there is to read

    def _meet_redis(self) -> None:
        load_library(self._redis)
        witness(self._redis, self._plan.project, (), {}, self._name)
        self._mark_views()

    def _check_topics(self, seconds: float) -> dict[str, list[int]]:
        try:
            known = self._consumer.list_topics(timeout=seconds).topics
        except KafkaException as error:
            self._consumer.poll(0)  # serves the error callback, which knows more
            raise self._unavailable(error) from error
        for topic, readers in self._readers.items():
            if topic not in known or known[topic].error is not None:
                names = ", ".join(reader.view.name for reader in readers)
                raise NotReadyError(
                    f"Kafka at {self._servers} has no topic {topic!r}, which feature view {names} reads; create the topic, "
                    "or correct the source's topic and run feast apply."
                )
        return {topic: sorted(known[topic].partitions) for topic in self._readers}

    def _high_watermarks(self, partitions: Mapping[str, Sequence[int]]) -> dict[Place, int]:
        targets = {}
        for topic, numbers in partitions.items():
            for number in numbers:
                low, high = self._watermarks(topic, number)
                if high > low:
                    targets[topic, number] = high
        return targets

    def _watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        give_up = time.monotonic() + KAFKA_SECONDS
        while True:
            try:
                low, high = self._consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=KAFKA_SECONDS
                )
            except KafkaException as error:  # a partition that was created or moved just now may have no leader yet
                if error.args[0].code() != KafkaError.NOT_LEADER_FOR_PARTITION or time.monotonic() > give_up:
                    raise self._unavailable(error) from error
                self._stop.wait(POLL_SECONDS)
            else:
                return low, high

    def _mark_views(self) -> None:
        for readers in self._readers.values():
            for reader in readers:
                if redis_store.view_mark(self._redis, self._plan.project, reader.view) is None:
                    how = {"by": "stream", "topic": reader.topic}
                    redis_store.mark_view(self._redis, self._plan.project, reader.view, how)

    def _progress(self) -> dict[str, dict[Place, int]]:
        views = [reader.view for readers in self._readers.values() for reader in readers]
        return progress_of_each(self._redis, self._plan.project, views)

    def _stored_progress(self) -> dict[Place, list[int]]:
        """How far each view has come in each partition of its topic; 0 where it never began."""
        come = self._progress()
        result: dict[Place, list[int]] = {}
        for topic, readers in self._readers.items():
            of_views = [come[reader.view.name] for reader in readers]
            for place in set[Place]().union(*of_views):
                if place[0] == topic:
                    result[place] = [of_view.get(place, 0) for of_view in of_views]
        return result

    # Rebalances. Exceptions are kept for the loop: librdkafka calls these from within poll.

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._closing:  # a consumer that is being closed answers no questions, and nothing will be read
            return
        try:
            starts = self._starts({(p.topic, p.partition) for p in partitions})
        except Exception as error:  # noqa: BLE001
            self._failure = error
            return
        self._next.update(starts)
        self.state.joined = True
        consumer.incremental_assign([TopicPartition(*place, offset) for place, offset in starts.items()])
        if starts:
            log.info("reading %s", ", ".join(f"{t}[{p}] from {offset}" for (t, p), offset in sorted(starts.items())))

    def _starts(self, places: Collection[Place]) -> dict[Place, int]:
        """Where to read each place, by what Redis has; every view's progress is there at least from now on."""
        project = self._plan.project
        if not places:
            return {}
        of_views = self._patience.outlast(self._progress)
        emptied = not any(of_views.values()) and self._patience.outlast(partial(is_empty, self._redis, project))
        committed = self._kafka_patience.outlast(partial(self._committed, places))
        starts = {}
        for partition in committed:
            place = partition.topic, partition.partition
            come = {reader.view.name: of_views[reader.view.name].get(place) for reader in self._readers[place[0]]}
            found = begin(
                place,
                *self._kafka_patience.outlast(partial(self._watermarks, *place)),
                partition.offset,
                come,
                emptied=emptied,
                skip_expired=self._skip_expired,
            )
            if found.expired:
                self.summary.topics[place[0]].expired += found.expired
                log.warning("%s[%d]: %d messages were deleted before they were read", *place, found.expired)
            if found.again:
                log.warning(
                    "%s[%d]: Redis lacks %d messages that were committed; reading them again", *place, found.again
                )
            starts[place] = found.offset
        for readers in self._readers.values():
            for reader in readers:
                known = of_views[reader.view.name]
                new = {place: at for place, at in starts.items() if place[0] == reader.topic and place not in known}
                begin_progress(self._redis, project, [reader.view], new, self._patience)
        self._kafka_patience.answered()
        return starts

    def _committed(self, places: Collection[Place]) -> list[TopicPartition]:
        try:
            partitions = [TopicPartition(*place) for place in sorted(places)]
            found: list[TopicPartition] = self._consumer.committed(partitions, timeout=KAFKA_SECONDS)
        except KafkaException as error:
            raise self._unavailable(error) from error
        return found

    def _go_back(self) -> None:
        """Go on from what Redis holds, after it was started anew or failed over: that may be less than what we wrote."""
        log.warning("Redis was started anew or failed over: checking what it holds")
        self._threads.shutdown()  # of other views; what they still send of this batch must not arrive after we went back
        self._threads = self._new_threads()
        self._ahead = {}, ()  # it lies beyond what is read again
        while True:
            self._patience.outlast(partial(load_library, self._redis))
            starts = self._starts(self._next)
            positions = {place: min(offset, starts[place]) for place, offset in self._next.items()}
            if self._witnessed(positions):
                break
        for place, offset in positions.items():
            if offset < self._next[place]:
                self.state.read_again[place[0]] += self._next[place] - offset
                log.warning(
                    "%s[%d]: Redis lost the effects of %d messages; reading them again",
                    *place,
                    self._next[place] - offset,
                )
            self._seek(place, offset)
        self._next.update(positions)
        self._patience.answered()

    def _seek(self, place: Place, offset: int) -> None:
        give_up = time.monotonic() + KAFKA_SECONDS
        while True:
            try:
                self._consumer.seek(TopicPartition(*place, offset))
                return
            except KafkaException as error:  # librdkafka has not begun to fetch a partition that was assigned just now
                if time.monotonic() > give_up:
                    raise self._unavailable(error) from error
                self._stop.wait(POLL_SECONDS)

    def _witnessed(self, positions: Mapping[Place, int]) -> bool:
        answers = [
            witness(
                self._redis,
                self._plan.project,
                [reader.view for reader in readers],
                of_topic,
                self._name,
                self._patience,
            )
            for topic, readers in self._readers.items()
            if (of_topic := {place: offset for place, offset in positions.items() if place[0] == topic})
        ]
        return all(answers)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._commit(asynchronous=False, only={(p.topic, p.partition) for p in partitions})
        self._on_lost(consumer, partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._next.pop((partition.topic, partition.partition), None)
        consumer.incremental_unassign(partitions)

    def _on_error(self, error: KafkaError) -> None:
        # The same trouble comes with every attempt to connect, many a second. One that hinders the start is told by the
        # exception that ends it.
        if not self._is_refused:  # what follows says less
            self._last_error, self._is_refused = error.str(), error.code() in _REFUSALS
        self.state.kafka_errors[error.name()] += 1
        now = time.monotonic()
        if self._reading and now - self._warned_at.get(error.code(), -REPORT_SECONDS) >= REPORT_SECONDS:
            self._warned_at[error.code()] = now
            log.warning("Kafka: %s", error.str())

    def _on_commit(self, error: KafkaError | None, _: list[TopicPartition]) -> None:
        if error is not None:
            log.warning("offsets were not committed (%s); Redis knows how far we are", error.str())

    def _unavailable(self, error: KafkaException) -> UnavailableError:
        reason = self._last_error or error.args[0].str()
        return (RefusedError if self._is_refused else UnavailableError)(
            f"Kafka at {self._servers} cannot be used ({reason}); check KAFKA_BOOTSTRAP_SERVERS, the security settings and "
            "that the brokers are up."
        )

    # The loop

    def _loop(self, targets: dict[Place, int] | None) -> None:
        looked_at = 0.0
        while not self._stop.is_set():
            if targets is not None:
                ours = all(self._next[place] >= end for place, end in targets.items() if place in self._next)
                if ours and time.monotonic() - looked_at > POLL_SECONDS:
                    looked_at = time.monotonic()
                    elsewhere = self._stored_progress()
                    if all(max(self._next.get(p, 0), min(elsewhere.get(p, [0]))) >= end for p, end in targets.items()):
                        return
            messages, errors = self._received()
            if self._failure is not None:
                raise self._failure
            now = self.state.ticked = time.monotonic()
            try:
                if messages or errors:
                    self._batch(messages, errors)
                held = now - self._committed_at <= COMMIT_SECONDS or self._witnessed(self._next)
            except ReplacedError:
                held = False
            if not held:
                self._go_back()
                continue
            if now - self._committed_at > COMMIT_SECONDS:
                self._committed_at = now
                self._commit(asynchronous=True)
                self.state.lag = self._lag()
            if now - self._reported_at > REPORT_SECONDS:
                self._reported_at = now
                self._report()

    def _received(self) -> _Received:
        """What has come: what was read ahead, or else, as soon as there is a message, all that is there."""
        ahead, self._ahead = self._ahead, ({}, ())
        if any(ahead):
            return ahead
        first = self._consumer.poll(POLL_SECONDS)
        return ahead if first is None else _told_apart([first, *self._consumer.consume(MAX_BATCH - 1, 0)])

    def _read_ahead(self) -> None:
        """Take and decode the next batch while the views' threads apply this one: they wait for Redis much of the time.

        Only while the worker is behind: what is taken when a batch begins waits for two batches, what is taken when it has ended
        for one. What is read ahead counts for nothing until it is applied, and may be dropped at any time.
        """
        if not self._is_behind or any(self._ahead) or self._stop.is_set():
            return
        self._ahead = _told_apart(self._consumer.consume(MAX_BATCH, 0))
        self._decoded.clear()
        for topic, messages in self._ahead[0].items():
            values = list(map(Message.value, messages))
            for reader in self._readers[topic]:
                schema = reader.source.message, reader.source.encoding
                try:
                    if (topic, schema) not in self._decoded:
                        self._decoded[topic, schema] = values, self._decoders[schema](values)
                except UnavailableError:
                    return  # the schema registry: it is asked again, with patience, when their turn comes

    def _batch(self, by_topic: Mapping[str, Sequence[Message]], errors: Sequence[Message]) -> None:
        ends: dict[Place, int] = {}
        for message, error in zip(errors, map(Message.error, errors), strict=True):
            if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                # Beyond the last message there may be markers of transactions, which nobody reads.
                ends[message.topic(), message.partition()] = message.offset()
            elif error.code() == KafkaError._MAX_POLL_EXCEEDED:  # noqa: SLF001
                log.warning("Kafka gave our partitions to others while Redis was away; joining the group again")
            elif not error.retriable():
                raise self._unavailable(KafkaException(error))
        count = sum(map(len, by_topic.values()))
        self._is_behind = 2 * (sum(self._lag().values()) - count) > count
        for topic, messages in by_topic.items():
            for place, offset in self._apply_topic(topic, messages).items():
                if place in self._next:
                    self._next[place] = offset
        for place, offset in ends.items():
            if self._next.get(place, offset) < offset:
                self._next[place] = offset
                self._advance({place: offset})
        if count and self._on_batch:
            self.state.lag = self._lag()
            _, created = next(iter(by_topic.values()))[0].timestamp()
            age = max(0.0, time.time() - created / 1000) if created >= 0 else None
            seconds = time.monotonic() - self.state.ticked
            lag = sum(self.state.lag.values())
            self._on_batch(Progress(count, seconds, age, self.summary.consumed, dict(self._next), lag))

    def _apply_topic(self, topic: str, messages: Sequence[Message]) -> dict[Place, int]:
        """Apply messages of one topic; the offset after the last one of each partition."""
        partition = np.fromiter(map(Message.partition, messages), np.int64, len(messages))
        offset = np.fromiter(map(Message.offset, messages), np.int64, len(messages))
        readers = self._readers[topic]
        reached: dict[Place, int] = {}
        for stretch in stream.rising(partition, offset):
            letters = self._apply(readers, messages[stretch], partition[stretch], offset[stretch])
            self._dead_letters.write(topic, letters)
            counts = self.summary.topics[topic]
            counts.consumed += stretch.stop - stretch.start
            counts.dead_lettered += len(letters)
            ends = np.zeros(int(partition.max()) + 1, np.int64)
            np.maximum.at(ends, partition[stretch], offset[stretch] + 1)
            positions = {(topic, number): int(ends[number]) for number in np.flatnonzero(ends).tolist()}
            self._advance(positions)
            reached |= positions
        return reached

    def _advance(self, positions: Mapping[Place, int]) -> None:
        for topic in {topic for topic, _ in positions}:
            views = [reader.view for reader in self._readers[topic]]
            of_topic = {place: offset for place, offset in positions.items() if place[0] == topic}
            advance_progress(self._redis, self._plan.project, views, of_topic, self._patience, self._name)
        self._patience.answered()

    def _apply(
        self,
        readers: Sequence[_Reader],
        messages: Sequence[Message],
        partition: stream.Integers,
        offset: stream.Integers,
    ) -> list[Letter]:
        """Apply messages to every view of their topic; the dead letters among them."""
        values = list(map(Message.value, messages))
        stamps = map(Message.timestamp, messages)
        times = np.fromiter(map(itemgetter(1), stamps), np.int64, len(messages))  # ms, -1: not known
        create_time = np.where(times < 0, UNKNOWN_TIME, times * MILLISECOND)
        only_for = _only_for(messages)
        letters: list[tuple[int, Letter]] = []
        for schema in dict.fromkeys((reader.source.message, reader.source.encoding) for reader in readers):
            known = self._decoded.pop((messages[0].topic(), schema), None)
            if known is not None and known[0] == values:
                table, good, bad = known[1]
            else:
                table, good, bad = self._decode(self._decoders[schema], values)
            columns = to_columns(schema[0], table)
            alike = [reader for reader in readers if (reader.source.message, reader.source.encoding) == schema]
            own = schema_hash(alike[0].source) if bad else ""
            letters += [(row, Letter(messages[row], "", reason, own)) for row, reason in bad.items()]
            # One view computes while Redis merges another's deltas.
            batch = _Batch(columns, partition[good], offset[good], create_time[good])
            replays = {int(np.searchsorted(good, row)): view for row, view in only_for.items() if row not in bad}
            apply = partial(self._apply_view, batch=batch, only_for=replays)
            outcomes = self._threads.map(apply, alike)
            self._read_ahead()
            for reader, (counts, reasons) in zip(alike, outcomes, strict=True):
                counts.refused.update(reason.split(": ")[0] for reason in bad.values())
                self.summary.views[reader.view.name].add(counts)
                for row, reason in reasons.items():
                    place = int(good[row])
                    letters.append((place, Letter(messages[place], reader.view.name, reason, reader.view.hash)))
        return [letter for _, letter in sorted(letters, key=itemgetter(0))]

    def _decode(self, decode: Decoder, values: Sequence[bytes | None]) -> Messages:
        found = self._registry_patience.outlast(partial(decode, values))  # the messages are as good as ever
        self._registry_patience.answered()
        return found

    def _apply_view(self, reader: _Reader, batch: _Batch, only_for: Mapping[int, str]) -> tuple[Counts, dict[int, str]]:
        name = reader.view.name
        others = [row for row, view in only_for.items() if view != name]
        if others:
            # Replays of what other views had refused: this one has counted the originals.
            kept = np.setdiff1d(np.arange(len(batch.partition)), others)
            counts, reasons = self._apply_view(reader, batch.take(kept), {})
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

    # What was read

    def _commit(self, *, asynchronous: bool, only: set[Place] | None = None) -> None:
        offsets = [
            TopicPartition(*place, offset) for place, offset in self._next.items() if only is None or place in only
        ]
        if not offsets:
            return
        try:
            self._consumer.commit(offsets=offsets, asynchronous=asynchronous)
        except KafkaException as error:
            log.warning("offsets were not committed (%s); Redis knows how far we are", error.args[0].str())

    def _lag(self) -> dict[Place, int]:
        lag = {}
        for place, offset in self._next.items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
            lag[place] = max(0, high - offset)
        return lag

    def _report(self) -> None:
        lag = self._lag()
        for topic, read in self.summary.topics.items():
            log.info(
                "%s: %d messages read, %d dead letters, lag %d",
                topic,
                read.consumed,
                read.dead_lettered,
                sum(behind for place, behind in lag.items() if place[0] == topic),
            )
        for name, c in self.summary.views.items():
            log.info(
                "%s: %d applied, %d duplicates, %d too late, %d refused",
                name, c.applied, c.duplicate, c.too_late, c.refused.total(),
            )  # fmt: skip
