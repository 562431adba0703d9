"""Ten million served values beside the training set, while messages come twice, out of order and late, and workers are killed.

Two workers of one group write three windowed views. Over and over, many keys are looked up in the midst of it, and every
answer goes to a log of served rows. At the end the topic is read once more, as it was kept, into an offline store, and the
log is audited: each row built again from its evidence, the same bits or not.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from redis import Redis

from benchmarks.definitions import KEY, MESSAGE
from benchmarks.measure import DifferentAnswersError, Report, Result, Target
from benchmarks.stream import DEADLINE, PARTITIONS, START, create, message, plan_of_topic, serve
from infra.local import embedded
from infra.settings import Settings
from ingestion.arrow import INSTANT, from_column, from_columns
from ingestion.delta import write_table
from ingestion.messages import decode
from ingestion.offline import IDENTITY, Extracted, source_hash
from ingestion.worker import run as run_worker
from serving_client import FeatureClient, ParquetSink, ServedLog
from tally.columns import column, differing
from tally.errors import UnavailableError
from tally.plan import Plan
from tally.time import MINUTE
from training import training_set
from training.auditing import audit_log

TOPIC: Final = "parity"
KEYS: Final = 4_000
CHUNK: Final = 1_000
LOOKED_UP: Final = 2_000
STEP: Final = MINUTE // CHUNK
TWICE, MOVED, LATE = 0.2, 0.2, 0.05
KILL_EVERY: Final = 64
"""Lookups between two kills: a group takes six seconds to miss a worker, and must get to work in between."""
PACE: Final = 0.25


def run(*, quick: bool) -> Report:
    """Serve, then prove. Raises UnavailableError where Kafka does not take or give the messages."""
    lookups = 30 if quick else 640
    os.environ["TALLY_REQUIRE_APACHE_KAFKA"] = "1"  # the in-memory cluster forgets all but the last 5 MiB
    with (
        tempfile.TemporaryDirectory() as home,
        embedded(Path(home), ("redis", "kafka")) as settings,
        Redis.from_url(settings.redis_url) as redis,
    ):
        create(settings, TOPIC)
        plan = plan_of_topic("parity", TOPIC)
        log = Path(home) / "served"
        filled, ahead, killed, sent = _serve(settings, redis, plan, lookups, log)
        run_worker(plan, None, settings.kafka_config(), redis, until_end=True)
        offline = str(Path(home) / "offline")
        events = _keep_topic(settings, plan, offline)
        audited = audit_log(plan, log, offline_uri=offline)
        left_out = sum(part.left_out.total() for part in audited.parts)
        at_end, differ_at_end = _at_end(redis, plan, offline, START + (lookups + 1) * MINUTE)
    return Report(
        [
            Result("parity: values served amid it all, compared", audited.values, None, "values", _TEN_MILLION),
            Result("parity: of these, differ from the training set", audited.differ, None, "values", _NONE),
            Result("parity: of these, not null", filled, None, "values", Target("ours", ">=", audited.values / 2)),
            Result("parity: would differ, had all events been seen when they happened", audited.later, None, "values"),
            Result("parity: rows of the log that could not be compared", left_out, None, "rows", _NONE),
            Result("parity: rows served and flagged as ahead of their instant", ahead, None, "rows", _NONE),
            Result("parity: values of every key at the end, compared", at_end, None, "values"),
            Result("parity: of these, differ from the classical training set", differ_at_end, None, "values", _NONE),
            Result("parity: messages, with those sent twice", events, None, "messages"),
            Result("parity: messages sent but not in the topic", sent - events, None, "messages", _NONE),
            Result("parity: workers killed with -9", killed, None, "workers"),
        ],
        _NOTES,
    )


_TEN_MILLION: Final = Target("ours", ">=", 1e7)
_NONE: Final = Target("ours", "<=", 0)
_NOTES: Final = (
    f"Sent twice: {TWICE:.0%} of the messages, as two events. Out of order: {MOVED:.0%} by up to a minute, {LATE:.0%} by up to an hour.",
    "Compared by bits, nulls too: each served row beside the training set's, made from the events its evidence names.",
    "At the end, when all is applied: each key beside the classical training set.",
)


def _serve(settings: Settings, redis: Redis, plan: Plan, lookups: int, folder: Path) -> tuple[int, int, int, int]:
    """Serve, and log in `folder`. How many values were not null, rows were flagged, workers were killed, messages sent.

    Raises DifferentAnswersError where the log does not have all that was served.
    """
    rng = np.random.default_rng(5)
    messages = _messages(rng, lookups)
    producer = Producer(settings.kafka_config() | {"linger.ms": 5, "enable.idempotence": True})
    filled = ahead = killed = sent = 0
    with ExitStack() as stack:
        log = stack.enter_context(ServedLog(ParquetSink(folder)))
        client = FeatureClient(redis, plan, log=log)
        workers = [_worker(stack, settings, plan) for _ in range(2)]
        for number, chunk in enumerate(messages):
            began = time.monotonic()
            for key, value in chunk:
                producer.produce(TOPIC, value, key=key)
            sent += len(chunk)
            producer.poll(0)
            if not number:
                _wait_for_work(producer, redis)
            keys = rng.permutation(KEYS)[:LOOKED_UP]
            answer = client.get({KEY.name: keys}, START + (number + 1) * MINUTE)
            filled += sum(int(found.valid.sum()) for found in answer.columns.values())
            ahead += int(answer.ahead.sum())
            if number % KILL_EVERY == KILL_EVERY - 1:
                victim = workers.pop(0)
                victim.kill()
                victim.join()
                killed += 1
                workers.append(_worker(stack, settings, plan))
            time.sleep(max(0.0, began + PACE - time.monotonic()))
        if producer.flush(DEADLINE):
            raise UnavailableError("The embedded Kafka did not take the benchmark's messages; see its log.")
    if log.dropped or log.lost:
        raise DifferentAnswersError(f"the log lacks {log.dropped + log.lost} of the rows that were served")
    return filled, ahead, killed, sent


def _wait_for_work(producer: Producer, redis: Redis) -> None:
    """Until the workers wrote something: a broker's first consumer group waits seconds for it to be ready."""
    producer.flush(DEADLINE)
    until = time.monotonic() + DEADLINE
    while redis.dbsize() < CHUNK // 2:
        if time.monotonic() > until:
            raise UnavailableError("No worker wrote anything; see their logs.")
        time.sleep(PACE)


