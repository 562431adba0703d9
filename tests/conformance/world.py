"""How the cases' data gets where each path reads it: the real way, in two waves, with all that goes wrong on it."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from redis import Redis

from infra.local import converters
from infra.local.connector import land
from infra.local.snowflake_load import connected, load_table
from infra.settings import Settings
from ingestion.materialize import bootstrap_view, materialize_view
from ingestion.redis_store import publish_plan
from ingestion.report import Summary
from ingestion.snowflake import ingest
from ingestion.worker import run
from serving_client import FeatureClient, FeatureRows, ParquetSink, ServedLog
from tally.layout import progress_key
from tally.plan import Plan
from tally.time import to_datetime
from tests.conformance import expected
from tests.conformance.cases import (
    CODES,
    DAY,
    FADING,
    LASTING,
    PARTITIONS,
    Case,
    Message,
    Query,
    Record,
    T,
    all_cases,
    as_avro,
    as_protobuf,
    unanswerable,
)
from tests.conformance.expected import Truth
from tests.conformance.repo import row_messages

PROJECT = "conformance"
SERVICE = "everything"
EVENTS, ROWS, AVRO, PROTOBUF = (f"conformance.{name}" for name in ("events", "rows", "avro", "protobuf"))
LANDING = {topic: topic.upper().replace(".", "_") for topic in (EVENTS, ROWS, AVRO, PROTOBUF)}
CONVERTERS = {AVRO: converters.avro(row_messages.AVRO), PROTOBUF: converters.protobuf(row_messages.Row)}
VALUES = {EVENTS: Message.value, ROWS: Message.value, AVRO: as_avro, PROTOBUF: as_protobuf}
"""The bytes of a message, by topic: the latest rows are sent in three formats."""
MATERIALIZED_UNTIL = T + DAY
"""After every batch row, and before any that has a time to live expires."""
ARROW: dict[str, pa.DataType] = {
    "Float64": pa.float64(),
    "Float32": pa.float32(),
    "Int64": pa.int64(),
    "Int32": pa.int32(),
    "Bool": pa.bool_(),
    "String": pa.string(),
    "UnixTimestamp": pa.timestamp("us"),
}


@dataclass
class World:
    """Everything loaded. `queries` are those of all cases, in an odd order and some of them twice."""

    settings: Settings
    repo: Path
    cases: list[Case]
    truth: Truth
    queries: list[tuple[str, Query]]
    plan: Plan
    server: str
    log: dict[str, Any] = field(default_factory=dict)

    @property
    def offline_uri(self) -> str:
        """Where the offline tables are."""
        return self.settings.offline_uri()

    def redis(self, database: int = 0) -> Redis:
        """A client of the store that the stream filled from the beginning (0), or that was bootstrapped half way (1)."""
        return Redis.from_url(redis_url(self.settings, database))

    @property
    def served(self) -> Path:
        """The log of what was served half way."""
        return self.settings.home / "served"

    def client(self, database: int = 0, log: ServedLog | None = None) -> FeatureClient:
        """A client of the service."""
        url = redis_url(self.settings, database)
        return FeatureClient.connect(url, project=PROJECT, service=SERVICE, timeout=60, log=log)

    def environment(self) -> AbstractContextManager[None]:
        """As `environment`, of this world."""
        return environment(self.settings, self.repo)


@contextmanager
def environment(settings: Settings, repo: Path) -> Iterator[None]:
    """The environment of a shell in which everything leads to these services."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables(settings, repo).items():
            patch.setenv(name, value)
        yield


def redis_url(settings: Settings, database: int) -> str:
    """The address of one of the two stores."""
    return urlsplit(settings.redis_url)._replace(path=f"/{database}").geturl()


def variables(settings: Settings, repo: Path) -> dict[str, str]:
    """The environment variables that lead to these services and this repository."""
    dumped = settings.model_dump()
    texts = {}
    for name, value in dumped.items():
        if name.startswith(("snowflake_", "kafka_")):
            value = value.get_secret_value() if hasattr(value, "get_secret_value") else value
            texts[name.upper()] = "" if value is None else str(value)
    return texts | {
        "REDIS_URL": redis_url(settings, 0),
        "TALLY_OFFLINE_URI": settings.offline_uri(),
        "TALLY_HOME": str(settings.home),
        "PYTHONPATH": f"{repo.parent}:{Path.cwd()}",
        "FEAST_USAGE": "False",
    }


