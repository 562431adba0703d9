"""The local stand-in for the company's Kafka-to-Snowflake connector: topics land in tables, each event once."""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from infra.local import landing
from infra.local.converters import Converter
from infra.local.errors import LocalServiceError
from infra.local.snowflake_load import connected, copy_into, quoted
from infra.settings import Settings

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (messages read, messages there were when the run began)."""

_BATCH = 100_000
_POLL_S = 1.0
_TIMEOUT_S = 30.0
_SILENCE_S = 60.0


def land(
    settings: Settings,
    topics: Mapping[str, str],
    *,
    until_end: bool = True,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    converters: Mapping[str, Converter] | None = None,
) -> int:
    """Append what `topics` (topic -> table) hold beyond what their tables hold already; returns the rows landed.

    `converters` (topic -> converter) are for topics that are not JSON. A run ends at the offsets that were last when it began; with `until_end=False` it starts over until `stop` is set.
    The tables are as Snowflake's Kafka connector makes them, see `landing.rows`, and are created if missing. Where to
    go on is read from the table itself, so a run that crashed is simply run again and no event lands twice.
    Raises LocalServiceError when a topic is missing, was made anew, or falls silent.
    """
    stop = stop or threading.Event()
    landed = 0
    with _alone(settings), connected(settings) as connection, _consumer(settings) as consumer:
        while True:
            landed += _land_once(consumer, connection, topics, converters or {}, progress, stop)
            if until_end or stop.is_set():
                return landed
            stop.wait(_POLL_S)


def _land_once(
    consumer: Consumer,
    connection: Any,
    topics: Mapping[str, str],
    converters: Mapping[str, Converter],
    progress: Progress | None,
    stop: threading.Event,
) -> int:
    spans = {topic: _open_spans(consumer, connection, topic, table) for topic, table in topics.items()}
    total = sum(end - begin for by_partition in spans.values() for begin, end in by_partition.values())
    landed = read = 0
    for topic, table in topics.items():
        for batch, covered in _batches(consumer, topic, spans[topic], stop):
            if batch:
                rows = landing.rows(batch, time.time_ns() // 1_000_000, converters.get(topic))
                landed += copy_into(
                    connection, table, rows, {name: f"PARSE_JSON($1:{name}::VARCHAR)" for name in landing.COLUMNS}
                )
            read += covered
            if progress is not None:
                progress(read, total)
    return landed


def _open_spans(consumer: Consumer, connection: Any, topic: str, table: str) -> dict[int, tuple[int, int]]:
    """By partition, the offsets [begin, end) that have not landed yet; partitions with nothing new are left out."""
    landed = _landed_until(connection, topic, table)
    described = consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
    if described.error is not None or not described.partitions:
        raise LocalServiceError(f"Kafka has no topic {topic!r} ({described.error}): create it or correct its name.")
    spans = {}
    for partition in described.partitions:
        marks = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_TIMEOUT_S)
        if marks is None:
            raise LocalServiceError(
                f"Kafka did not tell the offsets of {topic}[{partition}] within {_TIMEOUT_S:.0f} s: is it up?"
            )
        low, high = marks
        begin = landed.get(partition, 0)
        if begin > high:
            raise LocalServiceError(
                f"Table {table} holds {topic}[{partition}] up to offset {begin - 1}, but the topic ends at {high - 1}: "
                "the topic was made anew; land it in a new table."
            )
        if low > begin:
            log.warning(
                "%s[%d]: offsets %d to %d are no longer in Kafka and never land", topic, partition, begin, low - 1
            )
        if high > max(begin, low):
            spans[partition] = (max(begin, low), high)
    return spans


def _landed_until(connection: Any, topic: str, table: str) -> dict[int, int]:
    cursor = connection.cursor()
    columns = ", ".join(f"{name} VARIANT" for name in landing.COLUMNS)
    cursor.execute(f"CREATE TABLE IF NOT EXISTS {quoted(table)} ({columns})")
    cursor.execute(
        f"SELECT RECORD_METADATA:partition::INT, MAX(RECORD_METADATA:offset::INT) FROM {quoted(table)} "  # noqa: S608  quoted() admits identifiers only
        "WHERE RECORD_METADATA:topic::STRING = %s GROUP BY 1",
        (topic,),
    )
    return {int(partition): int(offset) + 1 for partition, offset in cursor.fetchall()}


def _batches(
    consumer: Consumer, topic: str, spans: Mapping[int, tuple[int, int]], stop: threading.Event
) -> Iterator[tuple[list[Message], int]]:
    """The messages of the spans, in order within a partition, and with each batch how many offsets it covers."""
    if not spans:
        return
    consumer.assign([TopicPartition(topic, partition, begin) for partition, (begin, _) in spans.items()])
    reached = {partition: begin for partition, (begin, _) in spans.items()}
    open_partitions = set(spans)
    batch: list[Message] = []
    covered = 0
    last_heard = time.monotonic()
    while open_partitions and not stop.is_set():
        messages = consumer.consume(10_000, timeout=0.1)
        if messages:
            last_heard = time.monotonic()
        elif time.monotonic() - last_heard > _SILENCE_S:
            raise LocalServiceError(
                f"Kafka sent nothing of {topic}{sorted(open_partitions)} for {_SILENCE_S:.0f} s before their ends: "
                "is the broker up? What was read so far has landed or is read again; run it again."
            )
        for message in messages:
            partition, offset = _place(message)
            if message.topic() != topic or partition not in open_partitions:
                continue
            end = spans[partition][1]
            is_end = _is_end(message)
            upto = end if is_end else min(offset + 1, end)
            covered += upto - reached[partition]
            reached[partition] = upto
            if not is_end and offset < end:
                batch.append(message)
            if upto == end:
                open_partitions.discard(partition)
        if len(batch) >= _BATCH:
            yield batch, covered
            batch, covered = [], 0
    consumer.unassign()
    if batch or covered:
        yield batch, covered


def _place(message: Message) -> tuple[int, int]:
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    return partition, OFFSET_INVALID if offset is None else offset


def _is_end(message: Message) -> bool:
    error = message.error()
    if error is None:
        return False
    if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001  its public name
        return True
    raise KafkaException(error)


@contextmanager
def _consumer(settings: Settings) -> Iterator[Consumer]:
    consumer = Consumer(
        settings.kafka_config()
        | {
            # Positions live in the landing tables; the group is only a name that Kafka asks for.
            "group.id": "tally-local-connector",
            "enable.auto.commit": "false",
            "enable.auto.offset.store": "false",
            "enable.partition.eof": "true",
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
        },
        logger=log,
    )
    try:
        yield consumer
    finally:
        consumer.close()


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Two runs at once would read the same position and land the same events twice."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with (settings.home / "connector.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
