"""What a worker asks of Kafka, and what Kafka's errors mean to it.

The offsets that it commits are a copy for Kafka's own tools: Redis knows how far each definition has come.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, TopicDescription

from connections import RefusedError
from ingestion.report import Place, State
from tally.errors import NotReadyError, UnavailableError
from tally.plan import View

log = logging.getLogger(__name__)

Received = tuple[Mapping[str, Sequence[Message]], Sequence[Message]]
"""(the messages of each topic, what came beside them: errors and ends of partitions)."""

Headers = list[tuple[str, bytes | None]]

MAX_BATCH: Final = 200_000
"""A worker that is behind takes all that librdkafka has fetched, at most 64 MiB: the more events of an entity are in a batch,
the less each of them costs. One that keeps up takes what has come since the last batch, which is little."""
POLL_SECONDS: Final = 0.1
WARN_SECONDS: Final = 10.0
"""The same trouble is told no more often."""
KAFKA_SECONDS: Final = 10.0
IDS_SECONDS: Final = 2.0
"""librdkafka's in-memory cluster never says its topics' ids, and holds up a start for as long as this."""
START_SECONDS: Final = 1.0
"""As long as a worker that waits for Kafka does not see that it is to stop."""
SESSION_MILLISECONDS: Final = 10_000
"""How long the partitions of a worker that died lie idle. librdkafka's own value, 45 s, is long for live features, and a
worker that is declared dead too soon does no harm: what it still writes lies behind the fences."""
CRITICAL: Final = 2
"""librdkafka's log level (syslog's numbers): what is less comes to `_on_error`, too, and from there to the log."""
TOPICS_MILLISECONDS: Final = 5_000
"""How soon new partitions are noticed. librdkafka's own value is five minutes, in which nobody would read them."""
_CONSUMER_ONLY: Final = ("group.", "session.", "heartbeat.", "auto.", "enable.", "fetch.", "max.poll.", "queued.")
_NO_ID: Final = ("", "AAAAAAAAAAAAAAAAAAAAAA")
_REFUSALS: Final = (KafkaError._AUTHENTICATION, KafkaError._SSL)  # noqa: SLF001


