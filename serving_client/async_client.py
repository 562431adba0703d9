"""The asynchronous client: the same lookup over redis.asyncio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar

from redis.asyncio import RedisCluster

from connections import AsyncClient, ending, explained, open_async_client
from connections.errors import RAISED
from serving_client.answering import Answering, Extras, moments, now
from serving_client.cache import Cache
from serving_client.client import CHECK_SECONDS, TIMEOUT_SECONDS, understood
from serving_client.commands import Values
from serving_client.definition import Said, first, renewed
from serving_client.marks import Fallback
from serving_client.metrics import Metrics
from serving_client.reads import async_reads_of, may_pass, pauses, require_bytes, require_time
from serving_client.request import Rows
from serving_client.rows import FeatureRows
from serving_client.served_log import ServedLog
from tally.errors import TallyError, UnavailableError
from tally.layout import plan_key, services_key, views_key
from tally.plan import Plan

_log = logging.getLogger("serving_client")
_Read = TypeVar("_Read")


class AsyncFeatureClient:
    """`serving_client.FeatureClient` for asyncio: same arguments, answers and errors. Belongs to one event loop."""

    def __init__(
        self,
        redis: AsyncClient,
        plan: Plan,
        *,
        timeout: float = TIMEOUT_SECONDS,
        cache: Cache | None = None,
        fallback: Fallback | None = None,
        log: ServedLog | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """As `FeatureClient`, over a `redis.asyncio` client."""
        require_bytes(redis)
        self._redis = redis
        self._reads = async_reads_of(redis)
        self._timeout = timeout
        self._answering = Answering(plan, Extras(cache, fallback, log, metrics))
        self._renewing: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        redis_url: str,
        *,
        project: str,
        service: str,
        timeout: float = TIMEOUT_SECONDS,  # noqa: ASYNC109 each read has a time-out of its own, see `FeatureClient`
        check_seconds: float = CHECK_SECONDS,
        cache: Cache | None = None,
        fallback: Fallback | None = None,
        log: ServedLog | None = None,
        metrics: Metrics | None = None,
    ) -> AsyncFeatureClient:
        """As `FeatureClient.connect`."""
        require_time(timeout)
        redis = open_async_client(redis_url, timeout / 2)
        try:
            began = monotonic()

            async def said() -> Said:
                return (await _said(redis, project, service, ()))[0]

            plan = first(await _persist(said, redis, began, timeout), project, service)
            client = cls(redis, plan, timeout=timeout, cache=cache, fallback=fallback, log=log, metrics=metrics)
            client._answering.follow(check_seconds)
            return client
        except BaseException:
            await redis.aclose()
            raise

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self._answering.in_use.lookup.plan

    async def get(self, rows: Rows, as_of: Any = None) -> FeatureRows:
        """As `FeatureClient.get`."""
        began = monotonic()
        answering = self._answering
        if answering.careful or began >= answering.due:
            return await self._get_carefully(rows, as_of, began)
        lookup = answering.in_use.lookup
        request = lookup.request(rows)
        instant = None if as_of is None else moments(as_of, request.count)
        values: Values = []
        if request.keys:
            try:
                values = await self._reads.request(request, began + self._timeout)
            except RAISED as error:
                values = await self._read_again(request.keys, error, began)
        return lookup.decode(request, values, now() if instant is None else instant)

    async def _get_carefully(self, rows: Rows, as_of: Any, began: float) -> FeatureRows:
        """As `get`, with the optional things around it."""
        answering = self._answering
        try:
            question = answering.question(rows, as_of, began)
            try:
                values = await self._read(question.asked, began)
            except UnavailableError:
                answer = answering.fallback(question)
                if answer is None:
                    raise
            else:
                values, newer, suspicious = answering.read(question, values)
                if newer or suspicious or (question.checking and question.in_use.unusual):
                    self._look_for_news(suspicious)
                answer = answering.answer(question, values)
        except TallyError as error:
            answering.failed(error)
            raise
        answering.answered(question, answer, began)
        return answer

    async def _read(self, keys: Sequence[bytes], began: float) -> Values:
        if not keys:
            return []
        try:
            return await self._reads.keys(keys, began + self._timeout)
        except RAISED as error:
            return await self._read_again(keys, error, began)

    async def _read_again(self, keys: Sequence[bytes], error: Exception, began: float) -> Values:
        async def read() -> Values:
            self._answering.tried_again()
            return await self._reads.keys(keys, began + self._timeout)

        return await _persist(read, self._redis, began, self._timeout, error)

    # Newer plans: looked at in a task, and compiled in a thread, so that no request waits for one

    def _look_for_news(self, suspicious: Sequence[bytes]) -> None:
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew(suspicious))

    async def _renew(self, suspicious: Sequence[bytes]) -> None:
        in_use = self._answering.in_use
        plan, service = in_use.lookup.plan, in_use.lookup.service.name
        try:
            said, foreign = await _said(self._redis, plan.project, service, {*suspicious, *in_use.foreign})
        except RAISED as error:
            _log.warning("Not looked for a newer plan: %s", explained(self._redis, error))
            return
        new = await asyncio.to_thread(renewed, in_use, said)
        self._answering.renew(replace(new, foreign=foreign) if new.lookup is in_use.lookup else new)

    async def close(self) -> None:
        """Closes the connections."""
        if self._renewing is not None:
            self._renewing.cancel()
        await self._reads.close()
        await self._redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _persist(
    read: Callable[[], Awaitable[_Read]], redis: AsyncClient, began: float, limit: float, error: Exception | None = None
) -> _Read:
    """As `serving_client.client`'s."""
    for pause in pauses():
        if error is not None:
            if not may_pass(error) or monotonic() + pause >= began + limit:
                raise explained(redis, error) from error
            await asyncio.sleep(pause)
        try:
            async with ending(began + limit):
                return await read()
        except RAISED as raised:
            if error is None or monotonic() < began + limit:  # else it says only that there was no time for it
                error = raised
    raise AssertionError("pauses have no end")


async def _said(redis: AsyncClient, project: str, service: str, keys: Any) -> tuple[Said, dict[bytes, str]]:
    """As `serving_client.client`'s."""
    suspicious = [] if isinstance(redis, RedisCluster) else list(keys)
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.get(plan_key(project, service))
        pipeline.hkeys(services_key(project))
        pipeline.hkeys(views_key(project))
        for key in suspicious:
            pipeline.type(key)
        replies = await pipeline.execute(raise_on_error=False)
    return understood(replies, suspicious)
