"""An Apache Kafka of its own that can be killed and started again, with a second listener behind a proxy."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

from infra.local import kafka, kafka_jars
from infra.local.ephemeral import watched
from infra.local.process import free_ports, kill, wait_until_ready
from infra.local.service import Service, Spawn
from infra.settings import Settings
from tests.faults.proxy import Proxy


@dataclass
class Broker:
    """One node, broker and controller; `address` is its own listener, clients of `proxy` are sent back to the proxy."""

    address: str
    proxy: Proxy
    command: tuple[str, ...]
    log_file: Path
    spawn: Spawn
    process: Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = self.spawn(self.command, self.log_file)
        service = Service("kafka", "Apache Kafka", self.address, self.process.pid, self.command, str(self.log_file))
        wait_until_ready("Apache Kafka", self.process, lambda: kafka.answers(service), self.log_file)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        kill(self.process)

    def freeze(self) -> None:
        """Stop it in its tracks; its connections stay open and silent."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.process.pid, signal.SIGCONT)


@contextmanager
def broker(directory: Path, proxy: Proxy, lines: Sequence[str] = ()) -> Iterator[Broker]:
    """A broker that takes sessions as short as the tests want them, and forgets nothing; with more lines of configuration."""
    directory.mkdir(parents=True)
    port, controller, behind_proxy = free_ports(3)
    proxy.target = behind_proxy
    lib, properties = Settings().kafka_lib, directory / "server.properties"
    kafka_jars.resolve(lib)
    inner, outer = f"PROXIED://127.0.0.1:{behind_proxy}", f"PROXIED://127.0.0.1:{proxy.port}"
    text = kafka._server_properties(port, controller, directory / "data")
    text = text.replace("\nlisteners=", f"\nlisteners={inner},").replace(
        "\nadvertised.listeners=", f"\nadvertised.listeners={outer},"
    )
    text = text.replace("PLAINTEXT:PLAINTEXT,", "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,")
    properties.write_text("\n".join([text, "group.min.session.timeout.ms=500", *lines, ""]))
    java = kafka_jars.java()
    classes = ("-cp", f"{lib}/*", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
    kafka._format([java, *classes], properties)
    command = (
        java,
        "-Xmx400m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        *classes,
        "kafka.Kafka",
        str(properties),
    )
    with watched() as spawn:
        yield Broker(f"127.0.0.1:{port}", proxy, command, directory / "log", spawn)
