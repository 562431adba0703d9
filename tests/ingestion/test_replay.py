"""Dead letters are listed once, replayed once, and count once, for whom they had been refused."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from redis import Redis

from infra.local import embedded
from infra.repository import plan_path
from infra.settings import Settings
from ingestion.dead_letters import SUFFIX
from ingestion.decoding import schema_hash
from ingestion.replay import REPLAY_OF, DeadLetter, Replayer, _messages, judge, read_letters
from ingestion.report import Summary
from ingestion.worker import run as run_worker
from tally.errors import TallyError
from tally.events import FOR_VIEW
from tally.plan import Encoding, Field, Plan, Source, View, hashed_view
from tally.time import HOUR, to_datetime
from tally_cli.app import run
from tests.ingestion.test_formats import framed

pytestmark = pytest.mark.apache_kafka  # transactions
_numbers = count()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A broker that lives as long as this file's tests."""
    with embedded(tmp_path_factory.mktemp("kafka"), ("kafka",)) as found:
        yield found


FIELDS = (Field("at", "UnixTimestamp"), Field("who", "String"), Field("x", "Int64"), Field("y", "Int64"))


def view(name: str, key: str, source: Source, **change: Any) -> View:
    """The latest row by `key`."""
    keys = tuple(field for field in FIELDS if field.name == key)
    values = tuple(field for field in FIELDS if field.name in ("x", "y") and field.name != key)
    made = View(name, "latest", source.name, keys, values, FIELDS, "at", "", 0, True, True, None, ())
    return hashed_view(replace(made, **change), source)


