"""A worker whose topics change below it: created anew, shortened, widened; and letters that are hard to read or to write."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition, cimpl
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)
from redis import Redis

from connections import RefusedError
from ingestion import kafka, worker
from ingestion.kafka import GroupConsumer
from ingestion.progress import progress
from ingestion.replay import judge, read_letters
from ingestion.report import Place, Summary
from ingestion.worker import group_of, run
from tally.errors import NotReadyError
from tally.layout import topics_key
from tally.plan import hashed_view
from tally.time import SECOND
from tests.ingestion.test_kafka import (
    DEADLINE_S,
    Topic,
    eventually,
    latest_by_number,
    make_topic,
    read_all,
    servers,
    topic,
)

__all__ = ["servers", "topic"]

pytestmark = pytest.mark.apache_kafka


def done(asked: Mapping[str, Future[None]]) -> None:
    """Wait for what an admin was asked."""
    for answer in asked.values():
        answer.result(DEADLINE_S)


def create_anew(topic: Topic) -> None:
    """Delete the topic and create another of its name."""
    admin = AdminClient({"bootstrap.servers": topic.config["bootstrap.servers"]})
    done(admin.delete_topics([topic.name]))

    def created() -> bool:
        try:
            done(admin.create_topics([NewTopic(topic.name, 2, 1)]))
        except KafkaException:  # the old one is not gone everywhere yet
            return False
        return True

    eventually(created)
    topic.sent.clear()


def shorten(topic: Topic, first: int) -> None:
    """Delete all messages before an offset, as retention does."""
    admin = AdminClient({"bootstrap.servers": topic.config["bootstrap.servers"]})
    for answer in admin.delete_records([TopicPartition(topic.name, number, first) for number in (0, 1)]).values():
        answer.result(DEADLINE_S)


@contextmanager
def working(topic: Topic, **options: Any) -> Iterator[Future[Summary]]:
    """A worker that has applied what there was."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(topic.run, until_end=False, stop=stop, **options)
        try:
            eventually(lambda: running.done() or topic.stored() == topic.expected())
            yield running
        finally:
            stop.set()


@pytest.mark.parametrize("count", [6, 60])
def test_a_topic_is_created_anew_between_two_runs(topic: Topic, count: int) -> None:
    """Shorter or longer than the one before: its first events are neither passed over nor taken for those before."""
    topic.send(20)
    topic.run()
    create_anew(topic)
    topic.send(count)

    with pytest.raises(NotReadyError, match=f"{topic.name} was deleted and created anew .* after cells had read it"):
        topic.run()

    topic.redis.flushall()
    assert topic.run().views["cells"].applied == count
    assert topic.stored() == topic.expected()


