"""`up`, `down` and `status`: started once, found again, gone afterwards, data kept, strangers untouched."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from confluent_kafka import Consumer, Producer, TopicPartition

from infra import local
from infra.local import kafka_jars, process
from infra.local.snowflake_load import connected
from infra.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """A home of its own with nothing set; whatever was started is stopped at the end."""
    found = Settings(
        tally_home=tmp_path / "home",
        tally_kafka_lib=Settings().kafka_lib,
        redis_url="",
        kafka_bootstrap_servers="",
        snowflake_account="",
    )
    yield found
    local.down(found)


def _client(settings: Settings) -> redis.Redis:
    return redis.Redis.from_url(settings.redis_url)


def test_a_second_up_finds_the_first(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Same processes, and the log says once that one was started, and once that it was found."""
    caplog.set_level(logging.INFO)
    first = local.up(settings, only=["redis"])
    second = local.up(settings, only=["redis"])
    assert first == second
    assert f"REDIS_URL is not set: started embedded {first.implementations['redis']} at redis://127." in caplog.text
    assert caplog.text.count("using embedded") == 1
    local.up(settings, only=["redis"])
    assert caplog.text.count("using embedded") == 1


def test_two_ups_at_once_start_one_server(settings: Settings) -> None:
    """The lock lets one start what the other then finds."""
    found: list[dict[str, int]] = []
    threads = [threading.Thread(target=lambda: found.append(local.up(settings, only=["redis"]).pids)) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]


def test_a_variable_that_is_set_wins(settings: Settings) -> None:
    """Your own service is used as it is, and nothing is started or written."""
    yours = settings.model_copy(update={"redis_url": "redis://example.invalid:1/0"})
    assert local.ensure(yours, "redis") == yours
    assert local.status(yours)[0].state == "external"
    assert not yours.home.exists()


def test_an_unknown_part_is_refused(settings: Settings) -> None:
    """The error names the choices."""
    with pytest.raises(local.LocalServiceError, match="no embedded service 'mongo': choose from redis, kafka"):
        local.ensure(settings, "mongo")