@dataclass
class World:
    """A topic, a plan that reads it with two views, and a way to send and to apply."""

    settings: Settings
    redis: Redis
    source: Source
    plan: Plan

    @property
    def config(self) -> dict[str, str]:
        """Where Kafka is."""
        return self.settings.kafka_config()

    def send(self, *messages: dict[str, Any] | bytes, timestamp: int | None = None, **arguments: Any) -> None:
        """Send messages; `timestamp` is their CreateTime in ms."""
        producer = Producer(self.config | {"enable.idempotence": True})  # else their order may change
        for message in messages:
            value = message if isinstance(message, bytes) else json.dumps(message).encode()
            if timestamp is not None:
                arguments["timestamp"] = timestamp
            producer.produce(self.source.topic, value, **arguments)
        producer.flush()

    def apply(self, **options: Any) -> Summary:
        """Apply what there is."""
        return run_worker(self.plan, None, self.config, self.redis, until_end=True, **options)

    def letters(self) -> list[DeadLetter]:
        """What was not replayed."""
        return read_letters(self.config, [self.source.topic], self.plan.project)

    def judged(self, now: int | None = None) -> list[str]:
        """The state of each letter."""
        found = judge(self.plan, self.letters(), None, time.time_ns() // 1000 if now is None else now)
        return [one.state for one in found]


@pytest.fixture
def world(settings: Settings, redis: Redis) -> World:
    """A topic of its own."""
    return make_world(settings, redis, Encoding())


def make_world(settings: Settings, redis: Redis, encoding: Encoding) -> World:
    """A topic with messages of this encoding."""
    topic = f"replays-{next(_numbers)}"
    admin = AdminClient(settings.kafka_config())
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    source = Source("events", "EVENTS", "", "", "at", "", topic, FIELDS, encoding)
    views = (view("by_who", "who", source), view("by_x", "x", source))
    return World(settings, redis, source, Plan(topic, (source,), views, (), ()))


def test_a_future_event_is_replayed_once_its_time_has_come(world: World) -> None:
    """Refused by each view at its CreateTime, taken at the replay's; headers and key stay, and each view counts it once."""
    now = time.time_ns() // 1_000_000
    message = {"at": to_datetime(now * 1000).isoformat(), "who": "a", "x": 1, "y": 2}
    world.send(message, timestamp=now - 3_600_000, key=b"k\xff", headers=[("trace", b"7")])
    first = world.apply()
    assert [counts.refused.total() for counts in first.views.values()] == [1, 1]
    letters = world.letters()
    assert [letter.view for letter in letters] == ["by_who", "by_x"]
    assert "after the message was made" in letters[0].reason
    assert world.judged(now * 1000 - HOUR) == ["refused", "refused"]
    assert world.judged() == ["ready", "ready"]

    assert Replayer(world.config, world.plan.project).send(letters) == 2
    second = world.apply()

    assert [(c.applied, c.duplicate, c.consumed) for c in second.views.values()] == [(1, 1, 2), (1, 1, 2)]
    assert world.letters() == []
    replayed = _messages(world.config, [world.source.topic])[1:]
    place = f"{world.source.topic}[0]@0".encode()
    assert [m.headers() for m in replayed] == [
        [("trace", b"7"), (REPLAY_OF, place), (FOR_VIEW, f"{world.plan.project}/{name}".encode())]
        for name in ("by_who", "by_x")
    ]
    assert {(m.key(), m.value()) for m in replayed} == {(b"k\xff", json.dumps(message).encode())}


def test_a_letter_as_large_as_its_topic_takes_is_replayed(world: World) -> None:
    """With its headers it is larger than the message; no limit of the client's keeps it, and all others, from being sent."""
    now = time.time_ns() // 1_000_000
    message = {
        "at": to_datetime(now * 1000).isoformat(),
        "who": "a",
        "x": 1,
        "y": 2,
        "more": random.randbytes(524_000).hex(),
    }
    producer = Producer(world.config | {"message.max.bytes": 2_000_000})
    producer.produce(world.source.topic, json.dumps(message).encode(), timestamp=now - 3_600_000)
    producer.flush()
    world.apply()

    assert Replayer(world.config, world.plan.project).send(world.letters()) == 2

    assert [counts.applied for counts in world.apply().views.values()] == [1, 1]
    assert world.letters() == []


def test_what_would_be_refused_again_stays(world: World) -> None:
    """A null key, and what does not decode; a letter that was written twice is one letter."""
    world.send({"at": "2024-01-01T00:00:00Z", "who": None, "x": 1}, b"{oops")
    world.apply()
    again = run_worker(
        world.plan, None, world.config, world.redis, until_end=True, group="another"
    )  # reads nothing: progress
    assert again.consumed == 0
    world.redis.flushall()
    world.apply(group="third")  # from the beginning: the letters are written again
    assert [(one.view, one.offset) for one in world.letters()] == [("by_who", 0), ("", 1)]
    assert world.judged() == ["refused", "refused"]


def test_another_definition_reads_the_message_itself(world: World) -> None:
    """After a change nothing is replayed: the original counts under the new definition, once."""
    world.send({"at": "2024-01-01T00:00:00Z", "who": None, "x": 1}, b'{"at": "2024-01-01T00:00:00Z", "who": 5, "x": 1}')
    world.apply()
    changed = replace(world.source, message=(*FIELDS[:1], Field("who", "Int64"), *FIELDS[2:]))
    assert schema_hash(changed) != schema_hash(world.source)
    world.plan = replace(world.plan, sources=(changed,), views=(view("by_x", "x", changed, columns=changed.message),))
    assert world.judged() == ["superseded", "superseded"]
    assert world.apply().views["by_x"].applied == 2


def test_a_schema_that_is_registered_late(settings: Settings, redis: Redis) -> None:
    """The message counts for every view, as it would have at once."""
    fields = [
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "who", "type": "string"},
    ]
    fields += [{"name": name, "type": "long", "default": 0} for name in ("x", "y")]
    schema = json.dumps({"type": "record", "name": "R", "fields": fields})
    world = make_world(settings, redis, Encoding("avro", schema))
    world.send(framed(7, b"\x02\x02a\x02\x02"))
    known: dict[int, tuple[str, ...]] = {}
    first = world.apply(writer_schema=known.get)
    assert [c.refused for c in first.views.values()] == [{"schema id 7 is not in the schema registry": 1}] * 2
    letters = world.letters()
    assert [one.state for one in judge(world.plan, letters, known.get, 10)] == ["refused"]
    known[7] = (schema,)
    assert [one.state for one in judge(world.plan, letters, known.get, 10)] == ["ready"]

    Replayer(world.config, world.plan.project).send(letters)

    assert [c.applied for c in world.apply(writer_schema=known.get).views.values()] == [1, 1]