@contextmanager
def loaded(services: Settings, folder: Path) -> Iterator[World]:
    """All cases, loaded; `feast serve` runs meanwhile."""
    repo = folder / "conformance_repo"
    shutil.copytree(Path(__file__).with_name("repo"), repo)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    settings = services.model_copy(update={"tally_offline_uri": str(folder / "offline")})
    answerable = all_cases()
    everything = [*answerable, unanswerable()]
    truth = Truth()
    with ThreadPoolExecutor(1) as pool:
        happening = pool.submit(_happen, settings, everything, 1, truth)
        feast(settings, repo, "apply")
        happening.result()
    plan = Plan.from_json((repo / "data" / "plan.json").read_text())
    queries = [(case.name, query) for case in answerable for query in case.queries]
    chosen = random.Random(7)
    queries += chosen.sample(queries, 40)
    chosen.shuffle(queries)
    sent = {topic: sum(len(case.events if topic == EVENTS else case.rows) for case in everything) for topic in LANDING}
    with _serving(settings, repo) as server:
        world = World(settings, repo, everything, truth, queries, plan, server, {"sent": sent})
        _wave_one(world)
        _happen(settings, everything, 2, truth)
        _land_again(settings)
        _wave_two(world)
        yield world


def _happen(settings: Settings, everything: Sequence[Case], wave: int, truth: Truth) -> None:
    """A wave of events and rows, as far as Snowflake."""
    if wave == 1:
        _create_topics(settings)
    _produce(settings, everything, wave, truth)
    _load_batches(settings, everything, wave, truth)
    land(settings, LANDING, converters=CONVERTERS)


def _wave_one(world: World) -> None:
    """The first half of history: into the offline store, the stream's store, and, bootstrapped, the other store."""
    log = world.log
    log["ingested"] = [ingest(world.plan, None, world.settings.snowflake_connect_args(), world.offline_uri)]
    publish_plan(world.redis(1), world.plan)
    _materialize(world)
    log["streamed"] = [stream(world, world.redis(), "conformance-a")]
    log["bootstrapped"] = [
        bootstrap_view(world.plan, view, world.offline_uri, world.redis(1)) for view in world.plan.views if view.stream
    ]
    with ServedLog(ParquetSink(world.served)) as served_log, world.client(log=served_log) as client:
        log["served"] = served(world, client)
    log["versions"] = {done.source: done.version for done in log["ingested"][0]}


def _wave_two(world: World) -> None:
    """The other half: two workers at once, one of them rewound to the beginning; the other store goes on from its fences."""
    log, plan = world.log, world.plan
    log["ingested"].append(ingest(plan, None, world.settings.snowflake_connect_args(), world.offline_uri))
    _rewind(world, "conformance-a")
    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(stream, world, world.redis(), group) for group in ("conformance-a", "conformance-b")]
        other = pool.submit(stream, world, world.redis(1), "conformance-c")
        log["streamed"] += [worker.result() for worker in workers]
        log["continued"] = other.result()
    _materialize(world)


def served(world: World, client: FeatureClient) -> FeatureRows:
    """All queries, asked at once."""
    return client.get([dict(query.asked) for _, query in world.queries], [query.as_of for _, query in world.queries])


def _materialize(world: World) -> None:
    """Batch views into both stores: by `feast materialize`, and by what it calls."""
    batch = [view for view in world.plan.views if not view.stream]
    named = [word for view in batch for word in ("--views", view.name)]
    end = to_datetime(MATERIALIZED_UNTIL)
    feast(world.settings, world.repo, "materialize", *named, "2020-01-01T00:00:00", end.isoformat())
    for view in batch:
        materialize_view(world.plan, view, world.offline_uri, world.redis(1), end=MATERIALIZED_UNTIL)


def stream(world: World, redis: Redis, group: str) -> Summary:
    """What `tally stream --until-end` runs."""
    return run(world.plan, None, world.settings.kafka_config(), redis, until_end=True, group=group)


