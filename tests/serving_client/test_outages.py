"""Lookups while rows are written and Redis restarts or fails over: whole rows or typed errors, and then answers again."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from redis import connection as redis_connection
from redis.asyncio import connection as async_connection
from redis.crc import key_slot
from redis.exceptions import RedisClusterException, RedisError

import connections
from serving_client import AsyncFeatureClient, FeatureClient, FeatureRows
from serving_client.few_rows import FEW
from serving_client.reads import may_pass
from tally.errors import UnavailableError
from tests import redis_servers
from tests.redis_servers import Server, eventually
from tests.serving_client import world
from tests.serving_client.test_rules import EVENT
from tests.serving_client.world import DELAYS, PAIRS, PROJECT

CODES = range(12)
ROWS = [{"code": c, "who": "x"} for c in CODES]
HASTY, PATIENT = 0.4, 60.0
"""Seconds that a lookup may take: where an outage is to be seen, and where there is none, however busy the machine."""
Connected = TypeVar("Connected")


def write(redis: Any, number: int) -> None:
    """Every field of every row says the same number."""
    rows = [{"code": c, "who": "x", "at": 0, "a": number, "level": number, "note": str(number)} for c in CODES]
    world.store_latest(redis, PAIRS, rows)


class Traffic:
    """A writer, and readers of both kinds, until they are stopped. `failures` counts errors by type.

    `timeout` is that of a lookup: short where an outage is to be seen, long where nothing but answers is right.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url = url
        self.stop = threading.Event()
        self.written = 0
        self.answers = 0
        self.failures: Counter[str] = Counter()
        self._timeout = timeout
        self._where: dict[str, Any] = {
            "project": PROJECT,
            "service": "small",
            "timeout": timeout,
            "check_seconds": 0.05,
        }

    def writing(self) -> None:
        """Write ever higher numbers, whether or not Redis is there."""
        with self._patiently(lambda: connections.open_client(self.url, 0.5)) as redis:
            while not self.stop.wait(0.002):
                try:
                    write(redis, self.written + 1)
                    self.written += 1
                except (RedisError, RedisClusterException, OSError):
                    self.stop.wait(0.05)

    def reading(self, rows: list[dict[str, Any]]) -> None:
        """Ask with the synchronous client."""
        with self._patiently(lambda: FeatureClient.connect(self.url, **self._where)) as client:
            while not self.stop.is_set():
                try:
                    self.check(client.get(rows, 0))
                except UnavailableError as error:
                    self.failures[type(error).__name__] += 1

    def _patiently(self, connect: Callable[[], Connected]) -> Connected:
        """What `connect` gives; on a busy machine the short time of a lookup may not do to begin with."""
        while True:
            try:
                return connect()
            except UnavailableError:
                if self.stop.is_set():
                    raise

    def reading_async(self) -> None:
        """Ask with the asynchronous client, several requests at a time."""

        async def ask(client: AsyncFeatureClient, rows: list[dict[str, Any]]) -> None:
            while not self.stop.is_set():
                try:
                    self.check(await client.get(rows, 0))
                except UnavailableError as error:
                    self.failures[type(error).__name__] += 1
                await asyncio.sleep(0)

        async def run() -> None:
            async with await AsyncFeatureClient.connect(self.url, **self._where) as client:
                await asyncio.gather(ask(client, ROWS), ask(client, ROWS[:1]), ask(client, ROWS[3:5]))

        self._patiently(lambda: asyncio.run(run()))

    def check(self, answer: FeatureRows) -> None:
        """All fields of a row are of one version, and of the definition that was asked for."""
        found = answer.to_dict()
        for level, note in zip(found["level"], found["note"], strict=True):
            assert level is not None
            assert note == str(level)
        assert answer.definition == world.PLAN.service("small").hash
        self.answers += 1

    def flows(self, extra: int = 30) -> None:
        """Return when that many more requests were answered and something more was written."""
        answers, written = self.answers + extra, self.written
        eventually(lambda: self.answers > answers and self.written > written, "answers")


@contextmanager
def traffic(url: str, timeout: float) -> Iterator[Traffic]:
    """Traffic that flows when the block begins; raises what any of its threads did not expect."""
    with connections.open_client(url) as redis:
        world.publish(redis)
        write(redis, 0)
    made = Traffic(url, timeout)
    with ThreadPoolExecutor(5) as pool:
        threads = [pool.submit(made.writing), pool.submit(made.reading_async)]
        threads += [pool.submit(made.reading, rows) for rows in (ROWS, ROWS[:1])]
        try:
            made.flows()
            yield made
        finally:
            made.stop.set()
        for thread in threads:
            thread.result()


def test_while_the_stream_writes(redis_url: str, redis: Any) -> None:
    """Never a torn row, and nothing but answers."""
    del redis
    with traffic(redis_url, PATIENT) as flow:
        flow.flows(300)
    assert not flow.failures


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[Server]:
    """A server that keeps its data when it is killed."""
    with redis_servers.standalone(tmp_path, ["appendonly yes", "appendfsync always"]) as server:
        yield server