def test_a_taken_port_is_no_problem(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger that takes the port first costs another attempt, no error."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        free = process.free_ports
        offered = [[stranger.getsockname()[1]]]
        monkeypatch.setattr(process, "free_ports", lambda count: offered.pop() if offered else free(count))
        assert _client(local.ensure(settings, "redis")).ping()
        assert not offered


def test_a_server_that_cannot_start_says_where_to_look(settings: Settings) -> None:
    """The error carries the path and the end of the log."""
    directory = settings.home / "redis" / "appendonlydir"
    directory.mkdir(parents=True)
    (directory / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(local.LocalServiceError, match=r"before it answered; see its log .*redis\.log, which ends:\n.+"):
        local.up(settings, only=["redis"])
    assert local.status(settings)[0].state == "stopped"


@pytest.mark.parametrize(
    ("change", "kept"),
    [({}, False), ({"snowflake_account": "ours"}, True), ({"tally_offline_uri": "{home}/offline"}, True)],
)
def test_a_wipe_takes_the_copy_of_what_it_wipes(settings: Settings, change: dict[str, str], *, kept: bool) -> None:
    """The offline store goes with the emulator's tables that are in it; a copy of a real warehouse, or elsewhere, stays."""
    offline = settings.home / "offline"
    offline.mkdir(parents=True)
    local.down(settings.model_copy(update={k: v.format(home=settings.home) for k, v in change.items()}), wipe=True)

    assert offline.exists() == kept


def test_a_server_that_hangs_is_replaced(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alive is not enough: a process that does not answer is ended before another opens its data."""
    first = local.up(settings, only=["redis"]).pids["redis"]
    psutil.Process(first).send_signal(signal.SIGSTOP)
    assert local.status(settings)[0].state == "silent"
    # A stopped process does not act on SIGTERM; it must be gone all the same before another opens its data.
    monkeypatch.setattr(process, "_GRACE_S", 0.2)
    second = local.up(settings, only=["redis"]).pids["redis"]
    assert second != first
    assert not psutil.pid_exists(first)


def test_down_ends_every_process_and_up_brings_the_data_back(settings: Settings) -> None:
    """Data of all three parts outlive their processes, until `wipe`."""
    filled = local.ensure(settings)
    _client(filled).set("key", "value")
    _client(filled).function_load("#!lua name=mine\nredis.register_function('mine', function() return 7 end)")
    with connected(filled) as connection:
        connection.cursor().execute("CREATE TABLE KEPT (A NUMBER(38,0))")
        connection.cursor().execute("INSERT INTO KEPT VALUES (1152921504606846977)")
    producer = Producer(filled.kafka_config())
    producer.produce("kept", b"old", partition=0, timestamp=1_357_000_000_000)
    assert producer.flush(30) == 0
    pids = local.up(settings).pids

    assert sorted(service.part for service in local.down(settings)) == ["kafka", "redis", "snowflake"]
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
    assert [part.state for part in local.status(settings)] == ["stopped"] * 3
    assert local.down(settings) == []

    again = local.ensure(settings)
    assert _client(again).get("key") == b"value"
    assert _client(again).fcall("mine", 0) == 7
    with connected(again) as connection:
        assert connection.cursor().execute("SELECT A FROM KEPT").fetchall() == [(2**60 + 1,)]
    if local.up(settings).implementations["kafka"].startswith("Apache"):
        consumer = Consumer(again.kafka_config() | {"group.id": "g"})
        consumer.assign([TopicPartition("kept", 0, 0)])
        (message,) = consumer.consume(1, timeout=120)
        assert (message.value(), message.timestamp()[1]) == (b"old", 1_357_000_000_000)
        consumer.close()

    local.down(settings, wipe=True)
    assert not (settings.home / "redis").exists()
    assert not (settings.home / "snowflake").exists()
    assert not (settings.home / "kafka" / "data").exists()


def test_a_recycled_pid_is_never_killed(settings: Settings) -> None:
    """A recorded pid with another command line belongs to a stranger."""
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        local.up(settings, only=["redis"])
        local.down(settings)
        record = settings.home / "services.json"
        record.write_text(
            json.dumps(
                {
                    "redis": {
                        "part": "redis",
                        "implementation": "Valkey 9.1",
                        "address": "redis://127.0.0.1:1/0",
                        "pid": stranger.pid,
                        "command": ["valkey-server", str(settings.home / "redis" / "redis.conf")],
                        "log": "",
                    }
                }
            )
        )
        assert local.status(settings)[0].state == "stopped"
        assert local.down(settings) == []
        assert local.up(settings, only=["redis"]).pids["redis"] != stranger.pid
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()


def test_services_for_one_session_die_with_their_parent(
    tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """Even when the parent is killed and can clean up nothing."""
    script = (
        "import sys, pathlib, redis, infra.local\n"
        f"with infra.local.embedded(pathlib.Path({str(tmp_path)!r}), ['redis']) as s:\n"
        "    print(redis.Redis.from_url(s.redis_url).info('server')['process_id'], flush=True)\n"
        "    sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(local.__file__).parents[2],
    )
    assert parent.stdout is not None
    server = int(parent.stdout.readline())
    assert psutil.pid_exists(server)
    parent.kill()
    parent.communicate()
    eventually(lambda: not psutil.pid_exists(server) or psutil.Process(server).status() == psutil.STATUS_ZOMBIE)


def test_services_for_one_session_end_with_their_block(tmp_path: Path) -> None:
    """Also when the block ends with an exception."""
    servers = []

    def fail() -> None:
        with local.embedded(tmp_path, ["redis"]) as settings:
            servers.append(int(_client(settings).info("server")["process_id"]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not psutil.pid_exists(servers[0])


def test_without_java_kafka_runs_in_memory_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what is missing and what is used instead."""
    monkeypatch.delenv("TALLY_REQUIRE_APACHE_KAFKA", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with local.embedded(tmp_path / "home", ["kafka"]) as settings:
        producer = Producer(settings.kafka_config())
        producer.produce("topic", b"value")
        assert producer.flush(30) == 0
    assert "Apache Kafka cannot run here (there is no java on PATH" in caplog.text
    assert "librdkafka's in-memory cluster" in caplog.text


MAVEN = """#!/bin/sh
echo ran >> {folder}/runs
while [ ! -e {folder}/go ]; do sleep 0.02; done
for argument; do case $argument in -DoutputDirectory=*) mkdir -p "${{argument#*=}}" && cp {folder}/jar "${{argument#*=}}/kafka_2.13-{version}.jar";; esac; done
"""


def test_of_two_processes_one_fetches_kafka_s_jars(
    tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """The other waits for them: a second fetch would take the jars away from below the broker of the first."""
    (tmp_path / "jar").write_text("classes")
    maven, runs = tmp_path / "mvn", tmp_path / "runs"
    maven.write_text(MAVEN.format(folder=tmp_path, version=kafka_jars.version()))
    maven.chmod(0o755)
    lib = tmp_path / "home" / "kafka" / "lib"
    script = (
        "from pathlib import Path; from infra.local import kafka_jars; print('began', flush=True); "
        f"kafka_jars.resolve(Path({str(lib)!r}))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            cwd=Path(local.__file__).parents[2],
            env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )
        for _ in "ab"
    ]
    for one in both:
        assert one.stdout is not None
        assert one.stdout.readline() == b"began\n"
    eventually(runs.exists)
    (tmp_path / "go").touch()
    for one in both:
        one.communicate()
    assert [one.returncode for one in both] == [0, 0]
    assert runs.read_text() == "ran\n"
    assert [jar.read_text() for jar in lib.iterdir()] == ["classes"]


def test_a_place_for_kafka_s_jars_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, with the variable that names another."""
    (tmp_path / "mvn").write_text("")
    (tmp_path / "mvn").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(local.LocalServiceError, match=rf"{tmp_path}/mvn/kafka/lib .*TALLY_KAFKA_LIB"):
        kafka_jars.resolve(tmp_path / "mvn" / "kafka" / "lib")


def test_apache_kafka_can_be_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the in-memory cluster is no answer."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TALLY_REQUIRE_APACHE_KAFKA", "1")
    with (
        pytest.raises(local.LocalServiceError, match=r"required .* there is no java"),
        local.embedded(tmp_path, ["kafka"]),
    ):
        pass