def feast(settings: Settings, repo: Path, *arguments: str) -> None:
    """A command of Feast, as its console script runs it, but in this process: importing it takes seconds."""
    from click.testing import CliRunner
    from feast.cli.cli import cli

    with environment(settings, repo), chdir(repo.parent):
        done = CliRunner().invoke(cli, ["-c", str(repo), *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output


@contextmanager
def _serving(settings: Settings, repo: Path) -> Iterator[str]:
    """The address of `feast serve`, which starts while the data is loaded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(sys.executable).with_name("feast")
    process = subprocess.Popen(
        [script, "-c", repo, "serve", "--host", "127.0.0.1", "--port", str(port), "--no-access-log"],
        env={**os.environ, **variables(settings, repo)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=120)


def wait_for(server: str, deadline_s: float = 240.0) -> None:
    """Return when the server answers."""
    give_up = time.monotonic() + deadline_s
    while True:
        try:
            urllib.request.urlopen(f"{server}/health", timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < give_up, "feast serve did not come up"
            time.sleep(0.05)


# Kafka


def _create_topics(settings: Settings) -> None:
    admin = AdminClient(settings.kafka_config())
    wanted = [NewTopic(topic, PARTITIONS, 1) for topic in LANDING]
    for topic, created in admin.create_topics(wanted, request_timeout=15).items():
        try:
            created.result(30)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                raise
            # librdkafka's cluster knows no such request: it makes a topic when somebody asks about it.
            admin.list_topics(topic, timeout=30)


def _produce(settings: Settings, everything: Sequence[Case], wave: int, truth: Truth) -> None:
    """Send a wave's messages, shuffled; the truth learns which partition and offset each of them got."""
    sent: list[tuple[str, Message]] = []
    for case in everything:
        sent += [(EVENTS, message) for message in case.events if message.wave == wave]
        for topic in (ROWS, AVRO, PROTOBUF):
            sent += [(topic, message) for message in case.rows if message.wave == wave]
    random.Random(wave).shuffle(sent)
    add = {
        EVENTS: expected.add_event, ROWS: expected.add_row, AVRO: expected.add_avro, PROTOBUF: expected.add_protobuf
    }  # fmt: skip
    producer = Producer({**settings.kafka_config(), "enable.idempotence": True, "linger.ms": 5})
    failures: list[Any] = []

    def delivered(topic: str, message: Message) -> Callable[[Any, Any], None]:
        def note(error: Any, metadata: Any) -> None:
            if error is not None:
                failures.append(error)
            else:
                add[topic](truth, message, metadata.partition(), metadata.offset())

        return note

    for topic, message in sent:
        producer.produce(
            topic, VALUES[topic](message), partition=message.partition, on_delivery=delivered(topic, message)
        )
    assert producer.flush(120) == 0
    assert not failures


def _rewind(world: World, group: str) -> None:
    """Commit the first offset of every partition but one for a group that had come to the end."""
    consumer = Consumer({**world.settings.kafka_config(), "group.id": group, "enable.auto.commit": False})
    try:
        places = [TopicPartition(topic, number, 0) for topic in LANDING for number in range(PARTITIONS)]
        consumer.commit(offsets=places[:-1], asynchronous=False)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.UNKNOWN_MEMBER_ID:
            raise
        # librdkafka's cluster takes commits from members only; without progress a worker begins at the beginning too.
        world.redis().delete(progress_key(PROJECT))
    finally:
        consumer.close()


# Snowflake


def _load_batches(settings: Settings, everything: Iterable[Case], wave: int, truth: Truth) -> None:
    fading: list[Record] = [r for case in everything for r in case.fading if r.wave == wave]
    lasting: list[Record] = [r for case in everything for r in case.lasting if r.wave == wave]
    for record in fading:
        expected.add_fading(truth, record)
    for record in lasting:
        expected.add_lasting(truth, record)
    stamps = {"event_timestamp": "UnixTimestamp", "created": "UnixTimestamp"}
    load_table(settings, "CONFORMANCE_FADING", _table(fading, {"case": "String", **FADING, **stamps}))
    load_table(settings, "CONFORMANCE_LASTING", _table(lasting, {**CODES, **LASTING, **stamps}))


def _table(records: Sequence[Record], dtypes: dict[str, str]) -> pa.Table:
    """The records, backwards: nothing may depend on the order of a table."""
    return pa.table(
        {
            name: pa.array([record.values[name] for record in reversed(records)], ARROW[dtype])
            for name, dtype in dtypes.items()
        }
    )


def _land_again(settings: Settings) -> None:
    """What a connector that crashed between landing and committing does: events land twice."""
    with connected(settings) as connection:
        for table in LANDING.values():
            connection.cursor().execute(
                f'INSERT INTO "{table}" SELECT * FROM "{table}" WHERE RECORD_METADATA:partition::INT = 1'
            )


def moments(world: World) -> list[Any]:
    """The instants of all queries as aware datetimes."""
    return [to_datetime(query.as_of) for _, query in world.queries]