def test_while_redis_restarts(lasting: Server) -> None:
    """A server that is killed and started again: UnavailableError meanwhile, then answers, by the same clients."""
    with traffic(lasting.url(), HASTY) as flow:
        for _ in range(2):
            lasting.kill()
            eventually(lambda: sum(flow.failures.values()) > 3, "the outage")
            lasting.start()
            lasting.wait()
            flow.flows()
            flow.failures.clear()


def test_while_redis_hangs(lasting: Server) -> None:
    """A server that stops in its tracks: requests end with an error within their time, and go on when it does."""
    with traffic(lasting.url(), HASTY) as flow:
        lasting.freeze()
        eventually(lambda: sum(flow.failures.values()) > 3, "the outage")
        lasting.thaw()
        flow.flows()


def test_while_sentinels_fail_over(redis_sentinels: redis_servers.SentinelServers) -> None:
    """The master dies, a replica takes over: the clients find it by themselves."""
    redis_sentinels.flush()
    try:
        with traffic(redis_sentinels.url, HASTY) as flow:
            redis_sentinels.replicate()
            redis_sentinels.master().kill()
            eventually(lambda: sum(flow.failures.values()) > 0, "the outage")
            flow.flows()
    finally:
        redis_sentinels.settle()


def test_while_a_cluster_fails_over(redis_cluster: redis_servers.ClusterServers) -> None:
    """A node dies, its replica takes over: the clients find it by themselves."""
    redis_cluster.flush()
    try:
        with traffic(redis_cluster.url, HASTY) as flow:
            redis_cluster.replicate()
            redis_cluster.master_of(world.key_of(PAIRS, {"code": 0, "who": "x"})).kill()
            eventually(lambda: sum(flow.failures.values()) > 0, "the outage")
            flow.flows()
    finally:
        redis_cluster.settle()


def test_while_slots_move(redis_cluster: redis_servers.ClusterServers) -> None:
    """From master to master under the readers: they are sent after them, and nothing is wrong, torn or missing."""
    redis_cluster.flush()
    with traffic(redis_cluster.url, PATIENT) as flow:
        for code in CODES[:4]:
            with redis_cluster.moving(key_slot(world.key_of(PAIRS, {"code": code, "who": "x"}))):
                flow.flows()
            flow.flows()


def test_a_connection_that_the_server_closed_is_no_failure(redis_url: str, redis: Any) -> None:
    """Reads are asked again: whoever closes all connections of a client is not noticed by its callers."""
    with traffic(redis_url, PATIENT) as flow:
        for _ in range(20):
            redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            flow.flows(3)
    assert not flow.failures


@pytest.fixture(params=["redis_url", "redis_cluster"])
def url(request: pytest.FixtureRequest) -> str:
    """An address of one server and of a cluster, where every row says 7."""
    found = request.getfixturevalue(request.param)
    address = str(getattr(found, "url", found))
    with connections.open_client(address) as redis:
        redis.flushall()
        world.publish(redis)
        write(redis, 7)
    return address


@pytest.mark.parametrize("moment", ["send_packed_command", "read_response", "can_read"])
def test_a_client_that_is_closed_amid_a_lookup(monkeypatch: pytest.MonkeyPatch, url: str, moment: str) -> None:
    """Its connections lose their sockets in whatever redis-py is about to do: the lookup opens others, and answers."""
    if moment == "can_read":  # asked by the pool, where nothing is at hand
        monkeypatch.setattr("serving_client.wire.KEPT_SECONDS", -1.0)
    with FeatureClient.connect(url, project=PROJECT, service="small", timeout=PATIENT) as client:
        client.get(ROWS, 0)
        redis_py = getattr(redis_connection.Connection, moment)
        closed = []

        def closing(self: Any, *args: Any, **options: Any) -> Any:
            if not closed:
                closed.append(True)
                client.close()
                self._sock.fileno()  # as redis-py does, without a look whether the socket is there
            return redis_py(self, *args, **options)

        monkeypatch.setattr(redis_connection.Connection, moment, closing)
        assert client.get(ROWS, 0).to_dict()["level"] == [7] * len(ROWS)
        assert closed


@pytest.mark.parametrize("moment", ["send_packed_command", "read_response"])
def test_an_asynchronous_client_that_is_closed_amid_a_lookup(
    monkeypatch: pytest.MonkeyPatch, url: str, moment: str
) -> None:
    """As the synchronous one."""
    redis_py = getattr(async_connection.Connection, moment)

    async def use() -> None:
        async with await AsyncFeatureClient.connect(url, project=PROJECT, service="small", timeout=PATIENT) as client:
            await client.get(ROWS, 0)
            closed = []

            async def closing(self: Any, *args: Any, **options: Any) -> Any:
                if not closed:
                    closed.append(True)
                    await client.close()
                    await self.disconnect()
                    self._writer.writelines([])
                return await redis_py(self, *args, **options)

            monkeypatch.setattr(async_connection.Connection, moment, closing)
            assert (await client.get(ROWS, 0)).to_dict()["level"] == [7] * len(ROWS)
            assert closed

    asyncio.run(use())


