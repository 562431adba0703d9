"""Embedded Kafka: Apache Kafka as one KRaft node; where that cannot run, librdkafka's in-memory cluster."""

from __future__ import annotations

import base64
import logging
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.local import kafka_jars
from infra.local.errors import LocalServiceError
from infra.local.process import START_SECONDS, accepts, python_module, start_on_free_ports, wait_until_ready
from infra.local.service import Service, Spawn
from infra.settings import Settings

log = logging.getLogger(__name__)

PART = "kafka"
VARIABLE = "KAFKA_BOOTSTRAP_SERVERS"

IN_MEMORY = "librdkafka's in-memory cluster"
_FOREVER_MS = 2**63 - 1


def start(settings: Settings, spawn: Spawn) -> Service:
    """Start a broker on 127.0.0.1. Apache Kafka's data, below `<home>/kafka/data`, survives a restart.

    TALLY_REQUIRE_APACHE_KAFKA=1 makes it an error when only the in-memory cluster could be started.
    """
    try:
        java = kafka_jars.java()
        kafka_jars.resolve(settings.kafka_lib)
    except kafka_jars.NoApacheKafkaError as why:
        if settings.tally_require_apache_kafka:
            raise LocalServiceError(
                f"Apache Kafka is required (TALLY_REQUIRE_APACHE_KAFKA) but cannot run here: {why}, "
                "or set KAFKA_BOOTSTRAP_SERVERS."
            ) from why
        log.warning(
            "Apache Kafka cannot run here (%s): using %s, which forgets everything when it stops, keeps "
            "5 MiB per partition and has no transactions across restarts",
            why,
            IN_MEMORY,
        )
        return _start_in_memory(settings, spawn)
    return start_on_free_ports(lambda ports: _start_apache(settings, spawn, java, ports), 2)


def answers(service: Service) -> bool:
    """Whether the broker, and no stranger on its port, answers with itself as a member of the cluster."""
    if not accepts(int(service.address.rpartition(":")[2])):
        return False
    admin = AdminClient({"bootstrap.servers": service.address, "log_level": 0})
    try:
        brokers = admin.list_topics(timeout=5).brokers
    except KafkaException:
        return False
    return any(f"{broker.host}:{broker.port}" == service.address for broker in brokers.values())


def addresses(_: Settings, service: Service) -> dict[str, object]:
    """The settings that lead to the service."""
    return {"kafka_bootstrap_servers": service.address, "kafka_security_protocol": "PLAINTEXT"}


def data_paths(settings: Settings) -> list[str]:
    """What `down(wipe=True)` deletes. The jars are no data and stay."""
    return [str(settings.home / "kafka" / "data")]


def _start_apache(settings: Settings, spawn: Spawn, java: str, ports: Sequence[int]) -> Service:
    directory = settings.home / "kafka"
    directory.mkdir(parents=True, exist_ok=True)
    properties = directory / "server.properties"
    log_file = settings.home / "logs" / "kafka.log"
    implementation = f"Apache Kafka {kafka_jars.version()}"
    data = directory / "data"

    properties.write_text(_server_properties(ports[0], ports[1], data))
    classes = ("-cp", f"{settings.kafka_lib}/*", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
    if not (data / "meta.properties").exists():
        _format([java, *classes], properties)
    command = (java, "-Xmx512m", "-XX:+UseSerialGC", *classes, "kafka.Kafka", str(properties))
    process = spawn(command, log_file)
    service = Service(PART, implementation, f"127.0.0.1:{ports[0]}", process.pid, command, str(log_file))
    wait_until_ready(implementation, process, lambda: answers(service), log_file)
    return service


def _format(java: list[str], properties: Path) -> None:
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    if cluster_id.startswith("-"):
        # The tool would read it as an option.
        cluster_id = "A" + cluster_id[1:]
    command = [*java, "-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool", "format", "--standalone"]
    done = subprocess.run(
        [*command, "-t", cluster_id, "-c", str(properties)],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    if done.returncode:
        raise LocalServiceError(
            f"Apache Kafka could not format its storage for {properties} (exit code {done.returncode}): delete the "
            f"data directory beside it and try again. It said: {(done.stdout + done.stderr).strip()[-800:]}"
        )


def _server_properties(port: int, controller_port: int, data: Path) -> str:
    properties = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": data,
        "num.partitions": 4,
        "offsets.topic.num.partitions": 4,
        "offsets.topic.replication.factor": 1,
        "offsets.retention.minutes": 2**31 - 1,
        "transaction.state.log.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # Replayed events carry old times, which a retention by time would delete at once.
        "log.retention.ms": -1,
        "log.retention.bytes": -1,
        "log.message.timestamp.before.max.ms": _FOREVER_MS,
        "log.message.timestamp.after.max.ms": _FOREVER_MS,
    }
    return "".join(f"{name}={value}\n" for name, value in properties.items())


def _start_in_memory(settings: Settings, spawn: Spawn) -> Service:
    directory = settings.home / "kafka"
    directory.mkdir(parents=True, exist_ok=True)
    address_file = directory / "in_memory_address"
    address_file.unlink(missing_ok=True)
    log_file = settings.home / "logs" / "kafka.log"
    command = python_module("infra.local.kafka_in_memory", str(address_file))
    process = spawn(command, log_file)
    wait_until_ready(IN_MEMORY, process, address_file.exists, log_file)
    return Service(PART, IN_MEMORY, address_file.read_text(), process.pid, command, str(log_file))
