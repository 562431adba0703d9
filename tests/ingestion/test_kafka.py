"""A worker against a real Kafka and a real Redis: restarts, kills, rebalances, poison, and what it says."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, ConsumerGroupState, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from redis import Redis

from infra.local import embedded
from ingestion import kafka, redis_store
from ingestion.kafka import GroupConsumer
from ingestion.progress import advance_progress, progress
from ingestion.report import Place, Progress, State, Summary
from ingestion.worker import _Worker, run, stream_views
from tally.errors import DefinitionError, NotReadyError, UnavailableError
from tally.plan import Field, Plan, View, hashed_view
from tally.time import SECOND, to_datetime
from tests.ingestion import plans, streams

pytestmark = pytest.mark.apache_kafka  # topics of two partitions are created, offsets of groups are moved

DEADLINE_S = 120.0
_numbers = count()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a broker that lives as long as this file's tests."""
    with embedded(tmp_path_factory.mktemp("kafka"), ("kafka",)) as settings:
        yield settings.kafka_bootstrap_servers


@dataclass
class Topic:
    """A topic of two partitions of its own, the plan that reads it, and what was sent so far."""

    name: str
    plan: Plan
    config: dict[str, Any]
    redis: Redis
    sent: list[streams.Message]

    @property
    def view(self) -> View:
        """The windowed view of the topic."""
        return self.plan.views[0]

    def send(self, number: int, partitions: Sequence[int] = (0, 1)) -> None:
        """Send so many good messages; they differ from all before."""
        producer = in_order(self.config["bootstrap.servers"])
        offsets = Counter(message.partition for message in self.sent)
        for _ in range(number):
            serial = len(self.sent)
            partition = partitions[serial % len(partitions)]
            at = 1_357_000_000 * SECOND + serial * SECOND // 4 + (serial * 7919 % 60) * SECOND
            fields = {"at": at, "who": "abc"[serial % 3], "f": serial / 7, "i": serial % 11 or None, "wide": -serial}
            fields |= {"text": "zürich"[: serial % 7], "raw": None}
            self.sent.append(streams.Message(partition, offsets[partition], fields))
            offsets[partition] += 1
            value = json.dumps(fields | {"at": to_datetime(at).isoformat()})
            producer.produce(self.name, value, partition=partition)
            producer.poll(0)
        assert producer.flush(DEADLINE_S) == 0

    def run(self, **options: Any) -> Summary:
        """Run until the end, unless `options` say otherwise."""
        return run(self.plan, None, self.config, self.redis, **({"until_end": True} | options))

    def stored(self) -> dict[bytes, bytes | None]:
        """Entity -> tiles, of all entities of the windowed view."""
        prefix = self.view.prefix(self.plan.project)
        return {key.removeprefix(prefix): self.redis.get(key) for key in self.redis.scan_iter(prefix + b"*")}  # type: ignore[misc]

    def expected(self) -> dict[bytes, bytes]:
        """What all messages sent must leave, each counted once."""
        return streams.expected_values(self.view, self.sent)

    def committed(self) -> list[int]:
        """The group's offset of each partition; negative where there is none."""
        consumer = Consumer({**self.config, "group.id": f"tally-{self.plan.project}"})
        places = consumer.committed([TopicPartition(self.name, 0), TopicPartition(self.name, 1)], timeout=DEADLINE_S)
        consumer.close()
        return [place.offset for place in places]

    def commit(self, offset: int) -> None:
        """Set the group back, as an operator would."""
        consumer = Consumer({**self.config, "group.id": f"tally-{self.plan.project}"})
        places = [TopicPartition(self.name, partition, offset) for partition in (0, 1)]
        consumer.commit(offsets=places, asynchronous=False)
        consumer.close()


def in_order(servers: str) -> Producer:
    """A producer whose messages get the offsets of their order: what others send again comes behind what was sent after it."""
    return Producer({"bootstrap.servers": servers, "enable.idempotence": True})


