"""Tiles: built, merged and read, whatever the order and the batches, against the oracle's loops."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tally import merging, tiles
from tally.aggregates import EventOrder, limb_count
from tally.columns import Column, column
from tally.errors import DataError
from tally.merging import Tiles
from tally.tiles import Aggregation, Records, TileLayout
from tally.windows import Window
from tests import oracle
from tests.oracle import Event
from tests.tally.windowed import (
    COLUMNS,
    EVERYTHING,
    KEYS,
    T0,
    WINDOWS,
    answers,
    build,
    events,
    instants,
    layout_of,
    layouts,
    packed,
    read,
    view_of,
)

ASKS = st.lists(st.tuples(st.sampled_from(KEYS), instants()), max_size=4)


def check(layout: TileLayout, found: dict[str, list[Any]], asks: Sequence[tuple[int, int]], rows: list[Event]) -> None:
    """Every value read is the oracle's, to the bit."""
    view = view_of(layout)
    assert set(found) == {a.feature for a in layout.aggregations}
    for row, (key, as_of) in enumerate(asks):
        expected = oracle.features(view, [key], as_of, rows)
        for name, value in expected.items():
            assert oracle.same(found[name][row], value), (name, as_of, found[name][row], value)


def merged(layout: TileLayout, one: Records, other: Records) -> Records:
    """Two sets of tiles as one, field by field, as the definition of each cell says."""
    by_tile: dict[tuple[int, int], Any] = {}
    for record in [record for part in (one, other) for record in part]:
        place = (int(record["level"]), int(record["tile"]))
        by_tile[place] = _merged_record(layout, by_tile[place], record) if place in by_tile else record
    out = np.zeros(len(by_tile), layout.record)
    for position, place in enumerate(sorted(by_tile)):
        out[position] = by_tile[place]
    return out


def _merged_record(layout: TileLayout, one: Any, other: Any) -> Any:
    out = one.copy()
    for position, (dtype, cells) in enumerate(layout.columns.values()):
        counts = [int(record[f"count{position}"]) for record in (one, other)]
        out[f"count{position}"] = sum(counts)
        for cell in cells:
            name = f"{cell}{position}"
            if not all(counts):
                out[name] = (one if counts[0] else other)[name]
            elif cell in ("sum", "squares"):
                numbers = [int.from_bytes(record[name].tobytes(), "little", signed=True) for record in (one, other)]
                raw = sum(numbers).to_bytes(4 * limb_count(cell, dtype), "little", signed=True)
                out[name] = np.frombuffer(raw, "<u4")
            else:
                least = cell in ("min", "first")
                ordered = sorted((one, other), key=lambda record, name=name: _rank(record[name]))  # type: ignore[misc]
                out[name] = ordered[0 if least else 1][name]
    return out


def _rank(cell: Any) -> tuple[Any, ...]:
    return tuple(cell.tolist()) if isinstance(cell, np.void) else (cell,)


@given(layouts(), events(), ASKS)
def test_windows_are_the_oracles(layout: TileLayout, rows: list[Event], asks: list[tuple[int, int]]) -> None:
    """Any aggregations over any events, asked at the edges of tiles and windows: the oracle's bits."""
    check(layout, answers(layout, rows, asks), asks, rows)


def test_every_aggregation_at_once() -> None:
    """All functions, dtypes and windows in one view of three hundred events."""
    dice = random.Random(11)
    rows = []
    for offset in range(300):
        values: dict[str, Any] = {
            "f64": dice.uniform(-1, 1) * 10 ** dice.randint(-20, 18), "f32": float(np.float32(dice.gauss(0, 1e6))),
            "wide": dice.choice([0.0, -0.0, 5e-324, 1e300, -1e300, float("inf")]), "i64": dice.randint(-(2**50), 2**50),
            "big": dice.choice([2**60 + 1, -(2**63), 2**63 - 1]), "i32": dice.randint(-(2**31), 2**31 - 1),
            "b": dice.random() < 0.5, "ts": dice.randint(-(2**60), 2**60), "text": dice.choice(["", "a", "aa", "ÿ", "\uffff", "\U00010000"]),
            "raw": dice.randbytes(dice.randint(0, 3)),
        }  # fmt: skip
        values = {name: None if dice.random() < 0.2 else value for name, value in values.items()}
        at = T0 + dice.choice([dice.randint(-(10**11), 10**10), 300_000_000 * dice.randint(-12, 3), 0])
        rows.append(Event(at, dice.randint(0, 3), offset, 0, {**values, "key": dice.choice(KEYS)}))
    asks = [(key, T0 + off) for key in KEYS for off in (0, 1, -1, 3_600_000_000, 10**11, -(10**12))]
    check(EVERYTHING, answers(EVERYTHING, rows, asks), asks, rows)


