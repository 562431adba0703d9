"""Kafka to Redis, end to end, beside what it takes only to read and parse the same topic."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from numpy.typing import NDArray
from redis import Redis

from benchmarks import stream_quix
from benchmarks.definitions import (
    AMOUNT,
    AT,
    KEY,
    MESSAGE,
    THREE_VIEWS,
    WINDOWS,
    columns_of,
    plan_of,
    rows_of,
    three_windowed_views,
    topic_source,
)
from benchmarks.measure import DifferentAnswersError, Report, Result, Target, alone, seconds_of
from infra.local import embedded
from infra.settings import Settings
from ingestion import kafka
from ingestion.arrow import INSTANT, from_column
from ingestion.delta import write_table
from ingestion.garbage import seldom_collected
from ingestion.materialize import bootstrap_view
from ingestion.messages import decode
from ingestion.offline import IDENTITY, Extracted, source_hash
from ingestion.reading import Rows
from ingestion.worker import run as run_worker
from serving_client import FeatureClient
from tally.columns import Column
from tally.errors import UnavailableError
from tally.plan import Plan
from tally.time import HOUR, MILLISECOND, to_datetime
from training.join import Ask, join

log = logging.getLogger(__name__)

QUIX: Final = "quixstreams[redis]>=3.20"
PARTITIONS: Final = 4
START: Final = 1_700_000_000_000_000
SPAN: Final = 2 * HOUR
ROUNDS: Final = 5
RATE: Final = 100
DEADLINE: Final = 60.0
LOOK_SECONDS: Final = 0.002
"""How often a reader looks: seldom enough not to be a load of its own."""
LOOKED_AT: Final = 16
"""How many of the oldest events it looks for, for the same reason."""
MILLISECONDS: Final = 1e3
MICROSECONDS: Final = 1e6


def run(*, quick: bool) -> Report:
    """Time the stream on many keys and on few, beside Quix Streams, then its freshness under load. Raises DifferentAnswersError."""
    messages, rounds, probes, theirs = (50_000, 1, 200, 3_000) if quick else (1_000_000, ROUNDS, 2_000, 30_000)
    os.environ["TALLY_REQUIRE_APACHE_KAFKA"] = "1"  # the in-memory cluster forgets all but the last 5 MiB
    results = []
    rates = {}
    with (
        tempfile.TemporaryDirectory() as home,
        embedded(Path(home), ("redis", "kafka")) as settings,
        Redis.from_url(settings.redis_url) as redis,
    ):
        for keys in (4_000, 16):
            topic = f"keys-{keys}"
            events = _fill(settings, topic, keys, messages)
            what = f"stream: 3 windowed views, {keys:,} keys"
            results += _throughput(settings, redis, topic, events, what, rounds)
            rates[keys] = next(result.ours for result in results if result.name == f"{what}, rate")
            if keys > 16:
                results += _quix(settings, what, keys, theirs, rates[keys])
                results.append(_two_workers(settings, redis, topic, messages, what))
        results.append(_bootstrap(Path(home), redis, events))
        for keys, rate in rates.items():
            for share in (10, 50, 90):
                redis.flushall()
                waits = _latencies(settings, redis, probes, f"latency-{keys}-{share}", keys, rate * share / 100)
                what = f"stream: 3 windowed views, {keys:,} keys, produced to readable at {share} % of the rate"
                target = Target("ours", "<=", 100.0) if share == 50 else None
                p50, p99 = np.percentile(waits, (50, 99)) * MILLISECONDS
                results += [Result(f"{what}, p50", p50, None, "ms"), Result(f"{what}, p99", p99, None, "ms", target)]
    return Report(results, _NOTES)


def _throughput(settings: Settings, redis: Redis, topic: str, events: Rows, what: str, rounds: int) -> list[Result]:
    """Rates of one worker and of consuming and parsing alone, in turns; CPU time of worker and Redis for each event."""
    messages = len(events.timestamp)
    ours, theirs, workers, servers = [], [], [], []
    # The first round is not counted: a broker's first consumer group waits seconds for it to be ready.
    for number in range(rounds + 1):
        theirs.append(alone(consume_and_parse, settings.kafka_config(), topic, messages)[0])
        plan = plan_of_topic(f"{topic}-{number}", topic)
        before = _cpu_of(redis)
        (seconds, cpu), _ = alone(apply, plan.to_json(), settings.kafka_config(), settings.redis_url, messages)
        ours.append(seconds)
        workers.append(cpu / messages)
        servers.append((_cpu_of(redis) - before) / messages)
        _check(redis, plan, events)
        redis.flushall()
    rates = messages / median(ours[1:]), messages / median(theirs[1:])
    worker, server = median(workers[1:]), median(servers[1:])
    return [
        Result(f"{what}, beside consume and parse", *rates, "events/s", Target("ratio", ">=", 0.35)),
        Result(f"{what}, rate", rates[0], None, "events/s", Target("ours", ">=", 100_000)),
        Result(f"{what}, CPU of the worker", worker * MICROSECONDS, None, "us/event"),
        Result(f"{what}, CPU of Redis", server * MICROSECONDS, None, "us/event"),
        Result(f"{what}, share of Redis in both", 100 * server / (server + worker), None, "%"),
    ]


def _cpu_of(redis: Redis) -> float:
    used: Any = redis.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def _quix(settings: Settings, what: str, keys: int, messages: int, ours: float) -> list[Result]:
    """The same job in Quix Streams, on fewer messages: its rate does not depend on how many."""
    topic = f"quix-{keys}"
    _fill(settings, topic, keys, messages)
    views = {
        view: [
            (WINDOWS[window].hop // MILLISECOND, [function for function, of_window in wanted if of_window == window])
            for window in sorted({window for _, window in wanted})
        ]
        for view, wanted in THREE_VIEWS.items()
    }
    job: stream_quix.Job = {
        "servers": settings.kafka_config()["bootstrap.servers"],
        "topic": topic,
        "redis_url": settings.redis_url,
        "messages": messages,
        "amount": AMOUNT.name,
        "at": AT.name,
        "views": views,
    }
    uv = str(Path(sys.executable).with_name("uv"))
    alone_with = [uv, "run", "--no-project", "--isolated", "--python", sys.executable, "--with", QUIX]
    command = [*alone_with, stream_quix.__file__, json.dumps(job)]
    environment = os.environ | {"UV_SYSTEM_CERTS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise DifferentAnswersError(f"Quix Streams failed: {ran.stderr[-2000:]}")
    theirs = float(json.loads(ran.stdout.splitlines()[-1]))
    return [Result(f"{what}, beside Quix Streams", ours, theirs, "events/s", Target("ratio", ">=", 10))]


def _two_workers(settings: Settings, redis: Redis, topic: str, messages: int, what: str) -> Result:
    """Two workers of one group, beside one; on a machine with two processors they share them with Kafka and Redis."""
    rates = {}
    for count in (1, 2):
        plan = plan_of_topic(f"{topic}-of-{count}", topic)
        arguments: tuple[Any, ...] = (plan.to_json(), settings.kafka_config(), settings.redis_url)
        with ThreadPoolExecutor(count) as pool:
            began = time.perf_counter()
            workers = [pool.submit(alone, apply_share, *arguments) for _ in range(count)]
            applied = sum(worker.result()[0] for worker in workers)
            rates[count] = messages / (time.perf_counter() - began)
        if applied != messages * len(plan.views):
            raise DifferentAnswersError(f"{applied} events were applied, there were {messages} for each view.")
        redis.flushall()
    return Result(f"{what}, two workers beside one, both with their start", rates[2], rates[1], "events/s")


def _bootstrap(home: Path, redis: Redis, events: Rows) -> Result:
    """How fast windows come from the offline store."""
    plan = plan_of_topic("bootstrap", "bootstrap")
    source = plan.sources[0]
    count = len(events.timestamp)
    nothing = pa.nulls(count, INSTANT)
    identity = [pa.array([source.topic] * count), pa.array(events.a, pa.int32()), pa.array(events.b), nothing, nothing]
    table = pa.Table.from_arrays([*identity, pa.nulls(count, pa.string())], schema=IDENTITY)
    for name, column in events.columns.items():
        table = table.append_column(name, from_column(column))
    knows = Extracted(source_hash(plan, source), {0: count - 1}, {0: count}, None)
    uri = str(home / "offline")
    write_table(uri, source.name, None, table.schema, table.to_batches(), overwrite=True, metadata=knows.to_metadata())
    seconds, _ = seconds_of(lambda: [bootstrap_view(plan, view, uri, redis) for view in plan.views])
    return Result("stream: bootstrap of 3 windowed views from the offline store", count / seconds, None, "rows/s")


_NOTES: Final = (
    "Ours is ingestion.worker.run(until_end=True) in one process.",
    "Theirs reads the same topic in a consumer group and parses it with our parser, no more: a floor, not a peer.",
    "Both from before they subscribe to after the last message. The broker and Redis share the machine with them.",
    "Checked after each run: every event applied once, and every window of every key as the offline join has it, by bits.",
    "Quix Streams: tumbling windows of one hop (benchmarks/stream_quix.py says why), from its first message to its last.",
    "Freshness: every probe has a key of its own, and counts as readable when all three views hold that key.",
    "Meanwhile events come at the given share of the rate, 20 times a second, from a producer that lingers for 5 ms.",
)


def plan_of_topic(project: str, topic: str) -> Plan:
    """Three windowed views of a topic."""
    source = topic_source(topic)
    return plan_of(project, source, three_windowed_views(source))


def message(at: int, key: int, amount: float) -> bytes:
    """A message of `MESSAGE`."""
    return json.dumps({AT.name: to_datetime(at).isoformat(), KEY.name: key, AMOUNT.name: amount}).encode()


def create(settings: Settings, topic: str) -> None:
    """Make a topic."""
    admin = AdminClient(settings.kafka_config(), logger=log)
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(DEADLINE)


def _fill(settings: Settings, topic: str, keys: int, messages: int) -> Rows:
    """Two hours of events, a minute out of order, in a new topic that is partitioned by key; the events."""
    rng = np.random.default_rng(2)
    step = SPAN // messages
    arrays = {
        AT.name: START + np.arange(messages) * step - rng.integers(0, HOUR // 60, messages),
        KEY.name: rng.integers(0, keys, messages),
        AMOUNT.name: np.round(rng.gamma(2.0, 30.0, messages), 2),
    }
    create(settings, topic)
    producer = Producer(
        settings.kafka_config()
        | {"linger.ms": 50, "enable.idempotence": True, "queue.buffering.max.messages": messages + 1}
    )
    for at, key, amount in zip(*(arrays[name].tolist() for name in (AT.name, KEY.name, AMOUNT.name)), strict=True):
        producer.produce(topic, message(at, key, amount), key=b"%d" % key)
    _flush(producer)
    view = plan_of_topic(topic, topic).views[0]
    return rows_of(view, columns_of(view, arrays))


def _flush(producer: Producer) -> None:
    if producer.flush(DEADLINE):
        raise UnavailableError("The embedded Kafka did not take the benchmark's messages; see its log.")


# The sides, each in a process of its own


@seldom_collected()
def consume_and_parse(config: Mapping[str, Any], topic: str, messages: int) -> float:
    """Seconds to read all messages of a topic in a consumer group, in the same batches as ours, and to parse it."""

    def read() -> int:
        consumer = Consumer(
            {
                "fetch.queue.backoff.ms": 10,
                **config,
                "group.id": f"parse-{time.time_ns()}",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "partition.assignment.strategy": "cooperative-sticky",
            }
        )
        consumer.subscribe([topic])
        parsed = 0
        while parsed < messages:
            first = consumer.poll(kafka.POLL_SECONDS)
            if first is not None:
                values = [message.value() for message in (first, *consumer.consume(kafka.MAX_BATCH - 1, 0))]
                parsed += len(values) - len(decode(MESSAGE, values).bad)
        consumer.close()
        return parsed

    seconds, parsed = seconds_of(read)
    if parsed != messages:
        raise DifferentAnswersError(f"{parsed} of {messages} messages of {topic} were parsed.")
    return seconds


@seldom_collected()
def apply(document: str, config: Mapping[str, Any], redis_url: str, messages: int) -> tuple[float, float]:
    """(seconds, CPU seconds) for one worker to bring the topic of a plan into Redis, to its end."""
    plan = Plan.from_json(document)
    with Redis.from_url(redis_url) as redis:
        before = time.process_time()
        seconds, summary = seconds_of(lambda: run_worker(plan, None, config, redis, until_end=True))
    for name, counts in summary.views.items():
        if counts.applied != messages:
            raise DifferentAnswersError(f"{name}: {counts.applied} of {messages} events were applied; {counts}.")
    return seconds, time.process_time() - before


@seldom_collected()
def apply_share(document: str, config: Mapping[str, Any], redis_url: str) -> int:
    """How many events one of several workers applied, of all views."""
    with Redis.from_url(redis_url) as redis:
        summary = run_worker(Plan.from_json(document), None, config, redis, until_end=True)
    return sum(counts.applied for counts in summary.views.values())


def load(config: Mapping[str, Any], topic: str, rate: float, keys: int = 4_000) -> None:
    """Produce events at a rate, until SIGTERM; 20 times a second what is due."""
    producer = Producer(
        {**config, "linger.ms": 5, "enable.idempotence": True, "queue.buffering.max.messages": 2_000_000}
    )
    rng = np.random.default_rng(3)
    ready = [message(START + int(step), int(key), 1.0) for step, key in enumerate(rng.integers(0, keys, 50_000))]
    began, sent = time.perf_counter(), 0
    while True:
        due = int((time.perf_counter() - began) * rate)
        for number in range(sent, due):
            value = ready[number % len(ready)]
            producer.produce(topic, value)
        sent = max(sent, due)
        producer.poll(0.05)


def _check(redis: Redis, plan: Plan, events: Rows) -> None:
    """Every window of every key, online, against the offline join of the same events."""
    keys = np.unique(events.columns[KEY.name].values)
    as_of = int(events.timestamp.max())
    online = FeatureClient(redis, plan).get({KEY.name: keys}, as_of)
    for view in plan.views:
        names = tuple(field.name for field in view.fields)
        column = Column("Int64", keys, np.ones(len(keys), np.bool_))
        ask = Ask([column], np.full(len(keys), as_of), names, "event_time", None)
        for name, expected in join(view, events, [ask])[0].items():
            found = online.columns[name]
            if found.values.tobytes() != expected.values.tobytes() or (found.valid != expected.valid).any():
                raise DifferentAnswersError(f"{name} is not online what it is offline.")


# Latency


@dataclass(frozen=True, slots=True)
class _Probe:
    began: float
    keys: list[bytes]


def _latencies(
    settings: Settings, redis: Redis, probes: int, topic: str, keys: int, rate: float
) -> NDArray[np.float64]:
    """Seconds from just before `produce` until a reader finds the event in every view, while others come at `rate`."""
    create(settings, topic)
    plan = plan_of_topic(topic, topic)
    prefixes = [view.prefix(plan.project) for view in plan.views]
    producer = Producer(settings.kafka_config() | {"linger.ms": 0})
    waits: list[float] = []
    open_: list[_Probe] = []
    with (
        running(serve, plan.to_json(), settings.kafka_config(), settings.redis_url),
        running(load, settings.kafka_config(), topic, rate, keys),
    ):
        _await_messages(settings, topic, rate)
        for warm in (True, False):  # the first events wait for the worker to join its group
            count, done = (RATE, 0) if warm else (probes, 0)
            start = time.perf_counter()
            while done < count or open_:
                now = time.perf_counter()
                if now - start > DEADLINE + count / RATE:
                    raise UnavailableError(f"{len(open_)} events never became readable; see the worker's log.")
                if done < count and now >= start + done / RATE:
                    number = 10**6 + (done if warm else RATE + done)
                    open_.append(_Probe(now, [prefix + b"%d" % number for prefix in prefixes]))
                    producer.produce(topic, message(START + number, number, 1.0), key=b"%d" % number)
                    done += 1
                producer.poll(0)
                still = []
                for probe, found in zip(open_[:LOOKED_AT], _readable(redis, open_[:LOOKED_AT]), strict=True):
                    if not found:
                        still.append(probe)
                    elif not warm:
                        waits.append(time.perf_counter() - probe.began)
                open_ = [*still, *open_[LOOKED_AT:]]
                time.sleep(LOOK_SECONDS)
    return np.array(waits)


def _await_messages(settings: Settings, topic: str, count: float) -> None:
    """Wait until a topic has so many messages. Raises UnavailableError."""
    consumer = Consumer(settings.kafka_config() | {"group.id": "watch"}, logger=log)
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
    give_up, seen = time.monotonic() + DEADLINE, 0
    while seen < count:
        if time.monotonic() > give_up:
            raise UnavailableError(f"{topic} has {seen} messages, not {count:,.0f}; see the producer's log.")
        seen += sum(message.error() is None for message in consumer.consume(10_000, LOOK_SECONDS))
    consumer.close()


def _readable(redis: Redis, probes: list[_Probe]) -> list[bool]:
    if not probes:
        return []
    values: Any = redis.mget([key for probe in probes for key in probe.keys])
    width = len(probes[0].keys)
    return [None not in values[i * width : (i + 1) * width] for i in range(len(probes))]


@contextmanager
def running(function: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """A function in a process of its own for the block."""
    process = get_context("spawn").Process(target=function, args=arguments)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join(DEADLINE)


@seldom_collected()
def serve(document: str, config: Mapping[str, Any], redis_url: str) -> None:
    """Stream until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Redis.from_url(redis_url) as redis:
        run_worker(Plan.from_json(document), None, config, redis, stop=stop)
