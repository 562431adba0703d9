"""Every topology of real servers, with both kinds of client: reached by one address, refused in one plain sentence."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import connections
from infra.local.process import free_ports
from tally.errors import StoredBytesError, UnavailableError
from tests import redis_servers


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_servers.Server]:
    """One server, for this file."""
    with redis_servers.standalone(tmp_path_factory.mktemp("one")) as one:
        yield one


@pytest.fixture(scope="module", params=["standalone", "cluster", "sentinel", "tls"])
def url(request: pytest.FixtureRequest) -> str:
    """An address of each topology, and one with TLS, certificates and a user."""
    if request.param == "standalone":
        return str(request.getfixturevalue("server").url())
    if request.param == "cluster":
        return str(request.getfixturevalue("redis_cluster").url)
    if request.param == "sentinel":
        return str(request.getfixturevalue("redis_sentinels").url)
    secure: redis_servers.SecureServer = request.getfixturevalue("redis_secure")
    return secure.url("admin", secure.password)


def test_both_clients_reach_what_an_address_names(url: str) -> None:
    """What one writes the other reads, in bytes, whichever nodes the keys are on."""

    async def read() -> list[Any]:
        client = connections.open_async_client(url)
        with connections.reaching(client):
            values = [await client.get(f"topology-{i}") for i in range(20)]
        await client.aclose()
        return values

    with connections.open_client(url) as client, connections.reaching(client):
        for i in range(20):
            client.set(f"topology-{i}", i)

    assert asyncio.run(read()) == [str(i).encode() for i in range(20)]


def test_a_wrong_type_is_another_programs_key(url: str) -> None:
    """The sentence says where, and what to do; the same for both clients."""

    async def read() -> None:
        client = connections.open_async_client(url)
        try:
            with connections.reaching(client):
                await client.get("a-list")
        finally:
            await client.aclose()

    with connections.open_client(url) as client:
        client.delete("a-list")
        client.rpush("a-list", 1)
        refused = pytest.raises(StoredBytesError, match="another program writes under the same names")
        with refused, connections.reaching(client):
            client.get("a-list")
    with pytest.raises(StoredBytesError, match="another type than Tally's"):
        asyncio.run(read())


def test_a_wrong_password_is_refused_without_repeating_it(redis_secure: redis_servers.SecureServer) -> None:
    """The advice names the variable and the page; neither text nor cause shows the password."""
    refused = pytest.raises(connections.RefusedError, match=r"refuses us.*docs/redis\.md")
    client = connections.open_client(redis_secure.url("admin", "a-wrong-secret"))
    with client, refused as raised, connections.reaching(client):
        client.ping()

    assert "a-wrong-secret" not in f"{raised.value} {raised.value.__cause__}"


def test_a_server_without_our_certificate_authority_is_not_trusted(redis_secure: redis_servers.SecureServer) -> None:
    """TLS is checked unless the address says otherwise."""
    url = f"rediss://admin:{redis_secure.password}@localhost:{redis_secure.port}/0"
    client = connections.open_client(url)
    with client, pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"), connections.reaching(client):
        client.ping()


def test_a_user_without_rights_is_refused(redis_secure: redis_servers.SecureServer) -> None:
    """A command that the user may not use is named by the server's own words."""
    redis_secure.admin().acl_setuser(
        "reader", enabled=True, passwords=["+reader-secret"], commands=["+get"], keys=["*"]
    )
    client = connections.open_client(redis_secure.url("reader", "reader-secret"))
    with client, pytest.raises(connections.RefusedError, match="no permissions"), connections.reaching(client):
        client.set("a", 1)


def test_a_replica_takes_no_writes(redis_sentinels: redis_servers.SentinelServers) -> None:
    """An address that leads to a replica is told from a server that is down."""
    replica = redis_sentinels.replicas()[0]
    client = connections.open_client(replica.url())
    with client, pytest.raises(connections.ReadOnlyError, match="is a replica"), connections.reaching(client):
        client.set("a", 1)


def test_a_full_server_takes_no_writes(server: redis_servers.Server) -> None:
    """The advice is about memory."""
    with connections.open_client(server.url()) as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(connections.OutOfMemoryError, match="maxmemory"), connections.reaching(client):
                client.set("a", 1)
        finally:
            client.config_set("maxmemory", 0)


@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel", "redis+cluster"])
def test_nobody_there(scheme: str) -> None:
    """Every topology's first use says where it looked."""
    url = f"{scheme}://user:secret@127.0.0.1:1" + ("/service" if "sentinel" in scheme else "")

    def ping() -> None:
        client = connections.open_client(url)
        with connections.reaching(client):
            client.ping()

    async def ping_async() -> None:
        client = connections.open_async_client(url)
        try:
            with connections.reaching(client):
                await client.ping()
        finally:
            await client.aclose()

    expected = "Sentinel service service" if "sentinel" in scheme else "127.0.0.1:1"
    with pytest.raises(UnavailableError, match=expected) as raised:
        ping()
    assert "secret" not in str(raised.value)
    with pytest.raises(UnavailableError, match=expected) as raised:
        asyncio.run(ping_async())
    assert "secret" not in str(raised.value)


def test_a_cluster_that_misses_slots_is_down(tmp_path: Path) -> None:
    """A node that was never given slots answers, and serves nothing."""
    port, bus = free_ports(2)
    with redis_servers.standalone(tmp_path, ["cluster-enabled yes", f"cluster-port {bus}"], port) as lonely:
        client = connections.open_client(lonely.url())
        with client, pytest.raises(connections.ClusterDownError, match="no node serves"), connections.reaching(client):
            client.get("a")
