"""Connections that stay at hand between lookups: never out of step, never a stale one, never all of the pool's."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import BlockingConnectionPool, Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as TimedOutError

import connections
from serving_client.commands import Keys, mget
from serving_client.wire import AsyncWire, Wire
from tests import redis_servers
from tests.redis_servers import Server


@given(keys=st.lists(st.binary(max_size=9), min_size=1, max_size=12))
def test_the_packed_command_is_what_redis_py_sends(keys: list[bytes]) -> None:
    """MGET packed here equals redis-py's bytes, whatever the keys hold."""
    connection: Any = Redis().connection_pool.make_connection()
    assert mget(keys) == b"".join(connection.pack_command("MGET", *keys))


@given(
    blocks=st.lists(st.tuples(st.binary(max_size=4), st.lists(st.binary(max_size=2), max_size=5)), max_size=3),
    more=st.lists(st.binary(max_size=3), max_size=2),
)
def test_keys_in_blocks_are_packed_as_single_ones_are(
    blocks: list[tuple[bytes, list[bytes]]], more: list[bytes]
) -> None:
    """Texts of one length and of several, empty blocks, and keys behind them: the command is that of the whole keys."""
    keys = Keys(blocks)
    expected = [prefix + text for prefix, texts in blocks for text in texts]
    assert list(keys) == expected
    assert [keys[i] for i in range(len(keys))] == expected
    assert [list(block) for block in keys.blocks] == [[prefix + text for text in texts] for prefix, texts in blocks]
    assert keys.mget(more) == mget([*expected, *more])


@pytest.fixture
def wire(redis: Redis, redis_url: str) -> Wire:
    """Reads of a server that holds a = 1 and b = 2."""
    redis.mset({"a": "1", "b": "2"})
    return Wire(Redis.from_url(redis_url))


def in_use(wire: Any) -> int:
    """How many connections are out of the pool."""
    return len(wire.pool._in_use_connections)


def test_the_connection_stays(redis: Redis) -> None:
    """Many reads go over one connection, which stays out of the pool until the wire is gone."""
    redis.mset({"a": "1", "b": "2"})
    wire = Wire(Redis(connection_pool=redis.connection_pool))
    connections = redis.info("stats")["total_connections_received"]
    for _ in range(5):
        assert wire.read(mget([b"b", b"x", b"a"])) == [b"2", None, b"1"]
    assert redis.info("stats")["total_connections_received"] <= connections + 1
    pool: Any = wire.pool
    assert in_use(wire) == 1
    del wire
    gc.collect()
    assert len(pool._in_use_connections) == 0


def test_a_connection_goes_back_in_time(monkeypatch: pytest.MonkeyPatch, wire: Wire) -> None:
    """When its time is over the connection goes through the pool again."""
    monkeypatch.setattr("serving_client.wire.KEPT_SECONDS", -1.0)
    for _ in range(2):
        assert wire.read(mget([b"a"])) == [b"1"]
        assert in_use(wire) == 0


def test_connections_closed_by_the_server(redis: Redis, wire: Wire) -> None:
    """A connection that the server closed meanwhile is replaced: the caller sees nothing."""
    for _ in range(3):
        assert wire.read(mget([b"a"])) == [b"1"]
        assert redis.client_kill_filter(_type="normal", skipme=True) >= 1
    assert in_use(wire) <= 1


def patiently(wire: Wire, command: bytes) -> Any:
    """The first answer, however often a busy machine takes longer for it than the wire waits."""
    while True:
        with suppress(TimedOutError):
            return wire.read(command)


@pytest.fixture
def halting(tmp_path: Path) -> Iterator[Server]:
    """A server that holds a = 1 and b = 2, to be stopped in its tracks."""
    with redis_servers.standalone(tmp_path) as server, server.client() as redis:
        redis.mset({"a": "1", "b": "2"})
        yield server


def test_an_answer_that_comes_late_is_nobodys(halting: Server) -> None:
    """After a time-out the late answer is not taken for the next one's, with a kept connection and without."""
    client: Any = connections.open_client(halting.url(), 0.05)
    wire = Wire(client)
    for first in (True, False):
        if not first:
            assert patiently(wire, mget([b"b"])) == [b"2"]
        halting.freeze()
        with pytest.raises(TimedOutError):
            wire.read(mget([b"a"]))
        halting.thaw()
        assert patiently(wire, mget([b"b"])) == [b"2"]


def test_refused_commands_leave_the_connection_in_step(wire: Wire) -> None:
    """An error reply is raised, and the connection goes on."""
    for _ in range(3):
        with pytest.raises(ResponseError):
            wire.read(b"*1\r\n$4\r\nMGET\r\n")
        assert wire.read(mget([b"a"])) == [b"1"]
    assert in_use(wire) == 1


@pytest.mark.parametrize("most", [1, 2, 3])
def test_small_pools_are_shared(redis: Redis, redis_url: str, most: int) -> None:
    """At most half of the pool's connections stay away from others who use it."""
    redis.set("a", "1")
    pool = BlockingConnectionPool.from_url(redis_url, max_connections=most, timeout=0)
    wire = Wire(Redis(connection_pool=pool))
    for _ in range(3):
        assert wire.read(mget([b"a"])) == [b"1"]
        assert Redis(connection_pool=pool).get("a") == b"1"


def test_a_fork_opens_its_own(redis: Redis, wire: Wire) -> None:
    """A forked child reads over a connection of its own; the parent's stays in step."""
    assert wire.read(mget([b"a"])) == [b"1"]
    connections = redis.info("stats")["total_connections_received"]
    child = os.fork()
    if child == 0:
        os._exit(0 if [wire.read(mget([b"b"])) for _ in range(50)] == [[b"2"]] * 50 else 1)
    for _ in range(50):
        assert wire.read(mget([b"a"])) == [b"1"]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert redis.info("stats")["total_connections_received"] == connections + 1


def test_asynchronous_answers_that_come_late(halting: Server) -> None:
    """As with the synchronous wire; and that of a read that was given up is nobody's either."""

    async def use() -> None:
        client: Any = connections.open_async_client(halting.url(), 0.05)
        wire = AsyncWire(client)
        for _ in range(2):
            halting.freeze()
            with pytest.raises(TimedOutError):
                await wire.read(mget([b"a"]))
            reading = asyncio.create_task(wire.read(mget([b"a"])))
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            halting.thaw()
            while True:
                with suppress(TimedOutError):
                    assert await wire.read(mget([b"b"])) == [b"2"]
                    break
        await wire.close()
        await client.aclose()

    asyncio.run(use())


def test_asynchronous(redis: Redis, redis_url: str) -> None:
    """The asynchronous wire: one connection stays; closed ones are replaced; closing gives back."""
    redis.mset({"a": "1", "b": "2"})

    async def use() -> None:
        client = AsyncRedis.from_url(redis_url)
        wire = AsyncWire(client)
        for _ in range(3):
            assert await wire.read(mget([b"a"])) == [b"1"]
            assert in_use(wire) == 1
            redis.client_kill_filter(_type="normal", skipme=True)
        assert await wire.read(mget([b"a"])) == [b"1"]
        assert await wire.read(mget([b"b"])) == [b"2"]
        with pytest.raises(ResponseError):
            await wire.read(b"*1\r\n$4\r\nMGET\r\n")
        together = await asyncio.gather(*[wire.read(mget([key])) for key in (b"a", b"b") * 20])
        assert together == [[b"1"], [b"2"]] * 20
        await wire.close()
        assert in_use(wire) == 0
        await client.aclose()

    asyncio.run(use())
