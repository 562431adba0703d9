"""Lookups from Redis beside what Redis itself takes, and beside Feast's own client."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from benchmarks.definitions import KEY, TABLE, latest_view, plan_of, three_windowed_views, topic_source
from benchmarks.lookup_feast import PANDAS, PYTHON, feast_store, require_equal
from benchmarks.lookup_flights import asked_flights, flights_plan, store_flights
from benchmarks.lookup_load import under_load
from benchmarks.lookup_memory import bytes_per_entity
from benchmarks.lookup_serve import beside_feast_serve
from benchmarks.lookup_world import (
    asked,
    check_latest,
    check_windows,
    events,
    latest_rows,
    store_latest,
    store_tiles,
)
from benchmarks.measure import (
    AsyncCall,
    Call,
    Report,
    Result,
    Seconds,
    Target,
    in_turns,
    in_turns_async,
    said,
)
from infra.local import embedded
from ingestion.reading import Rows
from ingestion.redis_calls import load_library
from serving_client import AsyncFeatureClient, FeatureClient
from serving_client.lookup import Lookup
from tally.functions import describe
from tally.plan import Field, Input, Plan, RequestFunction

SAMPLES: Final = 10_000
QUICK: Final = 10
COUNTS: Final = (1, 10, 100, 1_000)
VIEWS: Final = ("x", "y", "z")
MICROSECONDS: Final = 1e6
PERCENTILES: Final = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
Bounds = Mapping[tuple[int, str], float]
"""What is promised: (rows, percentile) -> at most so many times the other side."""
Asking = Callable[[int], list[dict[str, Any]]]
"""Rows of a request, so many."""

PLAIN_BOUNDS: Final = {(1, "p50"): 1.6, (1, "p99"): 2.0, (100, "p50"): 2.0}
WINDOW_BOUNDS: Final = {(1, "p50"): 2.5, (100, "p50"): 3.0}
STARTS: Final = 5


def per_weight(x_0: Any, weight: Any) -> dict[str, Any]:
    """The request function: a stored feature and a field of the request."""
    return {"per_weight": x_0 / weight}


def run(*, quick: bool) -> Report:
    """Time the lookups, after each side's answer was checked. Raises DifferentAnswersError."""
    samples = SAMPLES // QUICK if quick else SAMPLES
    with (
        tempfile.TemporaryDirectory() as home,
        embedded(Path(home), ("redis",)) as settings,
        Redis.from_url(settings.redis_url) as redis,
    ):
        load_library(redis)
        now = time.time_ns() // 1000
        rng = np.random.default_rng(0)
        results = []
        request = RequestFunction(
            "request",
            describe(per_weight),
            (Input("x_0", "Float64", "x", "x_0"), Input("weight", "Float64", "", "weight")),
            (Field("per_weight", "Float64"),),
        )
        latest = [latest_view(name) for name in VIEWS]
        stored = {view.name: latest_rows(rng, view, now) for view in latest}
        with_function = plan_of("bench", TABLE, latest, request)
        for view in latest:
            store_latest(redis, with_function, view, stored[view.name])
        check_latest(redis, with_function, stored)
        source = topic_source("events")
        windowed = plan_of("bench", source, three_windowed_views(source))
        happened = events(rng, windowed.views[0], now)
        for view in windowed.views:
            store_tiles(redis, windowed, view, happened)
        check_windows(redis, windowed, happened, now)

        flights = flights_plan(Path(home), settings.redis_url)
        store_flights(redis, flights, rng, now)
        services: list[tuple[Plan, str, Asking, Bounds]] = [
            (with_function, "3 views x 8 fields + function", asked, PLAIN_BOUNDS),
            (windowed, "3 views, 8 windows", asked, WINDOW_BOUNDS),
            (flights, "flights, 5 views and 7 functions", lambda count: asked_flights(count, now), {}),
        ]
        for plan, what, asking, bounds in services:
            results += _beside_redis(redis, plan, what, asking, samples, bounds)
            results += asyncio.run(_beside_redis_async(settings.redis_url, plan, what, asking, samples))
        plain = plan_of("bench", TABLE, latest)
        results += under_load(settings.redis_url, windowed, 0.5 if quick else 3.0, samples)
        results += said(_starts(3 if quick else STARTS))
        # Feast comes last: its import would weigh on what was measured before.
        results += said(bytes_per_entity(settings.redis_url, now))
        results += _beside_feast(redis, settings.redis_url, plain, with_function, stored, samples)
    return Report(results, _NOTES)


_NOTES: Final = (
    f"Every figure of a lookup is of {SAMPLES:,} samples or, at the higher fixed rates, of more.",
    "Ours is get(...).to_dict(), Python values in hand. PING is the shortest round trip that redis-py makes.",
    "MGET fetches the same bytes in one round trip and leaves them packed: a floor, not a peer. All sides parse with hiredis.",
    "Checked before timing: latest rows equal what was written, windows equal the offline join, Feast answers as we do.",
    "flights: the service of feature_repo as feast apply compiles it, 100 rows being 100 aircraft, 3 airports, 16 airlines.",
    "Over HTTP: feast serve with our online store beside feast serve with Feast's, one connection kept open, JSON parsed.",
    "Feast: its SDK and its Redis store, the same rows in plain views, with an on-demand view where it says so.",
    "At a fixed rate: from when a lookup was due to its end, so that waiting for the one before counts.",
    "Start: a new process imports the client (or Feast) and ends; memory is its peak.",
    "Bytes per entity: MEMORY USAGE of our keys, one for each view, beside Feast's one hash with the same values.",
)


