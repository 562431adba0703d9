"""The clients on one server, on Sentinels, on a cluster and behind TLS with users: the oracle's bits on each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from redis.crc import key_slot

import connections
from serving_client import AsyncFeatureClient, FeatureClient, FeatureRows
from tally.errors import StoredBytesError
from tests import redis_servers
from tests.redis_servers import eventually
from tests.serving_client import world
from tests.serving_client.test_parity import assert_equal
from tests.serving_client.test_rules import ASKED, EVENT, PLANE
from tests.serving_client.world import DELAYS, PAIRS, PLANES, PROJECT

PLACES = [f"place-{i}" for i in range(40)]
STORED: dict[str, list[dict[str, Any]]] = {
    "planes": [{**PLANE, "place": p, "v_Int64": i, "v_String": f"text {i}"} for i, p in enumerate(PLACES[::2])],
    "pairs": [{"code": i, "who": "a|b", "at": i, "a": 0, "level": i, "note": "ö"} for i in range(5)],
    "delays": [{**EVENT, "place": p, "at": i, "offset": i, "v_Float64": i / 8} for i, p in enumerate(PLACES)],
}
ROWS = [
    {**ASKED, "place": p, "other": PLACES[i // 2], "code": i % 7, "who": "a|b"}
    for i, p in enumerate([*PLACES, *PLACES])
]


@pytest.fixture(params=["standalone", "cluster", "sentinel", "tls"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An address of each topology, where the world is stored and published."""
    if request.param == "standalone":
        found = str(request.getfixturevalue("redis_url"))
    elif request.param == "tls":
        secure: redis_servers.SecureServer = request.getfixturevalue("redis_secure")
        rights = f"on >worker-secret ~{PROJECT}/* ~tally:{PROJECT}:* resetchannels -@all +mget +get +hkeys +type"
        with secure.admin() as admin:
            admin.execute_command("ACL", "SETUSER", "worker", "reset", *rights.split())
            admin.flushall()
            fill(admin)
        yield secure.url("worker", "worker-secret")
        return
    else:
        named = {"cluster": "redis_cluster", "sentinel": "redis_sentinels"}
        found = str(request.getfixturevalue(named[request.param]).url)
    with connections.open_client(found) as client:
        client.flushall()
        fill(client)
    yield found


def fill(client: Any) -> None:
    """Store and publish the world."""
    world.store_latest(client, PLANES, STORED["planes"])
    world.store_latest(client, PAIRS, STORED["pairs"])
    world.store_tiles(client, DELAYS, STORED["delays"])
    world.publish(client)


def ask_async(url: str, requests: list[Any], as_of: int) -> list[FeatureRows]:
    """The asynchronous client's answers, asked for at once."""

    async def ask() -> list[FeatureRows]:
        async with await AsyncFeatureClient.connect(url, project=PROJECT, service="everything", timeout=60) as client:
            return await asyncio.gather(*(client.get(rows, as_of) for rows in requests))

    return asyncio.run(ask())


def test_every_topology_gives_the_oracles_bits(url: str) -> None:
    """One row and many, sync and async: values, dtypes and statuses, whichever nodes the keys are on."""
    requests = [ROWS, *([row] for row in ROWS[:6])]
    with FeatureClient.connect(url, project=PROJECT, service="everything", timeout=60) as client:
        answers = [client.get(rows, 50) for rows in requests]
    for rows, one, other in zip(requests, answers, ask_async(url, requests, 50), strict=True):
        for answer in (one, other):
            assert_equal(answer, rows, [50] * len(rows), STORED)


def test_a_key_of_another_type_is_named(url: str) -> None:
    """A cluster's client says so at once; MGET calls it missing, so another is told by the look that follows."""
    key = world.key_of(PLANES, {**PLANE, "place": "place-1"})
    with FeatureClient.connect(url, project=PROJECT, service="everything", timeout=60, check_seconds=0) as client:
        assert client.get([{**ASKED, "place": "place-1"}], 50).to_dict()["v_Int64"] == [None]
        write = writer(url, client)
        write.rpush(key, "x")

        def refused() -> bool:
            try:
                client.get([{**ASKED, "place": "place-1"}], 50)
            except StoredBytesError as error:
                return "place-1" in str(error)
            return False

        eventually(refused, "the wrong type")
        write.delete(key)
        eventually(lambda: not refused(), "the right type")


def writer(url: str, client: FeatureClient) -> Any:
    """A client that may write."""
    return connections.open_client(url.replace("worker:worker-secret", "admin:admin-secret")) if "worker:" in url else client._redis  # fmt: skip


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_slots_that_move(redis_cluster: redis_servers.ClusterServers, *, asynchronous: bool) -> None:
    """While a slot moves from node to node, and after it has, answers stay the same; the client had known the old owner."""
    redis_cluster.flush()
    with connections.open_client(redis_cluster.url) as client:
        fill(client)
    moving = world.key_of(DELAYS, {**EVENT, "place": "place-3"})
    slot = key_slot(moving)
    source = redis_cluster.master_of(moving)
    target = next(master for master in redis_cluster.masters() if master is not source)
    rows = [{**ASKED, "place": p} for p in PLACES[:8]]
    with asyncio.Runner() as runner:
        opened = (
            runner.run(AsyncFeatureClient.connect(redis_cluster.url, project=PROJECT, service="everything", timeout=60))
            if asynchronous
            else FeatureClient.connect(redis_cluster.url, project=PROJECT, service="everything", timeout=60)
        )

        def check() -> None:
            got: Any = opened.get(rows, 50)
            answer: FeatureRows = runner.run(got) if asynchronous else got
            assert_equal(answer, rows, [50] * len(rows), STORED)

        check()
        with source.client() as at_source, target.client() as at_target:
            names = {
                server.port: server.client().execute_command("CLUSTER MYID").decode() for server in (source, target)
            }
            at_target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[source.port])
            at_source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[target.port])
            check()  # nothing has moved yet
            at_source.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", moving)
            check()  # the key is asked for where the reply says
            for master in redis_cluster.masters():
                with master.client() as one:
                    one.execute_command("CLUSTER SETSLOT", slot, "NODE", names[target.port])
            check()  # the slot has another owner
            check()  # and the client knows it
        if isinstance(opened, AsyncFeatureClient):
            runner.run(opened.close())
        else:
            opened.close()
        back(redis_cluster, moving, source, names[source.port], names[target.port])


def back(servers: redis_servers.ClusterServers, key: bytes, home: redis_servers.Server, name: str, other: str) -> None:
    """Give the slot back to the node that had it."""
    slot, now = key_slot(key), servers.master_of(key)
    with home.client() as at_home, now.client() as at_now:
        at_home.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", other)
        at_now.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", name)
        at_now.execute_command("MIGRATE", "127.0.0.1", home.port, "", 0, 5000, "KEYS", key)
        for master in servers.masters():
            with master.client() as one:
                one.execute_command("CLUSTER SETSLOT", slot, "NODE", name)
    servers.settle()
