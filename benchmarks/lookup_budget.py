"""``python -m benchmarks.lookup_budget``: where the microseconds of a lookup go.

Each stage is repeated alone, and its least time counts: what it takes with warm caches on a processor of its own. In a lookup
the caches have cooled while Redis answered, so there a stage takes up to twice that; the sum is compared with the whole.
"""

from __future__ import annotations

import tempfile
import time
import timeit
from pathlib import Path
from typing import Final

import numpy as np
from redis import Redis
from rich.console import Console
from rich.table import Table

from benchmarks.definitions import TABLE, latest_view, plan_of, three_windowed_views, topic_source
from benchmarks.lookup import VIEWS, per_weight
from benchmarks.lookup_world import asked, events, latest_rows, store_latest, store_tiles
from benchmarks.measure import Call, in_turns
from infra.local import embedded
from ingestion.redis_calls import load_library
from serving_client import FeatureClient
from serving_client.lookup import Lookup
from serving_client.wire import Wire
from tally.functions import describe
from tally.plan import Field, Input, Plan, RequestFunction

REPEATS: Final = 25
SAMPLES: Final = 2_000


def main() -> None:
    """Print the table."""
    with (
        tempfile.TemporaryDirectory() as home,
        embedded(Path(home), ("redis",)) as settings,
        Redis.from_url(settings.redis_url) as redis,
    ):
        load_library(redis)
        now, rng = time.time_ns() // 1000, np.random.default_rng(0)
        request = RequestFunction(
            "request",
            describe(per_weight),
            (Input("x_0", "Float64", "x", "x_0"), Input("weight", "Float64", "", "weight")),
            (Field("per_weight", "Float64"),),
        )
        views = [latest_view(name) for name in VIEWS]
        plain, with_function = plan_of("bench", TABLE, views), plan_of("bench", TABLE, views, request)
        for view in views:
            store_latest(redis, plain, view, latest_rows(rng, view, now))
        source = topic_source("events")
        windowed = plan_of("bench", source, three_windowed_views(source))
        for view in windowed.views:
            store_tiles(redis, windowed, view, events(rng, windowed.views[0], now))
        table = Table("stage", "plain, 1 row", "+ function", "windows", "plain, 100 rows", "windows, 100 rows")
        columns = [
            budget(redis, plan, count)
            for plan, count in ((plain, 1), (with_function, 1), (windowed, 1), (plain, 100), (windowed, 100))
        ]
        for stage in columns[0]:
            table.add_row(stage, *(f"{column[stage]:.1f}" for column in columns))
        Console(width=120).print(table)


def budget(redis: Redis, plan: Plan, count: int) -> dict[str, float]:
    """Microseconds of each stage of a lookup of `count` rows, and of what it is beside."""
    lookup, wire, rows, client = Lookup(plan), Wire(redis), asked(count), FeatureClient(redis, plan)
    request = lookup.request(rows)
    command = request.command()
    values = wire.read(command)
    moment = time.time_ns() // 1000
    answer = lookup.decode(request, values, moment)
    keys = list(request.keys)
    cases: dict[str, Call] = {
        "whole": lambda: client.get(rows).to_dict(),
        "wire": lambda: wire.read(command),
        "MGET": lambda: redis.mget(keys),
        "PING": redis.ping,
    }
    p50 = {name: float(np.median(times)) * 1e6 for name, times in in_turns(cases, SAMPLES // count + 200).items()}
    return {
        "check the rows, name the keys": _least(lambda: lookup.request(rows)),
        "pack the command": _least(request.command),
        "send, wait, parse (p50)": p50["wire"],
        "decode, run the functions": _least(lambda: lookup.decode(request, values, moment)),
        "to_dict": _least(answer.to_dict),
        "the whole lookup (p50)": p50["whole"],
        "redis-py MGET of the same keys (p50)": p50["MGET"],
        "redis-py PING (p50)": p50["PING"],
    }


def _least(call: Call) -> float:
    timer = timeit.Timer(call)
    number, _ = timer.autorange()
    number = max(1, number // 20)
    return min(timer.repeat(REPEATS, number)) / number * 1e6


if __name__ == "__main__":
    main()
