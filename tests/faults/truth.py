"""What was sent, and what must become of it: the naive side of the fault tests.

A message's fate depends on it alone; a view's values depend on the set of the messages that it accepts. Messages that no
window can see any more are forgotten, so that long runs stay quick; their number is kept.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tally.aggregates import output_dtype
from tally.plan import Field, Plan, Service, Source, View, ViewUse, hashed_service, hashed_view
from tally.tiles import Aggregation
from tally.time import SECOND, to_datetime
from tests import oracle
from tests.ingestion import streams
from tests.ingestion.streams import COLUMNS, SHORT, Message

PARTITIONS = 4
PLACES = {"cells": "who", "by_number": "i", "last": "who"}
"""The views, and the column that is the key of each."""


def plan_of(project: str, topic: str) -> Plan:
    """Windows with every kind of cell, windows by another key, and latest rows, all of one topic; and a service of all."""
    source = Source(topic, topic.upper(), "", "", "at", "", topic, COLUMNS)
    by_number = tuple(
        Aggregation(f"f_{function}", "f", "Float64", function, SHORT, output_dtype(function, "Float64"))
        for function in ("count", "sum", "last")
    )
    number, who = (Field("i", "Int64"),), (Field("who", "String"),)
    values = (Field("f", "Float64"), Field("wide", "Int64"))
    views = (
        streams.view_with_every_cell(texts=True),
        View("by_number", "window", topic, number, (), COLUMNS, "at", "", 0, True, True, None, by_number),
        View("last", "latest", topic, who, values, COLUMNS, "at", "", 0, True, True, None, ()),
    )
    hashed = tuple(hashed_view(replace(view, source=topic), source) for view in views)
    plan = Plan(project, (source,), hashed, (), ())
    uses, outputs = [], []
    for view in hashed:
        fields = view.fields or tuple(Field(a.feature, a.output) for a in view.aggregations)
        uses.append(
            ViewUse(view.name, view.name, (PLACES[view.name],), tuple((f.name, named(view, f.name)) for f in fields))
        )
        outputs += [Field(named(view, f.name), f.dtype) for f in fields]
    service = hashed_service(Service("all", tuple(uses), (), (*who, *number), (), tuple(outputs)), plan)
    return Plan(project, (source,), hashed, (), (service,))


def named(view: View, feature: str) -> str:
    """A feature's name in the service."""
    return f"{view.name}__{feature}"


@dataclass(frozen=True)
class Sent:
    """A message: its bytes, its fields where it can be decoded, and the views that must refuse it ("": none can read it)."""

    value: bytes | None
    fields: dict[str, Any] | None
    refused: frozenset[str]
    is_late: bool = False


class Events:
    """Messages as a hostile producer sends them: a hot key, duplicates, disorder, late ones and poison. From a seed."""

    def __init__(self, random: Random, keys: int) -> None:
        self._random, self._keys = random, keys
        self._clock = 1_357_000_000 * SECOND
        self._serial = 0
        self._again: list[Sent] = []

    def __next__(self) -> Sent:
        random = self._random
        if self._again and random.random() < 0.2:
            return random.choice(self._again)  # the same bytes at another offset are another event
        sent = self._poison() if random.random() < 0.02 else self._good()
        self._again = [*self._again[-99:], sent]
        return sent

    def _good(self, **changes: Any) -> Sent:
        random = self._random
        self._serial += 1
        self._clock += SECOND // 2
        at, late = self._clock, False
        if random.random() < 0.2:
            at -= random.randrange(60 * SECOND)
        elif random.random() < 0.02:
            at, late = at - random.randrange(1_310 * SECOND, 4_000 * SECOND), True
        who = "hot" if random.random() < 0.3 else f"cold-{random.randrange(self._keys)}"
        fields: dict[str, Any] = {
            "at": at,
            "who": who,
            "f": random.choice([None, self._serial / 7, -self._serial / 3, 1e17 / self._serial, 2.0**-80]),
            "i": self._serial % 19,
            "wide": random.choice([None, 2**60 + self._serial, -(2**60) - self._serial]),
            "text": random.choice([None, "", "a\0", "Zürich", f"{self._serial * 7919 % 1000}"]),
            "raw": random.choice([None, b"", b"\xff\x00", b"%d" % self._serial]),
        }
        return sent_of(fields | changes, frozenset(), is_late=late)

    def _poison(self) -> Sent:
        kind = self._random.randrange(6)
        if kind == 0:
            return Sent(b"{oops %d" % self._serial, None, frozenset([""]))
        if kind == 1:
            return Sent(None, None, frozenset([""]))
        if kind == 2:
            return Sent(self._random.randbytes(20), None, frozenset([""]))
        if kind == 3:
            return sent_of(self._good().fields or {}, frozenset(["cells", "last"]), who=None)
        if kind == 4:
            return sent_of(self._good().fields or {}, frozenset(["by_number"]), i=None)
        return sent_of(self._good().fields or {}, frozenset(["cells", "by_number"]), f=1e30)


