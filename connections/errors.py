"""What redis-py raises, as errors for the user: what was wrong, where, and what to do. The one place that knows.

Whoever waits for Redis to come back waits for any `UnavailableError`; the subclasses say what it lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from redis import exceptions as errors

from tally.errors import StoredBytesError, TallyError, UnavailableError

RAISED: Final = (errors.RedisError, errors.RedisClusterException, OSError)
"""All that a client of redis-py raises when a server is away or refuses something."""


class LoadingError(UnavailableError):
    """The server has just started and is reading its data; it will answer by itself."""


class ReadOnlyError(UnavailableError):
    """A replica was asked to write: a failover is under way, or the address leads to a replica."""


class RefusedError(UnavailableError):
    """The server does not know us, or does not let us use a command or key."""


class ClusterDownError(UnavailableError):
    """Some of the cluster's slots are served by nobody."""


class OutOfMemoryError(UnavailableError):
    """The server is at `maxmemory` and takes no writes."""


_KINDS: Final[tuple[tuple[tuple[type[Exception], ...], type[UnavailableError], str], ...]] = (
    ((errors.BusyLoadingError,), LoadingError, "is loading its data; it answers as soon as that is done"),
    (
        (errors.AuthenticationError, errors.AuthorizationError, errors.NoPermissionError),
        RefusedError,
        "refuses us; check the user and password in REDIS_URL, and that user's rights (docs/redis.md lists those needed)",
    ),
    (
        (errors.ReadOnlyError,),
        ReadOnlyError,
        "is a replica and takes no writes; if no failover is under way, let REDIS_URL lead to the master",
    ),
    (
        (errors.ClusterDownError, errors.MasterDownError, errors.SlotNotCoveredError, errors.TryAgainError),
        ClusterDownError,
        "has slots that no node serves at the moment; it recovers with a failover, or when the missing nodes are back",
    ),
    (
        (errors.OutOfMemoryError,),
        OutOfMemoryError,
        "has used up its memory; raise maxmemory or add nodes (its eviction policy must be noeviction)",
    ),
)
_OTHERWISE: Final = "did not answer; check REDIS_URL and that the server is up (`tally up` starts an embedded one)"


@contextmanager
def reaching(redis: Any) -> Iterator[None]:
    """Turn what calls of this client raise into TallyErrors; serves `async with` blocks' contents, too."""
    try:
        yield
    except errors.DataError:
        raise  # a value that cannot be sent is our own fault
    except RAISED as error:
        raise explained(redis, error) from error


def explained(redis: Any, error: Exception) -> TallyError:
    """The error for what a call of `redis` (a client, or the words for where it leads to) raised."""
    place = redis if isinstance(redis, str) else where(redis)
    reason = _without(str(error) or type(error).__name__, _password(redis))
    if reason.startswith("WRONGTYPE"):
        return StoredBytesError(
            f"A key in Redis at {place} holds another type than Tally's ({reason}); another program writes under the same "
            "names: give it another database, or rename the project."
        )
    for kinds, kind, advice in _KINDS:
        if isinstance(error, kinds):
            return kind(f"Redis at {place} {advice} ({reason}).")
    return UnavailableError(f"Redis at {place} {_OTHERWISE} ({type(error).__name__}: {reason}).")


def where(redis: Any) -> str:
    """Where a client of redis-py leads to, without credentials."""
    if hasattr(redis, "nodes_manager"):
        return "cluster " + ", ".join(sorted(str(node.name) for node in redis.nodes_manager.startup_nodes.values()))
    pool = redis.connection_pool
    if hasattr(pool, "service_name"):
        return f"Sentinel service {pool.service_name}"
    settings = pool.connection_kwargs
    if settings.get("path"):
        return f"unix://{settings['path']}"
    return f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"


def _password(redis: Any) -> str:
    if isinstance(redis, str):
        return ""
    settings = redis.nodes_manager.connection_kwargs if hasattr(redis, "nodes_manager") else None
    return str((settings or getattr(redis, "connection_pool", redis).connection_kwargs).get("password") or "")


def _without(text: str, password: str) -> str:
    return text.replace(password, "***") if password else text
