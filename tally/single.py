"""One entity's stored bytes as Python scalars: the bits of `RowLayout.unpack` and `merging.read`, without arrays.

An array costs a microsecond whether it holds one value or a hundred, so an online lookup of one row does without. Readers
answer None for bytes that are not plainly right: the array readers then say what is wrong with them.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import Any, Final

import numpy as np

from tally import exact
from tally.aggregates import CELLS, Cell
from tally.dtypes import FLOATS, INTEGERS, VARIABLE_WIDTH, Dtype
from tally.layout import FENCE, LATEST_FORMAT, TILES_FORMAT, TILES_HEADER, RowLayout
from tally.tiles import TileLayout
from tally.windows import Window

_CODES: Final[dict[Dtype, str]] = {
    "Float64": "d",
    "Float32": "f",
    "Int64": "q",
    "Int32": "i",
    "Bool": "?",
    "String": "I",
    "Bytes": "I",
    "UnixTimestamp": "q",
}
_SIGN: Final = 1 << 63
_ALL: Final = (1 << 64) - 1
_DOUBLE: Final = struct.Struct(">d")
_WORD: Final = 64
_READ_AT_ONCE: Final = 64
"""Up to how many records are read by one call of `struct`, for which a format of so many records is kept."""
_HEADER_FIELDS: Final = 6
"""format, tag, timestamp, a, b, null bits."""


class RowReader:
    """Reads single latest rows of a layout."""

    def __init__(self, layout: RowLayout) -> None:
        dtypes = [dtype for _, dtype in layout.fields]
        width = -(-len(dtypes) // 8)
        self._fixed = struct.Struct(f"<B8sqqq{width}s{''.join(_CODES[dtype] for dtype in dtypes)}")
        assert self._fixed.size == layout.fixed.itemsize
        self._tag = layout.tag
        self._full = ((1 << len(dtypes)) - 1).to_bytes(width, "little")
        self._floats = [i for i, dtype in enumerate(dtypes) if dtype in FLOATS]
        self._variable = [(i, dtype == "String") for i, dtype in enumerate(dtypes) if dtype in VARIABLE_WIDTH]

    def read(self, value: bytes) -> tuple[int, int, int, list[Any]] | None:
        """(event timestamp, a, b, a value for each field) of a row; None in the list for nulls."""
        if len(value) < self._fixed.size:
            return None
        unpacked = self._fixed.unpack_from(value)
        kind, tag, timestamp, a, b, bits = unpacked[:_HEADER_FIELDS]
        if kind != LATEST_FORMAT or tag != self._tag:
            return None
        values = list(unpacked[_HEADER_FIELDS:])
        end = self._fixed.size
        for position, is_text in self._variable:
            start, end = end, end + values[position]
            values[position] = value[start:end]
            if is_text:
                try:
                    values[position] = values[position].decode()
                except UnicodeDecodeError:
                    return None
        if end != len(value):
            return None
        for position in self._floats:
            if values[position] != values[position]:  # NaN is null
                values[position] = None
        if bits != self._full:
            mask = int.from_bytes(bits, "little")
            values = [item if mask >> position & 1 else None for position, item in enumerate(values)]
        return timestamp, a, b, values


class _NoValueError(Exception):
    """An aggregation has no value; `tally.aggregates.finalize` says why."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The aggregations of one column over one window: (position of the feature, function), and where its cells are."""

    level: int
    window: Window
    dtype: Dtype
    count: int
    cells: dict[Cell, range]
    features: tuple[tuple[int, str], ...]


def _code(name: str, field: np.dtype[Any]) -> str:
    """How `struct` reads a field of a record: sums as words of 64 bits, of which the last is signed."""
    if name == "level":
        return "B"
    if name == "tile":
        return "q"
    if name.startswith("count"):
        return "Q"
    if field.shape:  # canonical limbs are one little-endian number in two's complement
        words, half = divmod(int(field.shape[0]), 2)
        return "Q" * words + "i" if half else "Q" * (words - 1) + "q"
    return f"{field.itemsize}s"


