"""The one command of a lookup, over connections of redis-py's pool that stay at hand between lookups.

`Redis.mget` takes a connection from the pool, polls its socket and puts it back each time: a third of what a lookup takes
(docs/lookups.md). Connecting, logging in, time-outs, health checks and retries are redis-py's all the same.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from math import inf
from typing import Any, Final, cast

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as TimedOutError

from connections import ending, punctual, until
from serving_client.commands import Values

Idle = deque[tuple[Any, float]]

KEPT_SECONDS: Final = 1.0
"""How long a connection stays out of its pool, which does between uses what must be done: new tokens, a new master."""


class _AtHand:
    """Connections at hand, each with the time at which it goes back to `pool`: at most half of those that it may open."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self._most = pool.max_connections // 2
        self._idle: Idle = deque()

    def take(self) -> tuple[Any, float]:
        """A connection and the time at which it goes back; None for the connection when there is none."""
        try:
            connection, until = self._idle.pop()
        except IndexError:
            return None, 0.0
        if getattr(connection, "pid", None) not in (None, os.getpid()):
            self._idle.clear()  # a forked child leaves its parent's connections alone
            return None, 0.0
        return connection, until

    def keep(self, connection: Any, until: float) -> bool:
        """Whether the connection stays at hand; if not, it is the pool's."""
        if len(self._idle) >= self._most or time.monotonic() > until:
            return False
        self._idle.append((connection, until))
        return True


def _pool_may_do(error: BaseException, connection: Any) -> bool:
    """Whether a connection that the pool has checked may succeed where one at hand failed: the server may have closed it."""
    return isinstance(error, LostError) or (isinstance(error, TimedOutError) and connection.retry.get_retries() > 0)


class Wire(_AtHand):
    """Reads over the connections of `redis`. Safe to share between threads, and across a fork."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(punctual(redis).connection_pool)
        weakref.finalize(self, _release, self.pool, self._idle).atexit = False

    def read(self, command: bytes, ends: float = inf) -> Values:
        """The answer to a packed command that changes nothing, by `ends`. Raises as redis-py does.

        A connection at hand answers within its own time-out: only what comes after that may take many.
        """
        connection, back = self.take()
        if connection is None:
            return self._from_pool(command, ends)
        try:
            values = _ask(connection, command)
        except ResponseError:
            self._give_back(connection, back)
            raise
        except BaseException as error:
            self.pool.release(connection)
            if not _pool_may_do(error, connection):
                raise
        else:
            self._give_back(connection, back)
            return values
        return self._from_pool(command, ends)

    def _from_pool(self, command: bytes, ends: float) -> Values:
        with until(ends):
            connection = self.pool.get_connection()
            try:
                values = connection.retry.call_with_retry(
                    lambda: _ask(connection, command), lambda _: connection.disconnect()
                )
            except BaseException:
                self.pool.release(connection)
                raise
        self._give_back(connection, time.monotonic() + KEPT_SECONDS)
        return cast(Values, values)

    def _give_back(self, connection: Any, until: float) -> None:
        if not self.keep(connection, until):
            self.pool.release(connection)


def _release(pool: Any, idle: Idle) -> None:
    while idle:
        pool.release(idle.pop()[0])


def _ask(connection: Any, command: bytes) -> Values:
    """What the server answers. The connection is in step afterwards, or disconnected."""
    try:
        connection.send_packed_command((command,))
        return cast(Values, connection.read_response(disconnect_on_error=True))
    except ResponseError:
        raise
    except BaseException:
        connection.disconnect()
        raise


class AsyncWire(_AtHand):
    """`Wire` over a `redis.asyncio` client. Belongs to one event loop."""

    def __init__(self, redis: AsyncRedis) -> None:
        super().__init__(redis.connection_pool)

    async def read(self, command: bytes, ends: float = inf) -> Values:
        """As `Wire.read`."""
        connection, back = self.take()
        if connection is None:
            return await self._from_pool(command, ends)
        try:
            values = await _ask_async(connection, command)
        except ResponseError:
            await self._give_back(connection, back)
            raise
        except BaseException as error:
            await self.pool.release(connection)
            if not _pool_may_do(error, connection):
                raise
        else:
            await self._give_back(connection, back)
            return values
        return await self._from_pool(command, ends)

    async def _from_pool(self, command: bytes, ends: float) -> Values:
        async with ending(ends):
            connection = await self.pool.get_connection()

            async def disconnect(_: Exception) -> None:
                await connection.disconnect(nowait=True)

            try:
                values = await connection.retry.call_with_retry(lambda: _ask_async(connection, command), disconnect)
            except BaseException:
                await self.pool.release(connection)
                raise
        await self._give_back(connection, time.monotonic() + KEPT_SECONDS)
        return cast(Values, values)

    async def _give_back(self, connection: Any, until: float) -> None:
        if not self.keep(connection, until):
            await self.pool.release(connection)

    async def close(self) -> None:
        """Gives the connections at hand back to the pool."""
        while self._idle:
            await self.pool.release(self._idle.pop()[0])


async def _ask_async(connection: Any, command: bytes) -> Values:
    """As `_ask`."""
    try:
        await connection.send_packed_command(command)
        return cast(Values, await connection.read_response(disconnect_on_error=True))
    except ResponseError:
        raise
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
