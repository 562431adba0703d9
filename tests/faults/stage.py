"""Real workers on a real Kafka and a real Redis, and the hand that hurts them.

Everything random comes from one seed. `Stage.log` tells what was done, in order; it is printed when a test fails.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from redis.exceptions import RedisError

import connections
from connections import Client
from infra.repository import plan_path
from ingestion import redis_store
from ingestion.progress import progress
from serving_client import FeatureClient
from tally.errors import UnavailableError
from tally.layout import fences_of
from tally.plan import View
from tally.time import SECOND
from tests import oracle
from tests.faults import truth
from tests.faults.broker import Broker
from tests.faults.proxy import Proxy
from tests.faults.truth import PARTITIONS, PLACES, Events, Truth
from tests.ingestion import streams

DEADLINE_S = 120.0
SESSION_MS = 1500
KEYS = 60
_ROOT = Path(__file__).resolve().parents[2]
_numbers = count()


def eventually(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait until a condition holds; a server that is away means not yet."""
    give_up = time.monotonic() + deadline_s
    while True:
        with suppress(OSError, UnavailableError, RedisError):
            if condition():
                return
        assert time.monotonic() < give_up, f"{what}: not within {deadline_s:.0f} s"
        time.sleep(0.002)


@dataclass
class WorkerProcess:
    """One `tally stream`."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    is_frozen: bool = False

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop it in its tracks."""
        self.process.send_signal(signal.SIGSTOP)
        self.is_frozen = True

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)
        self.is_frozen = False

    def leave(self) -> None:
        """Ask it to finish and leave, and wait until it has."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(DEADLINE_S)

    def reads(self) -> bool:
        """Whether it has got partitions since it started."""
        return " reading " in self.text()

    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text(errors="replace")

    def reported(self) -> dict[str, dict[str, int]]:
        """View -> messages, applied, duplicates, too late and refused, as it said when it left."""
        names = ("messages", "applied", "duplicates", "too late", "refused")
        found = {}
        for view in PLACES:
            rows = re.findall(rf"^\W*{view}\W((?:\W*[\d,]+){{5}})\W*$", self.text(), re.MULTILINE)
            for row in rows:
                numbers = [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", row)]
                found[view] = dict(zip(names, numbers, strict=True))
        return found


@dataclass
class Stage:
    """A topic of its own with three views, its workers, and the truth about it."""

    directory: Path
    broker: Broker
    redis_url: str
    """How the workers reach Redis; maybe through a proxy."""
    redis: Client
    to_redis: Proxy
    to_kafka: Proxy
    seed: int
    truth: Truth
    random: Random
    events: Events
    producer: Producer
    client_url: str
    """How a client reaches Redis, past the proxy."""
    patience_s: int = 60
    """How long a worker waits for an answer of Redis: long, for one that it gave up may have been applied."""
    workers: list[WorkerProcess] = field(default_factory=list)
    gone: list[WorkerProcess] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    torn: int = 0

    @property
    def project(self) -> str:
        """Project, topic and consumer group are this test's own."""
        return self.truth.plan.project

    @property
    def topic(self) -> str:
        """The topic of all views."""
        return self.truth.plan.sources[0].topic

    def note(self, kind: str, text: str = "") -> None:
        """Remember what was done, and how often."""
        self.done[kind] += 1
        self.log.append(f"{len(self.log):4} {kind} {text}")

    # Events

    def send(self, number: int) -> None:
        """So many messages, and wait until Kafka has them all."""
        failures: list[str] = []

        def delivered(sent: truth.Sent) -> Callable[[KafkaError | None, Message], None]:
            def known(error: KafkaError | None, message: Message) -> None:
                if error is not None:
                    failures.append(error.str())
                    return
                partition, offset = message.partition(), message.offset()
                assert partition is not None
                assert offset is not None
                self.truth.add(partition, offset, sent)

            return known

        for _ in range(number):
            sent = next(self.events)
            partition = self.random.randrange(PARTITIONS)
            self.producer.produce(self.topic, sent.value, b"k", partition, on_delivery=delivered(sent))
            self.producer.poll(0)
        left = self.producer.flush(DEADLINE_S)
        assert not failures, failures[0]
        assert left == 0, f"{left} messages were not taken by Kafka"

    # Workers

    def start(self, number: int = 1) -> None:
        """So many workers more."""
        for _ in range(number):
            name = f"w{len(self.workers) + len(self.gone)}"
            output = self.directory / f"{name}.log"
            settings = {
                "REDIS_URL": f"{self.redis_url}?socket_timeout={self.patience_s}",
                "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{self.to_kafka.port}",
                "KAFKA_SESSION_TIMEOUT_MS": str(SESSION_MS),
                "TALLY_HOME": str(self.directory / "home"),
                "COLUMNS": "200",
                "PYTHONUNBUFFERED": "1",
            }
            with output.open("wb") as to:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tally_cli", "stream", "--repo", str(self.directory / "repo")],
                    cwd=_ROOT, env=os.environ | settings, stdout=to, stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            self.workers.append(WorkerProcess(name, process, output))
            self.note("start", name)

    def keep(self, number: int) -> None:
        """Start workers until so many are running, and wait until they have joined the group."""
        self.start(number - len([worker for worker in self.workers if not worker.is_frozen]))
        self.wait_until_all_read()

    def any_worker(self) -> WorkerProcess:
        """One of those that are running."""
        return self.random.choice([worker for worker in self.workers if not worker.is_frozen])

    def remove(self, worker: WorkerProcess) -> None:
        """It has ended, or is about to."""
        self.workers.remove(worker)
        self.gone.append(worker)

    def kill(self, worker: WorkerProcess) -> None:
        """`kill -9`. Counts how often Redis then held a part of a batch."""
        worker.kill()
        self.remove(worker)
        with suppress(UnavailableError):
            self.torn += self.holds_part_of_a_batch()
        self.note("kill", f"{worker.name} at {self.to_redis.passed} bytes to Redis")

    def leave(self, worker: WorkerProcess) -> None:
        """SIGTERM."""
        worker.leave()
        self.remove(worker)
        assert worker.process.returncode == 0, f"{worker.name} left with {worker.process.returncode}:\n{worker.text()}"
        self.note("leave", worker.name)

    def freeze(self, worker: WorkerProcess) -> None:
        """SIGSTOP."""
        worker.freeze()
        self.note("freeze", f"{worker.name} at {self.to_redis.passed} bytes to Redis")

    def thaw(self, worker: WorkerProcess) -> None:
        """SIGCONT."""
        worker.thaw()
        self.note("thaw", worker.name)

    def cut(self, proxy: Proxy, most_bytes: int) -> None:
        """Cut all connections within the next bytes, at the latest when there is nothing to do."""
        number = self.random.randrange(most_bytes)
        proxy.cut_after(number)
        eventually(lambda: not proxy.is_about_to_cut or self.is_drained(), f"{number} bytes to pass")
        proxy.cut()
        self.note("cut to " + ("Redis" if proxy is self.to_redis else "Kafka"), f"after {number} bytes")

    def silence(self, proxy: Proxy) -> None:
        """Swallow everything until somebody gives up and connects again."""
        proxy.fall_silent()
        heard = proxy.accepted
        eventually(lambda: proxy.accepted > heard or self.is_drained(), "somebody to connect again")
        proxy.speak()
        self.note("silence")

    def check_workers(self) -> None:
        """None has ended by itself."""
        for worker in self.workers:
            assert worker.is_alive, f"{worker.name} ended with {worker.process.returncode}:\n{worker.text()[-3000:]}"

    def wait_until_all_read(self) -> None:
        """Every worker that is not frozen has joined the group."""

        def all_joined() -> bool:
            self.check_workers()
            return all(worker.is_frozen or worker.reads() for worker in self.workers[:PARTITIONS])

        eventually(all_joined, "workers join the group")

    # Moments

    def somewhere(self, most_bytes: int) -> None:
        """Wait until a random number of bytes more has passed between workers and Redis, or there is nothing to do."""
        self.until_passed(self.random.randrange(most_bytes))

    def until_passed(self, number: int) -> None:
        """Wait until so many bytes more have passed between workers and Redis, or there is nothing to do."""
        goal = self.to_redis.passed + number
        eventually(lambda: self.to_redis.passed >= goal or self.is_drained(), f"{number} bytes to pass")

    def positions(self) -> dict[str, dict[int, int]]:
        """View -> partition -> progress."""
        found: dict[str, dict[int, int]] = {}
        for view in self.truth.plan.views:
            reached = progress(self.redis, self.project, view)
            found[view.name] = {partition: offset for (_, partition), offset in reached.items()}
        return found

    def is_drained(self) -> bool:
        """Whether every message's effects are in Redis, as far as the progress says."""
        ends = dict(self.truth.ends)
        return all(
            {p: offset for p, offset in of_view.items() if offset} == ends for of_view in self.positions().values()
        )

    def holds_part_of_a_batch(self) -> bool:
        """Whether some fence lies beyond the progress of its partition."""
        for view in self.truth.plan.views:
            if view.kind == "latest":
                continue
            stored = self.stored(view)
            reached = {p: offset for (_, p), offset in progress(self.redis, self.project, view).items()}
            for value in stored.values():
                if any(offset >= reached.get(partition, 0) for partition, offset in fences_of(value).items()):
                    return True
        return False

    # What must hold

    def drain(self) -> None:
        """Wait until every message's effects are in Redis."""

        def drained() -> bool:
            self.check_workers()
            return self.is_drained()

        eventually(drained, f"all messages applied; ends {dict(self.truth.ends)}, progress {self.positions()}")

    def stored(self, view: View) -> dict[bytes, bytes]:
        """Entity -> value, of all that Redis has of a view."""
        prefix = view.prefix(self.project)
        keys = [key for key in self.redis.scan_iter(prefix + b"*", count=1000)]  # noqa: C416
        values: list[Any] = (
            [self.redis.get(key) for key in keys]
            if not hasattr(self.redis, "mget_nonatomic")
            else list(self.redis.mget_nonatomic(keys))
        )
        return {k.removeprefix(prefix): value for k, value in zip(keys, values, strict=True) if value is not None}

    def check(self) -> None:
        """Every key of every view equals the oracle: its bytes, and what a client reads. Every dead letter is there."""
        self.truth.forget()
        self._check_bytes()
        self._check_features()
        self._check_letters()

    def _check_bytes(self) -> None:
        for view in self.truth.plan.views:
            if view.kind == "latest":
                continue
            found, expected = self.stored(view), self.truth.values(view)
            assert found.keys() == expected.keys(), f"{view.name}: {found.keys() ^ expected.keys()}"
            for entity, value in found.items():
                assert fences_of(value) == fences_of(expected[entity]), f"{view.name}/{entity!r}: fences"
                assert value == expected[entity], streams.difference(view, entity, value, expected[entity])

    def _check_features(self) -> None:
        whos = sorted({who for view in ("cells", "last") for who in self.truth.kept.get(view, {})})
        rows = [{"who": who, "i": number % 19} for number, who in enumerate(whos)]
        newest = self.truth.newest()
        with FeatureClient.connect(self.client_url, project=self.project, service="all", timeout=60) as client:
            for as_of in (newest, newest + self.random.randrange(900 * SECOND)):
                found = client.get(rows, as_of).to_dict()
                for position, row in enumerate(rows):
                    for name, wanted in self.truth.features(row, as_of).items():
                        got = found[name][position]
                        assert oracle.same(got, wanted), f"{row} {name}: {got!r} is served, {wanted!r} is true"
                        self.compared += 1

    def _check_letters(self) -> None:
        letters = self.letters()
        missing = {f"{p}/{o} of {view or 'all'}" for p, o, view in self.truth.refused - letters.keys()}
        extra = {f"{p}/{o} of {view or 'all'}" for p, o, view in letters.keys() - self.truth.refused}
        assert not missing, f"no dead letter of {sorted(missing)[:5]}"
        assert not extra, f"dead letters of good messages: {sorted(extra)[:5]}"
        for view in PLACES:
            refused = {(p, o) for p, o, of in letters if of in ("", view)}
            assert self.truth.accepted[view] + len(refused) == self.truth.produced, f"{view}: messages unaccounted for"

    def letters(self) -> Counter[tuple[int, int, str]]:
        """(partition, offset, view) of each dead letter, and how often it is there."""
        name = self.topic + ".dlq"
        consumer = Consumer(
            {"bootstrap.servers": self.broker.address, "group.id": "reader", "enable.auto.commit": False}
        )
        found: Counter[tuple[int, int, str]] = Counter()
        try:
            topics = consumer.list_topics(timeout=DEADLINE_S).topics
            for partition in topics[name].partitions if name in topics else ():
                place = TopicPartition(name, partition, 0)
                _, high = consumer.get_watermark_offsets(place, timeout=DEADLINE_S)
                consumer.assign([place])
                taken = 0
                while taken < high:
                    message = consumer.poll(DEADLINE_S)
                    assert message is not None
                    assert message.error() is None
                    taken = (message.offset() or 0) + 1
                    headers: Any = dict(message.headers() or [])
                    at = int(headers["tally-partition"]), int(headers["tally-offset"])
                    found[(*at, headers["tally-view"].decode())] += 1
        finally:
            consumer.close()
        return found

    def check_reports(self, *, all_left: bool) -> None:
        """No event was applied twice: by the workers' own counts, of those that lived to tell.

        With `all_left` none of them died and no answer was lost, and each event was applied exactly once.
        """
        applied: Counter[str] = Counter()
        for worker in self.gone:
            for view, counts in worker.reported().items():
                ways = counts["applied"] + counts["duplicates"] + counts["too late"] + counts["refused"]
                assert ways == counts["messages"], f"{worker.name} {view}: {counts}"
                applied[view] += counts["applied"] + counts["too late"]
        for view in ("cells", "by_number"):
            assert applied[view] <= self.truth.accepted[view], f"{view}: {applied[view]} were applied"
            if all_left:
                assert applied[view] == self.truth.accepted[view], f"{view}: {applied[view]} were applied"

    def story(self) -> str:
        """The seed, the schedule and the workers' last words."""
        lines = [f"seed {self.seed}; to repeat: --seed {self.seed}", *self.log]
        for worker in self.workers + self.gone[-4:]:
            lines += [f"--- {worker.name}", worker.text()[-1500:]]
        return "\n".join(lines)

    def summary(self) -> Mapping[str, int]:
        """Figures of the run."""
        letters = self.letters()
        return {
            "events": self.truth.produced,
            "late": self.truth.late,
            "refused": len(self.truth.refused),
            "letters": letters.total(),
            "values compared": self.compared,
            "kills in mid-batch": self.torn,
            **dict(sorted(self.done.items())),
        }


@contextmanager
def stage(
    directory: Path, broker: Broker, to_redis: Proxy, worker_url: str, own_url: str, seed: int, keys: int = KEYS
) -> Iterator[Stage]:
    """A new topic and project on these servers. Its workers are gone when the block ends."""
    number = next(_numbers)
    topic, random = f"faults-{number}", Random(seed)
    admin = AdminClient({"bootstrap.servers": broker.address})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(DEADLINE_S)
    plan = truth.plan_of(f"project-{number}", topic)
    path = plan_path(directory / "repo")
    path.parent.mkdir(parents=True)
    path.write_text(plan.to_json())
    redis = connections.open_client(own_url)
    redis_store.publish_plan(redis, plan)
    producer = Producer({"bootstrap.servers": broker.address, "enable.idempotence": True, "linger.ms": 1})
    made = Stage(
        directory, broker, worker_url, redis, to_redis, broker.proxy, seed,
        Truth(plan), random, Events(random, keys), producer, own_url,
    )  # fmt: skip
    try:
        yield made
    finally:
        print(made.story())
        for worker in made.workers:
            worker.kill()
        to_redis.heal()
        broker.proxy.heal()
        redis.close()
        print(json.dumps(made.summary() if broker.process.poll() is None else made.done))