def sent_of(fields: Mapping[str, Any], refused: frozenset[str], *, is_late: bool = False, **changes: Any) -> Sent:
    """The message with these fields."""
    fields = dict(fields) | changes
    raw = None if fields["raw"] is None else base64.b64encode(fields["raw"]).decode()
    value = json.dumps(fields | {"at": to_datetime(fields["at"]).isoformat(), "raw": raw}).encode()
    return Sent(value, fields, refused, is_late)


@dataclass
class Truth:
    """Everything that is in the topic, by (partition, offset); `refused` are the letters there must be."""

    plan: Plan
    produced: int = 0
    late: int = 0
    ends: Counter[int] = field(default_factory=Counter)
    refused: set[tuple[int, int, str]] = field(default_factory=set)
    accepted: Counter[str] = field(default_factory=Counter)
    fences: dict[str, dict[Any, dict[int, int]]] = field(default_factory=dict)
    kept: dict[str, dict[Any, list[Message]]] = field(default_factory=dict)

    def add(self, partition: int, offset: int, sent: Sent) -> None:
        """Kafka has this message there."""
        self.produced += 1
        self.late += sent.is_late
        self.ends[partition] = max(self.ends[partition], offset + 1)
        self.refused |= {(partition, offset, view) for view in sent.refused}
        for view, place in PLACES.items():
            if sent.fields is None or view in sent.refused:
                continue
            self.accepted[view] += 1
            key = sent.fields[place]
            fences = self.fences.setdefault(view, {}).setdefault(key, {})
            fences[partition] = max(offset, fences.get(partition, -1))
            self.kept.setdefault(view, {}).setdefault(key, []).append(Message(partition, offset, sent.fields))

    def forget(self) -> None:
        """Forget what no window can see as of its key's newest event, and rows that are not the latest."""
        for view in self.plan.views:
            for key, messages in self.kept.get(view.name, {}).items():
                newest = max(m.fields["at"] for m in messages)
                if view.kind == "latest":
                    kept = [max(messages, key=_order)]
                else:
                    kept = [m for m in messages if m.fields["at"] >= newest - view.tile_layout.longest]
                self.kept[view.name][key] = kept

    def values(self, view: View) -> dict[bytes, bytes]:
        """The bytes that Redis must hold of a view of windows, by entity."""
        values: dict[bytes, bytes] = {}
        for key, messages in self.kept.get(view.name, {}).items():
            values |= streams.expected_values(view, messages, self.fences[view.name][key])
        return values

    def features(self, key: Mapping[str, Any], as_of: int) -> dict[str, Any]:
        """Every feature of the service for one row, by name."""
        found: dict[str, Any] = {}
        for view in self.plan.views:
            own = key[PLACES[view.name]]
            messages = self.kept.get(view.name, {}).get(own, [])
            events = [oracle.Event(m.fields["at"], m.partition, m.offset, 0, m.fields) for m in messages]
            found |= {named(view, name): value for name, value in oracle.features(view, [own], as_of, events).items()}
        return found

    def newest(self) -> int:
        """The greatest event time of all."""
        greatest: int = max(
            m.fields["at"] for of_view in self.kept.values() for of_key in of_view.values() for m in of_key
        )
        return greatest


def _order(message: Message) -> tuple[int, int, int]:
    return message.fields["at"], message.partition, message.offset
