"""The asynchronous client: the same lookup over redis.asyncio."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from redis.asyncio import RedisCluster

from connections import AsyncClient, explained, open_async_client
from connections.errors import RAISED
from serving_client.client import NO_CLUSTER, now, require_bytes
from serving_client.lookup import Lookup
from serving_client.readiness import check_views, plan_of
from serving_client.request import Rows
from serving_client.rows import FeatureRows
from serving_client.wire import AsyncWire
from tally.errors import DataError
from tally.layout import plan_key, services_key, views_key
from tally.plan import Plan
from tally.time import instants


class AsyncFeatureClient:
    """`serving_client.FeatureClient` for asyncio: same arguments, answers and errors. Belongs to one event loop."""

    def __init__(self, redis: AsyncClient, plan: Plan) -> None:
        """As `FeatureClient`, over a `redis.asyncio` client."""
        require_bytes(redis)
        if isinstance(redis, RedisCluster):
            raise DataError(NO_CLUSTER)
        self._redis = redis
        self._wire = AsyncWire(redis)
        self._lookup = Lookup(plan)

    @classmethod
    async def connect(cls, redis_url: str, *, project: str, service: str) -> AsyncFeatureClient:
        """As `FeatureClient.connect`."""
        redis = open_async_client(redis_url)
        try:
            try:
                async with redis.pipeline(transaction=False) as pipeline:
                    pipeline.get(plan_key(project, service))
                    pipeline.hkeys(services_key(project))
                    pipeline.hkeys(views_key(project))
                    document, services, views = await pipeline.execute()
            except RAISED as error:
                raise explained(redis, error) from error
            plan = plan_of(document, services, project, service)
            check_views(plan, views)
            return cls(redis, plan)
        except BaseException:
            await redis.aclose()
            raise

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self._lookup.plan

    async def get(self, rows: Rows, as_of: Any = None) -> FeatureRows:
        """As `FeatureClient.get`."""
        request = self._lookup.request(rows)
        moments = None if as_of is None else instants(as_of, request.count)
        values: list[bytes | None] = []
        if request.keys:
            try:
                values = await self._wire.read(request.command())
            except RAISED as error:
                raise explained(self._redis, error) from error
        return self._lookup.decode(request, values, now() if moments is None else moments)

    async def close(self) -> None:
        """Closes the connections."""
        await self._wire.close()
        await self._redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
