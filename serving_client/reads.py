"""Reads of keys from whatever Redis a client leads to, in one round trip, and when to ask again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from types import TracebackType
from typing import Any, Final, Protocol

from redis import Redis, RedisCluster
from redis import exceptions as errors
from redis.asyncio import RedisCluster as AsyncRedisCluster

from connections import AsyncClient, Client
from serving_client.cluster import AsyncClusterReads, ClusterReads
from serving_client.commands import Values, mget
from serving_client.few_rows import FewRequest
from serving_client.lookup import Request
from serving_client.wire import AsyncWire, Wire
from tally.errors import DataError

_LONGEST_PAUSE: Final = 0.05
_HOPELESS: Final = (errors.AuthenticationError, errors.AuthorizationError)
_PASSING: Final = (
    errors.ConnectionError,  # a server that is loading, too
    errors.TimeoutError,
    errors.TryAgainError,
    errors.ClusterDownError,
    errors.ClusterError,
    errors.RedisClusterException,
    errors.AskError,
    OSError,
)

_OF_NONE: Final = (AttributeError, TypeError, ValueError)
"""What redis-py raises of a socket that is gone when its client is closed under a command."""


class _Open:
    """A block that reads: when the client is `closed` under it, it ends with a lost connection and not with `_OF_NONE`."""

    closed = False

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.closed and isinstance(error, _OF_NONE):
            raise errors.ConnectionError("the client was closed meanwhile") from error


def may_pass(error: Exception) -> bool:
    """Whether a read that failed like this may succeed when it is asked again. Reads change nothing, so all are safe."""
    return isinstance(error, _PASSING) and not isinstance(error, _HOPELESS)


def pauses() -> Iterator[float]:
    """Seconds to wait before each further try: none, for a connection that the server had closed, then ever longer."""
    yield 0.0
    pause = 0.001
    while True:
        yield pause
        pause = min(pause * 2, _LONGEST_PAUSE)


def require_bytes(redis: Any) -> None:
    """Raises DataError for a redis-py client that turns values into text."""
    if redis.get_encoder().decode_responses:
        raise DataError("The Redis client has decode_responses=True, which breaks packed values; make one without it.")


def require_time(timeout: float) -> None:
    """Raises DataError for a time-out that is none."""
    if not 0 < timeout < inf:
        raise DataError(f"timeout is {timeout}; give the seconds in which a lookup may ask, such as 1.0.")


class Reads(Protocol):
    """One round trip to each server, over when `time.monotonic` says `ends`. Raises as redis-py does."""

    def request(self, request: Request | FewRequest, ends: float) -> Values:
        """The values of the request's keys."""

    def keys(self, keys: Sequence[bytes], ends: float) -> Values:
        """The values of these keys."""

    def close(self) -> None:
        """The client is being closed, under whoever still reads."""


class AsyncReads(Protocol):
    """`Reads` for asyncio."""

    async def request(self, request: Request | FewRequest, ends: float) -> Values:
        """As `Reads.request`."""

    async def keys(self, keys: Sequence[bytes], ends: float) -> Values:
        """As `Reads.keys`."""

    async def close(self) -> None:
        """As `Reads.close`; gives connections back."""


def reads_of(redis: Client) -> Reads:
    """Reads through this client."""
    return _OnCluster(redis) if isinstance(redis, RedisCluster) else _OnServer(redis)


def async_reads_of(redis: AsyncClient) -> AsyncReads:
    """Reads through this client."""
    return _OnClusterAsync(redis) if isinstance(redis, AsyncRedisCluster) else _OnServerAsync(redis)


class _OnServer:
    def __init__(self, redis: Redis) -> None:
        self._wire = Wire(redis)
        self._open = _Open()

    def request(self, request: Request | FewRequest, ends: float) -> Values:
        return self._read(request.command(), ends)

    def keys(self, keys: Sequence[bytes], ends: float) -> Values:
        return self._read(mget(keys), ends)

    def _read(self, command: bytes, ends: float) -> Values:
        with self._open:
            return self._wire.read(command, ends)

    def close(self) -> None:
        self._open.closed = True


class _OnCluster:
    def __init__(self, redis: RedisCluster) -> None:
        self._cluster = ClusterReads(redis)
        self._open = _Open()

    def request(self, request: Request | FewRequest, ends: float) -> Values:
        return self.keys(request.keys, ends)

    def keys(self, keys: Sequence[bytes], ends: float) -> Values:
        with self._open:
            return self._cluster.read(keys, ends)

    def close(self) -> None:
        self._open.closed = True


class _OnServerAsync:
    def __init__(self, redis: Any) -> None:
        self._wire = AsyncWire(redis)
        self._open = _Open()

    async def request(self, request: Request | FewRequest, ends: float) -> Values:
        return await self._read(request.command(), ends)

    async def keys(self, keys: Sequence[bytes], ends: float) -> Values:
        return await self._read(mget(keys), ends)

    async def _read(self, command: bytes, ends: float) -> Values:
        with self._open:
            return await self._wire.read(command, ends)

    async def close(self) -> None:
        self._open.closed = True
        await self._wire.close()


class _OnClusterAsync:
    def __init__(self, redis: AsyncRedisCluster) -> None:
        self._cluster = AsyncClusterReads(redis)
        self._open = _Open()

    async def request(self, request: Request | FewRequest, ends: float) -> Values:
        return await self.keys(request.keys, ends)

    async def keys(self, keys: Sequence[bytes], ends: float) -> Values:
        with self._open:
            return await self._cluster.read(keys, ends)

    async def close(self) -> None:
        self._open.closed = True
