"""What a worker did: messages of each topic, and what became of each event of each view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ingestion.stream import Counts

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
    """After a batch: messages in it and so far, offsets to read next, and messages still to read as far as is known."""

    batch: int
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