@pytest.fixture
def topic(servers: str, redis: Redis) -> Topic:
    """A new topic with a windowed view, and Redis empty."""
    return make_topic(servers, redis)


def make_topic(servers: str, redis: Redis, *more: View) -> Topic:
    """A new topic that the windowed view reads, and `more` views."""
    config = {"bootstrap.servers": servers, "session.timeout.ms": 6000}
    name = f"events-{next(_numbers)}"
    admin = AdminClient(config)
    admin.create_topics([NewTopic(name, 2, 1)])[name].result(DEADLINE_S)
    source = replace(streams.SOURCE, topic=name)
    views = tuple(hashed_view(view, source) for view in (streams.view_with_every_cell(texts=True), *more))
    return Topic(name, Plan(f"project-{name}", (source,), views, (), ()), config, redis, [])


def latest_by_number(name: str = "by_number") -> View:
    """The last message of each number: refuses messages without one, which the windowed view takes."""
    view = streams.view_with_every_cell(texts=True)
    return replace(
        view, name=name, kind="latest", keys=(Field("i", "Int64"),), fields=(Field("f", "Float64"),), aggregations=()
    )


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; fail if it never does."""
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, "the condition never came true"
        time.sleep(0.005)


def read_all(servers: str, name: str) -> list[Message]:
    """Every message of a topic of one partition."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "reader", "enable.auto.commit": False})
    consumer.assign([TopicPartition(name, 0, 0)])
    _, high = consumer.get_watermark_offsets(TopicPartition(name, 0), timeout=DEADLINE_S)
    messages: list[Message] = consumer.consume(high, DEADLINE_S)
    consumer.close()
    return messages


def test_messages_read_twice_count_once(topic: Topic) -> None:
    """After the group is set back to the beginning, what was applied before is a duplicate and the rest is new."""
    topic.send(300)
    first = topic.run()
    topic.commit(0)
    topic.send(100)

    second = topic.run()

    assert (first.views["cells"].applied, first.topics[topic.name].consumed) == (300, 300)
    assert (second.views["cells"].applied, second.views["cells"].duplicate) == (100, 300)
    assert topic.stored() == topic.expected()
    assert topic.committed() == [200, 200]
    assert progress(topic.redis, topic.plan.project, topic.view) == {
        (topic.name, 0): 200,
        (topic.name, 1): 200,
    }
    assert topic.run().consumed == 0
    assert redis_store.view_mark(topic.redis, topic.plan.project, topic.view) == {"by": "stream", "topic": topic.name}


def test_a_worker_killed_in_mid_run_leaves_nothing_lost_or_doubled(topic: Topic, redis_url: str) -> None:
    """Another worker of the group finishes: the bytes are those of one pass."""
    topic.send(20_000)
    script = Path(__file__).with_name("stream_worker.py")
    root = script.parents[2]
    with subprocess.Popen(
        [sys.executable, script, topic.plan.to_json(), topic.config["bootstrap.servers"], redis_url],
        cwd=root, env={"PYTHONPATH": str(root)},
    ) as worker:  # fmt: skip
        try:
            eventually(lambda: any(progress(topic.redis, topic.plan.project, topic.view).values()))
        finally:
            worker.kill()
    done = sum(progress(topic.redis, topic.plan.project, topic.view).values())
    assert 0 < done < 20_000

    summary = topic.run()

    counts = summary.views["cells"]
    assert counts.applied + counts.duplicate + counts.too_late == summary.consumed >= 20_000 - done
    assert topic.stored() == topic.expected()


