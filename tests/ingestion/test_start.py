"""A worker that starts while Redis or Kafka is away: it waits and says so, and tells apart what no waiting mends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from connections import RefusedError
from infra.local.process import free_port, free_ports
from infra.repository import plan_path
from ingestion.report import State
from ingestion.worker import run
from tally.errors import NotReadyError, UnavailableError
from tests import redis_servers
from tests.faults.broker import Broker, broker
from tests.faults.proxy import proxies
from tests.ingestion import plans
from tests.ingestion.test_kafka import DEADLINE_S, Topic, eventually, make_topic, servers
from tests.ingestion.test_metrics import fetch, samples

__all__ = ["servers"]

pytestmark = pytest.mark.apache_kafka

ROOT = Path(__file__).parents[2]
_SASL = (
    "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
    "sasl.enabled.mechanisms=PLAIN",
    (
        "listener.name.proxied.plain.sasl.jaas.config="
        'org.apache.kafka.common.security.plain.PlainLoginModule required user_worker="right";'
    ),
)
"""Clients behind the proxy must log in."""


@contextmanager
def tally_stream(topic: Topic, repo: Path, redis_url: str, metrics: int) -> Iterator[subprocess.Popen[bytes]]:
    """The command as an operator starts it; killed at the end, if it still runs."""
    plan_path(repo).parent.mkdir(parents=True)
    plan_path(repo).write_text(topic.plan.to_json())
    environment = os.environ | {"REDIS_URL": redis_url, "KAFKA_BOOTSTRAP_SERVERS": topic.config["bootstrap.servers"]}
    command = [sys.executable, "-m", "tally_cli", "stream", "--repo", str(repo), "--metrics-port", str(metrics)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def answers(port: int, path: str) -> tuple[int, str]:
    """Status and body of a page of a worker that may not serve yet."""
    try:
        return fetch(port, path)
    except OSError:
        return 0, ""


def test_redis_comes_after_the_worker(servers: str, redis: Redis, tmp_path: Path) -> None:
    """It is alive and not ready until then, and says why; then it applies what there is, and SIGTERM ends it."""
    topic = make_topic(servers, redis)
    topic.send(20)
    port, metrics = free_ports(2)
    with tally_stream(topic, tmp_path / "repo", f"redis://127.0.0.1:{port}", metrics) as process:
        eventually(lambda: f"127.0.0.1:{port}" in answers(metrics, "/ready")[1])
        assert answers(metrics, "/ready")[0] == 503
        assert answers(metrics, "/health")[0] == 200
        shown = samples(fetch(metrics, "/metrics")[1])
        assert shown["tally_stream_redis_up"] == 0
        assert shown['tally_stream_redis_errors_total{kind="UnavailableError"}'] > 0

        with redis_servers.standalone(tmp_path / "redis", port=port), Redis(port=port) as late:
            topic.redis = late
            eventually(lambda: topic.stored() == topic.expected())
            eventually(lambda: answers(metrics, "/ready")[0] == 200)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert said.count(b"Trying again") == said.count(b"Redis is back") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_worker_that_waits(servers: str, redis: Redis, tmp_path: Path, number: signal.Signals) -> None:
    """Nothing was begun, so there is nothing to finish."""
    topic, (nobody, metrics) = make_topic(servers, redis), free_ports(2)
    with tally_stream(topic, tmp_path / "repo", f"redis://127.0.0.1:{nobody}", metrics) as process:
        eventually(lambda: "REDIS_URL" in answers(metrics, "/ready")[1])
        process.send_signal(number)
        _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert b"stopped while Redis was away" in said


def test_a_redis_that_refuses_us_is_not_waited_for(servers: str, redis: Redis, tmp_path: Path) -> None:
    """A wrong password is told at once, though not repeated."""
    topic = make_topic(servers, redis)
    with redis_servers.standalone(tmp_path / "redis") as server:
        server.client().config_set("requirepass", "right")
        url = f"redis://:wrong-one@127.0.0.1:{server.port}"
        with tally_stream(topic, tmp_path / "repo", url, free_port()) as process:
            _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert b"refuses us; check the user and password in REDIS_URL" in said
    assert b"wrong-one" not in said


def test_redis_goes_between_the_first_look_and_the_start(servers: str, tmp_path: Path) -> None:
    """A run waits for the server itself; one that is to end says that it is not there."""
    port = free_port()
    with Redis(port=port, retry=None) as client:
        topic = make_topic(servers, client)
        topic.send(10)
        with pytest.raises(UnavailableError, match=f"{port}"):
            topic.run()
        state, stop = State(), threading.Event()
        with ThreadPoolExecutor(1) as pool:
            worker = pool.submit(topic.run, until_end=False, stop=stop, state=state)
            try:
                eventually(lambda: "Redis" in state.away)
                with redis_servers.standalone(tmp_path / "redis", port=port):
                    eventually(lambda: topic.stored() == topic.expected())
                    assert state.away == {}
                    stop.set()
                    assert worker.result(DEADLINE_S).consumed == 10
            finally:
                stop.set()


def test_a_missing_topic_is_not_waited_for(servers: str, redis: Redis) -> None:
    """Neither by a run that is to end nor by one that is not."""
    topic = make_topic(servers, redis)
    plan = replace(topic.plan, sources=(replace(topic.plan.sources[0], topic="no.such.topic"),))

    with pytest.raises(NotReadyError, match=r"no topic 'no\.such\.topic'"):
        run(plan, None, topic.config, redis)


def test_a_worker_without_kafka_stops_when_told(redis: Redis) -> None:
    """It waits, says for what, and is ended by a stop."""
    state, stop = State(), threading.Event()
    plan = plans.plan_of(plans.window_view())
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(run, plan, None, {"bootstrap.servers": "127.0.0.1:1"}, redis, stop=stop, state=state)
        try:
            eventually(lambda: "127.0.0.1:1" in state.away.get("Kafka", ""))
        finally:
            stop.set()
        assert worker.result(DEADLINE_S).consumed == 0


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Broker]:
    """A broker that lets nobody in through its proxy without a password."""
    with proxies(None) as (proxy,), broker(tmp_path / "kafka", proxy, _SASL) as made:
        yield made


def test_kafka_comes_after_the_worker(guarded: Broker, redis: Redis) -> None:
    """What was sent before is applied as soon as the broker is there; a wrong password is not waited for."""
    topic = make_topic(guarded.address, redis)
    topic.send(20)
    login: dict[str, Any] = {
        "bootstrap.servers": f"127.0.0.1:{guarded.proxy.port}",
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "worker",
    }
    with pytest.raises(RefusedError, match=r"Authentication failed.*check KAFKA_BOOTSTRAP_SERVERS, the security"):
        run(topic.plan, None, login | {"sasl.password": "wrong"}, redis)

    guarded.kill()
    state, stop = State(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        config = login | {"sasl.password": "right"}
        worker = pool.submit(run, topic.plan, None, config, redis, stop=stop, state=state)
        try:
            eventually(lambda: "Kafka" in state.away)
            guarded.start()
            eventually(lambda: topic.stored() == topic.expected())
            assert state.away == {}
        finally:
            stop.set()
        assert worker.result(DEADLINE_S).consumed == 20
    assert sum(state.kafka_errors.values()) > 0
