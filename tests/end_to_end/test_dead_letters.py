from __future__ import annotations

import time

import pytest
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from demo.messages import DEPARTURES
from ingestion.delta import open_version, read_columns
from tests.end_to_end.world import BAD_MESSAGES, SERVICE, World
from training import build_training_set


def consumed(world: World, place: TopicPartition, last: int | None = None) -> list[Message]:
    """The messages of a partition from an offset to its end, or to offset `last`."""
    config = {"group.id": "end-to-end", "enable.auto.commit": False, "enable.partition.eof": True}
    consumer = Consumer({**world.settings.kafka_config(), **config})
    messages: list[Message] = []
    give_up = time.monotonic() + 120
    try:
        consumer.assign([place])
        while time.monotonic() < give_up:
            message = consumer.poll(0.1)
            if message is None:
                continue
            error = message.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                return messages
            messages.append(message)
            if message.offset() == last:
                return messages
        raise AssertionError(f"{place} did not come to its end")
    finally:
        consumer.close()


@pytest.fixture(scope="module")
def letters(world: World) -> dict[bytes, Message]:
    """What is in the dead-letter topic, by key."""
    return {message.key(): message for message in consumed(world, TopicPartition(f"{DEPARTURES}.dlq", 0, 0))}


@pytest.mark.parametrize(
    ("key", "reason", "view"),
    [
        (b"plain text", "not JSON", ""),
        (b"no origin", "origin_departures: entity key origin is null", "origin_departures"),
    ],
)
def test_a_dead_letter(world: World, letters: dict[bytes, Message], key: bytes, reason: str, view: str) -> None:
    """It has the message's bytes and, in headers, where it was, why it could not be used, and by which view."""
    letter = letters[key]
    headers = {name: value.decode() for name, value in letter.headers()}
    offset = int(headers["tally-offset"])
    place = TopicPartition(headers["tally-topic"], int(headers["tally-partition"]), offset)
    (original,) = consumed(world, place, last=offset)

    assert set(letters) == set(BAD_MESSAGES)
    assert letter.value() == BAD_MESSAGES[key]
    assert headers["tally-topic"] == DEPARTURES
    assert (original.key(), original.value()) == (key, BAD_MESSAGES[key])
    assert headers["tally-reason"].startswith(reason)
    assert headers["tally-view"] == view


def test_the_same_message_is_rejected_offline(world: World, letters: dict[bytes, Message]) -> None:
    """What is not JSON stands in the table of rejects under the same partition and offset, and `tally ingest` says so."""
    headers = {name: value.decode() for name, value in letters[b"plain text"].headers()}
    table = open_version(world.settings.offline_uri(), "flights_departures__rejected", None)
    (row,) = read_columns(table, ["_topic", "_partition", "_offset", "reason"]).to_pylist()

    assert row["_topic"] == headers["tally-topic"]
    assert (row["_partition"], row["_offset"]) == (int(headers["tally-partition"]), int(headers["tally-offset"]))
    assert "JSON" in row["reason"]
    assert "flights_departures__rejected" in world.outcome("ingest streamed").out


def test_the_same_message_is_refused_offline(world: World) -> None:
    """A training set refuses the message without its entity key for the same view and reason, and counts it."""
    offline_uri = world.settings.offline_uri()
    manifest = build_training_set(world.labels_path, service=SERVICE, repo=world.repo, offline_uri=offline_uri).manifest

    assert manifest["refused"]["origin_departures"] == {"origin_departures: entity key origin is null": 1}
    assert not manifest["refused"].get("carrier_departures")