class WindowReader:
    """Reads the windows of single entities from tiles of a layout stored under `tag`."""

    def __init__(self, layout: TileLayout, tag: bytes) -> None:
        self._tag = tag
        self._codes = ""
        self._fields = 0
        places: dict[str, range] = {}
        for name in layout.stored.names or ():
            code = _code(name, layout.stored[name])
            places[name] = range(self._fields, self._fields + (1 if code[-1] == "s" else len(code)))
            self._fields = places[name].stop
            self._codes += code
        self._record = struct.Struct("<" + self._codes)
        self._whole: dict[int, struct.Struct] = {}
        assert self._record.size == layout.stored.itemsize
        self._texts = [places[name].start for name in layout.texts]
        self._width = len(layout.aggregations)
        self._parts: list[_Part] = []
        for window in dict.fromkeys(a.window for a in layout.aggregations):
            for position, (name, (dtype, cells)) in enumerate(layout.columns.items()):
                features = tuple(
                    (i, a.function)
                    for i, a in enumerate(layout.aggregations)
                    if a.window == window and a.column == name
                )
                if features:
                    needed = {cell for _, function in features for cell in CELLS[function]}
                    where = {cell: places[f"{cell}{position}"] for cell in cells if cell in needed}
                    level, count = layout.level_of_hop[window.hop], places[f"count{position}"].start
                    self._parts.append(_Part(level, window, dtype, count, where, features))
        self._empty = self._values([], 0)

    def nothing(self) -> list[Any]:
        """A value for each aggregation of an entity without tiles."""
        return list(self._empty)

    def read(self, value: bytes, as_of: int) -> tuple[int, list[Any]] | None:
        """(newest event timestamp, a value for each aggregation as of `as_of`)."""
        if len(value) < TILES_HEADER.size:
            return None
        kind, tag, newest, partitions = TILES_HEADER.unpack_from(value)
        start = TILES_HEADER.size + partitions * FENCE.itemsize
        if kind != TILES_FORMAT or tag != self._tag or start > len(value):
            return None
        records = self._with_texts(value, start) if self._texts else self._without_texts(value, start)
        try:
            return None if records is None else (newest, self._values(records, as_of))
        except (_NoValueError, UnicodeDecodeError):
            return None

    def _without_texts(self, value: bytes, start: int) -> Sequence[Any] | None:
        """All fields of the records behind `start`, one record after the other."""
        count, rest = divmod(len(value) - start, self._record.size)
        if rest:
            return None
        if count > _READ_AT_ONCE:
            return list(chain.from_iterable(self._record.iter_unpack(value[start:])))
        whole = self._whole.get(count)
        if whole is None:
            whole = self._whole[count] = struct.Struct("<" + self._codes * count)
        return whole.unpack_from(value, start)

    def _with_texts(self, value: bytes, start: int) -> Sequence[Any] | None:
        """As `_without_texts`, with texts in the place of their entries."""
        end = start + 4 + int.from_bytes(value[start : start + 4], "little") * self._record.size
        if end > len(value):
            return None
        fields = list(chain.from_iterable(self._record.iter_unpack(value[start + 4 : end])))
        for record in range(0, len(fields), self._fields):
            for place in self._texts:
                begin, end = end, end + int.from_bytes(fields[record + place][-2:], "little")
                fields[record + place] = value[begin:end]
        return fields if end == len(value) else None

    def _values(self, records: Sequence[Any], as_of: int) -> list[Any]:
        values: list[Any] = [None] * self._width
        step = self._fields
        levels, tiles = records[::step], records[1::step]
        window: Window | None = None
        begin = end = 0
        for part in self._parts:
            if part.window is not window:
                window = part.window
                begin = bisect_left(levels, part.level)
                end = bisect_left(levels, part.level + 1, begin)
                begin = bisect_left(tiles, window.first_tile(as_of), begin, end)
                end = bisect_left(tiles, window.last_tile(as_of) + 1, begin, end)
            counts = records[begin * step + part.count : end * step : step]
            count = sum(counts)
            cells = {}
            if count:
                for cell, places in part.cells.items():
                    stored = [records[begin * step + place : end * step : step] for place in places]
                    if 0 in counts:
                        stored = [list(compress(column, counts)) for column in stored]
                    cells[cell] = _merge(cell, stored, part.dtype)
            for position, function in part.features:
                if function == "count":
                    values[position] = count
                elif count:
                    values[position] = _finalize(function, part.dtype, count, cells)
        return values


def _merge(cell: Cell, stored: Sequence[Sequence[Any]], dtype: Dtype) -> Any:
    """An integer for sums; the rank, a text or 8 big-endian bytes, for the others. Tiles rise; there is at least one."""
    if cell in ("sum", "squares"):
        total = sum(stored[-1])
        for words in reversed(stored[:-1]):
            total = (total << _WORD) + sum(words)
        return total
    (ranks,) = stored
    if cell == "min":
        return min(ranks)
    if cell == "max":
        return max(ranks)
    held = ranks[0 if cell == "first" else -1]
    return held if dtype in VARIABLE_WIDTH else held[-8:]


def _finalize(function: str, dtype: Dtype, count: int, cells: dict[Cell, Any]) -> Any:
    """As `tally.aggregates.finalize`, for one group that is not empty. Raises _NoValueError where that raises."""
    if function in ("min", "max", "first", "last"):
        return _from_rank(dtype, cells[function])  # type: ignore[index]
    if function == "sum" and dtype in INTEGERS:
        if not -_SIGN <= cells["sum"] < _SIGN:
            raise _NoValueError
        return cells["sum"]
    scale = -exact.FLOAT_LOWEST if dtype in FLOATS else 0
    if function in ("sum", "mean"):
        total = cells["sum"] / (1 << scale)  # a division of integers is rounded once, half to even
        return total / count if function == "mean" else total
    if count < 2:
        return None
    numerator, denominator = exact.sample_variance(count, cells["sum"], cells["squares"], scale)
    if numerator < 0:
        raise _NoValueError
    return exact.sqrt_of_fraction(numerator, denominator) if function == "std" else numerator / denominator


def _from_rank(dtype: Dtype, stored: bytes) -> Any:
    if dtype in VARIABLE_WIDTH:
        return stored.decode() if dtype == "String" else stored
    rank = int.from_bytes(stored, "big")
    if dtype in FLOATS:
        return _DOUBLE.unpack((rank ^ _SIGN if rank & _SIGN else rank ^ _ALL).to_bytes(8, "big"))[0]
    integer = rank - _SIGN
    return bool(integer) if dtype == "Bool" else integer
