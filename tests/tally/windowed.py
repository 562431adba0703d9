"""Events and windowed views for the tests of tiles: every function over every dtype, asked at the edges of every rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tally import merging, tiles
from tally.aggregates import FUNCTIONS, EventOrder, output_dtype
from tally.columns import Column, column
from tally.dtypes import Dtype
from tally.errors import DataError
from tally.merging import Tiles
from tally.plan import Field, View
from tally.tiles import Aggregation, Records, TileLayout
from tally.time import DAY, HOUR, MINUTE
from tally.windows import Window
from tests.oracle import Event

WINDOWS = {
    "1h": Window(HOUR, 5 * MINUTE),
    "2h": Window(2 * HOUR, 5 * MINUTE),
    "50m": Window(50 * MINUTE, 7 * MINUTE),
    "1d": Window(DAY, 2 * HOUR),
    "step": Window(HOUR, HOUR),
    "us": Window(3, 1),
}
"""Two windows of one hop, a hop that does not divide its window, one as long as its window, and the least of all."""

COLUMNS: dict[str, tuple[Dtype, st.SearchStrategy[Any]]] = {
    "f64": ("Float64", st.floats(-(2.0**64), 2.0**64, exclude_min=True, exclude_max=True)),
    "f32": ("Float32", st.floats(-(2.0**63), 2.0**63, width=32)),
    "wide": ("Float64", st.one_of(st.sampled_from([math.inf, -math.inf, 0.0, -0.0, 5e-324]), st.floats())),
    "i64": ("Int64", st.integers(-(2**58), 2**58)),
    "big": ("Int64", st.sampled_from([2**60 + 1, 2**63 - 1, -(2**63), -1, 0])),
    "i32": ("Int32", st.integers(-(2**31), 2**31 - 1)),
    "b": ("Bool", st.booleans()),
    "ts": ("UnixTimestamp", st.integers(-(2**62), 2**62)),
    "text": (
        "String",
        st.one_of(st.sampled_from(["", "a", "\0", "a\0", "ÿ", "\ud7ff", "\uffff", "\U00010000"]), st.text()),
    ),
    "raw": ("Bytes", st.binary(max_size=4)),
}
"""Sums are asked of f64, f32, i64, i32 and b; the others hold what has only an order."""
SUMMED = ("f64", "f32", "i64", "i32", "b")
KEYS = (7, -3)
T0 = 5 * DAY


def _applies(name: str, function: str) -> bool:
    try:
        output_dtype(function, COLUMNS[name][0])
    except DataError:
        return False
    return name in SUMMED or function not in ("sum", "mean", "std", "var")


ALL = [(name, function, at) for name in COLUMNS for function in FUNCTIONS for at in WINDOWS if _applies(name, function)]


def layout_of(asked: Sequence[tuple[str, str, str]]) -> TileLayout:
    """The tiles of some (column, function, window)."""
    return TileLayout(
        tuple(
            Aggregation(f"{name}_{function}_{at}", name, dtype, function, WINDOWS[at], output_dtype(function, dtype))
            for name, function, at in asked
            for dtype in [COLUMNS[name][0]]
        )
    )


EVERYTHING = layout_of(ALL)


def layouts() -> st.SearchStrategy[TileLayout]:
    """A few aggregations of any kind, in any order."""
    return st.lists(st.sampled_from(ALL), min_size=1, max_size=8, unique=True).map(layout_of)


def view_of(layout: TileLayout) -> View:
    """A view of these windows, as `tests.oracle` reads it."""
    columns = tuple(Field(name, dtype) for name, (dtype, _) in COLUMNS.items())
    fields = tuple(Field(a.feature, a.output) for a in layout.aggregations)
    keys = (Field("key", "Int64"),)
    return View("v", "window", "s", keys, fields, columns, "t", "", 0, True, True, None, layout.aggregations)


def instants() -> st.SearchStrategy[int]:
    """Instants around the hops of all windows, before 1970 too."""
    on_hops = st.builds(
        lambda base, hop, times, off: base + hop * times + off,
        st.sampled_from([0, T0]),
        st.sampled_from([1, *(w.hop for w in WINDOWS.values()), *(w.length for w in WINDOWS.values())]),
        st.integers(-3, 3),
        st.integers(-1, 1),
    )
    return st.one_of(on_hops, st.integers(-DAY, DAY))


@st.composite
def events(draw: st.DrawFn, max_size: int = 12) -> list[Event]:
    """Events of two entities: many at the same instant, nulls between the values, each with an identity of its own."""
    count = draw(st.integers(0, max_size))
    places = draw(
        st.lists(
            st.tuples(st.sampled_from([0, 1, 2**31, 2**32 - 1]), st.integers(0, 2**40)),
            min_size=count,
            max_size=count,
            unique=True,
        )
    )
    made = []
    for partition, offset in places:
        values = {name: draw(st.one_of(st.none(), items)) for name, (_, items) in COLUMNS.items()}
        values["key"] = draw(st.sampled_from(KEYS))
        made.append(Event(draw(instants()), partition, offset, 0, values))
    return made


def order_of(rows: Sequence[Event]) -> EventOrder:
    """The order of events as arrays."""
    return EventOrder(*(np.array([getattr(row, at) for row in rows], np.int64) for at in ("timestamp", "a", "b")))


def columns_of(rows: Sequence[Event]) -> dict[str, Column]:
    """The values of events as columns."""
    return {name: column(dtype, [row.values[name] for row in rows], name) for name, (dtype, _) in COLUMNS.items()}


def build(layout: TileLayout, rows: Sequence[Event]) -> dict[int, Records]:
    """The tiles of each entity."""
    keys, records, sizes = tiles.build(
        layout, np.array([KEYS.index(row.values["key"]) for row in rows], np.int64), order_of(rows), columns_of(rows)
    )
    assert records.dtype == layout.record
    assert sizes.sum() == len(rows) * len(layout.levels)
    return {key: records[keys == code] for code, key in enumerate(KEYS)}


def packed(layout: TileLayout, records: Records) -> bytes:
    """The stored bytes of records."""
    (block,) = layout.pack(records, np.zeros(1, np.int64))
    return block


def read(layout: TileLayout, stored: Sequence[Records], as_of: Sequence[int]) -> dict[str, list[Any]]:
    """Every feature of each row's tiles as of its instant; null as None, instants as numbers."""
    joined, sizes, _ = layout.unpack([packed(layout, part) for part in stored])
    found = merging.read(layout, Tiles(joined, sizes, np.array(as_of, np.int64)))
    return {name: plain(values) for name, values in found.items()}


def answers(layout: TileLayout, rows: Sequence[Event], asks: Sequence[tuple[int, int]]) -> dict[str, list[Any]]:
    """Every feature for each (key, instant), from tiles of the rows up to that instant."""
    stored = [build(layout, [row for row in rows if row.timestamp <= as_of])[key] for key, as_of in asks]
    return read(layout, stored, [as_of for _, as_of in asks])


def plain(values: Column) -> list[Any]:
    """The items of a column, None where null."""
    pairs = zip(values.values.tolist(), values.valid.tolist(), strict=True)
    return [item if valid else None for item, valid in pairs]
