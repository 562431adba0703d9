"""Random worlds: definitions, events and questions, small enough to read when one of them is a counterexample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from numpy.typing import NDArray

from ingestion.arrow import from_columns
from ingestion.delta import open_table, write_table
from ingestion.offline import IDENTITY, Extracted, source_hash
from tally.aggregates import FUNCTIONS, output_dtype
from tally.columns import Column, column
from tally.dtypes import DTYPES, KEY_DTYPES, Dtype
from tally.errors import DataError
from tally.plan import Field, Plan, Service, Source, ViewUse, hashed_service
from tally.time import DAY, HOUR, MINUTE, SECOND
from tally.windows import Window
from tests import oracle
from tests.oracle import Event
from tests.views import aggregation, latest_view, window_view

PROJECT = "random"
WINDOWS = {
    "1h": Window(HOUR, 5 * MINUTE),
    "50m": Window(50 * MINUTE, 7 * MINUTE),
    "1d": Window(DAY, 2 * HOUR),
    "step": Window(HOUR, HOUR),
    "9s": Window(9 * SECOND, 2 * SECOND),
}
TTLS = (0, 90 * SECOND, HOUR)
"""None that passes while an example runs: in Redis a key expires that long after its last write (docs/decisions/007), and
so do tiles when their last window has passed."""
BASES = (0, DAY, -DAY, 19_792 * DAY, -400 * DAY + 3)
"""The epoch, midnights of both sides of it, a day of this century, and three microseconds after an old midnight."""
STEPS = (0, 9 * SECOND, 2 * SECOND, 7 * MINUTE, 5 * MINUTE, 50 * MINUTE, HOUR, 2 * HOUR, DAY, 90 * SECOND)
"""Hops, lengths and times to live."""
INSTANTS = st.builds(
    lambda base, step, times, off: base + step * times + off,
    st.sampled_from(BASES), st.sampled_from(STEPS), st.sampled_from([1, -1, 2, 12]), st.sampled_from([0, 0, 1, -1]),
)  # fmt: skip
TEXTS = ("", "a", "Z", "a|b", "\\", "\0", "a\0", "é", "e\u0301", "\uffff", "\U00010000", "🛫" * 3)
FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, 0.1, 1e18, -1e18, 1.0, 1e-13, 2.0**-96, 2.0**-97, 5e-324, math.nan, 1e16]),
    st.floats(-1e18, 1e18),
    st.floats(),
)
VALUES: dict[Dtype, st.SearchStrategy[Any]] = {
    "Float64": FLOATS,
    "Float32": st.floats(width=32),
    "Int64": st.one_of(st.sampled_from([2**53 + 1, *[2**60 + 1, 2**63 - 1] * 2, -(2**63)]), st.integers(-9, 9)),
    "Int32": st.one_of(st.sampled_from([0, 2**31 - 1, -(2**31)]), st.integers(-9, 9)),
    "Bool": st.booleans(),
    "String": st.one_of(st.sampled_from([*TEXTS, "é" * 512, "é" * 512 + "a"]), st.text(max_size=3)),
    "Bytes": st.sampled_from([b"", b"\0", b"\xff", b"a", b"a\0"]),
    "UnixTimestamp": INSTANTS,
}
KEYS: tuple[Dtype, ...] = tuple(dtype for dtype in DTYPES if dtype in KEY_DTYPES)
KEY_VALUES: dict[Dtype, Sequence[Any]] = {
    "String": TEXTS,
    "Bytes": (b"", b"|", b"\xff", b"a"),
    "Int64": (0, 1, 11, -1, 2**63 - 1, -(2**63)),
    "Int32": (0, 1, 11, 2**31 - 1, -(2**31)),
    "Bool": (False, True),
    "UnixTimestamp": (0, -1, DAY),
}
Label = tuple[tuple[Any, ...], int]
Called = tuple[str, Dtype, str, str]
"""An aggregation: name of the column, its dtype, function, name of the window."""


@dataclass(frozen=True)
class World:
    """A project of one topic with a view of windows and one of latest rows, both keyed by `keys`, and what happened.

    `labels` are asked; each is (entity, instant).
    """

    keys: tuple[Dtype, ...]
    windows: tuple[Called, ...]
    fields: tuple[Dtype, ...]
    ttl: int
    events: tuple[Event, ...]
    labels: tuple[Label, ...]

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {function} {window}" for name, _, function, window in self.windows)
        lines = [
            f"World: keys {', '.join(self.keys)}; windows {said}; latest {', '.join(self.fields)} for {self.ttl} us"
        ]
        for e in self.events:
            values = ", ".join(f"{name}={value!r}" for name, value in e.values.items() if name != "at")
            lines.append(f"  at {e.timestamp} partition {e.a} offset {e.b}: {values}")
        return "\n".join([*lines, *(f"  asked {entity} as of {as_of}" for entity, as_of in self.labels)])

    @property
    def columns(self) -> tuple[Field, ...]:
        """What a message holds."""
        held = [Field(f"k{n}", dtype) for n, dtype in enumerate(self.keys)]
        held += [Field(name, dtype) for name, dtype, *_ in self.windows]
        held += [Field(f"v_{dtype}", dtype) for dtype in self.fields]
        return (Field("at", "UnixTimestamp"), *dict.fromkeys(held))

    @property
    def source(self) -> Source:
        """The topic."""
        return Source("events", "EVENTS", "", "", "at", "", "events", self.columns)

    @property
    def plan(self) -> Plan:
        """The definitions, compiled; the service is called `all`."""
        keys = tuple(Field(f"k{n}", dtype) for n, dtype in enumerate(self.keys))
        aggregations = [
            aggregation(f"{name}_{f}_{w}", Field(name, dtype), f, WINDOWS[w]) for name, dtype, f, w in self.windows
        ]
        latest = latest_view("latest", self.source, keys, [Field(f"v_{d}", d) for d in self.fields], ttl=self.ttl)
        views = (latest, window_view("window", self.source, keys, aggregations))
        outputs = tuple(field for view in views for field in view.fields)
        uses = tuple(
            ViewUse(v.name, v.name, tuple(k.name for k in v.keys), tuple((f.name, f.name) for f in v.fields))
            for v in views
        )
        service = Service("all", uses, (), keys, (), outputs)
        plan = Plan(PROJECT, (self.source,), views, (), ())
        return Plan(PROJECT, plan.sources, plan.views, (), (hashed_service(service, plan),))

    def expected(self, entity: Sequence[Any], as_of: int) -> dict[str, Any]:
        """The oracle's answer."""
        answer: dict[str, Any] = {}
        for view in self.plan.views:
            answer |= oracle.features(view, entity, as_of, [e for e in self.events if oracle.counts(view, e)])
        return answer

    @property
    def overflows(self) -> bool:
        """Whether some answer has a sum of integers that does not fit int64."""
        answers = [self.expected(*label) for label in self.labels]
        return any(isinstance(v, int) and not -(2**63) <= v < 2**63 for one in answers for v in one.values())

    @property
    def label_columns(self) -> tuple[dict[str, Column], NDArray[np.int64]]:
        """(key columns, instants) of the labels."""
        keys = {f"k{n}": column(dtype, [entity[n] for entity, _ in self.labels]) for n, dtype in enumerate(self.keys)}
        return keys, np.array([as_of for _, as_of in self.labels], np.int64)


