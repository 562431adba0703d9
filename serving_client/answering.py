"""What both clients do apart from talking to Redis: which definition answers, and the optional things around an answer.

A client that was given none of them, and has nothing unusual to say of its definition, does not come here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic, time_ns
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serving_client.cache import Cache, Looked, fresh
from serving_client.commands import Values
from serving_client.definition import MOST_CHECKED, InUse
from serving_client.few_rows import FewRequest
from serving_client.lookup import Lookup, Request
from serving_client.marks import Fallback, default_columns, marked, marks_of_uses
from serving_client.metrics import Metrics
from serving_client.rows import FeatureRows
from serving_client.served_log import ServedLog
from serving_client.status import Status
from tally.columns import Column
from tally.errors import DataError, TallyError
from tally.layout import version_key
from tally.plan import Plan, Service
from tally.time import instants

_log = logging.getLogger("serving_client")
_FURTHEST: Final = 1 << 62


@dataclass(frozen=True)
class Extras:
    """The optional things around an answer."""

    cache: Cache | None = None
    fallback: Fallback | None = None
    log: ServedLog | None = None
    metrics: Metrics | None = None


@dataclass(slots=True)
class Question:
    """A request on its way through the optional things. `asked` are the keys to read; `found` what the cache had."""

    in_use: InUse
    request: Request | FewRequest
    moments: NDArray[np.int64] | None
    found: Looked | None
    asked: Sequence[bytes]
    checking: bool


class Answering:
    """The definition in use and the optional things of one client."""

    def __init__(self, plan: Plan, extras: Extras) -> None:
        self.extras = extras
        self._prefixes = () if extras.cache is None else extras.cache.prefixes(plan.project)
        self.due = inf
        """When a lookup is to ask for the version of the published plan, in `time.monotonic`'s seconds."""
        self._every = inf
        self._version = b""
        self._adopt(InUse(Lookup(plan)))
        if extras.metrics is not None and extras.cache is not None:
            extras.metrics.watch_cache(extras.cache)
        if extras.metrics is not None and extras.log is not None:
            extras.metrics.watch_log(extras.log)

    def follow(self, seconds: float) -> None:
        """Ask for the version of the published plan every `seconds`, with a lookup that goes to Redis anyway."""
        service = self.in_use.lookup.service
        self._version = version_key(self.in_use.lookup.plan.project, service.name).encode()
        self._every = seconds
        self.due = monotonic() + seconds

    def _adopt(self, in_use: InUse) -> None:
        service = in_use.lookup.service
        self._defaults(service)
        self.in_use = in_use
        # One attribute decides whether a lookup comes here at all.
        self.careful = self.extras != Extras() or in_use.unusual
        if self.extras.metrics is not None:
            self.extras.metrics.serving(service.name, service.hash, superseded=in_use.behind is not None)

    def _defaults(self, service: Service) -> Mapping[str, Column] | None:
        """The defaults as columns of this definition of the service. Raises DataError where they do not fit it."""
        fallback = self.extras.fallback
        return None if fallback is None or fallback.defaults is None else default_columns(service, fallback.defaults)

    def renew(self, in_use: InUse) -> None:
        """Serve this from the next request on, and say what is new."""
        before = self.in_use
        service = in_use.lookup.service
        try:
            self._adopt(in_use)
        except DataError as error:  # a default that does not fit the new definition
            in_use = InUse(before.lookup, behind=error)
            self._adopt(in_use)
        if in_use.lookup is not before.lookup:
            _log.info("Service %s is served under definition %s now.", service.name, service.hash[:8])
        if in_use.gone is not None and str(in_use.gone) != str(before.gone):
            _log.error("%s", in_use.gone)
        elif in_use.behind is not None and str(in_use.behind) != str(before.behind):
            _log.warning(
                "Service %s goes on under definition %s, though another is published: %s",
                service.name,
                service.hash[:8],
                in_use.behind,
            )

    # A question, from its rows to its answer

    def question(self, rows: Any, as_of: Any, began: float) -> Question:
        """What to read for these rows. Raises what `Lookup.request` and `InUse.check` do."""
        in_use = self.in_use
        checking = began >= self.due
        if checking:
            self.due = began + self._every
        request = in_use.lookup.request(rows)
        instant = None if as_of is None else moments(as_of, request.count)
        keys: Sequence[bytes] = request.keys
        found = None
        if self.extras.cache is not None and as_of is None:
            found = self.extras.cache.look(keys, self._prefixes, self.extras.cache.seconds, Status.CACHED)
            keys = [keys[position] for position in found.missing]
        return Question(in_use, request, instant, found, [*keys, self._version] if checking else keys, checking)

    def read(self, question: Question, values: Values) -> tuple[Values, bool, list[bytes]]:
        """(values of the request's keys, whether another plan is published, keys to look at the type of)."""
        newer, suspicious = False, []
        if question.checking:
            newer = values.pop() != question.in_use.version
            asked = question.asked[:-1]
            suspicious = [k for k, value in zip(asked, values, strict=True) if value is None][:MOST_CHECKED]
        found = question.found
        if found is None:
            return values, newer, suspicious
        assert self.extras.cache is not None
        keys = question.request.keys
        self.extras.cache.keep([keys[position] for position in found.missing], values, self._prefixes)
        return fresh(found, values), newer, suspicious

    def answer(self, question: Question, values: Values) -> FeatureRows:
        """The answer from the values of the request's keys."""
        question.in_use.check(question.request.keys)
        rows = self._decoded(question, values)
        if question.found is not None and question.found.marks.any():
            rows = self._marked(question, rows, question.found.marks)
        return rows

    def fallback(self, question: Question) -> FeatureRows | None:
        """The answer without Redis, where one was asked for."""
        fallback, keys = self.extras.fallback, question.request.keys
        if fallback is None:
            return None
        found = Looked([None] * len(keys), list(range(len(keys))), np.zeros(len(keys), np.uint8))
        if self.extras.cache is not None and question.moments is None:
            found = self.extras.cache.look(keys, self._prefixes, fallback.stale_seconds, Status.STALE)
        if found.missing and fallback.defaults is None:
            return None
        found.marks[found.missing] = Status.DEFAULT
        return self._marked(question, self._decoded(question, found.values), found.marks)

    def _decoded(self, question: Question, values: Values) -> FeatureRows:
        instant = now() if question.moments is None else question.moments
        rows = question.in_use.lookup.decode(question.request, values, instant)
        if question.in_use.behind is not None:
            rows.superseded = True
        return rows

    def _marked(self, question: Question, rows: FeatureRows, marks: NDArray[np.uint8]) -> FeatureRows:
        lookup = question.in_use.lookup
        uses = marks_of_uses(lookup.service, question.request, marks)
        return marked(lookup.plan, rows, uses, self._defaults(lookup.service) or {})

    def answered(self, question: Question, rows: FeatureRows, began: float) -> None:
        """Tell the metrics and the log."""
        service = question.in_use.lookup.service
        if self.extras.metrics is not None:
            self.extras.metrics.answered(service.name, monotonic() - began, rows)
        if self.extras.log is not None:
            self.extras.log.offer(service, question.request, rows)

    def failed(self, error: TallyError) -> None:
        """Tell the metrics."""
        if self.extras.metrics is not None:
            self.extras.metrics.failed(self.in_use.lookup.service.name, error)

    def tried_again(self) -> None:
        """Tell the metrics."""
        if self.extras.metrics is not None:
            self.extras.metrics.tried_again(self.in_use.lookup.service.name)


def now() -> int:
    """The clock, in microseconds UTC."""
    return time_ns() // 1000


def moments(as_of: Any, count: int) -> NDArray[np.int64]:
    """`count` instants. Raises DataError for what is none, and beyond 2^62 µs, where windows would leave int64."""
    found = instants(as_of, count)
    if count and (int(found.max()) > _FURTHEST or int(found.min()) < -_FURTHEST):
        raise DataError(f"as_of lies beyond {_FURTHEST} microseconds from 1970 (146,000 years); is it in nanoseconds?")
    return found
