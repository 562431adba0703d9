"""The optional things around an answer: cache, fallback, log of served rows, metrics. Off, they are not there at all."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from serving_client import (
    AsyncFeatureClient,
    Cache,
    Fallback,
    FeatureClient,
    FeatureRows,
    KafkaSink,
    Metrics,
    ParquetSink,
    ServedLog,
    Status,
)
from serving_client.answering import Answering, Extras
from serving_client.definition import InUse
from serving_client.lookup import Lookup
from serving_client.served_log import Served
from serving_client.sinks import messages
from tally.columns import column
from tally.dtypes import Dtype
from tally.errors import DataError, UnavailableError
from tally.plan import Field, Plan, hashed_service, hashed_view
from tally.served import EVIDENCE_COLUMN
from tests import redis_servers
from tests.redis_servers import eventually
from tests.serving_client import world
from tests.serving_client.test_rules import ASKED, EVENT, PLANE
from tests.serving_client.world import DELAYS, PAIRS, PLANES

FOREVER = 2**61
HERE = {**PLANE, "at": 2**60, "v_String": "é"}


@pytest.fixture
def stored(redis: Redis) -> Redis:
    """A store with a row and tiles of JFK that are there for whoever asks now."""
    world.publish(redis)
    put(redis, 1)
    return redis


def put(redis: Redis, number: int) -> None:
    """Replace the row, and the tiles, by others that are as of a later event."""
    world.store_latest(redis, PLANES, [{**PLANE, "at": 0, "a": number, "v_Int64": number}])
    world.store_tiles(redis, DELAYS, [{**EVENT, "at": 0, "offset": i, "v_Int64": 1} for i in range(number)])


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which client."""
    return str(request.param)


