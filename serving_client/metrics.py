"""Prometheus metrics of a client. Needs prometheus-client, which is imported when they are made."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from serving_client.cache import Cache
from serving_client.rows import FeatureRows
from serving_client.served_log import ServedLog
from serving_client.status import Status

BUCKETS: Final = (
    50e-6, 75e-6, 100e-6, 150e-6, 200e-6, 300e-6, 500e-6, 750e-6, 1e-3, 2e-3, 5e-3, 10e-3, 50e-3, 0.2, 1.0,
)  # fmt: skip
"""Seconds: fine where a lookup usually lies."""


class Metrics:
    """What clients did, as Prometheus metrics whose names begin with ``tally_``. Serves any number of clients.

    ``lookup_seconds`` (histogram) and ``lookup_rows`` by service; ``lookup_reads`` by service, view and status: one for
    each row and use of a view; ``lookup_errors`` by service and type of error; ``lookup_retries`` by service;
    ``lookup_plan`` 1 for the definition served, ``lookup_superseded`` 1 while a newer one cannot be served;
    ``lookup_cache_hits``, ``lookup_cache_misses``; ``served_log_rows`` by outcome.
    """

    def __init__(self, registry: Any = None) -> None:
        """`registry` is a `prometheus_client.CollectorRegistry`; None: the default one."""
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram

        registry = REGISTRY if registry is None else registry
        self._seconds = Histogram(
            "tally_lookup_seconds", "Duration of a lookup", ["service"], buckets=BUCKETS, registry=registry
        )
        self._rows = Counter("tally_lookup_rows", "Rows answered", ["service"], registry=registry)
        self._reads = Counter(
            "tally_lookup_reads",
            "Rows by view, and how their values came about",
            ["service", "view", "status"],
            registry=registry,
        )
        self._errors = Counter("tally_lookup_errors", "Lookups that raised", ["service", "error"], registry=registry)
        self._retries = Counter("tally_lookup_retries", "Reads asked again", ["service"], registry=registry)
        self._plan = Gauge(
            "tally_lookup_plan", "1 for the definition that is served", ["service", "definition"], registry=registry
        )
        self._behind = Gauge(
            "tally_lookup_superseded",
            "1 while a newer definition was applied that cannot be served",
            ["service"],
            registry=registry,
        )
        self._hits = Gauge("tally_lookup_cache_hits", "Keys found in the cache since the start", registry=registry)
        self._misses = Gauge(
            "tally_lookup_cache_misses", "Keys not found in the cache since the start", registry=registry
        )
        self._logged = Gauge("tally_served_log_rows", "Rows of the log since the start", ["outcome"], registry=registry)
        self._served: dict[str, str] = {}

    def answered(self, service: str, seconds: float, rows: FeatureRows) -> None:
        """A lookup was answered."""
        self._seconds.labels(service).observe(seconds)
        self._rows.labels(service).inc(len(rows))
        for read in rows.reads:
            for status, count in enumerate(np.bincount(read.status, minlength=1).tolist()):
                if count:
                    self._reads.labels(service, read.name, Status(status).name.lower()).inc(count)

    def failed(self, service: str, error: Exception) -> None:
        """A lookup raised."""
        self._errors.labels(service, type(error).__name__).inc()

    def tried_again(self, service: str) -> None:
        """A read was asked once more."""
        self._retries.labels(service).inc()

    def serving(self, service: str, definition: str, *, superseded: bool) -> None:
        """This definition is served from now on."""
        before = self._served.get(service)
        if before is not None and before != definition:
            self._plan.remove(service, before)
        self._served[service] = definition
        self._plan.labels(service, definition).set(1)
        self._behind.labels(service).set(superseded)

    def watch_cache(self, cache: Cache) -> None:
        """Show the counts of this cache whenever metrics are collected."""
        self._hits.set_function(lambda: cache.hits)
        self._misses.set_function(lambda: cache.misses)

    def watch_log(self, log: ServedLog) -> None:
        """Show the counts of this log whenever metrics are collected."""
        self._logged.labels("offered").set_function(lambda: log.offered)
        self._logged.labels("dropped").set_function(lambda: log.dropped)
        self._logged.labels("lost").set_function(lambda: log.lost)
