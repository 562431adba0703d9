"""What a worker's process sees: its imports and its threads."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from redis import Redis

from serving_client import FeatureClient
from serving_client.few_rows import FEW
from tests.serving_client import world
from tests.serving_client.test_rules import ASKED, PLANE
from tests.serving_client.world import PLANES

IMPORTS = """
import pathlib, sys, time
began = time.perf_counter()
import serving_client
status = pathlib.Path("/proc/self/status")
peak = [line for line in status.read_text().splitlines() if "VmHWM" in line] if status.exists() else []
print(f"{time.perf_counter() - began:.2f} s", *peak)
heavy = {"feast", "pandas", "pyarrow", "pydantic", "dask", "pydantic_settings", "infra", "ingestion", "training"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_imports_are_light() -> None:
    """Importing the client loads neither Feast nor pandas, pyarrow, pydantic, Dask or our other rooms; prints its cost."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print("import serving_client:", done.stdout.strip())


def test_threads_share_a_client(redis: Redis, redis_url: str) -> None:
    """Eight threads with one client, one row and many at a time, each get their own answers."""
    places = [f"p{i}" for i in range(8)]
    world.store_latest(redis, PLANES, [{**PLANE, "place": p, "v_Int64": i} for i, p in enumerate(places)])
    with FeatureClient(Redis.from_url(redis_url), world.ONE) as client, ThreadPoolExecutor(8) as pool:

        def ask(number: int) -> bool:
            asked = [{**ASKED, "place": places[(number + i) % 8]} for i in range((1, 3, FEW + 1)[number % 3])]
            return client.get(asked, 0).to_dict()["v_Int64"] == [(number + i) % 8 for i in range(len(asked))]

        assert all(pool.map(ask, range(400)))
