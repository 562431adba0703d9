"""Bytes in Redis: what goes in comes out, and what is damaged is refused."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tally import layout
from tally.columns import Column, column
from tally.dtypes import DTYPES, Dtype
from tally.errors import DefinitionMismatchError, StoredBytesError
from tally.layout import RowLayout, entity_texts, fences_of, pack_tiles, unpack_tiles
from tally.tiles import TileLayout
from tests.oracle import Event
from tests.tally.stored import ITEMS, VIEW_HASH, Row, pack, rows_of, same_columns, sized_layouts
from tests.tally.windowed import KEYS, build, events, layout_of, layouts, packed

OTHER_HASH = "ff" * 16
INT64 = st.integers(-(2**63), 2**63 - 1)
FENCES = st.dictionaries(st.integers(0, 2**32 - 1), INT64, max_size=5)
ONE_OF_EACH = RowLayout(tuple((f"f{n}", dtype) for n, dtype in enumerate(DTYPES)), VIEW_HASH)


# Latest rows


@given(st.data())
def test_rows_come_back(data: st.DataObject) -> None:
    """Any fields, up to more than one byte of null bits: every value, null, timestamp and tie-break, by bits."""
    one = data.draw(sized_layouts())
    rows = data.draw(rows_of(one, max_size=5))
    stored = pack(one, rows)
    found = one.unpack(stored, [b"k"] * len(rows))
    assert found.found.tolist() == [True] * len(rows)
    assert [found.timestamp.tolist(), found.a.tolist(), found.b.tolist()] == [
        [row[at] for row in rows] for at in range(3)
    ]
    for position, (name, dtype) in enumerate(one.fields):
        same_columns(found.columns[name], column(dtype, [row[3][position] for row in rows]))


@given(st.data())
def test_missing_rows_are_null(data: st.DataObject) -> None:
    """Rows that are not there leave a hole, and do not move the others."""
    one = data.draw(sized_layouts())
    rows: list[Row | None] = data.draw(
        st.lists(st.one_of(st.none(), rows_of(one, 1, 1).map(lambda r: r[0])), max_size=5)
    )
    stored = iter(pack(one, [row for row in rows if row is not None]))
    found = one.unpack([None if row is None else next(stored) for row in rows], [b"k"] * len(rows))
    assert found.found.tolist() == [row is not None for row in rows]
    assert found.timestamp.tolist() == [0 if row is None else row[0] for row in rows]
    for position, (name, dtype) in enumerate(one.fields):
        same_columns(found.columns[name], column(dtype, [None if row is None else row[3][position] for row in rows]))


@given(st.data())
def test_keys_are_for_errors_alone(data: st.DataObject) -> None:
    """Values that are whole are unpacked without a look at their keys: a key is put together when it is looked at."""
    stored = pack(ONE_OF_EACH, data.draw(rows_of(ONE_OF_EACH, max_size=3)))
    assert len(ONE_OF_EACH.unpack([*stored, None], []).found) == len(stored) + 1


def test_the_bytes_are_those_of_the_description() -> None:
    """Header, null bits, fixed part, texts: byte for byte as the module says, so that other programs can read them."""
    fields: tuple[tuple[str, Dtype], ...] = (("n", "Int32"), ("t", "String"), ("x", "Float64"), ("y", "Bytes"))
    one = RowLayout(fields, VIEW_HASH)
    (value,) = pack(one, [(5, 6, -7, [None, "é", 1.5, b"\x00z"])])
    head = struct.pack("<B8sqqq", 1, bytes.fromhex(VIEW_HASH)[:8], 5, 6, -7)
    assert value == head + b"\x0e" + struct.pack("<iIdI", 0, 2, 1.5, 2) + "é".encode() + b"\x00z"


@given(st.data())
def test_equal_rows_have_equal_bytes(data: st.DataObject) -> None:
    """Packed alone or among others, a row has the same bytes: they break ties."""
    rows = data.draw(rows_of(ONE_OF_EACH, max_size=4))
    assert pack(ONE_OF_EACH, rows) == [pack(ONE_OF_EACH, [row])[0] for row in rows]


@given(st.data())
def test_every_shorter_or_longer_row_is_refused(data: st.DataObject) -> None:
    """Cut anywhere, or with bytes after its end: StoredBytesError that names the key and the way out."""
    one = data.draw(sized_layouts())
    good, value = pack(one, data.draw(rows_of(one, 2, 2)))
    cut = data.draw(st.integers(0, len(value) - 1))
    for damaged in (value[:cut], value + data.draw(st.binary(min_size=1, max_size=9))):
        with pytest.raises(StoredBytesError, match=r"b'second'.*materialize"):
            one.unpack([None, good, damaged], [b"none", b"first", b"second"])


@given(st.data())
def test_damaged_rows_raise_nothing_else(data: st.DataObject) -> None:
    """Any bytes changed: the row is refused in words, or it is a well-formed row; no other exception leaves."""
    one = data.draw(sized_layouts())
    (value,) = pack(one, data.draw(rows_of(one, 1, 1)))
    damaged = bytearray(value)
    for position, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(value) - 1), st.integers(0, 255)), max_size=4)
    ):
        damaged[position] = byte
    expect_words(lambda: one.unpack([bytes(damaged)], [b"k"]), value, bytes(damaged))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_words(value: bytes) -> None:
    """Bytes that Tally never wrote: StoredBytesError or DefinitionMismatchError."""
    with pytest.raises((StoredBytesError, DefinitionMismatchError)):
        ONE_OF_EACH.unpack([b"\x09" + value], [b"k"])
    expect_words(lambda: ONE_OF_EACH.unpack([value], [b"k"]), b"", value)
    expect_words(lambda: unpack_tiles(plain_layout(), b"\x00" * 8, [value], [b"k"]), b"", value)


def expect_words(read: Callable[[], Any], value: bytes, damaged: bytes) -> None:
    """`read` succeeds or raises one of the two errors; it must raise them where the first nine bytes changed."""
    refusal = None
    try:
        read()
    except (StoredBytesError, DefinitionMismatchError) as error:
        refusal = str(error)
    if refusal is not None:
        assert "b'k'" in refusal
    elif value:
        assert damaged[:9] == value[:9]


def plain_layout() -> TileLayout:
    """Tiles that hold a count."""
    return layout_of([("i64", "count", "1h")])


def test_another_definition_is_refused() -> None:
    """A row or a tile under another hash: DefinitionMismatchError with the key and both hashes."""
    other = RowLayout(ONE_OF_EACH.fields, OTHER_HASH)
    (value,) = pack(other, [(0, 0, 0, [None] * 8)])
    with pytest.raises(DefinitionMismatchError, match=rf"b'k'.*{OTHER_HASH[:16]}.*{VIEW_HASH[:16]}"):
        ONE_OF_EACH.unpack([value], [b"k"])
    tiles = pack_tiles(other.tag, 0, {}, b"")
    with pytest.raises(DefinitionMismatchError, match=rf"b'k'.*{OTHER_HASH[:16]}.*{VIEW_HASH[:16]}"):
        unpack_tiles(plain_layout(), ONE_OF_EACH.tag, [tiles], [b"k"])


def test_a_row_is_not_a_tile() -> None:
    """Each kind of value names itself."""
    (row,) = pack(ONE_OF_EACH, [(0, 0, 0, [None] * 8)])
    tiles = pack_tiles(ONE_OF_EACH.tag, 0, {}, bytes(17 * 8))
    with pytest.raises(StoredBytesError, match="does not hold tiles"):
        unpack_tiles(plain_layout(), ONE_OF_EACH.tag, [row], [b"k"])
    with pytest.raises(StoredBytesError, match="does not hold a latest row"):
        ONE_OF_EACH.unpack([tiles], [b"k"])


def test_text_that_is_not_utf8_is_refused() -> None:
    """Half a character in a string: StoredBytesError naming the key."""
    one = RowLayout((("t", "String"),), VIEW_HASH)
    (value,) = pack(one, [(0, 0, 0, ["é"])])
    with pytest.raises(StoredBytesError, match=r"b'k'.*UTF-8"):
        one.unpack([value[:-1] + b"\xff"], [b"k"])


# Tiles


@given(layouts(), events(), FENCES, INT64)
def test_tiles_come_back(one: TileLayout, rows: list[Event], fences: dict[int, int], newest: int) -> None:
    """Records, fences and the newest instant of entities with and without tiles."""
    parts = build(one, rows)
    tag = bytes.fromhex(VIEW_HASH)[:8]
    values = [
        pack_tiles(tag, newest, fences, packed(one, parts[KEYS[0]])),
        None,
        pack_tiles(tag, 5, {}, packed(one, parts[KEYS[1]])),
    ]
    found = unpack_tiles(one, tag, values, [b"a", b"b", b"c"])
    assert found.found.tolist() == [True, False, True]
    assert found.newest.tolist() == [newest, 0, 5]
    assert found.fences == [fences, {}, {}]
    assert list(found.fences[0]) == sorted(fences)
    assert found.rows.tolist() == [0] * len(parts[KEYS[0]]) + [2] * len(parts[KEYS[1]])
    assert packed(one, found.records[found.rows == 0]) == packed(one, parts[KEYS[0]])
    assert packed(one, found.records[found.rows == 2]) == packed(one, parts[KEYS[1]])
    assert found.records.dtype == one.record
    assert values[0] is not None
    assert fences_of(values[0]) == fences


@given(layouts(), events(), FENCES, st.data())
def test_tiles_cut_within_a_record_are_refused(
    one: TileLayout, rows: list[Event], fences: dict[int, int], data: st.DataObject
) -> None:
    """Cut in the header, the fences or a record, or with bytes after the last: StoredBytesError naming the key."""
    tag = bytes.fromhex(VIEW_HASH)[:8]
    good = pack_tiles(tag, 0, {}, packed(one, np.empty(0, one.record)))
    value = pack_tiles(tag, 0, fences, packed(one, build(one, rows)[KEYS[0]]))
    start = 19 + 12 * len(fences)
    cuts = st.integers(0, len(value) - 1)
    if not one.texts:
        cuts = cuts.filter(lambda n: n < start or (n - start) % one.record.itemsize != 0)
    cut = data.draw(cuts)
    for damaged in (value[:cut], value + bytes(data.draw(st.integers(1, one.record.itemsize - 1)))):
        with pytest.raises(StoredBytesError, match=r"b'second'.*bootstrap"):
            unpack_tiles(one, tag, [None, good, damaged], [b"none", b"first", b"second"])


@pytest.mark.parametrize("records_too_short", [1, 5, 12])
def test_tiles_cut_within_the_fences_by_whole_records_are_refused(records_too_short: int) -> None:
    """A cut in the fences that leaves no odd bytes is one all the same."""
    layout = plain_layout()
    size = layout.record.itemsize
    value = pack_tiles(b"\0" * 8, 0, dict.fromkeys(range(size), 1), b"")  # so the fences are 12 records long
    with pytest.raises(StoredBytesError, match="not a whole number of tiles"):
        unpack_tiles(layout, b"\0" * 8, [value[: -records_too_short * size]], [b"k"])


def test_the_bytes_of_tiles_are_those_of_the_description() -> None:
    """Format, hash, newest instant, fences by rising partition, records."""
    tag = bytes.fromhex(VIEW_HASH)[:8]
    expected = struct.pack("<B8sqH", 2, tag, -9, 2) + struct.pack("<Iq", 1, 10) + struct.pack("<Iq", 2**32 - 1, 5)
    assert pack_tiles(tag, -9, {2**32 - 1: 5, 1: 10}, b"records") == expected + b"records"


# Keys


TEXTS = st.one_of(st.text(), st.text("|\\a", max_size=4), st.sampled_from(["", "|", "\\", "\\|", "é|\\"]))
PARTS: dict[Dtype, st.SearchStrategy[Any]] = {dtype: ITEMS[dtype] for dtype in DTYPES if not dtype.startswith("Float")}
PARTS |= {"String": TEXTS, "Bytes": st.one_of(st.binary(), TEXTS.map(str.encode))}


@given(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=3), st.data())
def test_keys_are_injective(dtypes: list[Dtype], data: st.DataObject) -> None:
    """Different entities have different keys and equal ones equal keys, whatever their texts contain."""
    rows = data.draw(st.lists(st.tuples(*(PARTS[dtype] for dtype in dtypes)), min_size=1, max_size=12))
    texts = entity_texts([column(dtype, [row[n] for row in rows]) for n, dtype in enumerate(dtypes)])
    assert len(set(texts)) == len(set(rows))
    by_text = dict(zip(texts, rows, strict=True))
    assert [by_text[text] for text in texts] == rows


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1))
def test_keys_can_be_read_back(rows: list[tuple[str, str]]) -> None:
    """Taking the escapes away gives the join values again: nothing is lost, so nothing can collide."""
    columns = [column("String", [row[n] for row in rows]) for n in range(2)]
    for text, row in zip(entity_texts(columns), rows, strict=True):
        parts, escaping = [""], False
        for character in text.decode():
            if escaping or character not in "|\\":
                parts[-1] += character
                escaping = False
            elif character == "|":
                parts.append("")
            else:
                escaping = True
        assert tuple(parts) == row


def test_keys_as_they_stand_in_redis() -> None:
    """Numbers in decimal, texts escaped, parts between bars; after project, view and the hash's beginning."""
    columns = [column("Int64", [-5, 0]), column("String", ["a|b\\", ""]), column("Bool", [True, False])]
    assert entity_texts(columns) == [rb"-5|a\|b\\|1", b"0||0"]
    assert layout.key_prefix("flights", "origin", VIEW_HASH) == f"flights/origin@{VIEW_HASH[:8]}/".encode()
    names = [
        layout.plan_key("p", "s"),
        layout.version_key("p", "s"),
        layout.services_key("p"),
        layout.views_key("p"),
        layout.topics_key("p"),
        layout.progress_key("p"),
    ]
    after = ["plan:s", "version:s", "services", "views", "topics", "progress"]
    assert names == [f"tally:p:{name}" for name in after]


def test_no_rows() -> None:
    """Nothing in, nothing out."""
    empty: dict[str, Column] = {name: column(dtype, []) for name, dtype in ONE_OF_EACH.fields}
    none = np.zeros(0, np.int64)
    assert ONE_OF_EACH.pack(none, none, none, empty) == []
    assert len(ONE_OF_EACH.unpack([], []).found) == 0
    assert len(ONE_OF_EACH.unpack([None], [b"k"]).columns["f0"]) == 1
    assert unpack_tiles(plain_layout(), ONE_OF_EACH.tag, [], []).records.tolist() == []
    assert not math.prod(unpack_tiles(plain_layout(), ONE_OF_EACH.tag, [None], [b"k"]).records.shape)