class GroupConsumer:
    """The member of a consumer group that reads the topics of `views` (topic -> those that read it).

    `config` are librdkafka's properties. `state` counts Kafka's errors. Every call that asks Kafka raises UnavailableError,
    RefusedError if it refuses us.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        group: str,
        views: Mapping[str, Sequence[View]],
        stop: threading.Event,
        state: State,
    ) -> None:
        self._views, self._stop, self._state = views, stop, state
        self._servers = str(config.get("bootstrap.servers", ""))
        self._last_error = ""
        self._is_refused = False
        self._warned_at: dict[int, float] = {}
        self.is_subscribed = False
        session = int(config.get("session.timeout.ms", SESSION_MILLISECONDS))
        self._consumer = Consumer(
            {
                "log_level": CRITICAL,
                "fetch.queue.backoff.ms": 10,  # a full queue is drained in less than librdkafka's second
                "session.timeout.ms": session,
                "heartbeat.interval.ms": min(3_000, session // 4),
                "topic.metadata.refresh.interval.ms": TOPICS_MILLISECONDS,
                **config,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",  # what lies beyond the ends of a partition is ours to judge
                "partition.assignment.strategy": "cooperative-sticky",
                "error_cb": self._on_error,
                "on_commit": self._on_commit,
            },
            logger=log,
        )
        self._admin = AdminClient(
            {**without_consumer(config), "log_level": CRITICAL, "error_cb": lambda _: None}, logger=log
        )

    def close(self) -> None:
        """Leave the group."""
        if self.is_subscribed:
            # A partition that the group takes back while a consumer is being closed keeps it waiting for ever (librdkafka's issue
            # 4884), so all of them are given back before.
            self._consumer.unsubscribe()
            give_up = time.monotonic() + KAFKA_SECONDS
            while self._consumer.assignment() and time.monotonic() < give_up:
                self._consumer.poll(POLL_SECONDS)
        self._consumer.close()
        del self._admin  # ends its threads

    # What there is to read

    def check_topics(self, seconds: float) -> dict[str, list[int]]:
        """The partitions of each topic, if Kafka answers within so many seconds. Raises NotReadyError for one that is missing."""
        try:
            known = self._consumer.list_topics(timeout=seconds).topics
        except KafkaException as error:
            self._consumer.poll(0)  # serves the error callback, which knows more
            raise self._unavailable(error) from error
        for topic, views in self._views.items():
            if topic not in known or known[topic].error is not None:
                names = ", ".join(view.name for view in views)
                raise NotReadyError(
                    f"Kafka at {self._servers} has no topic {topic!r} (read by {names}); create the topic, "
                    "or correct the source's topic and run feast apply."
                )
        return {topic: sorted(known[topic].partitions) for topic in self._views}

    def ask_ids(self) -> dict[str, Future[TopicDescription]]:
        """Ask for the `ids` of topics, without waiting."""
        topics = TopicCollection(sorted(self._views))
        asked: dict[str, Future[TopicDescription]] = self._admin.describe_topics(topics, request_timeout=IDS_SECONDS)
        return asked

    def ids(self, asked: Mapping[str, Future[TopicDescription]]) -> dict[str, str]:
        """Topic -> the id that Kafka has given it; empty where it gives none. Topics that are not there are left out."""
        found = {}
        for topic, description in asked.items():
            try:
                text = str(description.result().topic_id)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise self._unavailable(error) from error
            else:
                found[topic] = "" if text in _NO_ID else text
        return found

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        """(offset of the first message, offset after the last one)."""
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

    def lag(self, positions: Mapping[Place, int]) -> dict[Place, int]:
        """How many messages each partition holds beyond a position, as far as the last fetch has told."""
        lag = {}
        for place, offset in positions.items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
            lag[place] = max(0, high - offset)
        return lag

    # The group's offsets and partitions

    def committed(self, places: Collection[Place]) -> dict[Place, int]:
        """The group's offset of each place; negative: it has none."""
        try:
            partitions = [TopicPartition(*place) for place in sorted(places)]
            found = self._consumer.committed(partitions, timeout=KAFKA_SECONDS)
        except KafkaException as error:
            raise self._unavailable(error) from error
        return {(partition.topic, partition.partition): partition.offset for partition in found}

    def commit(self, positions: Mapping[Place, int], *, asynchronous: bool) -> None:
        """Make these the group's offsets. If that fails, the log says so and nothing is lost."""
        offsets = [TopicPartition(*place, offset) for place, offset in positions.items()]
        if not offsets:
            return
        try:
            self._consumer.commit(offsets=offsets, asynchronous=asynchronous)
        except KafkaException as error:
            log.warning("offsets were not committed (%s); Redis knows how far we are", error.args[0].str())

    def subscribe(
        self,
        on_assign: Callable[[set[Place]], None],
        on_revoke: Callable[[set[Place]], None],
        on_lost: Callable[[set[Place]], None],
    ) -> None:
        """Join the group. Within `received` it gives and takes places; answer with `assign` and `unassign`."""

        def of_places(told: Callable[[set[Place]], None]) -> Callable[[Consumer, list[TopicPartition]], None]:
            return lambda _, partitions: told({(p.topic, p.partition) for p in partitions})

        self.is_subscribed = True
        self._consumer.subscribe(
            sorted(self._views),
            on_assign=of_places(on_assign),
            on_revoke=of_places(on_revoke),
            on_lost=of_places(on_lost),
        )

    def assign(self, starts: Mapping[Place, int]) -> None:
        """Read these places, too, each from its offset."""
        self._consumer.incremental_assign([TopicPartition(*place, offset) for place, offset in starts.items()])

    def unassign(self, places: Collection[Place]) -> None:
        """Read these places no more."""
        self._consumer.incremental_unassign([TopicPartition(*place) for place in places])

    def seek(self, place: Place, offset: int) -> None:
        """Go on at another offset of a place that is assigned."""
        give_up = time.monotonic() + KAFKA_SECONDS
        while True:
            try:
                self._consumer.seek(TopicPartition(*place, offset))
                return
            except KafkaException as error:  # librdkafka has not begun to fetch a partition that was assigned just now
                if time.monotonic() > give_up:
                    raise self._unavailable(error) from error
                self._stop.wait(POLL_SECONDS)

    # Messages

    def received(self) -> Received:
        """All that is there, as soon as there is a message; nothing if none comes within POLL_SECONDS."""
        first = self._consumer.poll(POLL_SECONDS)
        return ({}, ()) if first is None else _told_apart([first, *self._consumer.consume(MAX_BATCH - 1, 0)])

    def fetched(self) -> Received:
        """All that is there now."""
        return _told_apart(self._consumer.consume(MAX_BATCH, 0))

    def told(self, errors: Sequence[Message]) -> tuple[dict[Place, int], set[Place]]:
        """What came beside messages: the ends of partitions, and the partitions without the offset that we would read next.

        Raises UnavailableError for errors that do not pass.
        """
        ends: dict[Place, int] = {}
        out_of_range: set[Place] = set()
        for message, error in zip(errors, map(Message.error, errors), strict=True):
            if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                # Beyond the last message there may be markers of transactions, which nobody reads.
                ends[message.topic(), message.partition()] = message.offset()
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
                log.warning("%s[%d] cannot be read on (%s)", message.topic(), message.partition(), error.str())
                out_of_range.add((message.topic(), message.partition()))
            elif error.code() == KafkaError._MAX_POLL_EXCEEDED:  # noqa: SLF001
                log.warning("Kafka gave our partitions to others while Redis was away; joining the group again")
            elif error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                log.warning("Kafka: %s; waiting for the topic", error.str())
            elif not error.retriable():
                raise self._unavailable(KafkaException(error))
        return ends, out_of_range

    # Errors

    def _on_error(self, error: KafkaError) -> None:
        # The same trouble comes with every attempt to connect, many a second. One that hinders the start is told by the
        # exception that ends it.
        if not self._is_refused:  # what follows says less
            self._last_error, self._is_refused = error.str(), error.code() in _REFUSALS
        self._state.kafka_errors[error.name()] += 1
        now = time.monotonic()
        if self.is_subscribed and now - self._warned_at.get(error.code(), -WARN_SECONDS) >= WARN_SECONDS:
            self._warned_at[error.code()] = now
            log.warning("Kafka: %s", error.str())

    def _on_commit(self, error: KafkaError | None, _: list[TopicPartition]) -> None:
        if error is not None:
            log.warning("offsets were not committed (%s); Redis knows how far we are", error.str())

    def _unavailable(self, error: KafkaException) -> UnavailableError:
        reason = self._last_error or error.args[0].str()
        return (RefusedError if self._is_refused else UnavailableError)(unusable(self._servers, reason))


def headers_of(messages: Sequence[Message]) -> list[Headers | None]:
    """The headers of each message; None where there are none, and where a name is not UTF-8: confluent_kafka cannot read those."""
    found: list[Headers | None] = []
    asked = map(Message.headers, messages)  # it sees the error; after a plain call that may come up anywhere
    while len(found) < len(messages):
        try:
            found.extend(asked)
        except SystemError:
            messages[len(found)].set_headers([])  # asked again, it would answer with a name that is a null pointer
            found.append(None)
    return found


def without_consumer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Properties of librdkafka for a client that consumes nothing."""
    return {name: value for name, value in config.items() if not name.startswith(_CONSUMER_ONLY)}


def unusable(servers: str, reason: str) -> str:
    """The sentence for brokers that do not do what they are asked."""
    return (
        f"Kafka at {servers} cannot be used ({reason}); check KAFKA_BOOTSTRAP_SERVERS, the security settings and that the "
        "brokers are up."
    )


def _told_apart(received: Sequence[Message]) -> Received:
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