def columns_of(world: World, events: Sequence[Event]) -> dict[str, Column]:
    """Events as columns."""
    return {f.name: column(f.dtype, [e.values[f.name] for e in events], f.name) for f in world.columns}


def land(world: World, uri: str, events: Sequence[Event]) -> None:
    """Append events to the topic's table as one extraction does, without a CreateTime."""
    plan, source = world.plan, world.source
    count = len(events)
    identity = [
        pa.array(["events"] * count), pa.array([e.a for e in events]), pa.array([e.b for e in events]),
        pa.nulls(count), pa.nulls(count), pa.nulls(count),
    ]  # fmt: skip
    table = from_columns(columns_of(world, events))
    for field, values in reversed(list(zip(IDENTITY, identity, strict=True))):
        table = table.add_column(0, field, values.cast(field.type))
    offsets = {e.a: max(o.b for o in events if o.a == e.a) for e in events}
    knows = Extracted(source_hash(plan, source), offsets, {}, None)
    write_table(
        uri,
        source.name,
        open_table(uri, source.name),
        table.schema,
        table.to_batches(),
        overwrite=False,
        metadata=knows.to_metadata(),
    )


def _applies(function: str, dtype: Dtype) -> bool:
    try:
        output_dtype(function, dtype)
    except DataError:
        return False
    return True