@pytest.mark.parametrize("count", [6, 60])
def test_a_topic_is_created_anew_below_a_worker(topic: Topic, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The worker ends and says so, whether its offset is beyond the new topic or within it."""
    monkeypatch.setattr(worker, "TOPICS_SECONDS", 0.1)
    topic.send(20)
    with working(topic) as running:
        create_anew(topic)
        topic.send(count)

        with pytest.raises(NotReadyError, match=f"{topic.name} was deleted and created anew"):
            running.result(DEADLINE_S)


def test_a_topic_of_which_nothing_was_read_may_be_created_anew(topic: Topic) -> None:
    """There is nothing to take its events for."""
    topic.run()
    create_anew(topic)
    topic.send(20)

    assert topic.run().views["cells"].applied == 20
    assert topic.stored() == topic.expected()


def test_a_topic_is_deleted_below_a_worker(
    topic: Topic, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so and waits: a broker that has just started may not know its topics yet."""
    monkeypatch.setattr(kafka, "TOPICS_MILLISECONDS", 100)
    admin = AdminClient({"bootstrap.servers": topic.config["bootstrap.servers"]})  # must outlive the call
    topic.send(20)
    with working(topic) as running:
        done(admin.delete_topics([topic.name]))
        eventually(lambda: running.done() or f"Subscribed topic not available: {topic.name}" in caplog.text)
        assert "waiting for the topic" in caplog.text
    assert running.result().consumed == 20


def test_a_copy_of_a_topic_is_taken_when_told(topic: Topic) -> None:
    """Where offsets are those of before, whoever deletes the ids from Redis says that events are, too."""
    topic.send(20)
    topic.run()
    create_anew(topic)
    topic.send(30)
    topic.redis.delete(topics_key(topic.plan.project))

    assert topic.run().consumed == 10
    assert topic.stored() == topic.expected()


def shortened_at_assignment(topic: Topic, first: int) -> Callable[[GroupConsumer, str, int], tuple[int, int]]:
    """`GroupConsumer.watermarks`, after whose first answers the topic loses what lies before an offset."""
    look, places = GroupConsumer.watermarks, set[Place]()

    def watermarks(self: GroupConsumer, name: str, number: int) -> tuple[int, int]:
        answer = look(self, name, number)
        if (name, number) not in places:
            places.add((name, number))
            if len(places) == 2:
                shorten(topic, first)
        return answer

    return watermarks


def test_messages_deleted_before_a_running_worker_are_no_silent_loss(
    topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention overtakes a worker after it has begun: it ends with what to do, or goes on where it is told to."""
    topic.send(20)
    topic.run()
    topic.send(40)
    monkeypatch.setattr(GroupConsumer, "watermarks", shortened_at_assignment(topic, 15))
    stop = threading.Event()

    with pytest.raises(NotReadyError, match=rf"{topic.name}\[[01]\]: offsets 10 to 14 are not in Redis"):
        topic.run(until_end=False, stop=stop)

    monkeypatch.undo()
    monkeypatch.setattr(GroupConsumer, "watermarks", shortened_at_assignment(topic, 20))
    summary = topic.run(skip_expired=True)

    assert (summary.consumed, summary.topics[topic.name].expired) == (20, 20)
    assert progress(topic.redis, topic.plan.project, topic.view) == {(topic.name, 0): 30, (topic.name, 1): 30}


def test_a_run_goes_on_where_nothing_is_left_to_read(topic: Topic) -> None:
    """With --skip-expired; its progress is where the topic begins, before any message has come."""
    topic.send(20)
    topic.run()
    topic.send(20)
    shorten(topic, 20)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(topic.run, until_end=False, stop=stop, skip_expired=True)
        try:
            eventually(lambda: running.done() or topic.committed() == [20, 20])
            topic.send(10)
            eventually(lambda: running.done() or topic.committed() == [25, 25])
        finally:
            stop.set()
    assert running.result().views["cells"].applied == 10
    assert running.result().topics[topic.name].expired == 20


def test_new_partitions_are_read_from_their_beginning(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a restart, and those that came while nobody read, too."""
    monkeypatch.setattr(kafka, "TOPICS_MILLISECONDS", 100)
    admin = AdminClient({"bootstrap.servers": topic.config["bootstrap.servers"]})
    topic.send(20)
    with working(topic) as running:
        done(admin.create_partitions([NewPartitions(topic.name, 4)]))
        topic.send(40, partitions=(0, 1, 2, 3))
        eventually(lambda: running.done() or topic.stored() == topic.expected())
    assert running.result().views["cells"].applied == 60

    done(admin.create_partitions([NewPartitions(topic.name, 5)]))
    topic.send(10, partitions=(3, 4))
    assert topic.run().views["cells"].applied == 10
    assert topic.stored() == topic.expected()


def test_workers_of_other_views_do_not_share_a_group(servers: str, redis: Redis, redis_url: str) -> None:
    """Each has all partitions: in one group, each view would lack what the other's worker reads."""
    topic = make_topic(servers, redis, latest_by_number())
    stop = threading.Event()
    topic.send(22)
    with ThreadPoolExecutor(2) as pool, Redis.from_url(redis_url) as own:
        each = [(["cells"], redis), (["by_number"], own)]
        running = [pool.submit(run, topic.plan, names, topic.config, client, stop=stop) for names, client in each]
        try:
            come = {(topic.name, 0): 11, (topic.name, 1): 11}
            eventually(lambda: all(progress(redis, topic.plan.project, one) == come for one in topic.plan.views))
        finally:
            stop.set()
    cells, by_number = (worker.result().views for worker in running)
    assert (cells["cells"].consumed, by_number["by_number"].consumed) == (22, 22)
    assert [group_of(topic.plan, topic.plan.views[:count]) for count in (1, 2)] == [
        f"tally-{topic.plan.project}-cells",
        f"tally-{topic.plan.project}",
    ]


def test_a_run_says_that_it_waits_for_other_workers(
    topic: Topic, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One of another plan in the group holds a partition, and does nothing for the new definition there until it leaves."""
    monkeypatch.setattr(worker, "REPORT_SECONDS", 0.1)
    topic.send(20)
    new = hashed_view(replace(topic.view, future_tolerance=SECOND * 10**10), topic.plan.sources[0])
    with ThreadPoolExecutor(1) as pool:
        with working(topic), Redis.from_url(redis_url) as own:
            deployed = replace(topic.plan, views=(new,))
            catching_up = pool.submit(run, deployed, None, topic.config, own, until_end=True)
            eventually(lambda: f"waiting for other workers of tally-{topic.plan.project}" in caplog.text)
        assert catching_up.result(DEADLINE_S).views["cells"].applied == 20


def test_a_letter_that_is_too_large_goes_without_its_message(topic: Topic) -> None:
    """The others keep theirs, and the run goes on; a replay leaves it where it is."""
    letters = topic.name + ".dlq"
    admin = AdminClient({"bootstrap.servers": topic.config["bootstrap.servers"]})
    done(admin.create_topics([NewTopic(letters, 1, 1, config={"max.message.bytes": "20000"})]))
    producer = Producer({"bootstrap.servers": topic.config["bootstrap.servers"], "enable.idempotence": True})
    large = os.urandom(30_000)
    for value in (b"{first", large, b"{last"):
        producer.produce(topic.name, value, b"key", partition=0, headers=[("trace", b"7")])
    producer.flush()

    summary = topic.run()

    found = {
        dict(letter.headers())["tally-offset"]: letter
        for letter in read_all(topic.config["bootstrap.servers"], letters)
    }
    assert {offset: letter.value() for offset, letter in found.items()} == {b"0": b"{first", b"1": None, b"2": b"{last"}
    assert (found[b"0"].key(), found[b"1"].key()) == (b"key", None)
    assert b"they are at %s[0]@1" % topic.name.encode() in dict(found[b"1"].headers())["tally-reason"]
    assert (summary.consumed, summary.topics[topic.name].dead_lettered) == (3, 3)
    open_letters = read_letters(topic.config, [topic.name], topic.plan.project)
    assert {judged.state for judged in judge(topic.plan, open_letters, None, 0)} == {"refused"}


def send_with_header(topic: Topic, value: bytes, name: bytes) -> None:
    """Send a message to partition 0 with a header of this name, which only librdkafka itself can: Python's names are texts."""
    library = ctypes.CDLL(cimpl.__file__)
    for function in (library.rd_kafka_conf_new, library.rd_kafka_new, library.rd_kafka_headers_new):
        function.restype = ctypes.c_void_p
    config = ctypes.c_void_p(library.rd_kafka_conf_new())
    servers = topic.config["bootstrap.servers"].encode()
    assert library.rd_kafka_conf_set(config, b"bootstrap.servers", servers, None, ctypes.c_size_t(0)) == 0
    producer = ctypes.c_void_p(library.rd_kafka_new(0, config, None, ctypes.c_size_t(0)))
    headers = ctypes.c_void_p(library.rd_kafka_headers_new(ctypes.c_size_t(1)))
    assert library.rd_kafka_header_add(headers, name, ctypes.c_ssize_t(len(name)), b"7", ctypes.c_ssize_t(1)) == 0
    to, partition, value_of, flags, with_headers, end = 1, 3, 4, 7, 10, 0  # rd_kafka_vtype_t
    copied = ctypes.c_int(2)
    sent = library.rd_kafka_producev(
        producer,
        *(to, topic.name.encode(), partition, ctypes.c_int32(0), value_of, value, ctypes.c_size_t(len(value))),
        *(flags, copied, with_headers, headers, end),
    )
    assert sent == library.rd_kafka_flush(producer, 60_000) == 0
    library.rd_kafka_destroy(producer)


def test_names_of_headers_that_are_no_text(topic: Topic) -> None:
    """Of a message that can be used and of one that cannot: neither ends the run, and the letter is without its headers."""
    topic.send(10)
    send_with_header(topic, b"{oops", b"na\xefve")
    send_with_header(topic, b'{"at": "2013-01-01T00:00:00Z", "who": "d", "f": 1}', b"na\xefve")
    topic.send(1, partitions=(1,))

    summary = topic.run()

    assert (summary.views["cells"].applied, summary.topics[topic.name].dead_lettered) == (12, 1)
    (letter,) = read_all(topic.config["bootstrap.servers"], topic.name + ".dlq")
    assert letter.value() == b"{oops"
    assert [name for name, _ in letter.headers() if not name.startswith("tally-")] == []
    assert {key: value for key, value in topic.stored().items() if key != b"d"} == topic.expected()


def test_a_topic_that_refuses_letters_ends_the_run(topic: Topic) -> None:
    """A compacted one takes none without a key. It is named, nothing is committed, and the next run writes the letter."""
    letters = topic.name + ".dlq"
    admin = AdminClient({"bootstrap.servers": topic.config["bootstrap.servers"]})
    done(admin.create_topics([NewTopic(letters, 1, 1, config={"cleanup.policy": "compact"})]))
    producer = Producer({"bootstrap.servers": topic.config["bootstrap.servers"]})
    producer.produce(topic.name, b"{oops", partition=0)
    producer.flush()

    with pytest.raises(
        RefusedError, match=f"Dead letters could not be written to Kafka topic {letters} .*let us write"
    ):
        topic.run()

    assert topic.committed()[0] < 1
    entry = ConfigEntry("cleanup.policy", "delete", incremental_operation=AlterConfigOpType.SET)
    changed = admin.incremental_alter_configs(
        [ConfigResource(ResourceType.TOPIC, letters, incremental_configs=[entry])]
    )
    for answer in changed.values():
        answer.result(DEADLINE_S)
    assert topic.run().topics[topic.name].dead_lettered == 1
    assert [letter.value() for letter in read_all(topic.config["bootstrap.servers"], letters)] == [b"{oops"]