def _worker(stack: ExitStack, settings: Settings, plan: Plan) -> BaseProcess:
    """A worker in a process of its own, which a group misses after six seconds; killed at the latest with `stack`."""
    config = {**settings.kafka_config(), "session.timeout.ms": 6_000}
    process = get_context("spawn").Process(target=serve, args=(plan.to_json(), config, settings.redis_url))
    process.start()
    stack.callback(process.join)
    stack.callback(process.kill)
    return process


def _messages(rng: np.random.Generator, chunks: int) -> list[list[tuple[bytes, bytes]]]:
    """Keys and values in the order in which they are sent; those of chunk i happen before ``START + (i + 1) * MINUTE``."""
    count = chunks * CHUNK
    at = START + np.arange(count) * STEP
    at -= np.where(rng.random(count) < MOVED, rng.integers(0, MINUTE, count), 0)
    at -= np.where(rng.random(count) < LATE, rng.integers(0, 60 * MINUTE, count), 0)
    keys = rng.integers(0, KEYS, count)
    amounts = rng.normal(0.0, 1.0, count) * 10.0 ** rng.integers(-9, 15, count)
    twice = rng.random(count) < TWICE
    made = [
        (b"%d" % key, message(*one))
        for *one, key in zip(at.tolist(), keys.tolist(), amounts.tolist(), keys.tolist(), strict=True)
    ]
    return [
        [made[i] for i in range(first, first + CHUNK) for _ in range(1 + twice[i])] for first in range(0, count, CHUNK)
    ]


def _keep_topic(settings: Settings, plan: Plan, offline: str) -> int:
    """The whole topic as an offline table; how many messages it has."""
    source = plan.sources[0]
    values, partitions, offsets = _read(settings)
    identity = [
        pa.array([TOPIC] * len(values)),
        pa.array(partitions, pa.int32()),
        pa.array(offsets, pa.int64()),
        pa.nulls(len(values), INSTANT),
        pa.nulls(len(values), INSTANT),
        pa.nulls(len(values), pa.string()),
    ]
    table = pa.Table.from_arrays(identity, schema=IDENTITY)
    for name, found in decode(MESSAGE, values).columns.items():
        table = table.append_column(name, from_column(found))
    ends = {partition: max(o for p, o in zip(partitions, offsets, strict=True) if p == partition) for partition in range(PARTITIONS)}  # fmt: skip
    knows = Extracted(source_hash(plan, source), ends, {p: end + 1 for p, end in ends.items()}, None)
    write_table(
        offline, source.name, None, table.schema, table.to_batches(), overwrite=True, metadata=knows.to_metadata()
    )
    return len(values)


def _read(settings: Settings) -> tuple[list[bytes | None], list[int], list[int]]:
    """Every message of the topic: value, partition and offset."""
    consumer = Consumer(
        {**settings.kafka_config(), "group.id": "parity-reader", "enable.auto.commit": False, "enable.partition.eof": True}
    )  # fmt: skip
    consumer.assign([TopicPartition(TOPIC, partition, 0) for partition in range(PARTITIONS)])
    values: list[bytes | None] = []
    partitions: list[int] = []
    offsets: list[int] = []
    ended: set[int | None] = set()
    until = time.monotonic() + DEADLINE
    while len(ended) < PARTITIONS:
        if time.monotonic() > until:
            raise UnavailableError(
                f"The embedded Kafka gave {len(values)} messages of {TOPIC}, and no end; see its log."
            )
        for found in consumer.consume(10_000, 0.5):
            error = found.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 the library's public name for it
                ended.add(found.partition())
            elif error is not None:
                raise UnavailableError(f"The embedded Kafka did not give {TOPIC}: {error.str()}.")
            else:
                values.append(found.value())
                partitions.append(int(found.partition() or 0))
                offsets.append(int(found.offset() or 0))
    consumer.close()
    return values, partitions, offsets


def _at_end(redis: Redis, plan: Plan, offline: str, as_of: int) -> tuple[int, int]:
    """(how many values, how many of them differ) of all keys between a lookup and the classical training set."""
    keys = np.arange(KEYS)
    answered = FeatureClient(redis, plan).get({KEY.name: keys}, as_of)
    asked = {KEY.name: column(KEY.dtype, keys), "event_timestamp": column("UnixTimestamp", answered.as_of)}
    built = training_set(plan, from_columns(asked), service="all", offline_uri=offline)
    differs = [differing(answered.columns[name], built.columns[name]) for name in answered.names]
    return sum(map(len, differs)), sum(int(one.sum()) for one in differs)
