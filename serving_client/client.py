"""The synchronous client."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

from redis import RedisCluster

from connections import Client, explained, open_client, punctual, until
from connections.errors import RAISED
from serving_client.answering import Answering, Extras, moments, now
from serving_client.cache import Cache
from serving_client.commands import Values
from serving_client.definition import Said, first, renewed
from serving_client.few_rows import FewRequest
from serving_client.forks import renew_after_fork
from serving_client.lookup import Request
from serving_client.marks import Fallback
from serving_client.metrics import Metrics
from serving_client.reads import Reads, may_pass, pauses, reads_of, require_bytes, require_time
from serving_client.request import Rows
from serving_client.rows import FeatureRows
from serving_client.served_log import ServedLog
from tally.errors import TallyError, UnavailableError
from tally.layout import plan_key, services_key, views_key
from tally.plan import Plan

TIMEOUT_SECONDS: Final = 1.0
CHECK_SECONDS: Final = 1.0
_log = logging.getLogger("serving_client")
_Read = TypeVar("_Read")


class FeatureClient:
    """Looks the features of one service up in Redis: one server, Sentinels' master or a cluster.

    Safe to share between threads; a forked child of a process that called `connect` opens a client of its own. A lookup is
    one round trip, on a cluster one to each node. The options, all of them keywords:

    - `timeout`: seconds in which a lookup may ask. A try gets half of it; reads that failed for a reason that may pass (a lost
      connection, a server that is loading, a slot that moves) are asked again until it is over.
    - `cache`, `fallback`, `log`, `metrics`: see those classes. None of them costs anything where it is not given.
    """

    def __init__(
        self,
        redis: Client,
        plan: Plan,
        *,
        timeout: float = TIMEOUT_SECONDS,
        cache: Cache | None = None,
        fallback: Fallback | None = None,
        log: ServedLog | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """A client over a redis-py client (without `decode_responses`) and a plan of one service (`plan.for_service`).

        It serves this plan for ever. Raises DefinitionMismatchError when a request function is not the one that was
        applied. Asks Redis nothing.
        """
        require_bytes(redis)
        self._redis = redis
        self._reads = reads_of(redis)
        self._timeout = timeout
        self._answering = Answering(plan, Extras(cache, fallback, log, metrics))
        self._renewing = threading.Lock()
        self._reopen: Callable[[], Client] | None = None
        self._opening = threading.Lock()
        self._abandoned: list[Client] = []
        self._closed = False
        renew_after_fork(self)

    def after_fork(self) -> None:
        """See `serving_client.forks`."""
        self._renewing = threading.Lock()
        if self._reopen is not None:
            # redis-py's locks may have been held by a thread that the child does not have: it opens a client of its own,
            # and leaves its parent's alone, which to destroy may also take a lock.
            self._reads = _Reopening(self._opened_in_child)
            self._opening = threading.Lock()

    def _opened_in_child(self) -> Reads:
        with self._opening:
            if isinstance(self._reads, _Reopening) and self._reopen is not None:
                self._abandoned.append(self._redis)
                self._redis = self._reopen()
                self._reads = reads_of(self._redis)
            return self._reads

    @classmethod
    def connect(
        cls,
        redis_url: str,
        *,
        project: str,
        service: str,
        timeout: float = TIMEOUT_SECONDS,
        check_seconds: float = CHECK_SECONDS,
        cache: Cache | None = None,
        fallback: Fallback | None = None,
        log: ServedLog | None = None,
        metrics: Metrics | None = None,
    ) -> FeatureClient:
        """A client for a service that `feast apply` published to the Redis at `redis_url` (see `connections.address`).

        Every `check_seconds`, one lookup also asks whether a newer plan was published. It is served from the next request
        on, once its views are loaded and if its functions are those installed here; until then the old one is served, with
        `FeatureRows.superseded`, for as long as its own views are in Redis.

        Raises UnavailableError (no Redis), NotReadyError (no plan, or a view's definition was never loaded),
        UnknownServiceError, DefinitionMismatchError (the request functions here are not those that were applied).
        """
        require_time(timeout)
        redis = open_for_requests(redis_url, timeout)
        try:
            began = monotonic()
            said = _persist(lambda: _said(redis, project, service, ())[0], redis, began, timeout)
            plan = first(said, project, service)
            client = cls(redis, plan, timeout=timeout, cache=cache, fallback=fallback, log=log, metrics=metrics)
            client._answering.follow(check_seconds)
            client._reopen = lambda: open_for_requests(redis_url, timeout)
            return client
        except BaseException:
            redis.close()
            raise

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self._answering.in_use.lookup.plan

    def get(self, rows: Rows, as_of: Any = None) -> FeatureRows:
        """The features of `rows`, in their order, in one round trip.

        `rows` is a list of dicts, or a dict of columns, with the service's keys and request fields; others are ignored.
        `as_of` is None (now: when the store has answered), one instant (datetime, or int µs UTC), or one for each row.
        Raises DataError for rows that do not fit, UnavailableError, StoredBytesError, DefinitionMismatchError,
        SupersededError (another definition was applied, and the data of this one is gone).
        """
        began = monotonic()
        answering = self._answering
        if answering.careful or began >= answering.due:
            return self._get_carefully(rows, as_of, began)
        lookup = answering.in_use.lookup  # once: a request has one definition
        request = lookup.request(rows)
        instant = None if as_of is None else moments(as_of, request.count)
        values: Values = []
        if request.keys:
            try:
                values = self._reads.request(request, began + self._timeout)
            except RAISED as error:
                values = self._read_again(request.keys, error, began)
        return lookup.decode(request, values, now() if instant is None else instant)

    def _get_carefully(self, rows: Rows, as_of: Any, began: float) -> FeatureRows:
        """As `get`, with the optional things around it."""
        answering = self._answering
        try:
            question = answering.question(rows, as_of, began)
            try:
                values = self._read(question.asked, began)
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

    def _read(self, keys: Sequence[bytes], began: float) -> Values:
        if not keys:
            return []
        try:
            return self._reads.keys(keys, began + self._timeout)
        except RAISED as error:
            return self._read_again(keys, error, began)

    def _read_again(self, keys: Sequence[bytes], error: Exception, began: float) -> Values:
        def read() -> Values:
            self._answering.tried_again()
            return self._reads.keys(keys, began + self._timeout)

        return _persist(read, self._redis, began, self._timeout, error)

    # Newer plans: looked at in a thread, so that no request waits for one

    def _look_for_news(self, suspicious: Sequence[bytes]) -> None:
        if self._renewing.acquire(blocking=False):
            threading.Thread(target=self._renew, args=(suspicious,), name="tally-plan", daemon=True).start()

    def _renew(self, suspicious: Sequence[bytes]) -> None:
        try:
            in_use = self._answering.in_use
            plan, service = in_use.lookup.plan, in_use.lookup.service.name
            said, foreign = _said(self._redis, plan.project, service, {*suspicious, *in_use.foreign})
            new = renewed(in_use, said)
            self._answering.renew(replace(new, foreign=foreign) if new.lookup is in_use.lookup else new)
        except RAISED as error:
            _log.warning("Not looked for a newer plan: %s", explained(self._redis, error))
        finally:
            self._renewing.release()

    def close(self) -> None:
        """Closes the connections."""
        if not self._closed:
            self._closed = True
            self._renewing.acquire(timeout=self._timeout)  # a look for a newer plan may be using them; none begins now
        self._reads.close()
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_for_requests(redis_url: str, timeout: float) -> Client:
    """A client whose requests may take `timeout` seconds: a try gets half of that, and heeds `connections.until`."""
    return punctual(open_client(redis_url, timeout / 2))


class _Reopening:
    """Reads in a forked child: the first of them opens a client for the child."""

    def __init__(self, opened: Callable[[], Reads]) -> None:
        self._opened = opened

    def request(self, request: Request | FewRequest, ends: float) -> Values:
        return self._opened().request(request, ends)

    def keys(self, keys: Sequence[bytes], ends: float) -> Values:
        return self._opened().keys(keys, ends)

    def close(self) -> None:
        """Nothing is open yet."""


def _persist(
    read: Callable[[], _Read], redis: Client, began: float, timeout: float, error: Exception | None = None
) -> _Read:
    """What `read` gives, asked until it does or `timeout` seconds have passed since `began`. Raises TallyError.

    `error`, where given, is what an earlier try raised.
    """
    for pause in pauses():
        if error is not None:
            if not may_pass(error) or monotonic() + pause >= began + timeout:
                raise explained(redis, error) from error
            sleep(pause)
        try:
            with until(began + timeout):
                return read()
        except RAISED as raised:
            if error is None or monotonic() < began + timeout:  # else it says only that there was no time for it
                error = raised
    raise AssertionError("pauses have no end")


def _said(redis: Client, project: str, service: str, keys: Any) -> tuple[Said, dict[bytes, str]]:
    """What Redis holds of the service, and those of `keys` that hold another type than ours, with that type."""
    suspicious = [] if isinstance(redis, RedisCluster) else list(keys)  # a cluster's GETs say it themselves
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.get(plan_key(project, service))
        pipeline.hkeys(services_key(project))
        pipeline.hkeys(views_key(project))
        for key in suspicious:
            pipeline.type(key)
        replies = cast(list[Any], pipeline.execute(raise_on_error=False))
    return understood(replies, suspicious)


def understood(replies: Sequence[Any], suspicious: Sequence[bytes]) -> tuple[Said, dict[bytes, str]]:
    """What the replies to the plan, the services, the views and the types of the suspicious keys mean."""
    document, services, views, *types = replies
    for reply in (document, services, views):
        if isinstance(reply, Exception):
            raise reply
    # A user who may not ask for types goes without.
    named = {k: t for k, t in zip(suspicious, types, strict=True) if t not in (b"string", b"none")}
    return Said(document, services, views), {k: t.decode() for k, t in named.items() if isinstance(t, bytes)}
