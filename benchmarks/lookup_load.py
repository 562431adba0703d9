"""Lookups that come at a fixed rate, whether the one before is done or not, while a worker writes to the same views."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import Final

import numpy as np
from redis import Redis

from benchmarks.definitions import AMOUNT, AT, KEY
from benchmarks.lookup_world import ENTITIES, EVENTS_EACH, PARTITIONS, asked
from benchmarks.measure import Call, Result, said
from ingestion.redis_store import TileWriter
from ingestion.stream import events_of, merge
from serving_client import FeatureClient
from tally.columns import column
from tally.plan import Plan

RATES: Final = (500, 1_000, 2_000, 4_000, 6_000, 8_000, 12_000, 16_000, 24_000)
MILLISECONDS: Final = 1e3
_BATCH: Final = 500
_PAUSE: Final = 0.05
_SPIN: Final = 0.0002
"""Seconds before a lookup is due from which its thread no longer sleeps."""
_BENT: Final = 0.01
"""A rate is beyond the bend when p99 is more than this (s)."""


def under_load(redis_url: str, plan: Plan, seconds: float, samples: int) -> list[Result]:
    """How long one row of windows takes at rising rates, from when it was due, until that bends.

    A rate lasts for `seconds` and `samples`, whichever takes longer, and before it as many PINGs come at the same rate, which wait for
    the same server. One client in one thread, and a process that applies 10,000 events/s to the same entities, as
    `tally stream` does.
    """
    rows = [[row] for row in asked(ENTITIES)]
    results = []
    kept = 0
    with (
        Redis.from_url(redis_url) as redis,
        FeatureClient(Redis.from_url(redis_url), plan) as client,
        _writing(redis_url, plan),
    ):
        for rate in RATES:
            lasting = max(seconds, samples / rate)
            requests = iter(rows * (int(rate * lasting) // len(rows) + 1))
            floor = _waits(redis.ping, rate, lasting)
            waits = _waits(lambda requests=requests: client.get(next(requests)).to_dict(), rate, lasting)  # type: ignore[misc]
            what = f"lookup: 3 views, 8 windows, 1 row, {rate:,}/s while a worker writes"
            for name, percentile in (("p50", 50), ("p99", 99), ("p99.9", 99.9)):
                ours, theirs = (float(np.percentile(waited, percentile)) * MILLISECONDS for waited in (waits, floor))
                results += said([Result(f"{what}, {name}, beside PING", ours, theirs, "ms")])
            if np.percentile(waits, 99) > _BENT:
                break
            kept = rate
    highest = Result("lookup: highest rate tried with p99 <= 10 ms, one thread", float(kept), None, "lookups/s")
    return [*results, *said([highest])]


def _waits(call: Call, rate: int, seconds: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Seconds from when each call was due to its end."""
    count = int(rate * seconds)
    ends = np.empty(count)
    clock = time.perf_counter
    began = clock()
    for number in range(count):
        due = began + number / rate
        left = due - clock()
        if left > _SPIN:
            time.sleep(left - _SPIN)  # Redis and the writer need the processors, too
        while clock() < due:
            pass
        call()
        ends[number] = clock()
    return ends - (began + np.arange(count) / rate)


@contextmanager
def _writing(redis_url: str, plan: Plan) -> Iterator[None]:
    context = get_context("spawn")
    ready, stop = context.Event(), context.Event()
    writer = context.Process(target=write, args=(redis_url, plan.to_json(), ready, stop), daemon=True)
    writer.start()
    try:
        ready.wait()
        yield
    finally:
        stop.set()
        writer.join()


def write(redis_url: str, document: str, ready: Event, stop: Event) -> None:
    """Apply batches of new events to every view of the plan, until told to stop."""
    plan = Plan.from_json(document)
    rng = np.random.default_rng(1)
    offset = ENTITIES * EVENTS_EACH + 1
    with Redis.from_url(redis_url) as redis:
        writers = [(view, TileWriter(redis, plan.project, view)) for view in plan.views]
        while not stop.is_set():
            columns = {
                KEY.name: column("Int64", rng.integers(0, ENTITIES, _BATCH)),
                AT.name: column("UnixTimestamp", np.full(_BATCH, time.time_ns() // 1000)),
                AMOUNT.name: column("Float64", np.round(rng.gamma(2.0, 30.0, _BATCH), 2)),
            }
            offsets = np.arange(offset, offset + _BATCH)
            offset += _BATCH
            for view, writer in writers:
                accepted, _ = events_of(view, None, columns, offsets % PARTITIONS, offsets)
                merge(accepted, writer.merge)
            ready.set()
            stop.wait(_PAUSE)
