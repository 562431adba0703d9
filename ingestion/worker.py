"""The loop of `tally stream`: receive messages, apply them, say how far that is.

Of each stretch of messages the effects are in Redis first, then its dead letters are in Kafka, then its progress is in Redis, and
the group's offsets are committed last: so a worker that ends at any moment leaves nothing out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

import numpy as np
from confluent_kafka import Message
from confluent_kafka.admin import TopicDescription

from connections import Client, RefusedError
from ingestion import kafka, stream
from ingestion.applying import Applier, reader_of
from ingestion.assignment import Assignment
from ingestion.avro import WriterSchema
from ingestion.dead_letters import DeadLetters
from ingestion.intake import Intake, decoders_of, is_behind
from ingestion.kafka import GroupConsumer
from ingestion.patience import Patience, StoppedWhileAwayError
from ingestion.progress import writer_name
from ingestion.redis_calls import ReplacedError
from ingestion.report import KAFKA, REGISTRY, Place, Progress, State, Summary, TopicCounts
from ingestion.stream import Counts
from ingestion.worker_progress import WorkerProgress
from tally.errors import DefinitionError
from tally.plan import Plan, View

log = logging.getLogger(__name__)

COMMIT_SECONDS: Final = 1.0
REPORT_SECONDS: Final = 10.0
TOPICS_SECONDS: Final = 5.0


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
    state = state or State()
    if not views:
        state.summary = Summary()
        return state.summary
    worker = _Worker(
        plan,
        views,
        dict(kafka_config),
        redis,
        group or group_of(plan, views),
        stop or threading.Event(),
        on_batch,
        writer_schema,
        state,
        skip_expired=skip_expired,
    )
    return worker.run(until_end=until_end)


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


def group_of(plan: Plan, views: Sequence[View]) -> str:
    """The consumer group of workers that serve these views.

    Workers of one group share the partitions, so those that serve other views must not be in it: each view would lack what
    the other's workers read.
    """
    group = f"tally-{plan.project}"
    names = sorted(view.name for view in views)
    return group if names == sorted(view.name for view in stream_views(plan, None)) else "-".join([group, *names])


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
        *,
        skip_expired: bool,
    ) -> None:
        self._stop, self._on_batch, self._state, self._group = stop, on_batch, state, group
        self._patience, self._kafka_patience = Patience(stop, state), Patience(stop, state, KAFKA)
        name = writer_name()
        readers = [reader_of(plan, view, redis, name, self._patience) for view in views]
        decoders = decoders_of([reader.source for reader in readers], writer_schema)
        topics = list(dict.fromkeys(reader.source.topic for reader in readers))
        by_topic = {topic: [reader for reader in readers if reader.source.topic == topic] for topic in topics}
        views_of = {topic: [reader.view for reader in of_topic] for topic, of_topic in by_topic.items()}
        sources_of = {topic: [reader.source for reader in of_topic] for topic, of_topic in by_topic.items()}
        self._summary = state.summary = Summary(
            {topic: TopicCounts() for topic in topics}, {view.name: Counts() for view in views}
        )
        self._dead_letters = DeadLetters(config, plan.project)
        self._progress = WorkerProgress(redis, plan.project, views_of, name, self._patience)
        self._consumer = GroupConsumer(config, group, views_of, stop, state)
        self._assignment = Assignment(
            self._consumer, self._progress, self._patience, self._kafka_patience, state, skip_expired=skip_expired
        )
        self._intake = Intake(self._consumer, sources_of, decoders, stop, Patience(stop, state, REGISTRY))
        self._applier = Applier(by_topic, self._intake, self._summary.views)
        self._asked: dict[str, Future[TopicDescription]] | None = None
        self._committed_at = self._reported_at = self._asked_at = 0.0

    def run(self, *, until_end: bool) -> Summary:
        started = time.monotonic()
        try:
            if until_end:
                partitions = self._consumer.check_topics(kafka.KAFKA_SECONDS)
                self._progress.meet()
            else:
                check = partial(self._consumer.check_topics, kafka.START_SECONDS)
                partitions = self._kafka_patience.outlast(check, (RefusedError,))
                self._kafka_patience.answered()
                self._patience.outlast(self._progress.meet, (RefusedError,))
                self._patience.answered()
            self._assignment.check_ids(self._consumer.ask_ids())
            targets = self._assignment.ends(partitions) if until_end else None
            given = self._assignment
            self._consumer.subscribe(given.on_assign, given.on_revoke, given.on_lost)
            self._loop(targets)
            self._consumer.commit(self._assignment.next, asynchronous=False)
        except StoppedWhileAwayError:
            away = " and ".join(self._state.away)
            log.warning("stopped while %s was away: the last batch was not committed and will be read again", away)
        finally:
            self._summary.seconds = time.monotonic() - started
            if self._consumer.is_subscribed:
                self._report()
            self._assignment.is_closing = True
            self._consumer.close()
            self._applier.close()
        return self._summary

    def _loop(self, targets: Mapping[Place, int] | None) -> None:
        next_of, looked_at, told_at = self._assignment.next, 0.0, time.monotonic()
        while not self._stop.is_set():
            if targets is not None:
                ours = all(next_of[place] >= end for place, end in targets.items() if place in next_of)
                if ours and time.monotonic() - looked_at > kafka.POLL_SECONDS:
                    looked_at = time.monotonic()
                    elsewhere = self._progress.of_places()
                    left = [p for p, end in targets.items() if max(next_of.get(p, 0), min(elsewhere.get(p, [0]))) < end]
                    if not left:
                        return
                    if looked_at - told_at > REPORT_SECONDS:
                        told_at = looked_at
                        log.warning("waiting for other workers of %s to apply %s", self._group, _listed(left))
            messages, errors = self._intake.received()
            if self._assignment.failure is not None:
                raise self._assignment.failure
            now = self._state.ticked = time.monotonic()
            try:
                if messages or errors:
                    self._batch(messages, errors)
                held = now - self._committed_at <= COMMIT_SECONDS or self._progress.witnessed(next_of)
            except ReplacedError:
                held = False
            if not held:
                self._go_back()
                continue
            if now - self._committed_at > COMMIT_SECONDS:
                self._committed_at = now
                self._consumer.commit(next_of, asynchronous=True)
                self._state.lag = self._consumer.lag(next_of)
            self._check_topics(now)
            if now - self._reported_at > REPORT_SECONDS:
                self._reported_at = now
                self._report()

    def _check_topics(self, now: float) -> None:
        """Every few seconds, whether the topics are still those that we began with. Raises NotReadyError if they are not."""
        if self._asked is None:
            if now - self._asked_at > TOPICS_SECONDS:
                self._asked, self._asked_at = self._consumer.ask_ids(), now
        elif all(answer.done() for answer in self._asked.values()):
            asked, self._asked = self._asked, None
            self._assignment.check_ids(asked)

    def _batch(self, by_topic: Mapping[str, Sequence[Message]], errors: Sequence[Message]) -> None:
        next_of = self._assignment.next
        ends, out_of_range = self._consumer.told(errors)
        count = sum(map(len, by_topic.values()))
        self._intake.is_behind = is_behind(sum(self._consumer.lag(next_of).values()), count)
        for topic, messages in by_topic.items():
            for place, offset in self._apply(topic, messages).items():
                if place in next_of:
                    next_of[place] = offset
        for place, offset in ends.items():
            if next_of.get(place, offset) < offset:
                next_of[place] = offset
                self._progress.advance({place: offset})
        self._assignment.look_again(out_of_range)
        if count and self._on_batch:
            self._state.lag = self._consumer.lag(next_of)
            _, created = next(iter(by_topic.values()))[0].timestamp()
            age = max(0.0, time.time() - created / 1000) if created >= 0 else None
            seconds = time.monotonic() - self._state.ticked
            lag = sum(self._state.lag.values())
            self._on_batch(Progress(count, seconds, age, self._summary.consumed, dict(next_of), lag))

    def _apply(self, topic: str, messages: Sequence[Message]) -> dict[Place, int]:
        """Apply messages of one topic; the offset after the last one of each partition."""
        partition = np.fromiter(map(Message.partition, messages), np.int64, len(messages))
        offset = np.fromiter(map(Message.offset, messages), np.int64, len(messages))
        counts = self._summary.topics[topic]
        reached: dict[Place, int] = {}
        for stretch in stream.rising(partition, offset):
            letters = self._applier.apply(topic, messages[stretch], partition[stretch], offset[stretch])
            self._kafka_patience.outlast(partial(self._dead_letters.write, topic, letters), (RefusedError,))
            self._kafka_patience.answered()
            counts.consumed += stretch.stop - stretch.start
            counts.dead_lettered += len(letters)
            ends = np.zeros(int(partition.max()) + 1, np.int64)
            np.maximum.at(ends, partition[stretch], offset[stretch] + 1)
            positions = {(topic, number): int(ends[number]) for number in np.flatnonzero(ends).tolist()}
            self._progress.advance(positions)
            reached |= positions
        return reached

    def _go_back(self) -> None:
        log.warning("Redis was started anew or failed over: checking what it holds")
        self._applier.settle()  # what is still sent of this batch must not arrive after we went back
        self._intake.drop()  # it lies beyond what is read again
        self._assignment.go_back()

    def _report(self) -> None:
        lag = self._consumer.lag(self._assignment.next)
        for topic, read in self._summary.topics.items():
            log.info(
                "%s: %d messages read, %d dead letters, lag %d",
                topic,
                read.consumed,
                read.dead_lettered,
                sum(behind for place, behind in lag.items() if place[0] == topic),
            )
        for name, c in self._summary.views.items():
            log.info(
                "%s: %d applied, %d duplicates, %d too late, %d refused",
                name, c.applied, c.duplicate, c.too_late, c.refused.total(),
            )  # fmt: skip


def _listed(places: Iterable[Place]) -> str:
    shown = ", ".join(f"{topic}[{number}]" for topic, number in sorted(places))
    return f"{shown} (workers of another plan never will: stop them, or give this run a --group of its own)"
