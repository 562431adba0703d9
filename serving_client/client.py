"""The synchronous client."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Final, Self

from redis import RedisCluster

from connections import Client, explained, open_client
from connections.errors import RAISED
from serving_client.lookup import Lookup
from serving_client.readiness import check_views, plan_of
from serving_client.request import Rows
from serving_client.rows import FeatureRows
from serving_client.wire import Wire
from tally.errors import DataError
from tally.layout import plan_key, services_key, views_key
from tally.plan import Plan
from tally.time import instants

NO_CLUSTER: Final = "Lookups from Redis Cluster are not supported yet; give the address of one server, or of Sentinels."


class FeatureClient:
    """Looks the features of one service up in Redis. Safe to share between threads.

    One `get` is one MGET, so it needs a server that holds all keys: standalone Redis, or Sentinel's master. Redis
    Cluster (one MGET per node) is not supported yet.
    """

    def __init__(self, redis: Client, plan: Plan) -> None:
        """A client over a redis-py client (without `decode_responses`) and a plan of one service (`plan.for_service`).

        Raises DefinitionMismatchError when a request function is not the one that was applied. Asks Redis nothing.
        """
        require_bytes(redis)
        if isinstance(redis, RedisCluster):
            raise DataError(NO_CLUSTER)
        self._redis = redis
        self._wire = Wire(redis)
        self._lookup = Lookup(plan)

    @classmethod
    def connect(cls, redis_url: str, *, project: str, service: str) -> FeatureClient:
        """A client for a service that `feast apply` published to the Redis at `redis_url`.

        Raises UnavailableError (no Redis), NotReadyError (no plan, or a view's definition was never loaded),
        UnknownServiceError, DefinitionMismatchError (the request functions here are not those that were applied).
        """
        redis = open_client(redis_url)
        try:
            try:
                with redis.pipeline(transaction=False) as pipeline:
                    pipeline.get(plan_key(project, service))
                    pipeline.hkeys(services_key(project))
                    pipeline.hkeys(views_key(project))
                    document, services, views = pipeline.execute()
            except RAISED as error:
                raise explained(redis, error) from error
            plan = plan_of(document, services, project, service)
            check_views(plan, views)
            return cls(redis, plan)
        except BaseException:
            redis.close()
            raise

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self._lookup.plan

    def get(self, rows: Rows, as_of: Any = None) -> FeatureRows:
        """The features of `rows`, in their order, in one round trip.

        `rows` is a list of dicts, or a dict of columns, with the service's keys and request fields; others are ignored.
        `as_of` is None (now: when the store has answered), one instant (datetime, or int µs UTC), or one for each row.
        Raises DataError for rows that do not fit, UnavailableError, StoredBytesError, DefinitionMismatchError.
        """
        request = self._lookup.request(rows)
        moments = None if as_of is None else instants(as_of, request.count)
        values: list[bytes | None] = []
        if request.keys:
            try:
                values = self._wire.read(request.command())
            except RAISED as error:
                raise explained(self._redis, error) from error
        return self._lookup.decode(request, values, now() if moments is None else moments)

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def now() -> int:
    """The clock, in microseconds UTC."""
    return time.time_ns() // 1000


def require_bytes(redis: Any) -> None:
    """Raises DataError for a redis-py client that turns values into text."""
    if redis.get_encoder().decode_responses:
        raise DataError("The Redis client has decode_responses=True, which breaks packed values; make one without it.")
