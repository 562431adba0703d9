"""A windowed view with every kind of cell, random events for it, and what Redis must then hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ingestion import stream
from ingestion.stream import Events
from tally.aggregates import EventOrder, output_dtype
from tally.columns import column
from tally.dtypes import Dtype
from tally.layout import entity_texts, fences_of, pack_tiles, unpack_tiles
from tally.merging import Tiles, read
from tally.plan import Field, Source, View, hashed_view
from tally.tiles import Aggregation, build
from tally.time import SECOND
from tally.windows import Window
from tests import oracle

COLUMNS = (
    Field("at", "UnixTimestamp"),
    Field("who", "String"),
    Field("f", "Float64"),
    Field("i", "Int64"),
    Field("wide", "Int64"),
    Field("text", "String"),
    Field("raw", "Bytes"),
)
SOURCE = Source("events", "EVENTS", "", "", "at", "", "events", COLUMNS)
SHORT, MIDDLE, LONG = (
    Window(60 * SECOND, 5 * SECOND),
    Window(700 * SECOND, 70 * SECOND),
    Window(1000 * SECOND, 300 * SECOND),
)


def view_with_every_cell(*, texts: bool) -> View:
    """Windows of a minute and of a quarter of an hour, in three hops; over `texts` too."""
    wanted: list[tuple[str, Dtype, tuple[str, ...], tuple[Window, ...]]] = [
        ("f", "Float64", ("count", "sum", "std", "min", "max", "first", "last"), (SHORT, LONG)),
        ("i", "Int64", ("sum", "var", "last"), (SHORT, MIDDLE)),
        ("wide", "Int64", ("min", "max", "first"), (MIDDLE, LONG)),
    ]
    if texts:
        wanted.append(("text", "String", ("count", "min", "max", "first", "last"), (SHORT, LONG)))
        wanted.append(("raw", "Bytes", ("max", "first"), (SHORT, MIDDLE)))
    aggregations = tuple(
        Aggregation(f"{name}_{function}_{window.length}", name, dtype, function, window, output_dtype(function, dtype))
        for name, dtype, functions, windows in wanted
        for function in functions
        for window in windows
    )
    keys = (Field("who", "String"),)
    return hashed_view(
        View("cells", "window", "events", keys, (), COLUMNS, "at", "", 0, True, True, None, aggregations), SOURCE
    )


@dataclass(frozen=True)
class Message:
    """One event: where it is in the topic, and its fields by name."""

    partition: int
    offset: int
    fields: dict[str, Any]


_texts = st.one_of(
    st.none(),
    st.sampled_from(["", "a", "ab", "abc", "\0", "a\0", "Z", "ÿ", "\uffff", "\U00010000"]),
    st.text(max_size=5),
)
_floats = st.one_of(
    st.none(), st.floats(-(2.0**63), 2.0**63), st.sampled_from([-0.0, 0.1, 2.0**-80, -5e-324, 2.0**63, -(2.0**63)])
)


@st.composite
def topics(draw: st.DrawFn, partitions: int = 3) -> list[list[Message]]:
    """The messages of each partition; timestamps at and near the edges of a few windows, anywhere in int64."""
    base = draw(st.sampled_from([0, -500, 1_357_000_000_000_000, 2**52, -(2**52), 2**62, -(2**62)]))
    fields = st.fixed_dictionaries(
        {
            "at": st.builds(lambda step, by: base + step * 5 * SECOND + by, st.integers(-250, 250), st.integers(-1, 1)),
            "who": st.sampled_from(["a", "b"]),
            "f": _floats,
            "i": st.none() | st.integers(-(2**40), 2**40),
            "wide": st.none() | st.integers(-(2**63), 2**63 - 1),
            "text": _texts,
            "raw": st.none() | st.binary(max_size=3),
        }
    )
    return [
        [Message(partition, offset, one) for offset, one in enumerate(draw(st.lists(fields, max_size=12)))]
        for partition in range(partitions)
    ]


@st.composite
def deliveries(draw: st.DrawFn, topic: Sequence[Sequence[Message]]) -> list[list[Message]]:
    """Batches that deliver a topic as Kafka may: each partition in order, resumed anywhere at or before where it stood."""
    reached = [0] * len(topic)
    batches = []
    while any(stood < len(messages) for stood, messages in zip(reached, topic, strict=True)):
        batch: list[Message] = []
        for partition, messages in enumerate(topic):
            begin = draw(st.integers(0, reached[partition]) if draw(st.booleans()) else st.just(reached[partition]))
            end = draw(st.integers(begin, len(messages)))
            batch += messages[begin:end]
            reached[partition] = max(reached[partition], end)
        batches.append(batch)
    return batches


def events_of(view: View, messages: Sequence[Message]) -> Events:
    """The events of messages, as the stream makes them."""
    columns = {f.name: column(f.dtype, [m.fields[f.name] for m in messages]) for f in view.columns}
    partition = np.array([m.partition for m in messages], np.int64)
    offset = np.array([m.offset for m in messages], np.int64)
    events, reasons = stream.events_of(view, None, columns, partition, offset)
    assert not reasons
    return events


def expected_values(
    view: View, messages: Sequence[Message], fences: Mapping[int, int] | None = None
) -> dict[bytes, bytes]:
    """Entity -> the bytes that a set of messages leaves in Redis, from one pass over all of them.

    With `fences` every value has those, as a bootstrap writes them; without, each has those of its own messages.
    """
    layout = view.tile_layout
    values = {}
    (key,) = view.keys
    for who in sorted({m.fields[key.name] for m in messages}):
        own = [m for m in messages if m.fields[key.name] == who]
        columns = {f.name: column(f.dtype, [m.fields[f.name] for m in own]) for f in view.columns}
        order = EventOrder(
            columns["at"].values, np.array([m.partition for m in own]), np.array([m.offset for m in own])
        )
        _, records, _ = build(layout, np.zeros(len(own), np.int64), order, columns)
        newest = max(m.fields["at"] for m in own)
        oldest = [(newest - length) // hop for hop, length in layout.levels]
        kept = records[[int(r["tile"]) >= oldest[int(r["level"])] for r in records]]
        reached = {m.partition: m.offset for m in sorted(own, key=lambda m: m.offset)} if fences is None else fences
        entity = entity_texts([column(key.dtype, [who])])[0]
        values[entity] = pack_tiles(view.tag, newest, reached, layout.pack(kept, np.zeros(1, np.int64))[0])
    return values


def difference(view: View, entity: bytes, found: bytes, expected: bytes) -> str:
    """What differs between two values of one key: [found, expected]."""
    rows = [unpack_tiles(view.tile_layout, view.tag, [value], [entity]) for value in (found, expected)]
    have, want = ({(int(r["level"]), int(r["tile"])): r for r in row.records} for row in rows)
    differ = {tile: [str(tile in have), str(tile in want)] for tile in have.keys() ^ want.keys()}
    for tile in have.keys() & want.keys():
        names = have[tile].dtype.names or ()
        differ |= {
            tile: [f"{n}: {have[tile][n]} {want[tile][n]}" for n in names if str(have[tile][n]) != str(want[tile][n])]
        }
    differ = {tile: found for tile, found in sorted(differ.items()) if found}
    fences = [fences_of(value) for value in (found, expected)]
    return f"{view.name}/{entity!r}: newest {[int(row.newest[0]) for row in rows]}, fences {fences}, tiles {differ}"


def features(view: View, key: bytes, value: bytes | None, as_of: int) -> dict[str, Any]:
    """Every window of a stored value, read by the rules that lookups use."""
    tiles = unpack_tiles(view.tile_layout, view.tag, [value], [key])
    columns = read(view.tile_layout, Tiles(tiles.records, tiles.sizes, np.array([as_of])))
    return {name: values.to_list()[0] for name, values in columns.items()}


def oracle_features(view: View, who: str, as_of: int, messages: Iterable[Message]) -> dict[str, Any]:
    """Every window, the slow and plain way."""
    events = [oracle.Event(m.fields["at"], m.partition, m.offset, 0, m.fields) for m in messages]
    return oracle.features(view, [who], as_of, events)