def test_a_closed_client_looks_for_no_plan(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What is missing would make an open one look, in a thread that a closed cluster's client would end with an error."""
    looked = []
    for closed in (False, True):
        client = FeatureClient.connect(url, project=PROJECT, service="small", timeout=PATIENT, check_seconds=0)
        monkeypatch.setattr(client, "_renew", lambda _, closed=closed: looked.append(closed))
        if closed:
            client.close()
        client.get([{"code": 99, "who": "nobody"}], 0)
        for thread in threading.enumerate():
            if thread.name == "tally-plan":
                thread.join()
        if not closed:
            client._renewing.release()  # which `_renew` does
            client.close()
    assert looked == [False]


def test_answers_of_cancelled_lookups_are_nobodys(url: str) -> None:
    """A lookup that is cancelled at any turn of the loop leaves nothing that the next one could take for its own."""
    with connections.open_client(url) as redis:
        rows = [{"code": c, "who": "x", "at": 0, "a": 0, "level": c, "note": str(c)} for c in CODES]
        world.store_latest(redis, PAIRS, rows)

    async def use() -> None:
        async with await AsyncFeatureClient.connect(url, project=PROJECT, service="small", timeout=PATIENT) as client:
            for turns in (*range(40), *range(40)):
                cancelled = asyncio.create_task(client.get(ROWS[1:], 0))
                beside = asyncio.create_task(client.get(ROWS[2:4], 0))
                for _ in range(turns):
                    await asyncio.sleep(0)
                cancelled.cancel()
                assert (await client.get(ROWS[:1], 0)).to_dict()["level"] == [0]
                assert (await beside).to_dict()["level"] == [2, 3]
                with suppress(asyncio.CancelledError):
                    assert (await cancelled).to_dict()["level"] == [*CODES[1:]]

    asyncio.run(use())


def test_while_redis_loads(tmp_path: Path) -> None:
    """A server that reads its data says so: LoadingError after the time of a request, an answer where it is long enough."""
    slow = ("key-load-delay 3000", "loading-process-events-interval-bytes 1024")
    with redis_servers.standalone(tmp_path, [*slow, "rdbcompression no"]) as server:
        with server.client() as redis:
            world.publish(redis)
            write(redis, 7)
            for i in range(1500):
                redis.set(f"other-{i}", "x" * 100)
            redis.save()
        patient = FeatureClient(connections.open_client(server.url()), world.PLAN.for_service("small"), timeout=60)
        hasty = FeatureClient(connections.open_client(server.url()), world.PLAN.for_service("small"), timeout=1)
        server.kill()
        server.start()
        said = []

        def loading() -> bool:
            try:
                hasty.get(ROWS, 0)
            except UnavailableError as error:
                said.append(type(error))
            return connections.LoadingError in said

        eventually(loading, "the loading")
        assert patient.get(ROWS, 0).to_dict()["level"] == [7] * len(ROWS)


def test_errors_that_do_not_pass() -> None:
    """A refused login, a right that is missing and a wrong command are told at once."""
    from redis import exceptions as errors

    for error in (errors.AuthenticationError(), errors.NoPermissionError(), errors.ResponseError("unknown command")):
        assert not may_pass(error)
    for error in (
        errors.ConnectionError(),
        errors.BusyLoadingError(),
        errors.ClusterDownError(""),
        errors.TryAgainError(),
    ):
        assert may_pass(error)


def test_tiles_are_whole(redis_url: str, redis: Any) -> None:
    """While tiles are replaced, counts, sums and fences of an answer are of one version."""
    world.publish(redis)

    def put(number: int) -> None:
        events = [{**EVENT, "at": i, "offset": i, "v_Int64": 1, "v_Float64": 0.5} for i in range(number)]
        world.store_tiles(redis, DELAYS, events)

    put(1)
    stop = threading.Event()

    def writing() -> None:
        while not stop.is_set():
            for number in range(1, 9):
                put(number)

    asked = {"place": "JFK", "other": "JFK", "code": 1, "who": "x", "weight": 1.0, "label": ""}
    with (
        FeatureClient.connect(redis_url, project=PROJECT, service="everything", timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        thread = pool.submit(writing)
        try:
            for i in range(150):
                answer = client.get([asked] * (1, 2, FEW + 1)[i % 3], 10)
                values = answer.to_dict()
                count = values["count_Int64_short"][0]
                assert values["sum_Int64_short"][0] == values["there__sum"][0] == count
                assert values["sum_Float64_long"][0] == count * 0.5
                assert answer.evidence[0]["delays"] == {"fences": {3: count - 1}}
        finally:
            stop.set()
        thread.result()
