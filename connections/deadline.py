"""A time by which all that a thread asks of Redis is over, whatever redis-py asks of it on the way.

One command may be many waits: for a connection, for the answers to its handshake, for Sentinels or a cluster's nodes to say
who has what. Each has a time-out of its own; together they may take many times that.

    client = punctual(Redis(...))
    with until(time.monotonic() + 1.0):
        client.get("key")  # raises redis.exceptions.TimeoutError in a second, if no answer comes
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from redis import RedisCluster
from redis.exceptions import TimeoutError as TimedOutError

if TYPE_CHECKING:
    from connections.clients import Client

_AnyClient = TypeVar("_AnyClient", bound="Client")


_OVER: Final = "the time of the request is over"


class _Ends(threading.local):
    moment = inf


_ends = _Ends()


@contextmanager
def until(moment: float) -> Iterator[None]:
    """What this thread asks of punctual clients in the block ends at `moment` of `time.monotonic`, or raises."""
    before = _ends.moment
    _ends.moment = min(before, moment)
    try:
        yield
    finally:
        _ends.moment = before


@asynccontextmanager
async def ending(moment: float) -> AsyncIterator[None]:
    """As `until`, for a task and any client: what is not over by then is cancelled."""
    try:
        async with asyncio.timeout(None if moment == inf else moment - monotonic()):
            yield
    except TimeoutError as error:
        raise TimedOutError(_OVER) from error


def punctual(client: _AnyClient) -> _AnyClient:
    """`client`, whose connections heed `until`: those that it opens from now on.

    A cluster's that nobody uses yet: those that it asked for its nodes are left to themselves.
    """
    for pool in _pools(client):
        if not issubclass(pool.connection_class, _Punctual):
            pool.connection_class = _class(pool.connection_class)
            if isinstance(client, RedisCluster):
                pool.disconnect()
                pool.reset()
    return client


def _pools(client: Any) -> list[Any]:
    if isinstance(client, RedisCluster):
        manager = client.nodes_manager
        nodes = (*manager.nodes_cache.values(), *manager.startup_nodes.values())
        return [node.redis_connection.connection_pool for node in nodes if node.redis_connection is not None]
    pool: Any = client.connection_pool
    sentinels = pool.sentinel_manager.sentinels if hasattr(pool, "sentinel_manager") else ()
    return [pool, *(sentinel.connection_pool for sentinel in sentinels)]


@cache
def _class(connection_class: type) -> type:
    return type(connection_class.__name__, (_Punctual, connection_class), {})


def _left(seconds: float | None) -> float | None:
    """How long a call may wait that may take `seconds`. Raises redis-py's TimeoutError when the time is over."""
    if _ends.moment == inf:
        return seconds
    left = _ends.moment - monotonic()
    if left <= 0:
        raise TimedOutError(_OVER)
    return left if seconds is None else min(seconds, left)


class _Punctual:
    """What comes before a connection class of redis-py: each wait for its socket ends in time."""

    socket_timeout: Any
    socket_connect_timeout: Any
    _sock: Any
    _hurried = False
    """Whether the socket waits less long than `socket_timeout` at the moment."""

    def _connect(self) -> Any:
        own = self.socket_connect_timeout, self.socket_timeout
        self.socket_connect_timeout, self.socket_timeout = (_left(seconds) for seconds in own)
        self._hurried = self.socket_timeout != own[1]
        try:
            return super()._connect()  # type: ignore[misc]
        finally:
            self.socket_connect_timeout, self.socket_timeout = own

    def send_packed_command(self, *args: Any, **options: Any) -> None:
        if self._hurried or _ends.moment != inf:
            self._hurry()
        super().send_packed_command(*args, **options)  # type: ignore[misc]

    def read_response(self, *args: Any, **options: Any) -> Any:
        if self._hurried or _ends.moment != inf:
            self._hurry()
        return super().read_response(*args, **options)  # type: ignore[misc]

    def _hurry(self) -> None:
        sock = self._sock
        if sock is not None:
            left = _left(self.socket_timeout)
            self._hurried = left != self.socket_timeout
            if sock.gettimeout() != left:
                sock.settimeout(left)
