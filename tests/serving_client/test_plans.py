"""Newer plans: noticed, served when they can be, never within a request, and said where they cannot be."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from serving_client import AsyncFeatureClient, FeatureClient, FeatureRows
from tally.errors import DefinitionMismatchError, NotReadyError, SupersededError
from tally.layout import plan_key, views_key
from tally.plan import Field, Function, Plan, View, hashed_service, hashed_view
from tests.redis_servers import eventually
from tests.serving_client import world
from tests.serving_client.test_rules import ASKED
from tests.serving_client.world import DELAYS, PAIRS, PLANES, PROJECT

CODES = range(20)


def changed(number: int, *, function_hash: str = "") -> tuple[Plan, View]:
    """The plan with another definition of `pairs`, and that definition; with `function_hash`, functions of other source."""
    fields = (*PAIRS.fields, *(Field(f"extra_{i}", "Int64") for i in range(number)))
    columns = (*PAIRS.keys, *fields, Field("at", "UnixTimestamp"))
    pairs = hashed_view(dataclasses.replace(PAIRS, fields=fields, columns=columns, hash=""), world.STREAM)
    plan = dataclasses.replace(world.PLAN, views=(PLANES, pairs, DELAYS))
    if function_hash:
        functions = tuple(
            dataclasses.replace(f, function=Function(f.function.reference, function_hash)) for f in plan.functions
        )
        plan = dataclasses.replace(plan, functions=functions)
    services = tuple(hashed_service(dataclasses.replace(s, hash=""), plan) for s in plan.services)
    return dataclasses.replace(plan, services=services), pairs


def store(redis: Redis, view: View, number: int) -> None:
    """Rows of a definition of `pairs` whose level is its number, and whose note says so."""
    extra = {f.name: number for f in view.fields if f.name.startswith("extra_")}
    rows = [{"code": c, "who": "x", "at": 0, "a": 0, "level": number, "note": str(number), **extra} for c in CODES]
    world.store_latest(redis, view, rows)


ASK = [{"code": c, "who": "x"} for c in CODES]
Get = Callable[..., FeatureRows]


@pytest.fixture(params=["sync", "async"])
def get(request: pytest.FixtureRequest, redis: Redis, redis_url: str) -> Iterator[Get]:
    """Lookups of the service `small` by a client that looks for newer plans with each of them."""
    world.publish(redis)
    store(redis, PAIRS, 0)
    where: dict[str, Any] = {"project": PROJECT, "service": "small", "timeout": 60, "check_seconds": 0}
    if request.param == "sync":
        with FeatureClient.connect(redis_url, **where) as client:
            yield lambda *arguments: client.get(*(arguments or (ASK, 0)))
        return
    with asyncio.Runner() as runner:
        there = runner.run(AsyncFeatureClient.connect(redis_url, **where))

        async def ask(*arguments: Any) -> FeatureRows:
            answer = await there.get(*(arguments or (ASK, 0)))
            await asyncio.sleep(0)  # the look for a newer plan is a task of this loop
            return answer

        yield lambda *arguments: runner.run(ask(*arguments))
        runner.run(there.close())


def test_a_new_plan_is_served_without_a_restart(redis: Redis, get: Get) -> None:
    """Once it is published and its views are there, and under its own hash; before, nothing changes."""
    plan, pairs = changed(1)
    assert get().definition == world.PLAN.service("small").hash
    store(redis, pairs, 1)
    assert get().to_dict()["level"] == [0] * len(CODES)
    world.publish(redis, plan, plan.views)
    eventually(lambda: get().definition == plan.service("small").hash, "the new plan")
    answer = get()
    assert answer.to_dict()["level"] == [1] * len(CODES)
    assert not answer.superseded


def test_a_plan_whose_views_are_not_loaded_waits(redis: Redis, get: Get, caplog: pytest.LogCaptureFixture) -> None:
    """The old one goes on, and each answer says that it is superseded; when the views are there, the new one is served."""
    plan, pairs = changed(1)
    with caplog.at_level(logging.WARNING, "serving_client"):
        world.publish(redis, plan, [])
        eventually(lambda: get().superseded, "the flag")
    for _ in range(3):
        answer = get()
        assert (answer.definition, answer.superseded) == (world.PLAN.service("small").hash, True)
        assert answer.to_dict()["level"] == [0] * len(CODES)
    warned = [record.message for record in caplog.records]
    assert len(warned) == 1
    assert f"goes on under definition {world.PLAN.service('small').hash[:8]}" in warned[0]
    assert "pairs" in warned[0]
    store(redis, pairs, 1)
    world.publish(redis, plan, plan.views)
    eventually(lambda: not get().superseded, "the new plan")
    assert get().to_dict()["level"] == [1] * len(CODES)


def test_a_plan_of_other_functions_is_not_served_here(redis: Redis, redis_url: str) -> None:
    """A worker with the old functions goes on, flagged, while the old data is there; then it raises, and then recovers."""
    world.publish(redis)
    where: dict[str, Any] = {"project": PROJECT, "service": "everything", "timeout": 60, "check_seconds": 0}
    with FeatureClient.connect(redis_url, **where) as client:
        plan, pairs = changed(1, function_hash="0" * 32)
        world.publish(redis, plan, [pairs])
        eventually(lambda: client.get([ASKED], 0).superseded, "the flag")
        answer = client.get([ASKED], 0)
        assert answer.definition == world.ONE.services[0].hash
        assert answer.to_dict()["both"] == ["JFK!"]
        with pytest.raises(DefinitionMismatchError, match=r"source hash .* here, the plan was made with 0{32}"):
            FeatureClient.connect(redis_url, **where)

        redis.hdel(views_key(PROJECT), f"pairs@{PAIRS.hash}")

        def ended() -> bool:
            try:
                client.get([ASKED], 0)
            except SupersededError as error:
                return f"{world.ONE.services[0].hash[:8]}" in str(error) and "pairs" in str(error)
            return False

        eventually(ended, "the end of the old definition")
        world.publish(redis)

        def recovered() -> bool:
            try:
                return not client.get([ASKED], 0).superseded
            except SupersededError:
                return False

        eventually(recovered, "the old definition, published again")


def test_a_store_that_was_emptied_is_not_answered_from(redis: Redis, get: Get) -> None:
    """After a flush every entity would look missing; it is an error until the views are loaded again."""
    redis.flushall()

    def refused() -> bool:
        try:
            get()
        except (SupersededError, NotReadyError) as error:
            return "pairs" in str(error)
        return False

    eventually(refused, "the refusal")
    world.publish(redis)
    store(redis, PAIRS, 0)
    eventually(lambda: not refused(), "the store, loaded again")
    assert get().to_dict()["level"] == [0] * len(CODES)


def test_a_plan_that_cannot_be_read_is_not_served(redis: Redis, get: Get) -> None:
    """A damaged plan, or one of a later format, leaves the old one in use, flagged."""
    redis.set(plan_key(PROJECT, "small"), b'{"format": 99}')
    redis.set(f"tally:{PROJECT}:version:small", "f" * 32)
    eventually(lambda: get().superseded, "the flag")
    assert get().to_dict()["level"] == [0] * len(CODES)


def test_threads_never_see_two_definitions_in_one_answer(redis: Redis, redis_url: str) -> None:
    """While plans are published one after the other, each answer's values are those of the definition that it names."""
    plans = [(world.PLAN, PAIRS), *(changed(i) for i in range(1, 9))]
    number_of = {plan.service("small").hash: i for i, (plan, _) in enumerate(plans)}
    for i, (plan, pairs) in enumerate(plans):
        store(redis, pairs, i)
        world.publish(redis, plan, plan.views)
    world.publish(redis, world.PLAN)
    stop = threading.Event()
    with (
        FeatureClient.connect(redis_url, project=PROJECT, service="small", timeout=60, check_seconds=0) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        seen: list[set[int]] = [set() for _ in range(4)]

        def ask(rows: list[dict[str, Any]], seen: set[int]) -> None:
            while not stop.is_set():
                answer = client.get(rows, 0)
                number = number_of[answer.definition]
                found = answer.to_dict()
                assert found["level"] == [number] * len(rows)
                assert found["note"] == [str(number)] * len(rows)
                seen.add(number)

        asking = list(map(pool.submit, [ask] * 4, (ASK, ASK[:1], ASK[3:5], ASK), seen))
        try:
            for i, (plan, _) in enumerate(plans):
                world.publish(redis, plan, plan.views)
                eventually(
                    lambda i=i: any(each.done() for each in asking) or all(i in of_one for of_one in seen),  # type: ignore[misc]
                    f"plan {i}",
                )
        finally:
            stop.set()
        for each in asking:
            each.result()


OLD = "def rate(x):\n    return {'y': x * 2}\n"
NEW = "def rate(x):\n    return {'y': x * 3}\n"
WORKER = """
import sys, json
from redis import Redis
from serving_client import FeatureClient
from tally.errors import TallyError
client = FeatureClient.connect(sys.argv[1], project="world", service="rated", timeout=60, check_seconds=0)
print("up", flush=True)
for line in sys.stdin:
    answer = client.get([{"code": 1}], 0)
    print(json.dumps([answer.definition, answer.to_dict()["y"], bool(answer.superseded)]), flush=True)
"""


def test_old_and_new_workers_serve_side_by_side(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    """A rolling deployment: workers with the old functions serve the old definition, flagged; new workers the new one."""
    import json

    plans = {name: rolling(tmp_path, name, text) for name, text in (("old", OLD), ("new", NEW))}

    def worker(name: str) -> subprocess.Popen[str]:
        environment = {"PYTHONPATH": f"{tmp_path / name}:{Path.cwd()}", "PATH": "/usr/bin:/bin"}
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, redis_url],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    def up(process: subprocess.Popen[str]) -> bool:
        assert process.stdout is not None
        return process.stdout.readline() == "up\n"

    def ask(process: subprocess.Popen[str]) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    started: list[subprocess.Popen[str]] = []
    hashes = {name: plan.service("rated").hash for name, plan in plans.items()}
    try:
        for number, name in enumerate(("old", "new")):
            (view,) = plans[name].views
            world.store_latest(redis, view, [{"code": 1, "at": 0, "a": 0, "x": 10 + number}])
        world.publish(redis, plans["old"])
        old = worker("old")
        assert up(old)
        assert ask(old) == [hashes["old"], [20], False]

        world.publish(redis, plans["new"])
        new = worker("new")
        assert up(new)
        assert ask(new) == [hashes["new"], [33], False]
        eventually(lambda: ask(old)[2], "the flag of the old worker")
        assert ask(old) == [hashes["old"], [20], True]

        late = worker("old")
        assert not up(late)
        assert late.stderr is not None
        assert "source hash" in late.stderr.read()
    finally:
        for process in started:
            process.kill()
            process.communicate()


def rolling(folder: Path, name: str, text: str) -> Plan:
    """A plan with one view and one function, whose module is in a folder of its own."""
    from tally.functions import source_hash
    from tally.plan import FunctionUse, Input, RequestFunction, Service, ViewUse

    (folder / name).mkdir()
    (folder / name / "rolling_functions.py").write_text(text)
    rate = Function("rolling_functions:rate", source_hash(text, "rate"))
    keys = (Field("code", "Int64"),)
    fields = (Field("x", "Int64"),)
    view = hashed_view(
        dataclasses.replace(
            PAIRS,
            name="codes",
            keys=keys,
            fields=fields,
            columns=(*keys, *fields, Field("at", "UnixTimestamp")),
            ttl=0 if name == "old" else world.TTL,
            hash="",
        ),
        world.STREAM,
    )
    outputs = (Field("y", "Int64"),)
    function = RequestFunction("rated", rate, (Input("x", "Int64", "codes", "x"),), outputs)
    plan = Plan(PROJECT, (world.STREAM,), (view,), (function,), ())
    use = ViewUse("codes", "codes", ("code",), ())
    service = Service("rated", (use,), (FunctionUse("rated", (("y", "y"),)),), keys, (), outputs)
    return dataclasses.replace(plan, services=(hashed_service(service, plan),))