@given(layouts(), events(), st.randoms(use_true_random=False))
def test_order_leaves_no_trace(layout: TileLayout, rows: list[Event], dice: random.Random) -> None:
    """Shuffled rows give the same bytes."""
    expected = build(layout, rows)
    shuffled = rows.copy()
    dice.shuffle(shuffled)
    found = build(layout, shuffled)
    for key in KEYS:
        assert packed(layout, found[key]) == packed(layout, expected[key])


@given(layouts(), events(), st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_parts_merge_to_the_whole(layout: TileLayout, rows: list[Event], part_of: list[int]) -> None:
    """Tiles of three disjoint parts, merged by addition, min and max, are the bytes of the whole's tiles."""
    parts = [[r for r, p in zip(rows, part_of, strict=False) if p == part] for part in range(3)]
    whole = build(layout, rows)
    for key in KEYS:
        one, two, three = (build(layout, part)[key] for part in parts)
        left = merged(layout, merged(layout, one, two), three)
        right = merged(layout, three, merged(layout, two, one))
        assert packed(layout, left) == packed(layout, right) == packed(layout, whole[key])


@given(layouts(), events())
def test_records_are_sorted_and_hold_every_row_once(layout: TileLayout, rows: list[Event]) -> None:
    """One record per (entity, level, tile) that has a row, by rising level and tile."""
    for key, records in build(layout, rows).items():
        own = {
            (level, r.timestamp // hop)
            for level, (hop, _) in enumerate(layout.levels)
            for r in rows
            if r.values["key"] == key
        }
        assert list(zip(records["level"].tolist(), records["tile"].tolist(), strict=True)) == sorted(own)


@given(layouts(), events(), instants())
def test_old_tiles_may_be_dropped(layout: TileLayout, rows: list[Event], later: int) -> None:
    """What lies before `oldest_tile` of the newest event is seen by no window as of that event or later."""
    newest = max((row.timestamp for row in rows), default=0)
    as_of = [newest, max(newest, later)]
    for records in build(layout, rows).values():
        places = zip(records["level"].tolist(), records["tile"].tolist(), strict=True)
        kept = records[np.array([tile >= layout.oldest_tile(level, newest) for level, tile in places], np.bool_)]
        assert repr(read(layout, [kept] * 2, as_of)) == repr(read(layout, [records] * 2, as_of))


@given(layouts(), st.integers(-(10**15), 10**15))
def test_longest_is_how_long_an_event_is_seen(layout: TileLayout, at: int) -> None:
    """After `longest`, no window sees the event any more; just before, the slowest one may."""
    slowest = max(layout.aggregations, key=lambda a: a.window.length + a.window.hop).window
    assert layout.longest == slowest.length + slowest.hop
    assert all(a.window.lower(at + layout.longest) > at for a in layout.aggregations)
    at -= at % slowest.hop
    assert slowest.lower(at + layout.longest - 1) <= at


def test_nothing_stored() -> None:
    """No rows: no records; every count is 0 and every other value null. No questions: empty columns."""
    assert [len(part) for part in build(EVERYTHING, []).values()] == [0, 0]
    check(EVERYTHING, answers(EVERYTHING, [], [(7, T0)]), [(7, T0)], [])
    assert all(values == [] for values in answers(EVERYTHING, [], []).values())


def test_an_entity_of_nulls_alone() -> None:
    """Rows whose values are all null make tiles that count nothing."""
    rows = [Event(T0, 0, 1, 0, {**dict.fromkeys(COLUMNS), "key": 7})]
    check(EVERYTHING, answers(EVERYTHING, rows, [(7, T0)]), [(7, T0)], rows)


@pytest.mark.parametrize("function", ["first", "last"])
def test_ties_are_broken_by_partition_and_offset(function: str) -> None:
    """Of rows at one instant, the order is that of (partition, offset), by number and not by text."""
    layout = layout_of([("i64", function, "1h")])
    places = [(0, 10), (0, 9), (2, 0), (10, 0), (2**32 - 1, 0), (2**32 - 1, 2**53 + 1)]
    rows = [Event(T0, a, b, 0, {**dict.fromkeys(COLUMNS), "i64": n, "key": 7}) for n, (a, b) in enumerate(places)]
    check(layout, answers(layout, rows[::-1], [(7, T0)]), [(7, T0)], rows)


def test_a_sum_beyond_int64_is_refused_by_name() -> None:
    """Tiles hold it exactly, the answer does not fit: DataError naming the feature; a sum that comes back fits again."""
    layout = layout_of([("big", "last", "1h"), ("i64", "sum", "1h"), ("i64", "mean", "1h")])
    values = [2**63 - 1, 1, -1]

    def rows(count: int) -> list[Event]:
        return [
            Event(T0, 0, n, 0, {**dict.fromkeys(COLUMNS), "i64": value, "key": 7})
            for n, value in enumerate(values[:count])
        ]

    with pytest.raises(DataError, match="i64_sum_1h"):
        answers(layout, rows(2), [(7, T0)])
    check(layout, answers(layout, rows(3), [(7, T0)]), [(7, T0)], rows(3))


def test_layouts_are_derived_from_aggregations() -> None:
    """Columns by name, levels by hop with their longest window, and the size of a record that Redis is told."""
    asked = [("i64", "mean", "1d"), ("f64", "std", "2h"), ("f64", "last", "1h"), ("b", "count", "50m")]
    layout = layout_of([*asked, ("text", "min", "1h"), ("text", "first", "1h")])
    assert list(layout.columns) == ["b", "f64", "i64", "text"]
    assert layout.columns["f64"] == ("Float64", ("sum", "squares", "last"))
    assert layout.levels == tuple(sorted((WINDOWS[at].hop, WINDOWS[at].length) for at in ("50m", "2h", "1d")))
    program = json.loads(layout.merge_program)
    numbers: list[list[Any]] = [[], [["sum", 6], ["squares", 11], ["last", 0]], [["sum", 3]]]
    assert program["columns"] == [*numbers, [["min", -1], ["first", -1]]]
    sizes = {"sum": 0, "squares": 0, "min": 8, "max": 8, "first": 28, "last": 28}
    cells = [8 + sum(4 * limbs + sizes[cell] for cell, limbs in column) for column in numbers]
    assert program["size"] == layout.stored.itemsize == 9 + sum(cells) + 8 + 2 + 22
    assert layout_of(asked).record == layout_of(asked).stored
    assert [tuple(level) for level in program["levels"]] == list(layout.levels)


@given(st.permutations(range(6)))
def test_the_order_of_aggregations_does_not_change_the_bytes(order: list[int]) -> None:
    """Views that list the same aggregations otherwise have the same tiles."""
    asked = [
        ("i64", "mean", "1d"),
        ("f64", "std", "2h"),
        ("f64", "last", "1h"),
        ("b", "max", "50m"),
        ("ts", "min", "1h"),
        ("i64", "count", "us"),
    ]
    one, other = layout_of(asked), layout_of([asked[i] for i in order])
    assert one.record == other.record
    assert one.merge_program == other.merge_program


def test_built_records_have_the_layouts_bytes() -> None:
    """Records of several levels keep the layout's packed dtype, big-endian ranks included, so their bytes can be stored."""
    layout = TileLayout(
        tuple(
            Aggregation(f"{function}_{length}", "v", "Int64", function, Window(length, 10 * length // 60), "Int64")
            for function in ("min", "last")
            for length in (60, 600)
        )
    )
    zeros = np.zeros(1, np.int64)
    values: dict[str, Column] = {"v": column("Int64", [5])}
    _, records, _ = tiles.build(layout, zeros, EventOrder(zeros, zeros, zeros), values)
    assert records.dtype == layout.record
    assert records["level"].tolist() == [0, 1]
    again = np.frombuffer(records.tobytes(), layout.record)
    held = Tiles(again, np.array([len(again)]), zeros)
    assert {c.to_list()[0] for c in merging.read(layout, held).values()} == {5}