class Client:
    """Either client, called alike."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        self._runner = asyncio.Runner() if kind == "async" else None
        self._client: Any
        if self._runner is None:
            self._client = FeatureClient(Redis.from_url(url), world.ONE, **options)
        else:

            async def made() -> AsyncFeatureClient:
                return AsyncFeatureClient(AsyncRedis.from_url(url), world.ONE, **options)

            self._client = self._runner.run(made())

    def get(self, rows: Any, as_of: Any = None) -> FeatureRows:
        """See `FeatureClient.get`."""
        answer: Any = self._client.get(rows, as_of)
        return self._runner.run(answer) if self._runner else answer  # type: ignore[no-any-return]

    def close(self) -> None:
        """See `FeatureClient.close`."""
        done = self._client.close()
        if self._runner:
            self._runner.run(done)
            self._runner.close()


# Cache


def test_the_cache_answers_what_it_read(kind: str, stored: Redis, redis_url: str) -> None:
    """Within its age the cached view stays as it was read, evidence too, and is marked; other views are read; replays, too."""
    cache = Cache(views=["delays"], entries=100, seconds=3600)
    client = Client(kind, redis_url, cache=cache)
    rows = [ASKED, {**ASKED, "place": "EWR"}, ASKED]
    first = client.get(rows)
    assert set(np.unique(first.status["count_Int64_long"])) == {Status.PRESENT, Status.MISSING}
    put(stored, 2)
    for again in (client.get(rows), client.get(world.in_columns(rows))):
        assert again.status["count_Int64_long"].tolist() == [Status.CACHED, Status.MISSING, Status.CACHED]
        assert again.status["v_Int64"].tolist() == first.status["v_Int64"].tolist()
        assert [one["delays"] for one in again.evidence] == [{"fences": {3: 0}}, None, {"fences": {3: 0}}]
        assert (again.evidence[0]["planes"] or {})["version"][:3] == [0, 2, 0]
    (alone,) = (client.get([ASKED]),)
    assert alone.status["count_Int64_long"].tolist() == [Status.CACHED]
    assert client.get([ASKED], 0).evidence[0]["delays"] == {"fences": {3: 1}}
    assert (cache.hits, cache.misses) == (8, 3)  # JFK, EWR and LGA, twice again, and two of them once more
    client.close()


def test_the_cache_is_bounded(stored: Redis, redis_url: str) -> None:
    """In entries, of which the oldest go first, and in age: after it, Redis is asked."""
    cache = Cache(views=["planes"], entries=3, seconds=3600)
    client = FeatureClient(Redis.from_url(redis_url), world.ONE, cache=cache)
    for i in range(9):
        client.get([{**ASKED, "place": f"p{i}", "other": f"p{i}"}])
        assert len(cache) <= 3
    assert sorted(key[-2:] for key in cache._stored) == [b"p6", b"p7", b"p8"]
    cache.seconds = -1.0
    put(stored, 7)
    assert (client.get([ASKED]).evidence[0]["planes"] or {})["version"][:3] == [0, 7, 0]


# Fallback


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[redis_servers.Server]:
    """A server to kill."""
    with redis_servers.standalone(tmp_path) as server:
        yield server


def test_without_a_fallback_an_absent_redis_is_an_error(kind: str, mortal: redis_servers.Server) -> None:
    """Also where a cache could answer: nobody asked for that."""
    cache = Cache(views=["planes"], entries=100, seconds=-1)
    client = Client(kind, mortal.url(), cache=cache, timeout=0.05)
    client.get([ASKED])
    mortal.kill()
    with pytest.raises(UnavailableError, match="did not answer"):
        client.get([ASKED])
    client.close()


def test_stale_and_default_values_are_marked(kind: str, mortal: redis_servers.Server) -> None:
    """What the cache had read is STALE, the rest is DEFAULT: the value given, or null; request fields are as ever."""
    with mortal.client() as redis:
        put(redis, 3)
    cache = Cache(views=["delays"], entries=100, seconds=-1)
    fallback = Fallback(stale_seconds=3600, defaults={"v_Int64": -1, "score": 0.5, "v_String": "none"})
    client = Client(kind, mortal.url(), cache=cache, fallback=fallback, timeout=0.05)
    client.get([ASKED])
    mortal.kill()
    two = [ASKED, {**ASKED, "place": "EWR"}]
    for rows in ([ASKED], two, world.in_columns(two)):
        answer = client.get(rows)
        assert answer.status["count_Int64_long"][0] == Status.STALE
        assert answer.evidence[0]["delays"] == {"fences": {3: 2}}
        values = answer.to_dict()
        for name, expected in {
            "v_Int64": -1,
            "v_String": "none",
            "score": 0.5,
            "v_Float64": None,
            "next": None,
        }.items():
            assert answer.status[name].tolist() == [Status.DEFAULT] * len(answer)
            assert values[name] == [expected] * len(answer)
        assert answer.status["both"].tolist() == [Status.PRESENT] * len(answer)
        assert values["both"][0] == "JFK!"
        if len(answer) > 1:
            assert answer.status["count_Int64_long"][1] == Status.DEFAULT
            assert values["count_Int64_long"][1] is None
    mortal.start()
    mortal.wait()
    assert client.get([ASKED]).status["v_Int64"].tolist() == [Status.MISSING]
    client.close()


def test_stale_alone_needs_every_key(kind: str, mortal: redis_servers.Server) -> None:
    """Without defaults, a request with a key that was never read is an error; one that was read is served."""
    cache = Cache(views=["planes", "pairs", "delays"], entries=100, seconds=-1)
    client = Client(kind, mortal.url(), cache=cache, fallback=Fallback(stale_seconds=3600), timeout=0.05)
    client.get([ASKED])
    mortal.kill()
    assert client.get([ASKED]).status["v_Int64"].tolist() == [Status.STALE]
    with pytest.raises(UnavailableError):
        client.get([{**ASKED, "place": "EWR"}])
    with pytest.raises(UnavailableError):
        client.get([ASKED], 0)
    client.close()


def test_defaults_must_fit() -> None:
    """A default for a feature that does not exist, or of another type, is refused when the client is made."""
    for defaults, message in (({"v": 1}, "default for 'v'"), ({"v_Int64": "x"}, "The default of v_Int64")):
        with pytest.raises(DataError, match=message):
            FeatureClient(Redis(), world.ONE, fallback=Fallback(defaults=defaults))


def _leveled(dtype: Dtype) -> Plan:
    """The service `small` with a level of that dtype."""
    fields = (Field("level", dtype), Field("note", "String"))
    view = dataclasses.replace(PAIRS, fields=fields, columns=(*PAIRS.keys, *fields, Field("at", "UnixTimestamp")))
    plan = dataclasses.replace(world.PLAN, views=(hashed_view(view, world.STREAM),), functions=())
    service = dataclasses.replace(world.PLAN.service("small"), outputs=(fields[1], fields[0]))
    return dataclasses.replace(plan, services=(hashed_service(service, plan),))


def test_a_default_is_of_the_definition_that_was_asked() -> None:
    """A plan that changes while a lookup waits does not change its default: 0.1 in Float64 is another number in Float32."""
    answering = Answering(_leveled("Float64"), Extras(fallback=Fallback(defaults={"level": 0.1})))
    question = answering.question([{"code": 1, "who": "x"}], 0, 0.0)
    answering.renew(InUse(Lookup(_leveled("Float32"))))
    answer = answering.fallback(question)
    assert answer is not None
    assert answer.to_dict()["level"] == [0.1]


# Log


class Kept:
    """A sink that keeps what it gets, and hangs while `gate` is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[Served] = []

    def write(self, served: Served) -> int:
        """See `serving_client.served_log.Sink`."""
        self.gate.wait()
        self.batches.append(served)
        return 0

    def close(self) -> int:
        """See `serving_client.served_log.Sink`."""
        return 0

    def after_fork(self) -> None:
        """See `serving_client.served_log.Sink`."""


