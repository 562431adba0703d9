"""A stretch of the past, sent through Kafka in the order in which it arrived, with lookups at the right moments."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from confluent_kafka import KafkaError, Message, Producer
from numpy.typing import NDArray
from redis import Redis

from ingestion.progress import progress
from tally.plan import Plan

MICROSECONDS_PER_MS = 1000


def milliseconds(arrival_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Kafka's timestamps are whole milliseconds: the first one that is not before each instant."""
    return -(-arrival_us // MICROSECONDS_PER_MS)


class Sender:
    """Produces messages with the time of their arrival as CreateTime, and remembers the offsets they got."""

    def __init__(self, kafka: Mapping[str, str]) -> None:
        self._producer = Producer({**kafka, "linger.ms": 1, "log_level": 3, "queue.buffering.max.messages": 1_000_000})
        self._failed: list[KafkaError] = []
        self.next_offset: dict[tuple[str, int], int] = {}

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed.append(error)
            return
        place = message.topic() or "", message.partition() or 0
        self.next_offset[place] = max(self.next_offset.get(place, 0), (message.offset() or 0) + 1)

    def send(self, topic: str, key: bytes, value: bytes, arrival_ms: int) -> None:
        """Hand one message to the producer, waiting where its queue is full."""
        while True:
            try:
                self._producer.produce(topic, value, key, timestamp=arrival_ms, on_delivery=self._delivered)
                return
            except BufferError:
                self._producer.poll(0.1)

    def flush(self) -> None:
        """Wait until everything that was sent has arrived."""
        self._producer.flush()
        if self._failed:
            raise RuntimeError(f"Kafka refused {len(self._failed)} messages: {self._failed[0]}")


@dataclass
class Streams:
    """Messages of several topics in one order of arrival: what is due is sent when its time has come."""

    sender: Sender
    topics: list[str]
    keys: list[bytes]
    values: list[bytes]
    arrival_ms: NDArray[np.int64]
    _next: int = field(default=0)

    @classmethod
    def merge(cls, sender: Sender, arrivals: Mapping[str, pa.Table]) -> Streams:
        """From one table of `demo.messages.arrival_times` per topic."""
        tables = list(arrivals.values())
        moments = np.concatenate([milliseconds(t["arrival_us"].to_numpy()) for t in tables])
        order = np.argsort(moments, kind="stable")
        topics = [name for name, table in arrivals.items() for _ in range(table.num_rows)]
        keys = [key for table in tables for key in table["key"].to_pylist()]
        values = [value for table in tables for value in table["value"].to_pylist()]
        return cls(
            sender,
            [topics[i] for i in order],
            [keys[i] for i in order],
            [values[i] for i in order],
            moments[order],
        )

    def __len__(self) -> int:
        return len(self.arrival_ms)

    def send_until(self, instant_us: int) -> int:
        """Send what arrives at or before an instant; how many messages that were."""
        stop = int(np.searchsorted(self.arrival_ms, instant_us // MICROSECONDS_PER_MS, side="right"))
        began = self._next
        for i in range(began, stop):
            self.sender.send(self.topics[i], self.keys[i], self.values[i], int(self.arrival_ms[i]))
        if stop > began:
            self.sender.flush()
        self._next = stop
        return stop - began


def wait_until_applied(
    redis: Redis,
    plan: Plan,
    next_offset: Mapping[tuple[str, int], int],
    alive: Callable[[], None],
    patience: float = 60.0,
) -> None:
    """Return when every stream view has everything that was sent. `alive` raises when the stream worker is gone."""
    deadline = time.monotonic() + patience
    behind = [(view, plan.source(view.source).topic) for view in plan.views if view.stream]
    while behind:
        view, topic = behind[-1]
        reached = progress(redis, plan.project, view)
        if all(reached.get(place, 0) >= offset for place, offset in next_offset.items() if place[0] == topic):
            behind.pop()
        elif time.monotonic() > deadline:
            raise TimeoutError(f"the stream worker did not catch up with {topic} within {patience:.0f} s")
        else:
            alive()
            time.sleep(0.0005)