def test_what_was_sent_can_be_read_at_once(world: World) -> None:
    """Whoever asks as soon as a replay is done finds its messages and its notes, no matter how often."""
    world.send(b"{oops")
    world.apply()
    letters, replayer = world.letters(), Replayer(world.config, world.plan.project)
    reader = Consumer({**world.config, "group.id": "reader"})
    places = [TopicPartition(world.source.topic + suffix, 0) for suffix in ("", SUFFIX)]
    for number in range(1, 101):
        assert replayer.send(letters) == 1
        ends = [reader.get_watermark_offsets(place, timeout=60)[1] for place in places]
        assert ends == [1 + 2 * number] * 2  # the letter or its message, and of each transaction a message and a mark
    reader.close()


def test_of_two_replays_at_once_one_sends(world: World) -> None:
    """The one that began first is shut out, and has sent nothing."""
    world.send(b"{oops")
    world.apply()
    first = Replayer(world.config, "same")
    second = Replayer(world.config, "same")
    letters = world.letters()
    assert second.send(letters) == 1
    with pytest.raises(TallyError):
        first.send(letters)
    assert world.letters() == []
    committed = [m for m in _messages(world.config, [world.source.topic]) if m.headers()]
    assert len(committed) == 1


@pytest.mark.parametrize("value", [None, b"{oops"], ids=["one view refuses it", "it does not decode"])
def test_projects_that_share_a_topic(world: World, value: bytes | None) -> None:
    """Each replays its own letters, at once if they like, and counts its own replays only; views may have the same names."""
    now = time.time_ns() // 1_000_000
    early = {"at": to_datetime(now * 1000).isoformat(), "who": "a", "x": 1, "y": 2}
    other = replace(world, plan=replace(world.plan, project=f"{world.plan.project}-other"))
    world.send(value or json.dumps(early).encode(), timestamp=now - 3_600_000)
    both = (world, other)
    for one in both:
        one.apply()
    letters = [one.letters() for one in both]
    assert [len(found) for found in letters] == ([1, 1] if value else [2, 2])
    replayers = [Replayer(one.config, one.plan.project) for one in both]

    for one, replayer, found, times in zip(both, replayers, letters, (1, 2), strict=True):
        assert replayer.send(found) == len(found)
        assert one.letters() == []
        summaries = [each.apply() for each in both]
        mine, theirs = summaries if times == 1 else reversed(summaries)
        got = [(c.applied, c.refused.total(), c.duplicate) for c in mine.views.values()]
        assert got == ([(0, 1, 0)] * 2 if value else [(1, 0, 1)] * 2)
        got = [(c.applied, c.refused.total(), c.duplicate) for c in theirs.views.values()]
        assert got == ([(0, 0, 1)] * 2 if value else [(0, 0, 2)] * 2)


def test_the_command(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed by reason and one by one, filtered, tried dry, sent, gone."""
    now = time.time_ns() // 1_000_000
    world.send({"at": to_datetime(now * 1000).isoformat(), "who": "a", "x": 1}, timestamp=now - 3_600_000, key=b"k")
    world.send(b"[bold]{oops")
    world.apply()
    path = plan_path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(world.plan.to_json())
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", world.config["bootstrap.servers"])
    monkeypatch.setenv("COLUMNS", "250")

    def tally(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([*arguments, "--repo", str(tmp_path)])
        return code, *capsys.readouterr()

    code, out, _ = tally("dlq", "list")
    assert (code, out.count("ready")) == (0, 2)
    assert "not JSON" in out
    _, out, _ = tally("dlq", "list", "--messages", "--reason", "not JSON")
    assert "[bold]{oops" in out
    assert f"{world.source.topic}[0]@1" in out
    _, out, _ = tally("dlq", "replay", "--dry-run", "--view", "by_x")
    assert out.splitlines() == ["1 would be sent again"]
    _, out, _ = tally("dlq", "replay")
    assert out.splitlines()[0] == "2 sent again"
    assert out.splitlines()[1].startswith("1 refused: not JSON")
    _, out, _ = tally("dlq", "replay", "--topic", world.source.topic)
    assert out.splitlines()[0] == "0 sent again"
    code, _, error = tally("dlq", "list", "--topic", "nothing")
    assert (code, error.count("\n")) == (2, 1)
    assert world.source.topic in error