def test_workers_share_a_topic(topic: Topic, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers of one group, the second joining in mid-run: each event counts once."""
    monkeypatch.setattr(kafka, "MAX_BATCH", 50)
    topic.send(3_000)
    started = threading.Event()

    def work(on_batch: Callable[[Progress], None]) -> Summary:
        with Redis.from_url(redis_url) as own:
            return run(topic.plan, None, topic.config, own, until_end=True, on_batch=on_batch)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(work, lambda _: started.set())
        assert started.wait(DEADLINE_S)
        second = pool.submit(work, lambda _: None)
        applied = sum(worker.result(DEADLINE_S).views["cells"].applied for worker in (first, second))

    assert applied == 3_000
    assert topic.stored() == topic.expected()


def test_a_worker_that_joins_takes_only_its_share(
    topic: Topic, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rebalancing is cooperative: the first worker goes on with the partition that it keeps, and is given it once."""
    caplog.set_level(logging.INFO, "ingestion.assignment")
    with running(topic), Redis.from_url(redis_url) as own:
        stop, seen = threading.Event(), list[Progress]()
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(run, topic.plan, None, topic.config, own, stop=stop, on_batch=seen.append)
            try:
                eventually(lambda: caplog.text.count("reading events") >= 2)
                topic.send(10)
                eventually(lambda: topic.stored() == topic.expected())
                eventually(lambda: sum(progress.batch for progress in seen) == 5)
            finally:
                stop.set()
        assert second.result().views["cells"].applied == 5
    given = [record.getMessage() for record in caplog.records if record.getMessage().startswith("reading ")]
    assert [message.count(" from ") for message in given[:2]] == [2, 1]


def test_bad_messages_go_to_the_dead_letters(servers: str, redis: Redis) -> None:
    """With key, bytes, headers and where, why and for which view; what is good for another view still counts there."""
    topic = make_topic(servers, redis, latest_by_number())
    topic.send(11, partitions=(0,))  # the first one has no number, which only the latest view needs
    producer = in_order(servers)
    producer.produce(topic.name, b"{oops", b"k\xff", partition=1, headers=[("trace", b"7"), ("trace", None)])
    producer.produce(topic.name, None, b"gone", partition=1)
    producer.produce(topic.name, b'{"at": "2013-01-01T00:00:00Z", "f": 1, "i": 5}', partition=1)
    producer.produce(topic.name, b'{"at": "2013-01-01T00:00:00Z", "who": "a", "f": 1e30, "i": 6}', partition=1)
    producer.flush()

    summary = topic.run()

    letters = read_all(servers, topic.name + ".dlq")
    found = {}
    for letter in letters:
        headers = letter.headers()
        ours = {name: text.decode() for name, text in headers if name.startswith("tally-")}
        assert ours["tally-topic"] == topic.name
        where = (int(ours["tally-partition"]), int(ours["tally-offset"]), ours["tally-view"])
        found[where] = (ours["tally-reason"], letter.key(), letter.value(), headers[: -len(ours)])
    assert set(found) == {(0, 0, "by_number"), (1, 0, ""), (1, 1, ""), (1, 2, "cells"), (1, 3, "cells")}
    assert found[1, 0, ""][0].startswith("not JSON")
    assert found[1, 0, ""][1:] == (b"k\xff", b"{oops", [("trace", b"7"), ("trace", None)])
    assert found[1, 1, ""] == ("tombstone (null value)", b"gone", None, [])
    assert found[1, 2, "cells"][0] == "cells: entity key who is null"
    assert found[1, 3, "cells"][0].startswith("cells: f is infinite or at least 2^64")
    assert found[0, 0, "by_number"][0] == "by_number: entity key i is null"
    assert (summary.topics[topic.name].consumed, summary.topics[topic.name].dead_lettered) == (15, 5)
    cells, by_number = summary.views["cells"], summary.views["by_number"]
    assert (cells.applied, cells.refused.total(), cells.consumed) == (11, 4, 15)
    assert (by_number.applied, by_number.refused.total(), by_number.consumed) == (12, 3, 15)
    assert by_number.refused["entity key i is null"] == 1
    assert topic.stored() == topic.expected()
    key = topic.plan.views[1].prefix(topic.plan.project) + b"6"
    value: Any = redis.get(key)
    assert topic.plan.views[1].row_layout.unpack([value], [key]).columns["f"].to_list() in ([1e30], [6 / 7])


@contextmanager
def running(topic: Topic) -> Iterator[tuple[Future[Summary], list[Progress]]]:
    """A worker that has applied ten messages and waits for more; what it will return, and what it has reported."""
    stop, seen = threading.Event(), list[Progress]()
    topic.send(10)
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(topic.run, until_end=False, stop=stop, on_batch=seen.append)
        try:
            eventually(lambda: sum(progress.batch for progress in seen) == 10)
            yield worker, seen
        finally:
            stop.set()


@contextmanager
def refusing(redis: Redis) -> Iterator[None]:
    """Redis takes no writes."""
    redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        redis.config_set("maxmemory", 0)


def test_a_run_that_ends_before_it_learns_its_partitions_leaves(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    """There was nothing to do; the group's answer comes while the consumer is closed."""
    topic.run()
    admin = AdminClient(topic.config)
    group = f"tally-{topic.plan.project}"

    def ends_at_once(*_: object) -> None:
        eventually(lambda: admin.describe_consumer_groups([group])[group].result().state == ConsumerGroupState.STABLE)

    monkeypatch.setattr(_Worker, "_loop", ends_at_once)

    assert topic.run().consumed == 0


def test_a_running_worker_stops_when_told(topic: Topic) -> None:
    """New messages are applied as they come, and what is applied is committed at the stop."""
    with running(topic) as (worker, seen):
        topic.send(20)
        eventually(lambda: topic.stored() == topic.expected())
        eventually(lambda: seen[-1].positions == {(topic.name, 0): 15, (topic.name, 1): 15})

    assert worker.result().consumed == seen[-1].consumed == 30
    assert topic.committed() == [15, 15]


def test_nothing_is_committed_while_redis_refuses(topic: Topic, caplog: pytest.LogCaptureFixture) -> None:
    """The batch is tried again until Redis takes it; each event counts once. It is said once, and once when it is over."""
    caplog.set_level(logging.DEBUG, "ingestion.patience")
    with running(topic) as (worker, _):
        with refusing(topic.redis):
            topic.send(10)
            eventually(lambda: caplog.text.count("still away") >= 2)
            assert max(topic.committed()) <= 5
        eventually(lambda: topic.stored() == topic.expected())

    assert worker.result().views["cells"].applied == 20
    assert topic.committed() == [10, 10]
    assert caplog.text.count("Trying again") == caplog.text.count("Redis is back") == 1


def test_a_stop_while_redis_refuses_leaves_the_batch(topic: Topic, caplog: pytest.LogCaptureFixture) -> None:
    """The worker ends, its offsets stay where they were, and the next run applies the batch."""
    caplog.set_level(logging.WARNING, "ingestion.patience")
    with ExitStack() as until_worker_ended, running(topic) as (worker, _):
        until_worker_ended.enter_context(refusing(topic.redis))
        topic.send(10)
        eventually(lambda: "Trying again" in caplog.text)

    assert worker.result().views["cells"].applied == 10
    assert topic.committed() == [5, 5]
    assert topic.run().views["cells"].applied == 10
    assert topic.stored() == topic.expected()


def test_reading_begins_where_a_bootstrap_ended(topic: Topic) -> None:
    """A group without offsets starts at the progress in Redis."""
    topic.send(20)
    advance_progress(topic.redis, topic.plan.project, [topic.view], {(topic.name, 0): 7, (topic.name, 1): 10})

    assert topic.run().consumed == 3


def test_a_view_without_progress_is_read_from_the_beginning(servers: str, redis: Redis) -> None:
    """A definition that is new, or whose Redis was emptied, gets everything; the others count duplicates."""
    topic = make_topic(servers, redis, latest_by_number())
    topic.send(22)
    only_first = replace(topic.plan, views=topic.plan.views[:1])
    run(only_first, ["cells"], topic.config, redis, until_end=True)

    summary = topic.run()

    assert summary.views["by_number"].applied == 20
    assert summary.views["cells"].duplicate == 22
    redis.flushall()
    assert topic.run().views["cells"].applied == 22


@pytest.mark.parametrize("partitions", [(0,), (0, 1)])
def test_another_topic_of_that_name_is_refused(topic: Topic, partitions: tuple[int, ...]) -> None:
    """Fences beyond the topic's end would make every new message a duplicate: say so, even if all seems to be read."""
    topic.send(2)
    come = {(topic.name, number): 500 for number in partitions}
    advance_progress(topic.redis, topic.plan.project, [topic.view], come)

    with pytest.raises(NotReadyError, match=rf"{topic.name}\[0\] up to offset 499, the topic ends at 0"):
        topic.run()


def test_aborted_transactions_are_not_read(topic: Topic) -> None:
    """Their messages do not count, and the markers at the end of the topic do not keep the run from ending."""
    topic.send(4)
    producer = Producer({"bootstrap.servers": topic.config["bootstrap.servers"], "transactional.id": topic.name})
    producer.init_transactions(DEADLINE_S)
    producer.begin_transaction()
    for partition in (0, 1):
        producer.produce(topic.name, b"never", partition=partition)
    producer.flush()
    producer.abort_transaction()

    summary = topic.run()

    assert (summary.consumed, summary.topics[topic.name].dead_lettered) == (4, 0)
    assert topic.stored() == topic.expected()


def test_a_missing_topic_is_named(topic: Topic) -> None:
    """With the view that reads it."""
    source = replace(topic.plan.sources[0], topic="no.such.topic")

    with pytest.raises(NotReadyError, match=r"no topic 'no\.such\.topic' \(read by cells\)"):
        run(replace(topic.plan, sources=(source,)), None, topic.config, topic.redis)


def test_an_unreachable_broker_is_named(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its address and the variable to check."""
    monkeypatch.setattr(kafka, "KAFKA_SECONDS", 0.5)
    plan = plans.plan_of(plans.window_view())

    with pytest.raises(UnavailableError, match=r"Kafka at 127\.0\.0\.1:1 .*KAFKA_BOOTSTRAP_SERVERS"):
        run(plan, None, {"bootstrap.servers": "127.0.0.1:1"}, redis, until_end=True)


def test_only_stream_views_can_be_asked_for() -> None:
    """A view of the warehouse has no topic; an unknown one is listed against those that exist."""
    plan = plans.plan_of(plans.window_view(), plans.weather_view())

    assert [view.name for view in stream_views(plan, None)] == ["departure_windows"]
    with pytest.raises(DefinitionError, match="weather_now has no Kafka topic"):
        stream_views(plan, ["weather_now"])
    with pytest.raises(NotReadyError, match="no feature view 'other'"):
        stream_views(plan, ["other"])


def test_partitions_are_given_back_before_the_consumer_is_closed(topic: Topic) -> None:
    """While they are, it can still be asked: librdkafka may wait for ever for what is given back after that."""
    consumer = GroupConsumer(
        topic.config, f"{topic.name}-leaves", {topic.name: [topic.view]}, threading.Event(), State()
    )
    given: set[Place] = set()
    asked_at_the_end: dict[Place, int] = {}

    def take(places: Collection[Place]) -> None:
        given.update(places)
        consumer.assign(dict.fromkeys(places, 0))

    def give_back(places: Collection[Place]) -> None:
        asked_at_the_end.update(consumer.committed(places))
        consumer.unassign(places)

    consumer.subscribe(take, give_back, give_back)
    give_up = time.monotonic() + DEADLINE_S
    while len(given) < 2:
        assert time.monotonic() < give_up, "the group gave no partitions"
        consumer.received()
    consumer.close()
    assert asked_at_the_end == dict.fromkeys(given, OFFSET_INVALID)
