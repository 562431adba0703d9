"""The readers of single entities give the bits of the array readers, or None where those refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tally.columns import Column, column
from tally.dtypes import STORAGE, Dtype
from tally.errors import DataError, DefinitionMismatchError, StoredBytesError
from tally.layout import RowLayout, pack_tiles, unpack_tiles
from tally.single import RowReader, WindowReader
from tally.tiles import TileLayout
from tally.time import HOUR
from tests.oracle import Event, same
from tests.tally.stored import VIEW_HASH, pack, rows_of, same_columns, sized_layouts
from tests.tally.windowed import (
    COLUMNS,
    EVERYTHING,
    KEYS,
    T0,
    build,
    events,
    instants,
    layout_of,
    layouts,
    packed,
    plain,
    read,
)

TAG = bytes.fromhex(VIEW_HASH)[:8]


def damage(data: st.DataObject, value: bytes) -> bytes:
    """Some bytes changed, and perhaps the end cut off or something behind it."""
    damaged = bytearray(value)
    for position, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(value) - 1), st.integers(0, 255)), max_size=3)
    ):
        damaged[position] = byte
    cut = data.draw(st.one_of(st.just(len(value)), st.integers(0, len(value))))
    return bytes(damaged[:cut]) + data.draw(st.sampled_from([b"", b"", b"x"]))


def by_arrays(layout: RowLayout, value: bytes) -> tuple[int, int, int, list[Any]] | None:
    """A row as `RowLayout.unpack` reads it; None where it refuses."""
    try:
        rows = layout.unpack([value], [b"k"])
    except (StoredBytesError, DefinitionMismatchError):
        return None
    values = [plain(rows.columns[name])[0] for name, _ in layout.fields]
    return int(rows.timestamp[0]), int(rows.a[0]), int(rows.b[0]), values


def agree(one: tuple[Any, ...] | None, other: tuple[Any, ...] | None) -> bool:
    """Equal to the bit, or both None."""
    if one is None or other is None:
        return one is other
    return one[:-1] == other[:-1] and len(one[-1]) == len(other[-1]) and all(map(same, one[-1], other[-1]))


@given(st.data())
def test_rows_equal_those_of_arrays(data: st.DataObject) -> None:
    """Every dtype, nulls and extremes included."""
    layout = data.draw(sized_layouts())
    (value,) = pack(layout, data.draw(rows_of(layout, 1, 1)))
    found = RowReader(layout).read(value)
    assert found is not None
    assert agree(found, by_arrays(layout, value))


@pytest.mark.parametrize("more", [1.5, None])
@pytest.mark.parametrize("dtype", ["Float64", "Float32"])
def test_a_stored_nan_is_null(dtype: Dtype, more: float | None) -> None:
    """A NaN that another program wrote is a null to both readers, in a row without other nulls and in one with them."""
    layout = RowLayout((("n", "Int64"), ("x", dtype), ("y", dtype)), VIEW_HASH)
    there = np.ones(1, np.bool_)
    columns = {
        "n": column("Int64", [2]),
        "x": Column(dtype, np.array([np.nan], STORAGE[dtype]), there),
        "y": column(dtype, [more]),
    }
    zero = np.zeros(1, np.int64)
    (value,) = layout.pack(zero, zero, zero, columns)
    assert by_arrays(layout, value) == (0, 0, 0, [2, None, more])
    assert RowReader(layout).read(value) == (0, 0, 0, [2, None, more])
    same_columns(layout.unpack([value], [b"k"]).columns["x"], column(dtype, [None]))


@given(st.data())
def test_damaged_rows_are_left_to_the_arrays(data: st.DataObject) -> None:
    """Where the array reader refuses, this one answers None; where this one answers, it answers alike."""
    layout = data.draw(sized_layouts())
    (value,) = pack(layout, data.draw(rows_of(layout, 1, 1)))
    damaged = damage(data, value)
    found = RowReader(layout).read(damaged)
    assert found is None or agree(found, by_arrays(layout, damaged))


@given(st.binary(max_size=80))
def test_any_bytes(value: bytes) -> None:
    """Bytes that Tally never wrote are answered None."""
    assert RowReader(RowLayout((("n", "String"), ("x", "Float64")), VIEW_HASH)).read(b"\x07" + value) is None
    assert WindowReader(EVERYTHING, TAG).read(b"\x07" + value, 0) is None


def test_other_definitions_are_left_to_the_arrays() -> None:
    """Another hash is answered None, for a row and for tiles."""
    layout = RowLayout((("n", "Int64"),), VIEW_HASH)
    (value,) = pack(RowLayout(layout.fields, "ee" * 16), [(0, 0, 0, [1])])
    assert RowReader(layout).read(value) is None
    assert WindowReader(EVERYTHING, TAG).read(pack_tiles(b"e" * 8, 0, {}, bytes(4)), 0) is None


@given(layouts(), events(), instants(), st.dictionaries(st.integers(0, 9), st.integers(0, 9), max_size=3))
def test_windows_equal_those_of_arrays(
    layout: TileLayout, rows: list[Event], as_of: int, fences: dict[int, int]
) -> None:
    """Any aggregations, behind any fences, as of any instant: the bits of `merging.read`."""
    reader = WindowReader(layout, TAG)
    for records in build(layout, rows).values():
        found = reader.read(pack_tiles(TAG, 77, fences, packed(layout, records)), as_of)
        expected = read(layout, [records], [as_of])
        assert agree(found, (77, [expected[a.feature][0] for a in layout.aggregations]))


@pytest.mark.parametrize("column", ["i64", "text"])
@pytest.mark.parametrize("tiles", [63, 64, 65, 200])
def test_many_tiles(column: str, tiles: int) -> None:
    """More tiles than are read at once, with numbers and with texts."""
    layout = layout_of([(column, "count", "1h"), (column, "min", "1h"), (column, "last", "1h")])
    value = {"i64": 5, "text": "ab"}[column]
    rows = [
        Event(T0 + n * HOUR, 0, n, 0, {**dict.fromkeys(COLUMNS), column: value if n % 3 else None, "key": 7})
        for n in range(tiles)
    ]
    records = build(layout, rows)[7]
    assert len(records) == tiles
    for as_of in (T0, T0 + tiles // 2 * HOUR, T0 + tiles * HOUR):
        found = WindowReader(layout, TAG).read(pack_tiles(TAG, 0, {}, packed(layout, records)), as_of)
        expected = read(layout, [records], [as_of])
        assert agree(found, (0, [expected[a.feature][0] for a in layout.aggregations]))


@given(events(max_size=10), instants())
def test_every_aggregation_at_once(rows: list[Event], as_of: int) -> None:
    """All functions, dtypes and windows in one view."""
    records = build(EVERYTHING, rows)[KEYS[0]]
    found = WindowReader(EVERYTHING, TAG).read(pack_tiles(TAG, 0, {}, packed(EVERYTHING, records)), as_of)
    expected = read(EVERYTHING, [records], [as_of])
    assert agree(found, (0, [expected[a.feature][0] for a in EVERYTHING.aggregations]))


@given(layouts())
def test_an_entity_without_tiles(layout: TileLayout) -> None:
    """Counts are 0, everything else null: as of any instant, and in a list of its own each time."""
    reader = WindowReader(layout, TAG)
    expected = [0 if a.function == "count" else None for a in layout.aggregations]
    assert reader.nothing() == expected
    reader.nothing().clear()
    assert reader.nothing() == expected
    assert reader.read(pack_tiles(TAG, 5, {}, packed(layout, np.empty(0, layout.record))), T0) == (5, expected)


@pytest.mark.parametrize("extra", [0, 1])
def test_a_sum_beyond_int64_is_left_to_the_arrays(extra: int) -> None:
    """The last sum that fits is answered; the first that does not is None here, and refused by name there."""
    layout = layout_of([("i64", "sum", "1h"), ("i64", "count", "1h")])
    rows = [
        Event(T0, 0, n, 0, {**dict.fromkeys(COLUMNS), "i64": value, "key": 7})
        for n, value in enumerate([2**63 - 1, extra])
    ]
    records = build(layout, rows)[7]
    found = WindowReader(layout, TAG).read(pack_tiles(TAG, 0, {}, packed(layout, records)), T0)
    if extra:
        assert found is None
        with pytest.raises(DataError, match="i64_sum_1h"):
            read(layout, [records], [T0])
    else:
        assert found == (0, [2**63 - 1, 2])


@given(layouts(), events(), st.data())
def test_damaged_tiles_are_left_to_the_arrays(layout: TileLayout, rows: list[Event], data: st.DataObject) -> None:
    """No exception, and no answer where the array reader refuses the bytes; sums that contradict each other are refused."""
    value = pack_tiles(TAG, 0, {1: 2}, packed(layout, build(layout, rows)[KEYS[0]]))
    damaged = damage(data, value)
    found = WindowReader(layout, TAG).read(damaged, T0)
    try:
        stored = unpack_tiles(layout, TAG, [damaged], [b"k"])
        read(layout, [stored.records], [T0])
    except (StoredBytesError, DefinitionMismatchError, DataError):
        assert found is None


def test_contradicting_sums_are_refused() -> None:
    """A sum of squares below what the sum demands was never written: refused in words by arrays, None here."""
    layout = layout_of([("f64", "std", "1h"), ("f64", "var", "1h")])
    rows = [Event(T0, 0, n, 0, {**dict.fromkeys(COLUMNS), "f64": 5.0 + n, "key": 7}) for n in range(2)]
    records = build(layout, rows)[7].copy()
    records["squares0"] = 0
    assert WindowReader(layout, TAG).read(pack_tiles(TAG, 0, {}, packed(layout, records)), T0) is None
    with pytest.raises(StoredBytesError, match=r"f64_std_1h.*bootstrap"):
        read(layout, [records], [T0])


def test_damaged_text_is_refused() -> None:
    """A string of a tile that is not UTF-8 was never written: refused in words by arrays, None here."""
    layout = layout_of([("text", "last", "1h")])
    rows = [Event(T0, 0, 0, 0, {**dict.fromkeys(COLUMNS), "text": "é", "key": 7})]
    value = pack_tiles(TAG, 0, {}, packed(layout, build(layout, rows)[7]))
    damaged = value[:-1] + b"\xff"
    assert WindowReader(layout, TAG).read(damaged, T0) is None
    with pytest.raises(StoredBytesError, match=r"text_last_1h.*UTF-8.*bootstrap"):
        read(layout, [unpack_tiles(layout, TAG, [damaged], [b"k"]).records], [T0])
