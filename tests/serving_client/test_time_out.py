"""A lookup of servers that accept what is sent and never answer ends within its time, however many waits that takes."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

import pytest
from redis import connection as redis_connection

import connections
from serving_client import AsyncFeatureClient, FeatureClient
from tally.errors import UnavailableError
from tests.redis_servers import ClusterServers, SentinelServers
from tests.serving_client import world
from tests.serving_client.world import PROJECT

TIMEOUT = 64.0
"""Of the tests' own clock: long, so that a busy machine never is what a lookup waits for."""
ROWS = [{"code": 1, "who": "x"}]


class Clock:
    """A clock that only waiting moves. `hung`: whether no server answers."""

    def __init__(self) -> None:
        self.now = 0.0
        self.hung = False

    def __call__(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Wait."""
        self.now += seconds


class Socket:
    """A socket over which nothing comes while the clock says that servers hang: a wait takes its time-out at once."""

    def __init__(self, sock: Any, clock: Clock) -> None:
        self._sock = sock
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv_into(self, *args: Any) -> Any:
        """Hang, or receive."""
        self._hang()
        return self._sock.recv_into(*args)

    def recv(self, *args: Any) -> Any:
        """Hang, or receive: what redis-py calls without hiredis."""
        self._hang()
        return self._sock.recv(*args)

    def _hang(self) -> None:
        if self._clock.hung:
            self._clock.sleep(self._sock.gettimeout())
            raise TimeoutError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all that counts the time of a request, and of the sockets that are opened from now on."""
    clock = Clock()
    connect = redis_connection.Connection._connect
    monkeypatch.setattr(redis_connection.Connection, "_connect", lambda self: Socket(connect(self), clock))
    for module in ("serving_client.client", "connections.deadline"):
        monkeypatch.setattr(f"{module}.monotonic", clock)
    monkeypatch.setattr("serving_client.client.sleep", clock.sleep)
    return clock


@pytest.fixture(params=["standalone", "cluster", "sentinel"])
def url(request: pytest.FixtureRequest) -> str:
    """An address of each topology, where the world is published."""
    if request.param == "standalone":
        found = str(request.getfixturevalue("redis_url"))
    else:
        named = {"cluster": "redis_cluster", "sentinel": "redis_sentinels"}
        servers: ClusterServers | SentinelServers = request.getfixturevalue(named[request.param])
        found = servers.url
    with connections.open_client(found) as redis:
        redis.flushall()
        world.publish(redis)
    return found


@pytest.mark.parametrize("state", ["connected", "not yet connected", "forked"])
def test_a_lookup_ends_in_its_time(clock: Clock, url: str, state: str) -> None:
    """When all servers hang, the first lookup and those after it wait no longer than they may."""
    with FeatureClient.connect(url, project=PROJECT, service="small", timeout=TIMEOUT) as client:
        if state == "forked":
            client.after_fork()
        if state != "not yet connected":
            assert client.get(ROWS, 0).to_dict() == {"note": [None], "level": [None]}
        clock.hung = True
        for _ in range(3):
            began = clock.now
            with pytest.raises(UnavailableError):
                client.get(ROWS, 0)
            assert round(clock.now - began, 9) <= TIMEOUT
        clock.hung = False
        assert client.get(ROWS, 0).to_dict() == {"note": [None], "level": [None]}


def test_a_connection_that_hangs_is_tried_again(clock: Clock, redis: Any, redis_url: str) -> None:
    """A try gets half of the time, the next one the rest: where only the connection is dead, there is an answer."""
    world.publish(redis)
    with FeatureClient.connect(redis_url, project=PROJECT, service="small", timeout=TIMEOUT) as client:
        client.get(ROWS, 0)
        clock.hung = True
        sleep = clock.sleep

        def until_half(seconds: float) -> None:
            sleep(seconds)
            clock.hung = False

        clock.sleep = until_half  # type: ignore[method-assign]
        began = clock.now
        assert client.get(ROWS, 0).to_dict() == {"note": [None], "level": [None]}
        assert clock.now - began == TIMEOUT / 2


class Selector(selectors.SelectSelector):
    """What an event loop waits with: where servers hang nothing comes, and waiting moves the clock at once."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Ready files; of sockets that have an answer, none."""
        if not self._clock.hung:
            found = super().select(timeout)
            if not found and timeout is not None:
                self._clock.sleep(timeout)
            return found
        ready = [(key, events & selectors.EVENT_WRITE) for key, events in super().select(0)]
        found = [(key, events) for key, events in ready if events]
        if not found and timeout is not None:
            self._clock.sleep(timeout)
        return found


class Loop(asyncio.SelectorEventLoop):
    """An event loop of that clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(Selector(clock))
        self.time = clock  # type: ignore[method-assign]


@pytest.mark.parametrize("warm", [True, False], ids=["connected", "not yet connected"])
def test_an_asynchronous_lookup_ends_in_its_time(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, url: str, *, warm: bool
) -> None:
    """As the synchronous one."""
    monkeypatch.setattr("serving_client.async_client.monotonic", clock)

    async def use() -> None:
        async with await AsyncFeatureClient.connect(url, project=PROJECT, service="small", timeout=TIMEOUT) as client:
            if warm:
                assert (await client.get(ROWS, 0)).to_dict() == {"note": [None], "level": [None]}
            clock.hung = True
            for _ in range(3):
                began = clock.now
                with pytest.raises(UnavailableError):
                    await client.get(ROWS, 0)
                assert round(clock.now - began, 9) <= TIMEOUT
            clock.hung = False

    with asyncio.Runner(loop_factory=lambda: Loop(clock)) as runner:
        runner.run(use())