CALLED: list[Called] = [
    (f"c_{dtype}", dtype, function, window)
    for dtype in DTYPES
    for function in FUNCTIONS
    for window in WINDOWS
    if _applies(function, dtype)
]
SUMMED = [called for called in CALLED if called[2] in ("sum", "mean", "std", "var")]
WHOLE = [called for called in CALLED if called[1] == "Int64"]


@st.composite
def worlds(draw: st.DrawFn, *, online: bool = False, max_events: int = 10) -> World:
    """Any world; with `online` no label is asked about a time before its entity's newest event."""
    keys = tuple(draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3)))
    entities = draw(
        st.lists(st.tuples(*(st.sampled_from(KEY_VALUES[dtype]) for dtype in keys)), min_size=1, max_size=3, unique=True)
    )  # fmt: skip
    called = st.sampled_from(CALLED) | st.sampled_from(SUMMED) | st.sampled_from(WHOLE)
    windows = tuple(draw(st.lists(called, min_size=1, max_size=5, unique=True)))
    fields = tuple(draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3, unique=True)))
    empty = World(keys, windows, fields, draw(st.sampled_from(TTLS)), (), ())
    anchors = draw(st.lists(INSTANTS, min_size=1, max_size=3))  # so that events share tiles and windows
    hops = [1, *(WINDOWS[name].hop for *_, name in windows)]
    near = st.builds(
        lambda anchor, hop, off: anchor - anchor % hop + off,
        st.sampled_from(anchors), st.sampled_from(hops), st.sampled_from([0, 0, 1, -1, SECOND]),
    )  # fmt: skip
    times = draw(st.lists(near, max_size=max_events))
    events = tuple(_event(draw, empty, entities, offset, at) for offset, at in enumerate(times))
    labels = []
    known = [*(_entity(empty, e) for e in events), *entities]
    for entity in draw(st.lists(st.sampled_from(known), min_size=1, max_size=4)):
        own = [e.timestamp for e in events if _entity(empty, e) == entity]
        edges = [edge for at in own for edge in _edges(empty, at)]
        as_of = draw(st.sampled_from(edges) if edges and draw(st.integers(0, 3)) else INSTANTS)
        labels.append((entity, max([as_of, *own]) if online else as_of))
    return World(keys, windows, fields, empty.ttl, events, tuple(labels))


def _edges(world: World, at: int) -> list[int]:
    """Around when an event of `at` begins and ceases to count: as it happens, as its time to live ends, as tails pass it."""
    lasts = [WINDOWS[name] for *_, name in world.windows]
    passed = [(at // window.hop + 1) * window.hop + window.length for window in lasts]
    edges = [at, at + world.ttl, at + world.ttl + 1, *(at + window.length for window in lasts), *passed]
    return [edge + off for edge in edges for off in (0, 1, -1)]


def _event(draw: st.DrawFn, world: World, entities: Sequence[tuple[Any, ...]], offset: int, at: int) -> Event:
    entity = draw(st.sampled_from(entities))
    values: dict[str, Any] = {"at": at, **{f"k{n}": part for n, part in enumerate(entity)}}
    for field in world.columns[1 + len(world.keys) :]:
        values[field.name] = draw(st.none() | VALUES[field.dtype])
    return Event(at, draw(st.integers(0, 2)), offset, at, values)


def _entity(world: World, event: Event) -> tuple[Any, ...]:
    return tuple(event.values[f"k{n}"] for n in range(len(world.keys)))


def differences(world: World, labels: Sequence[Label], found: dict[str, Column]) -> list[str]:
    """In what an answer is not the oracle's; empty where every bit is."""
    wrong = []
    for row, (entity, as_of) in enumerate(labels):
        for name, value in world.expected(entity, as_of).items():
            held = found[name].values.tolist()[row] if found[name].valid[row] else None
            if not oracle.same(held, value):
                wrong.append(f"{name} of {entity} as of {as_of} is {_shown(held)}, the oracle says {_shown(value)}")
    return wrong


def _shown(value: Any) -> str:
    return f"{value!r} ({value.hex()})" if isinstance(value, float) else repr(value)
