"""Through TLS, with certificates, and with only the rights that docs/redis.md lists, everything runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from redis.crc import key_slot

from connections import RefusedError, open_client, reaching
from ingestion.progress import NAMELESS, advance_progress, progress, witness, writer_name
from ingestion.redis_calls import call, load_library
from ingestion.redis_store import LatestWriter, mark_view, publish_plan
from serving_client import AsyncFeatureClient, FeatureClient
from tally.columns import column
from tally.layout import progress_key
from tally.plan import Service, ViewUse, hashed_service
from tests import redis_servers
from tests.ingestion import plans
from tests.ingestion.test_kafka import Topic, latest_by_number, make_topic, servers

__all__ = ["servers"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "redis.md"


def users_of_the_page(project: str) -> dict[str, list[str]]:
    """User -> rules, as docs/redis.md has them."""
    lines = re.findall(r"^user (\w+) (.*)$", PAGE.read_text(), re.MULTILINE)
    return {name: rules.replace("PROJECT", project).replace("SECRET", "s3cret").split() for name, rules in lines}


@pytest.fixture
def urls(redis_secure: redis_servers.SecureServer) -> Iterator[dict[str, str]]:
    """The address of each user of the page; they see any project here, for topics have numbered ones."""
    with redis_secure.admin() as admin:
        admin.flushall()
        users = users_of_the_page("*")
        for name, rules in users.items():
            admin.execute_command("ACL SETUSER", name, "reset", *rules)  # type: ignore[no-untyped-call]
        admin.acl_log_reset()
        yield {name: redis_secure.url(name, "s3cret") for name in users}
        denied = {entry["object"] for entry in admin.acl_log()}
        assert not denied - {"flushall"}, f"denied: {denied}"


@pytest.mark.apache_kafka
def test_users_with_the_least_rights_run_everything(urls: dict[str, str], servers: str) -> None:
    """Apply publishes, the worker streams windows and latest rows, both clients look them up, teardown finds the keys."""
    with open_client(urls["worker"]) as worker, open_client(urls["apply"]) as apply:
        topic = with_service(make_topic(servers, worker, latest_by_number()))  # type: ignore[arg-type]
        publish_plan(apply, topic.plan)
        publish_plan(apply, topic.plan)
        topic.send(40)
        topic.run()
        assert topic.run().consumed == 0

        with FeatureClient.connect(urls["serving"], project=topic.plan.project, service="all", timeout=60) as client:
            rows = client.get([{"i": 5}])
        assert rows.status["f"][0] == 0

        async def ask() -> int:
            asking = await AsyncFeatureClient.connect(
                urls["serving"], project=topic.plan.project, service="all", timeout=60
            )
            answer = await asking.get([{"i": 5}])
            await asking.close()
            return int(answer.status["f"][0])

        assert asyncio.run(ask()) == 0
        keys = list(apply.scan_iter(f"tally:{topic.plan.project}:*"))
        assert len(keys) >= 4
        for key in keys:
            apply.unlink(key)


def with_service(topic: Topic) -> Topic:
    """The topic with a service of its latest rows."""
    view = topic.plan.views[1]
    use = ViewUse(view.name, view.name, tuple(k.name for k in view.keys), (("f", "f"),))
    service = hashed_service(Service("all", (use,), (), view.keys, (), view.fields), topic.plan)
    return replace(topic, plan=replace(topic.plan, services=(service,)))


@pytest.mark.parametrize("user", ["worker", "serving", "apply"])
def test_they_may_do_no_more(urls: dict[str, str], user: str) -> None:
    """Another project's keys, and commands that are not listed, are refused."""
    with open_client(urls[user]) as client, pytest.raises(RefusedError, match="flushall"), reaching(client):
        client.flushall()


