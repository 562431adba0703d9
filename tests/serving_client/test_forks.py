"""Forked children: they go on with what their parent opened, and share none of it."""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from redis import Redis

import connections
from serving_client import Cache, FeatureClient, ParquetSink, ServedLog
from tests import redis_servers
from tests.serving_client import world
from tests.serving_client.test_plans import changed, store
from tests.serving_client.test_rules import ASKED, PLANE
from tests.serving_client.test_topologies import PLACES, ROWS, STORED, fill
from tests.serving_client.world import PLANES, PROJECT

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
WHERE: dict[str, Any] = {"project": PROJECT, "service": "everything"}


def in_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked child. Raises AssertionError with its traceback when it fails."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 all that goes wrong in the child is for the parent to say
            os.write(write, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as said:
        text = said.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, text


@pytest.mark.parametrize("topology", ["standalone", "cluster", "sentinel"])
def test_parent_and_children_at_once(topology: str, request: pytest.FixtureRequest) -> None:
    """Parent's threads and two forked children ask through one client, each getting its own answers."""
    named = {"standalone": "redis_url", "cluster": "redis_cluster", "sentinel": "redis_sentinels"}
    servers = request.getfixturevalue(named[topology])
    url = servers if isinstance(servers, str) else servers.url
    with connections.open_client(url) as redis:
        redis.flushall()
        fill(redis)
    numbers = {row["place"]: row["v_Int64"] for row in STORED["planes"]}

    def ask(client: FeatureClient, start: int) -> None:
        for i in range(16):
            rows = [ROWS[(start + i + j) % len(PLACES)] for j in range(1 + i % 4)]
            found = client.get(rows, 50).to_dict()["v_Int64"]
            assert found == [numbers.get(row["place"]) for row in rows]

    with FeatureClient.connect(url, **WHERE, timeout=60) as client, ThreadPoolExecutor(2) as pool:
        ask(client, 0)
        here = [pool.submit(ask, client, start) for start in (3, 17)]
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=ask, args=(client, start)) for start in (5, 29)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0, 0]
        for one in here:
            one.result()
        ask(client, 11)


def test_a_child_of_a_child(redis: Redis, redis_url: str) -> None:
    """A worker that was forked may fork again."""
    world.store_latest(redis, PLANES, [PLANE])
    with FeatureClient(Redis.from_url(redis_url), world.ONE) as client:

        def check() -> None:
            assert client.get([ASKED], 0).to_dict()["v_Float64"] == [0.1]

        def again() -> None:
            check()
            in_child(check)

        check()
        in_child(again)
        check()


def test_a_fork_while_locks_are_held(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    """Locks of a thread that the child does not have are not waited for: neither the cache's, nor the log's, nor the plan's."""
    world.publish(redis)
    world.store_latest(redis, PLANES, [PLANE])
    cache = Cache(views=["planes"], entries=10, seconds=60)
    with (
        ServedLog(ParquetSink(tmp_path), seconds=60) as log,
        FeatureClient.connect(redis_url, **WHERE, timeout=60, check_seconds=0, cache=cache, log=log) as client,
    ):
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with cache._lock, log._lock, client._renewing:
                held.set()
                done.wait()

        def ask() -> None:
            for _ in range(3):
                client.get([ASKED])

        ask()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        try:
            in_child(ask)
        finally:
            done.set()
            thread.join()


def test_a_child_logs_its_own_rows_and_no_others(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    """Rows that waited in the parent are written by the parent alone; the child's by the child."""
    world.store_latest(redis, PLANES, [PLANE])
    with ServedLog(ParquetSink(tmp_path), seconds=60) as log:
        client = FeatureClient(Redis.from_url(redis_url), world.ONE, log=log)
        client.get([{**ASKED, "label": "parent"}], 0)

        def child() -> None:
            client.get([{**ASKED, "label": "child"}], 0)
            log.close()
            assert (log.dropped, log.lost) == (0, 0)

        in_child(child)
    table = pq.read_table(tmp_path / f"everything@{world.ONE.services[0].hash[:8]}")
    assert sorted(table["label"].to_pylist()) == ["child", "parent"]


def test_a_child_notices_newer_plans(redis: Redis, redis_url: str) -> None:
    """The thread that looks for newer plans is each process' own."""
    world.publish(redis)
    plan, pairs = changed(1)
    store(redis, pairs, 1)
    with FeatureClient.connect(redis_url, project=PROJECT, service="small", timeout=60, check_seconds=0) as client:
        client.get([{"code": 1, "who": "x"}], 0)
        world.publish(redis, plan, plan.views)

        def child() -> None:
            redis_servers.eventually(
                lambda: client.get([{"code": 1, "who": "x"}], 0).definition == plan.service("small").hash,
                "the new plan",
            )

        in_child(child)
        child()
