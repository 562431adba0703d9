"""``python -m benchmarks.stream_memory [--minutes N] [--rate N]``: a worker's memory over a long run.

Events of 4,000 keys come at a steady rate; the worker's resident memory is printed every few seconds. It should rise until
the largest batch was seen, and stay there.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from multiprocessing import active_children
from pathlib import Path
from typing import Final

import psutil
from redis import Redis

from benchmarks import stream
from infra.local import embedded

SAMPLES: Final = 20
MEGABYTE: Final = 1e6


def main() -> None:
    """Run for the minutes that the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stream_memory", description="A worker's memory over time."
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=20_000.0, help="events a second")
    arguments = parser.parse_args()
    os.environ["TALLY_REQUIRE_APACHE_KAFKA"] = "1"
    with (
        tempfile.TemporaryDirectory() as home,
        embedded(Path(home), ("redis", "kafka")) as settings,
        Redis.from_url(settings.redis_url) as redis,
    ):
        stream.create(settings, "memory")
        plan = stream.plan_of_topic("memory", "memory")
        config = settings.kafka_config()
        with stream.running(stream.serve, plan.to_json(), config, settings.redis_url):
            worker = psutil.Process(active_children()[0].pid)
            with stream.running(stream.load, config, "memory", arguments.rate):
                for sample in range(SAMPLES):
                    time.sleep(arguments.minutes * 60 / SAMPLES)
                    used = worker.memory_info().rss / MEGABYTE
                    stored = redis.info("memory")["used_memory"] / MEGABYTE
                    minute = (sample + 1) * arguments.minutes / SAMPLES
                    print(f"{minute:6.2f} min  worker {used:7.1f} MB  Redis {stored:7.1f} MB", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