def test_users_of_one_project_do_not_see_another(redis_secure: redis_servers.SecureServer) -> None:
    """The patterns of keys are the project's; the serving user cannot write even there."""
    with redis_secure.admin() as admin:
        for name, rules in users_of_the_page("mine").items():
            admin.execute_command("ACL SETUSER", name, "reset", *rules)  # type: ignore[no-untyped-call]
    with open_client(redis_secure.url("worker", "s3cret")) as worker:
        worker.set("mine/view@1/a", b"x")
        with pytest.raises(RefusedError, match="key"), reaching(worker):
            worker.get("other/view@1/a")
    with open_client(redis_secure.url("serving", "s3cret")) as serving:
        assert serving.get("mine/view@1/a") == b"x"
        with pytest.raises(RefusedError, match="permissions"), reaching(serving):
            serving.set("mine/view@1/a", b"y")


@pytest.mark.parametrize("topology", ["cluster", "sentinels"])
def test_the_same_rights_do_elsewhere(topology: str, request: pytest.FixtureRequest) -> None:
    """With what the page adds for a cluster and for Sentinels: a plan, rows and progress are written and looked up."""
    found = request.getfixturevalue(f"redis_{topology}")
    found.settle()
    found.flush()
    data = found.nodes if topology == "cluster" else found.servers
    extra, for_sentinels = (text.split() for text in re.findall(r"`((?:\+[\w|]+ ?)+)`", PAGE.read_text()))
    for name, rules in users_of_the_page("p").items():
        set_user(data, name, [*rules, *(extra if topology == "cluster" else ())])
    url = found.url.replace("://", "://{}:s3cret@")
    if topology == "sentinels":
        set_user(found.sentinels, "watcher", ["on", ">s3cret", "-@all", *for_sentinels])
        url += "?sentinel_username=watcher&sentinel_password=s3cret"
    plan = with_service(Topic("t", plans.plan_of(plans.window_view(), latest_by_number()), {}, None, [])).plan  # type: ignore[arg-type]
    plan = replace(plan, project="p")
    view = plan.views[1]
    row = view.row_layout.pack(*np.ones((3, 1), np.int64), {"f": column("Float64", [0.5], "f")})

    with open_client(url.format("worker")) as worker, open_client(url.format("apply")) as apply:
        publish_plan(apply, plan)
        load_library(worker)
        name = writer_name()
        assert witness(worker, "p", (), {}, name)
        LatestWriter(worker, "p", view, writer=name).put([b"5"], row)
        advance_progress(worker, "p", [view], {("t", 0): 7}, writer=name)
        assert progress(worker, "p", view) == {("t", 0): 7}
        mark_view(worker, "p", view, {})
        with FeatureClient.connect(url.format("serving"), project="p", service="all", timeout=60) as client:
            assert client.get([{"i": 5}]).columns["f"].to_list() == [0.5]
        with open_client(url.format("serving")) as serving, pytest.raises(RefusedError), reaching(serving):
            serving.set("p/anything", 1)
        for key in list(apply.scan_iter("tally:p:*")):
            apply.unlink(key)


@pytest.mark.parametrize("left_out", ["", "+asking"])
def test_rights_while_a_slot_moves(left_out: str, redis_cluster: redis_servers.ClusterServers) -> None:
    """What the page adds for a cluster is enough, and the error names what is missing."""
    redis_cluster.settle()
    redis_cluster.flush()
    extra = re.findall(r"`((?:\+[\w|]+ ?)+)`", PAGE.read_text())[0].split()
    rules = [*users_of_the_page("p")["worker"], *(right for right in extra if right != left_out)]
    set_user(redis_cluster.nodes, "worker", rules)
    command = ("FCALL", "tally_begin", 1, progress_key("p", "0"), "f", 1, NAMELESS)
    with open_client(redis_cluster.url) as admin, redis_cluster.moving(key_slot(command[3].encode())):
        load_library(admin)
        with open_client(redis_cluster.url.replace("://", "://worker:s3cret@")) as worker:
            if left_out:
                with pytest.raises(RefusedError, match="asking"):
                    call(worker, [command])
            else:
                assert call(worker, [command]) == [b"OK"]


def set_user(servers: Sequence[redis_servers.Server], name: str, rules: Sequence[str]) -> None:
    """Make a user with these rules on each server."""
    for server in servers:
        with server.client() as client:
            client.execute_command("ACL SETUSER", name, "reset", *rules)  # type: ignore[no-untyped-call]
