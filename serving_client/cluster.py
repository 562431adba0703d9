"""Reads of many keys from a Redis Cluster: one round trip per node, all nodes at once.

A cluster refuses an MGET across slots, so each node gets its keys as GETs in one write; replies are read after every node
was written to. redis-py knows the nodes and connects to them; a slot that has moved is asked for where the reply says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from redis import RedisCluster
from redis.asyncio import RedisCluster as AsyncRedisCluster
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, ResponseError, SlotNotCoveredError, TryAgainError
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import TimeoutError as TimedOutError

from connections import ending, next_reply, punctual, until
from serving_client.commands import Values
from tally.errors import StoredBytesError

_LOST: Final = (LostError, TimedOutError, OSError)


@dataclass
class _Replies:
    """What the nodes said: the `values` so far, and the keys that must be asked elsewhere."""

    keys: Sequence[bytes]
    values: Values
    elsewhere: list[tuple[int, AskError]] = field(default_factory=list)
    refused: ResponseError | StoredBytesError | None = None

    def take(self, position: int, reply: Any) -> None:
        """Remember the reply to the key at `position`."""
        if isinstance(reply, AskError):  # a MovedError is one, too
            self.elsewhere.append((position, reply))
        elif isinstance(reply, ResponseError):
            self.refused = _named(self.keys[position], reply)
        else:
            self.values[position] = reply

    @property
    def moved(self) -> bool:
        """Whether a slot belongs to another node for good."""
        return any(isinstance(error, MovedError) for _, error in self.elsewhere)

    def check(self) -> None:
        """Raises what a node refused a key with."""
        if self.refused is not None:
            raise self.refused


def _named(key: bytes, error: ResponseError) -> ResponseError | StoredBytesError:
    if not str(error).startswith("WRONGTYPE"):
        return error
    return StoredBytesError(f"{key!r} does not hold a string; delete the key and load the view again.")


def _by_node(slots: Any, keys: Sequence[bytes]) -> list[tuple[Any, list[int]]]:
    """(node, positions of its keys). Raises SlotNotCoveredError."""
    found: dict[str, tuple[Any, list[int]]] = {}
    for position, key in enumerate(keys):
        slot = key_slot(key)
        nodes = slots.get(slot)
        if not nodes:
            raise SlotNotCoveredError(f"slot {slot} is not covered by the cluster")
        found.setdefault(nodes[0].name, (nodes[0], []))[1].append(position)
    return list(found.values())


def _redirected(node: Any, error: AskError) -> Any:
    if node is None:
        raise TryAgainError(f"{error.host}:{error.port} is not known yet")
    return node


def _commands(key: bytes, error: AskError) -> list[tuple[Any, ...]]:
    """The commands for a key that another node has: the last reply is the value."""
    return [(b"GET", key)] if isinstance(error, MovedError) else [(b"ASKING",), (b"GET", key)]


class ClusterReads:
    """Reads through a `redis.RedisCluster`. Safe between threads, and after a fork."""

    def __init__(self, cluster: RedisCluster) -> None:
        self._cluster = cluster
        self._outdated = False

    def read(self, keys: Sequence[bytes], ends: float = inf) -> Values:
        """The value of each key, None where there is none, by `ends`.

        Raises StoredBytesError, naming the key, for one of another type; else as redis-py does.
        """
        with until(ends):
            return self._read(keys)

    def _read(self, keys: Sequence[bytes]) -> Values:
        manager = self._cluster.nodes_manager
        if self._outdated:
            self._outdated = False
            manager.initialize()
        replies = _Replies(keys, [None] * len(keys))
        try:
            self._ask(_by_node(manager.slots_cache, keys), replies)
            self._outdated = replies.moved
            for position, error in replies.elsewhere:
                replies.take(position, self._follow(manager, keys[position], error))
        except (*_LOST, SlotNotCoveredError, TryAgainError):
            self._outdated = True  # whoever asks again does so with the nodes as they are by then
            raise
        replies.check()
        return replies.values

    def _ask(self, nodes: list[tuple[Any, list[int]]], replies: _Replies) -> None:
        busy: list[tuple[Any, Any, list[int]]] = []
        try:
            for node, positions in nodes:
                pool = self._pool(node)
                connection = pool.get_connection()
                busy.append((pool, connection, positions))
                commands = [(b"GET", replies.keys[position]) for position in positions]
                connection.send_packed_command(connection.pack_commands(commands))
            while busy:
                pool, connection, positions = busy[0]
                for position in positions:
                    replies.take(position, next_reply(connection))
                pool.release(connection)
                busy.pop(0)
        finally:
            for pool, connection, _ in busy:  # replies that nobody will read
                connection.disconnect()
                pool.release(connection)

    def _pool(self, node: Any) -> Any:
        return punctual(self._cluster.get_redis_connection(node)).connection_pool

    def _follow(self, manager: Any, key: bytes, error: AskError) -> Any:
        node = _redirected(manager.get_node(error.host, error.port), error)
        pool = self._pool(node)
        connection = pool.get_connection()
        try:
            commands = _commands(key, error)
            connection.send_packed_command(connection.pack_commands(commands))
            return [next_reply(connection) for _ in commands][-1]
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)


class AsyncClusterReads:
    """`ClusterReads` through a `redis.asyncio.RedisCluster`. Belongs to one event loop."""

    def __init__(self, cluster: AsyncRedisCluster) -> None:
        self._cluster = cluster
        self._outdated = False

    async def read(self, keys: Sequence[bytes], ends: float = inf) -> Values:
        """As `ClusterReads.read`."""
        try:
            async with ending(ends):
                return await self._read(keys)
        except TimedOutError:
            self._outdated = True
            raise

    async def _read(self, keys: Sequence[bytes]) -> Values:
        await self._cluster.initialize()
        manager = self._cluster.nodes_manager
        if self._outdated:
            self._outdated = False
            await manager.initialize()
        replies = _Replies(keys, [None] * len(keys))
        try:
            nodes = _by_node(manager.slots_cache, keys)
            if len(nodes) == 1:
                await self._ask(*nodes[0], replies)
            else:
                await _all(*(self._ask(node, positions, replies) for node, positions in nodes))
            self._outdated = replies.moved
            for position, error in replies.elsewhere:
                replies.take(position, await self._follow(manager, keys[position], error))
        except (*_LOST, SlotNotCoveredError, TryAgainError):
            self._outdated = True
            raise
        replies.check()
        return replies.values

    async def _ask(self, node: Any, positions: list[int], replies: _Replies) -> None:
        connection = node.acquire_connection()
        try:
            commands = [(b"GET", replies.keys[position]) for position in positions]
            await connection.send_packed_command(connection.pack_commands(commands))
            for position in positions:
                replies.take(position, await _async_reply(connection))
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            node.release(connection)

    async def _follow(self, manager: Any, key: bytes, error: AskError) -> Any:
        node = _redirected(manager.get_node(error.host, error.port), error)
        connection = node.acquire_connection()
        try:
            commands = _commands(key, error)
            await connection.send_packed_command(connection.pack_commands(commands))
            return [await _async_reply(connection) for _ in commands][-1]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            node.release(connection)


async def _async_reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


async def _all(*reads: Any) -> None:
    """Run all at once. Raises the first error when all have ended, so that no connection is left half read."""
    for result in await asyncio.gather(*reads, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
