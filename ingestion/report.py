"""What a worker did and is doing: messages of each topic, what became of each event of each view, and how it fares."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from ingestion.stream import Counts

REDIS, KAFKA, REGISTRY = "Redis", "Kafka", "The schema registry"
"""Servers that a worker waits for."""

Place = tuple[str, int]
"""(topic, partition)."""


@dataclass(slots=True)
class TopicCounts:
    """Messages of one topic. `expired`: deleted by Kafka's retention before they were ever read."""

    consumed: int = 0
    dead_lettered: int = 0
    expired: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """After a batch: messages in it and so far, offsets to read next, and messages still to read as far as is known.

    `seconds` is what it took from the messages in hand to the effects in Redis, and `age` how old its first message was then,
    by its timestamp in Kafka; None where it has none.
    """

    batch: int
    seconds: float
    age: float | None
    consumed: int
    positions: Mapping[Place, int]
    lag: int


@dataclass(slots=True)
class Summary:
    """Totals of a run. For each view: applied + duplicate + too_late + refused = messages consumed of its topic."""

    topics: dict[str, TopicCounts] = field(default_factory=dict)
    views: dict[str, Counts] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def consumed(self) -> int:
        """Messages of all topics."""
        return sum(counts.consumed for counts in self.topics.values())


@dataclass(slots=True)
class State:
    """A running worker, as other threads may look at it: its totals, where it is, and what hinders it.

    `away` says of each server that it waits for what is wrong; `lag` is of the partitions that it reads; `joined` whether the
    group has given it its share (none, if there are too many workers); `ticked` the monotonic time at which its loop last went
    round, or waited for a server.
    """

    summary: Summary = field(default_factory=Summary)
    lag: dict[Place, int] = field(default_factory=dict)
    joined: bool = False
    away: dict[str, str] = field(default_factory=dict)
    ticked: float = field(default_factory=time.monotonic)
    redis_errors: Counter[str] = field(default_factory=Counter)
    kafka_errors: Counter[str] = field(default_factory=Counter)
    read_again: Counter[str] = field(default_factory=Counter)
