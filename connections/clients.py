"""redis-py clients for an address, synchronous and asynchronous. Values come as bytes."""

from __future__ import annotations

from typing import Any, cast

from redis import Redis, RedisCluster
from redis import asyncio as aio
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.exceptions import RedisClusterException, RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel

from connections.address import TIMEOUT_SECONDS, Address
from connections.errors import explained

Client = Redis | RedisCluster
AsyncClient = aio.Redis | aio.RedisCluster

# A connection that died while it lay in the pool is opened again at once. To wait for a server that is away is for the
# caller, who knows what it is worth and can say so; a cluster's client has to ask for its nodes anew, which takes a few.
_AGAIN = 1
_CLUSTER_AGAIN = 3


def open_client(url: str, timeout: float = TIMEOUT_SECONDS) -> Client:
    """A client that connects with its first command; a cluster's asks for the cluster's nodes at once.

    Raises ArgumentError for an address that cannot be read, UnavailableError for a cluster that does not answer.
    """
    address = Address.parse(url, timeout)
    options = _options(address)
    if address.topology == "cluster":
        nodes = [ClusterNode(*node) for node in address.nodes]  # type: ignore[no-untyped-call]
        try:
            return RedisCluster(startup_nodes=nodes, retry=Retry(NoBackoff(), _CLUSTER_AGAIN), **options)
        except (RedisError, RedisClusterException, OSError) as error:
            raise explained(str(address), error) from error
    options |= {"retry": Retry(NoBackoff(), _AGAIN), "db": address.db}
    if address.topology == "sentinel":
        login = _sentinel_options(address) | {"retry": Retry(NoBackoff(), 0)}
        sentinel = cast(Any, Sentinel)(address.nodes, sentinel_kwargs=login, **options)
        return cast(Redis, sentinel.master_for(address.service))
    return Redis(**options, **_place(address))


def open_async_client(url: str, timeout: float = TIMEOUT_SECONDS) -> AsyncClient:
    """As `open_client`, for one event loop; even a cluster's connects with its first command."""
    address = Address.parse(url, timeout)
    options = _options(address)
    if address.topology == "cluster":
        nodes = [AsyncClusterNode(*node) for node in address.nodes]
        return aio.RedisCluster(startup_nodes=nodes, retry=AsyncRetry(NoBackoff(), _CLUSTER_AGAIN), **options)
    options |= {"retry": AsyncRetry(NoBackoff(), _AGAIN), "db": address.db}
    if address.topology == "sentinel":
        login = _sentinel_options(address) | {"retry": AsyncRetry(NoBackoff(), 0)}
        sentinel = cast(Any, AsyncSentinel)(address.nodes, sentinel_kwargs=login, **options)
        return cast(aio.Redis, sentinel.master_for(address.service))
    return aio.Redis(**options, **_place(address))


def next_reply(connection: Any) -> Any:
    """What the server says next on a connection of redis-py: a value, or the error that it refuses a command with."""
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _options(address: Address) -> dict[str, Any]:
    login = {"username": address.username or None, "password": address.password or None}
    return dict(address.options) | login | ({"ssl": True} if address.tls else {})


def _sentinel_options(address: Address) -> dict[str, Any]:
    login = {"username": address.sentinel_username or None, "password": address.sentinel_password or None}
    return _options(address) | login


def _place(address: Address) -> dict[str, Any]:
    if address.path:
        return {"unix_socket_path": address.path}
    ((host, port),) = address.nodes
    return {"host": host, "port": port}
