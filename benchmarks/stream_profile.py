"""``python -m benchmarks.stream_profile [--rate N] [--seconds N]``: where the time of a stream worker and of its Redis goes.

Events of 4,000 keys come at a steady rate into three windowed views. Of the worker: CPU time of each stage, and how long its
threads waited for Redis. Of Redis: CPU time for each merge of one key, and by its own clock, which goes on while others have the
processor, how much of that is GET, SET and Lua.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, cast

from redis import Redis
from rich.console import Console
from rich.table import Table

from benchmarks import stream as benchmark
from benchmarks.measure import alone
from infra.local import embedded
from ingestion import decoding, redis_calls, stream
from ingestion.garbage import seldom_collected
from ingestion.redis_store import TileWriter
from ingestion.worker import run as run_worker
from ingestion.worker_progress import WorkerProgress
from tally.plan import Plan

P = ParamSpec("P")
T = TypeVar("T")

MICROSECONDS: Final = 1e6
WARM_SECONDS: Final = 5.0
WAITING: Final = "send, wait, read replies"


@dataclass(slots=True)
class _Stage:
    cpu: float = 0.0
    wall: float = 0.0


class _Stages:
    """CPU and wall seconds by stage, of all threads; a stage inside another counts in both."""

    def __init__(self) -> None:
        self.spent: dict[str, _Stage] = defaultdict(_Stage)

    def timed(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        """The function, counted as a stage."""

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                stage = self.spent[name]
                stage.wall += time.perf_counter() - wall
                stage.cpu += time.thread_time() - cpu

        return run


@seldom_collected()
def profile(document: str, config: Mapping[str, Any], redis_url: str, seconds: float) -> dict[str, Any]:
    """Run a worker in this process for some seconds; what it and Redis spent after it was warm."""
    stages = _Stages()
    for owner, attribute, name in (
        (decoding, "decode_table", "parse"),
        (stream, "events_of", "refuse, number entities"),
        (stream, "deltas_of", "build tiles"),
        (TileWriter, "merge", "merge: all below, and packing calls"),
        (redis_calls, "_pipelined", WAITING),
        (WorkerProgress, "advance", "progress"),
    ):
        setattr(owner, attribute, stages.timed(name, getattr(owner, attribute)))
    packed = cached_property(stages.timed("pack deltas", cast(Any, stream.Deltas).packed.func))
    packed.__set_name__(stream.Deltas, "packed")
    setattr(stream.Deltas, "packed", packed)  # noqa: B010
    stop, batches = threading.Event(), list[int]()
    with Redis.from_url(redis_url) as redis, ThreadPoolExecutor(1) as pool:
        worker = pool.submit(
            run_worker,
            Plan.from_json(document),
            None,
            config,
            redis,
            stop=stop,
            on_batch=lambda progress: batches.append(progress.batch),
        )
        try:
            stop.wait(WARM_SECONDS)
            stages.spent.clear()
            batches.clear()
            redis.config_resetstat()
            server, own, began = benchmark._cpu_of(redis), time.process_time(), time.perf_counter()  # noqa: SLF001
            stop.wait(seconds)
            taken = time.perf_counter() - began
            found = {
                "seconds": taken,
                "events": sum(batches),
                "batches": len(batches),
                "worker": time.process_time() - own,
                "redis": benchmark._cpu_of(redis) - server,  # noqa: SLF001
                "stages": {name: (stage.cpu, stage.wall) for name, stage in stages.spent.items()},
                "commands": redis.info("commandstats"),
            }
        finally:
            stop.set()
        worker.result()
    return found


def main() -> None:
    """Print what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream_profile", description=__doc__)
    parser.add_argument("--rate", type=float, default=16_000.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    os.environ["TALLY_REQUIRE_APACHE_KAFKA"] = "1"
    with (
        tempfile.TemporaryDirectory() as home,
        embedded(Path(home), ("redis", "kafka")) as settings,
    ):
        benchmark.create(settings, "profile")
        plan, config = benchmark.plan_of_topic("profile", "profile"), settings.kafka_config()
        with benchmark.running(benchmark.load, config, "profile", arguments.rate):
            found, _ = alone(profile, plan.to_json(), config, settings.redis_url, arguments.seconds)
    _show(found)


def _show(found: dict[str, Any]) -> None:
    console, seconds, events = Console(), found["seconds"], found["events"]
    commands = found["commands"]
    keys = commands["cmdstat_set"]["calls"]
    console.print(
        f"{events / seconds:,.0f} events/s in {found['batches'] / seconds:.1f} batches/s, {keys / seconds:,.0f} merges/s; "
        f"the worker used {100 * found['worker'] / seconds:.0f} % of a processor, Redis {100 * found['redis'] / seconds:.0f} %"
    )
    table = Table("worker", "CPU, us/event", "CPU, us/merge", "seconds in it, % of the time")
    everything = {"all": (found["worker"], seconds), **found["stages"]}
    for name, (cpu, wall) in sorted(everything.items(), key=lambda stage: -stage[1][0]):
        table.add_row(
            name,
            f"{cpu / events * MICROSECONDS:.2f}",
            f"{cpu / keys * MICROSECONDS:.2f}",
            f"{100 * wall / seconds:.0f}",
        )
    console.print(table)
    table = Table("Redis", "us/merge")
    of_call, of_get, of_set = (commands[f"cmdstat_{name}"]["usec"] / keys for name in ("fcall", "get", "set"))
    for name, spent in (
        ("CPU, all", found["redis"] / keys * MICROSECONDS),
        ("calls", of_call),
        ("  GET", of_get),
        ("  SET", of_set),
        ("  Lua", of_call - of_get - of_set),
    ):
        table.add_row(name, f"{spent:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