@pytest.mark.usefixtures("stored")
def test_a_slow_sink_costs_rows_and_no_request(kind: str, redis_url: str) -> None:
    """While the sink hangs, requests are answered; what does not fit is dropped, and every row is counted."""
    sink = Kept()
    sink.gate.clear()
    log = ServedLog(sink, capacity=10, seconds=0.001)
    client = Client(kind, redis_url, log=log)
    for _ in range(20):
        client.get([ASKED, {**ASKED, "place": "EWR"}], 0)
    assert log.offered == 40
    assert log.dropped >= 30
    sink.gate.set()
    log.close()
    assert sum(map(len, sink.batches)) == log.offered - log.dropped
    client.get([ASKED], 0)
    assert log.offered - log.dropped == sum(map(len, sink.batches))
    client.close()


@pytest.mark.usefixtures("stored")
def test_a_sink_that_fails_is_counted(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """An error of the sink ends neither requests nor the log: the rows are lost, counted, and the reason is said."""

    class Failing(Kept):
        def write(self, served: Served) -> int:
            del served
            raise OSError(28, "No space left on device")

    with ServedLog(Failing(), seconds=0.001) as log:
        client = FeatureClient(Redis.from_url(redis_url), world.ONE, log=log)
        client.get([ASKED] * 3, 0)
        eventually(lambda: log.lost == 3, "the first loss")
        client.get([ASKED], 0)
    assert log.lost == 4
    assert "No space left" in caplog.text


@pytest.mark.usefixtures("stored")
def test_an_answer_that_cannot_be_written_is_counted(
    redis_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error on the way to the sink does not end the log: the rows are lost and counted, and those after them are written."""
    sink = Kept()
    with ServedLog(sink, seconds=0.001) as log:
        client = FeatureClient(Redis.from_url(redis_url), world.ONE, log=log)
        with monkeypatch.context() as patch:
            patch.setattr(FeatureRows, "evidence_json", lambda _: 1 / 0)
            client.get([ASKED] * 3, 0)
            eventually(lambda: log.lost == 3, "the loss")
        client.get([ASKED], 0)
    assert (log.offered, log.dropped, log.lost) == (4, 0, 3)
    assert sum(map(len, sink.batches)) == 1
    assert "lost 3 rows" in caplog.text


@pytest.mark.usefixtures("stored")
def test_a_sink_that_hangs_is_given_up(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Closing waits for a sink as long as it was told to: then the rows are lost, counted once, and it is said."""
    sink = Kept()
    sink.gate.clear()
    log = ServedLog(sink, seconds=0.001, patience=0.05)
    client = FeatureClient(Redis.from_url(redis_url), world.ONE, log=log)
    client.get([ASKED] * 3, 0)
    log.close()
    assert (log.offered, log.dropped, log.lost) == (3, 0, 3)
    assert "3 rows are lost" in caplog.text
    sink.gate.set()
    eventually(lambda: not log._thread.is_alive(), "the end of the log's thread")
    assert log.lost == 3


HANGS = """
import sys, threading
from redis import Redis
from serving_client import FeatureClient, ServedLog
from tests.serving_client import world
from tests.serving_client.test_extras import ASKED, Kept

sink = Kept()
sink.gate.clear()
client = FeatureClient(Redis.from_url(sys.argv[1]), world.ONE, log=ServedLog(sink, patience=0.05))
client.get([ASKED], 0)
"""


@pytest.mark.usefixtures("stored")
def test_a_sink_that_hangs_keeps_no_process_from_ending(redis_url: str) -> None:
    """A process that never closed its log ends all the same, and says what was lost."""
    done = subprocess.run(
        [sys.executable, "-c", HANGS, redis_url], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "1 rows are lost" in done.stderr


@pytest.mark.usefixtures("stored")
def test_a_sample_is_a_share(redis_url: str) -> None:
    """None, or about as many as asked for."""
    for share, least, most in ((0.0, 0, 0), (0.5, 50, 150), (1.0, 200, 200)):
        log = ServedLog(Kept(), sample=share)
        client = FeatureClient(Redis.from_url(redis_url), world.ONE, log=log)
        for _ in range(200):
            client.get([ASKED], 0)
        assert least <= log.offered <= most


@pytest.mark.usefixtures("stored")
def test_parquet_files_are_tables_of_labels(kind: str, redis_url: str, tmp_path: Path) -> None:
    """Keys, request fields, instant, served values, evidence, statuses, definition; whatever the caller does later."""
    with ServedLog(ParquetSink(tmp_path)) as log:
        client = Client(kind, redis_url, log=log)
        columns: dict[str, Any] = {name: np.array([value] * 2) for name, value in ASKED.items()}
        client.get(columns, [0, -1])
        columns["place"][:] = "XXX"
        columns["weight"][:] = 99.0
        answer = client.get([ASKED], 0)
        client.close()
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"everything@{answer.definition[:8]}"
    table = pq.read_table(folder)
    assert table["place"].to_pylist() == ["JFK"] * 3
    assert table["weight"].to_pylist() == [2.0] * 3
    assert table["served__v_Int64"].to_pylist() == [1, None, 1]
    assert table[EVIDENCE_COLUMN].to_pylist()[2] == answer.evidence_json()[0]
    statuses = [json.loads(text) for text in table["tally_status"].to_pylist()]
    assert (statuses[0]["there__sum"], statuses[1]["v_Int64"]) == ("missing", "ahead")
    assert "v_Int64" not in statuses[0]
    assert set(table["tally_definition"].to_pylist()) == {answer.definition}
    assert not list(folder.glob(".*"))


def test_messages_hold_every_bit() -> None:
    """JSON texts of rows read back to the same values: large integers, floats, bytes, instants, infinities, nulls."""
    columns = {
        "f": column("Float64", [0.1, -0.0, 5e-324, None]),
        "g": column("Float32", [np.float32(0.1), 2.0**-149, -1.0, None]),
        "i": column("Int64", [2**60 + 1, -(2**63), 0, None]),
        "b": column("Bool", [True, False, True, None]),
        "s": column("String", ['"é"', "", "\n", None]),
        "y": column("Bytes", [b"\xff\x00", b"", b"x", None]),
        "t": column("UnixTimestamp", [1, -1, 10**15 + 7, None]),
        EVIDENCE_COLUMN: column("String", ["{}"] * 4),
    }
    rows = [json.loads(text) for text in messages(Served("s", "d", columns))]
    for name, values in columns.items():
        got = [row[name] for row in rows]
        if name == "y":
            got = [None if item is None else base64.b64decode(item) for item in got]
        if name == "t":
            assert got == ["1970-01-01T00:00:00.000001+00:00", "1969-12-31T23:59:59.999999+00:00", "2001-09-09T01:46:40.000007+00:00", None]  # fmt: skip
            continue
        again = column(values.dtype, got)
        assert again.valid.tolist() == values.valid.tolist()
        if name in "fgi":
            assert again.values.tobytes() == values.values.tobytes()
        else:
            assert again.to_list() == values.to_list()
    infinite = Served(
        "s", "d", {"f": column("Float64", [np.inf, -np.inf]), EVIDENCE_COLUMN: column("String", ["", ""])}
    )
    assert [json.loads(text)["f"] for text in messages(infinite)] == ["Infinity", "-Infinity"]


@pytest.mark.usefixtures("stored")
def test_kafka_gets_one_message_a_row(redis_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Through librdkafka's own cluster: produced, consumed, and nothing lost; an unreachable one loses all, counted and logged."""
    from confluent_kafka import Consumer, TopicPartition

    sink = KafkaSink({"test.mock.num.brokers": 1, "linger.ms": 0}, "served")
    log = ServedLog(sink, seconds=0.001)
    client = FeatureClient(Redis.from_url(redis_url), world.ONE, log=log)
    answer = client.get([ASKED] * 5, 0)
    eventually(lambda: sink._producer is not None, "the producer")
    metadata = sink._producer.list_topics("served", timeout=60)
    (broker,) = metadata.brokers.values()
    consumer = Consumer({"bootstrap.servers": f"{broker.host}:{broker.port}", "group.id": "g"})
    consumer.assign([TopicPartition("served", partition, 0) for partition in metadata.topics["served"].partitions])
    got: list[Any] = []
    eventually(lambda: got.extend(consumer.consume(5, timeout=0.1)) or len(got) >= 5, "the messages")
    consumer.close()
    for message in got:
        row = json.loads(message.value())
        assert (row["place"], row["served__v_Int64"], row[EVIDENCE_COLUMN]) == ("JFK", 1, answer.evidence_json()[0])
    log.close()
    assert (log.offered, log.dropped, log.lost) == (5, 0, 0)

    absent = {"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 200}
    log = ServedLog(KafkaSink(absent, "served", patience=0.1))
    client = FeatureClient(Redis.from_url(redis_url), world.ONE, log=log)
    client.get([ASKED] * 5, 0)
    log.close()
    assert (log.offered, log.dropped, log.lost) == (5, 0, 5)
    assert "rdkafka" not in capfd.readouterr().err


# Metrics


@pytest.mark.usefixtures("stored")
def test_metrics_count_what_happened(kind: str, redis_url: str) -> None:
    """Latency, rows, statuses by view, errors by type, plan, cache and log; several clients share one set."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    cache = Cache(views=["delays"], entries=10, seconds=3600)
    sink = Kept()
    sink.gate.clear()
    log = ServedLog(sink, capacity=3, seconds=3600)
    client = Client(kind, redis_url, metrics=metrics, cache=cache, log=log)
    client.get([ASKED] * 2)
    client.get([ASKED], 0)
    client.get([ASKED])
    with pytest.raises(DataError):
        client.get([{}])

    def value(name: str, **labels: str) -> Any:
        return registry.get_sample_value(name, labels)

    assert value("tally_lookup_seconds_count", service="everything") == 3
    assert value("tally_lookup_rows_total", service="everything") == 4
    read = "tally_lookup_reads_total"
    assert value(read, service="everything", view="planes", status="expired") == 3
    assert value(read, service="everything", view="planes", status="present") == 1
    assert value(read, service="everything", view="pairs", status="missing") == 4
    assert value("tally_lookup_errors_total", service="everything", error="DataError") == 1
    assert value("tally_lookup_plan", service="everything", definition=world.ONE.services[0].hash) == 1
    assert value("tally_lookup_superseded", service="everything") == 0
    assert (value("tally_lookup_cache_hits"), value("tally_lookup_cache_misses")) == (2, 2)
    assert value("tally_served_log_rows", outcome="offered") == 4
    assert value("tally_served_log_rows", outcome="dropped") == 1
    sink.gate.set()
    log.close()
    client.close()
    Client("sync", redis_url, metrics=metrics).close()


OFF = """
import sys
from serving_client import AsyncFeatureClient, Cache, Fallback, FeatureClient, KafkaSink, Metrics, ParquetSink, ServedLog
ServedLog(ParquetSink("nowhere")), ServedLog(KafkaSink({}, "topic")), Cache(views=[], entries=1, seconds=1), Fallback()
heavy = {"prometheus_client", "confluent_kafka", "pyarrow", "pandas"} & set(sys.modules)
assert not heavy, heavy
"""


def test_what_is_off_is_not_imported() -> None:
    """Neither prometheus-client nor confluent-kafka nor pyarrow, until there are metrics or rows to write."""
    done = subprocess.run([sys.executable, "-c", OFF], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