def _beside_redis(redis: Redis, plan: Plan, what: str, asking: Asking, samples: int, bounds: Bounds) -> list[Result]:
    client, lookup = FeatureClient(redis, plan), Lookup(plan)
    results = []
    for count in COUNTS:
        rows = asking(count)
        keys = list(lookup.request(rows).keys)
        cases: dict[str, Call] = {
            "ours": lambda rows=rows: client.get(rows).to_dict(),  # type: ignore[misc]
            "MGET": lambda keys=keys: redis.mget(keys),  # type: ignore[misc]
        }
        if count == 1:
            cases["PING"] = redis.ping
        times = in_turns(cases, samples)
        label = f"{what}, {count:,} row{'s' if count > 1 else ''}"
        for other in ("PING", "MGET") if count == 1 else ("MGET",):
            promised = bounds if other == "PING" or count > 1 else {}
            results += _compared(label, other, times["ours"], times[other], count, promised)
    return results


async def _beside_redis_async(redis_url: str, plan: Plan, what: str, asking: Asking, samples: int) -> list[Result]:
    results = []
    lookup = Lookup(plan)
    async with (
        AsyncFeatureClient(AsyncRedis.from_url(redis_url), plan) as client,
        AsyncRedis.from_url(redis_url) as redis,
    ):
        for count in COUNTS:
            rows = asking(count)
            keys = list(lookup.request(rows).keys)

            async def ping() -> object:
                return await redis.ping()

            async def ours(rows: list[dict[str, Any]] = rows) -> object:
                return (await client.get(rows)).to_dict()

            async def mget(keys: list[bytes] = keys) -> object:
                return await redis.mget(keys)

            other = "PING" if count == 1 else "MGET"
            cases: dict[str, AsyncCall] = {"ours": ours, other: ping if count == 1 else mget}
            times = await in_turns_async(cases, samples)
            label = f"{what}, asyncio, {count:,} row{'s' if count > 1 else ''}"
            results += _compared(label, other, times["ours"], times[other], count, {})
    return results


def _compared(label: str, other: str, ours: Seconds, theirs: Seconds, count: int, bounds: Bounds) -> list[Result]:
    results = []
    for name, percent in PERCENTILES.items():
        if len(ours) < 1_000 and name == "p99.9":
            continue
        at_most = bounds.get((count, name))
        results.append(
            Result(
                f"lookup: {label}, {name}, beside {other}",
                float(np.percentile(ours, percent)) * MICROSECONDS,
                float(np.percentile(theirs, percent)) * MICROSECONDS,
                "us",
                None if at_most is None else Target("ratio", "<=", at_most),
            )
        )
    return said(results)


def _beside_feast(
    redis: Redis, redis_url: str, plain: Plan, with_function: Plan, stored: dict[str, Rows], samples: int
) -> list[Result]:
    clients = {False: FeatureClient(redis, plain), True: FeatureClient(redis, with_function)}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        store, features = feast_store(Path(folder), redis_url, plain.views, stored)
        for on_demand, mode in (("", "plain"), (PYTHON, "Python on-demand view"), (PANDAS, "pandas on-demand view")):
            references = [*features, f"{on_demand}:{on_demand}"] if on_demand else features
            client = clients[bool(on_demand)]
            for count in (1, 100):
                rows = asked(count)
                given = [{KEY.name: row[KEY.name]} | ({"weight": 2.0} if on_demand else {}) for row in rows]
                cases: dict[str, Call] = {
                    "ours": lambda client=client, rows=rows: client.get(rows).to_dict(),  # type: ignore[misc]
                    "Feast": lambda r=references, g=given: store.get_online_features(r, g).to_dict(),  # type: ignore[misc]
                }
                require_equal(cases["Feast"](), cases["ours"](), on_demand)
                times = in_turns(cases, samples)
                what = f"3 views x 8 fields, {mode}, {count} row{'s' if count > 1 else ''}"
                bounds = {(1, "p50"): 1 / 5, (100, "p50"): 1 / 20}
                results += _compared(what, "Feast", times["ours"], times["Feast"], count, bounds)
        for count, times in beside_feast_serve(Path(folder), redis, redis_url, features, stored, samples).items():
            what = f"3 views x 8 fields over HTTP, {count} row{'s' if count > 1 else ''}"
            results += _compared(what, "feast serve with Feast's store", times["ours"], times["Feast"], count, {})
    return results


_START: Final = """
import resource, sys, time
began = time.perf_counter()
{imports}
seconds = time.perf_counter() - began
if sys.platform == "darwin":
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
else:  # ru_maxrss has the peak of whoever started this process
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
print(seconds, peak)
"""


def _starts(times: int) -> list[Result]:
    """Import alone, in fresh processes: seconds (median) and peak memory."""
    ours, theirs = [], []
    for _ in range(times):
        ours.append(_started("import serving_client"))
        theirs.append(_started("import feast; from feast.infra.online_stores.redis import RedisOnlineStore"))
    (our_seconds, our_bytes), (their_seconds, their_bytes) = np.median(ours, axis=0), np.median(theirs, axis=0)
    return [
        Result(
            "lookup: import of the client, beside Feast", our_seconds, their_seconds, "s", Target("ours", "<=", 0.5)
        ),
        Result(
            "lookup: memory after the import, beside Feast",
            our_bytes / 1e6,
            their_bytes / 1e6,
            "MB",
            Target("ours", "<=", 80),
        ),
    ]


def _started(imports: str) -> tuple[float, float]:
    code = _START.format(imports=imports)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)
