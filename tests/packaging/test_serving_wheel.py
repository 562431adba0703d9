"""`pip install tally-feature-store[serving]`, alone in an empty environment, can serve, and brings nothing heavy along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from tests import redis_servers
from tests.serving_client import world
from tests.serving_client.test_rules import PLANE
from tests.serving_client.world import PLANES

ROOT = Path(__file__).resolve().parent.parent.parent

SERVE = """
import asyncio, sys
from importlib.util import find_spec
from serving_client import AsyncFeatureClient, FeatureClient
where = dict(project="world", service="plain", timeout=60)
with FeatureClient.connect(sys.argv[1], **where) as client:
    answer = client.get([{"place": "JFK"}], 0)
async def again():
    async with await AsyncFeatureClient.connect(sys.argv[1], **where) as there:
        return await there.get([{"place": "JFK"}, {"place": "LGA"}], 0)
many = asyncio.run(again())
assert answer.to_dict()["v_Int64"] == [2**60 + 1]
assert many.to_dict()["v_Float64"] == [0.1, None]
assert answer.to_numpy(["v_Float64"]).tolist() == [[0.1]]
heavy = ("feast", "pandas", "pyarrow", "dask", "pydantic", "confluent_kafka", "prometheus_client", "snowflake")
assert not [name for name in heavy if name in sys.modules]
assert not [name for name in heavy if find_spec(name)], "installed with [serving]"
try:
    answer.to_pandas()
except ImportError as error:
    print("ok:", error)
"""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """A command's outcome."""
    trusting = os.environ | {"UV_SYSTEM_CERTS": "1"}  # as the Makefile does: what the machine itself trusts
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=trusting)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment in which the wheel with its extra `serving` is all that was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = Path(sys.executable).with_name("uv")
    built = run(uv, "build", "--wheel", "--quiet", "--out-dir", folder, ROOT)
    if built.returncode:
        pytest.skip(f"the wheel cannot be built without a package index or a warm cache: {built.stderr[-300:]}")
    (wheel,) = folder.glob("*.whl")
    python = folder / "venv" / "bin" / "python"
    assert run(uv, "venv", "--quiet", "--python", sys.executable, folder / "venv").returncode == 0
    versions = ["--constraint", ROOT / "requirements.lock"]
    for offline in (["--offline"], []):
        done = run(uv, "pip", "install", "--quiet", *offline, "--python", python, *versions, f"{wheel}[serving]")
        if done.returncode == 0:
            return python
    pytest.skip(f"no package index is reachable, and the cache lacks a package: {done.stderr[-300:]}")


def test_the_example_is_not_installed(empty: Path) -> None:
    """A project's own `feature_repo` and `demo` are the only ones."""
    look = "import importlib.util as u; print([n for n in ('tally', 'demo', 'feature_repo') if u.find_spec(n)])"
    done = run(empty, "-I", "-c", look)

    assert done.stdout.strip() == "['tally']", done.stderr


def test_the_serving_extra_serves(empty: Path, tmp_path: Path) -> None:
    """Both clients answer; nothing heavy is imported, nor even there."""
    import dataclasses

    from tally.plan import Service, ViewUse, hashed_service

    use = ViewUse("planes", "planes", ("place",), tuple((f.name, f.name) for f in PLANES.fields))
    service = Service("plain", (use,), (), PLANES.keys, (), PLANES.fields)
    plan = dataclasses.replace(world.PLAN, services=(hashed_service(service, world.PLAN),))
    with redis_servers.standalone(tmp_path / "redis") as server:
        redis: Redis = server.client()
        world.publish(redis, plan)
        world.store_latest(redis, PLANES, [PLANE])
        done = subprocess.run(
            [empty, "-I", "-c", SERVE, server.url()], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert "pandas" in done.stdout or "pyarrow" in done.stdout
