"""Tiles: partial aggregates of one view's rows over one hop, and windows read from them.

A view has one *level* per distinct hop of its windows. A tile is a packed record: its level, its index (its start divided
by the hop) and, for each aggregated column, a count of non-nulls and the cells of `tally.aggregates`. Tiles of one level
do not overlap, so the first row of a window lies in its first tile that is not empty, and the last row in the last.

Stored records have a fixed width: of a text they hold the length, and the texts follow behind the last record, in the order
of records and cells. In memory a text is a bytes object in its record's field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tally import exact
from tally.aggregates import (
    Cell,
    EventOrder,
    cells_of,
    integer_ranks,
    limb_count,
    limbs_of,
    ranks,
)
from tally.columns import Column
from tally.dtypes import VARIABLE_WIDTH, Dtype
from tally.latest import sorted_positions
from tally.windows import Window

Records = NDArray[np.void]
Positions = NDArray[np.int64]

_ROW: Final[list[Any]] = [("timestamp", ">u8"), ("partition", ">u4"), ("offset", ">u8")]
"""What a first or last entry begins with: ranks, big-endian, so that Redis compares them 32 bits at a time."""
_OBJECT: Final = np.dtype(object)
_LENGTH: Final = np.dtype("<u2")
_COUNT: Final = np.dtype("<u4")


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One windowed feature: `function` of `column` (of `dtype`) over `window`, named `feature`, giving `output`."""

    feature: str
    column: str
    dtype: Dtype
    function: str
    window: Window
    output: Dtype


@dataclass(frozen=True)
class TileLayout:
    """What a view's tiles hold. Derived from its aggregations alone, so both sides agree on every byte."""

    aggregations: tuple[Aggregation, ...]

    @cached_property
    def columns(self) -> dict[str, tuple[Dtype, tuple[Cell, ...]]]:
        """Aggregated columns by name, in name order, with their dtype and cells."""
        dtypes = {a.column: a.dtype for a in self.aggregations}
        return {
            name: (dtypes[name], cells_of(a.function for a in self.aggregations if a.column == name))
            for name in sorted(dtypes)
        }

    @cached_property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """(hop, longest window length) of each level, by rising hop."""
        hops = sorted({a.window.hop for a in self.aggregations})
        return tuple((hop, max(a.window.length for a in self.aggregations if a.window.hop == hop)) for hop in hops)

    @cached_property
    def level_of_hop(self) -> dict[int, int]:
        """Position of each hop in `levels`."""
        return {hop: level for level, (hop, _) in enumerate(self.levels)}

    @cached_property
    def longest(self) -> int:
        """Microseconds after an event in which some window may still see it: the longest length plus its hop."""
        return max(length + hop for hop, length in self.levels)

    @cached_property
    def record(self) -> np.dtype[np.void]:
        """The dtype of one tile in memory. Without texts it is packed, and `stored`."""
        return self._record(_OBJECT)

    @cached_property
    def stored(self) -> np.dtype[np.void]:
        """The packed dtype of the fixed part of one tile: a text is its length in bytes."""
        return self._record(_LENGTH)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Fields of `record` that hold a text, in order."""
        return tuple(
            f"{cell}{position}"
            for position, (dtype, cells) in enumerate(self.columns.values())
            for cell in cells
            if dtype in VARIABLE_WIDTH
        )

    def _record(self, text: np.dtype[Any]) -> np.dtype[np.void]:
        fields: list[Any] = [("level", "u1"), ("tile", "<i8")]
        for position, (dtype, cells) in enumerate(self.columns.values()):
            fields.append((f"count{position}", "<u8"))
            for cell in cells:
                value: Any = text if dtype in VARIABLE_WIDTH else ">u8"
                if cell in ("sum", "squares"):
                    fields.append((f"{cell}{position}", "<u4", (limb_count(cell, dtype),)))
                elif cell in ("min", "max"):
                    fields.append((f"{cell}{position}", value))
                else:
                    fields.append((f"{cell}{position}", np.dtype([*_ROW, ("value", value)])))
        return np.dtype(fields)

    @cached_property
    def merge_program(self) -> str:
        """How Redis merges two records, as JSON: what `ingestion/redis_functions.lua` needs to know of the layout.

        A cell is its name and how many numbers it has to add: 0 for one that is compared, -1 where that is a text.
        """
        columns = [[[cell, self._adds(cell, dtype)] for cell in cells] for dtype, cells in self.columns.values()]
        program = {"size": self.stored.itemsize, "columns": columns, "levels": [list(level) for level in self.levels]}
        return json.dumps(program, separators=(",", ":"))

    @staticmethod
    def _adds(cell: Cell, dtype: Dtype) -> int:
        if cell in ("sum", "squares"):
            return limb_count(cell, dtype)
        return -1 if dtype in VARIABLE_WIDTH else 0

    def oldest_tile(self, level: int, newest: NDArray[np.int64] | int) -> Any:
        """Index of the oldest tile of `level` that a window as of `newest` or later can see."""
        hop, length = self.levels[level]
        return (newest - length) // hop

    def pack(self, records: Records, starts: Positions) -> list[bytes]:
        """The stored bytes of each stretch of `records`, from each of `starts` to the next, the last to the end.

        Where there are texts: u32 number of records, the records as `stored`, the texts.
        """
        begins = starts.tolist()
        ends = [*begins, len(records)][1:]
        if not self.texts:
            raw, width = records.tobytes(), self.record.itemsize
            return [raw[begin * width : end * width] for begin, end in zip(begins, ends, strict=True)]
        fixed = np.zeros(len(records), self.stored)
        for name in self.record.names or ():
            if name not in self.texts:
                fixed[name] = records[name]
        columns = []
        for name in self.texts:
            rows, values = _text_field(records, name)
            target_rows, lengths = _text_field(fixed, name)
            for part in rows:
                target_rows[part][:] = rows[part]
            columns.append(values.tolist())
            lengths[:] = [len(text) for text in columns[-1]]
        raw, width = fixed.tobytes(), self.stored.itemsize
        texts = [b"".join(row) for row in zip(*columns, strict=True)]
        return [
            b"".join([(end - begin).to_bytes(4, "little"), raw[begin * width : end * width], *texts[begin:end]])
            for begin, end in zip(begins, ends, strict=True)
        ]

    def unpack(self, blocks: Sequence[bytes]) -> tuple[Records, Positions, NDArray[np.bool_]]:
        """(records, how many each block of `pack` holds, which blocks are damaged: if any is, there are no records)."""
        lengths = np.fromiter(map(len, blocks), np.int64, len(blocks))
        if not self.texts:
            sizes = lengths // self.record.itemsize
            damaged = sizes * self.record.itemsize != lengths
            body = b"" if damaged.any() else b"".join(blocks)
            return np.frombuffer(body, self.record), sizes, damaged
        sizes = np.fromiter((int.from_bytes(block[:4], "little") for block in blocks), np.int64, len(blocks))
        ends = _COUNT.itemsize + sizes * self.stored.itemsize
        damaged = lengths < ends
        if damaged.any():
            return np.empty(0, self.record), sizes, damaged
        bounds = ends.tolist()
        fixed = np.frombuffer(b"".join([block[4:end] for block, end in zip(blocks, bounds, strict=True)]), self.stored)
        text = b"".join([block[end:] for block, end in zip(blocks, bounds, strict=True)])
        widths = np.column_stack([_text_field(fixed, name)[1] for name in self.texts]).astype(np.int64)
        before = np.concatenate([[0], np.cumsum(widths)])
        damaged = np.diff(before[np.concatenate([[0], np.cumsum(sizes)]) * len(self.texts)]) != lengths - ends
        if damaged.any():
            return np.empty(0, self.record), sizes, damaged
        cuts = before.tolist()
        pieces = [text[begin:end] for begin, end in pairwise(cuts)]
        records = np.zeros(len(fixed), self.record)
        for name in self.record.names or ():
            if name not in self.texts:
                records[name] = fixed[name]
        for position, name in enumerate(self.texts):
            rows, values = _text_field(records, name)
            source_rows, _ = _text_field(fixed, name)
            for part in rows:
                rows[part][:] = source_rows[part]
            values[:] = pieces[position :: len(self.texts)]
        return records, sizes, damaged


def _text_field(records: Records, name: str) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """(the parts of a text cell that say which row it is of, the texts or their lengths), as views."""
    field = records[name]
    if field.dtype.names is None:
        return {}, field
    return {part: field[part] for part, _ in _ROW}, field["value"]


def build(
    layout: TileLayout, keys: NDArray[np.int64], order: EventOrder, columns: Mapping[str, Column]
) -> tuple[NDArray[np.int64], Records, Positions]:
    """Tiles of a set of rows: (key of each record, records, number of rows in each record).

    `keys` are integers from 0 that stand for entities, shape (n,); rows may come in any order. Records are sorted by
    (key, level, tile), canonical, and every tile is kept: retention is the caller's.
    """
    position = sorted_positions(keys, order.timestamp, order.partition, order.offset)
    keys, order = keys[position], order.take(position)
    sorted_columns = {name: columns[name].take(position) for name in layout.columns}
    parts = {name: _prepare(sorted_columns[name], cells) for name, (_, cells) in layout.columns.items()}
    pieces = [
        _build_level(layout, level, hop, keys, order, sorted_columns, parts)
        for level, (hop, _) in enumerate(layout.levels)
    ]
    record_keys = np.concatenate([piece[0] for piece in pieces])
    records = np.empty(len(record_keys), layout.record)  # np.concatenate would make its bytes native
    np.concatenate([piece[1] for piece in pieces], out=records)
    sizes = np.concatenate([piece[2] for piece in pieces])
    final = np.argsort(record_keys, kind="stable")
    return record_keys[final], records[final], sizes[final]


def _prepare(column: Column, cells: Sequence[Cell]) -> dict[Cell, NDArray[Any]]:
    prepared: dict[Cell, NDArray[Any]] = {}
    for cell in cells:
        prepared[cell] = limbs_of(column, cell) if cell in ("sum", "squares") else ranks(column)
    return prepared


def _build_level(
    layout: TileLayout,
    level: int,
    hop: int,
    keys: NDArray[np.int64],
    order: EventOrder,
    columns: Mapping[str, Column],
    parts: Mapping[str, Mapping[Cell, NDArray[Any]]],
) -> tuple[NDArray[np.int64], Records, Positions]:
    tiles = order.timestamp // hop
    fresh = np.ones(len(keys), np.bool_)
    fresh[1:] = (keys[1:] != keys[:-1]) | (tiles[1:] != tiles[:-1])
    starts = np.flatnonzero(fresh)
    groups = np.cumsum(fresh) - 1
    records = np.zeros(len(starts), layout.record)
    for name in layout.texts:
        _text_field(records, name)[1][:] = b""
    records["level"] = level
    records["tile"] = tiles[starts]
    for position, name in enumerate(layout.columns):
        _fill_column(records, position, columns[name], parts[name], groups, order)
    return keys[starts], records, np.diff(starts, append=len(keys))


def _fill_column(
    records: Records,
    position: int,
    column: Column,
    parts: Mapping[Cell, NDArray[Any]],
    groups: Positions,
    order: EventOrder,
) -> None:
    rows = np.flatnonzero(column.valid)
    if len(rows) == 0:
        return
    group = groups[rows]
    starts, stops = _runs(group)
    filled = group[starts]
    records[f"count{position}"][filled] = stops - starts
    for cell, values in parts.items():
        target = records[f"{cell}{position}"]
        if cell in ("sum", "squares"):
            target[filled] = exact.carry(np.add.reduceat(values[rows], starts, axis=0)).astype(np.uint32)
        elif cell == "min":
            target[filled] = np.minimum.reduceat(values[rows], starts)
        elif cell == "max":
            target[filled] = np.maximum.reduceat(values[rows], starts)
        else:
            chosen = rows[starts] if cell == "first" else rows[stops - 1]
            entry = np.zeros(len(filled), target.dtype)
            entry["timestamp"] = integer_ranks(order.timestamp[chosen])
            entry["partition"] = order.partition[chosen]
            entry["offset"] = order.offset[chosen]
            entry["value"] = values[chosen]
            target[filled] = entry


def _runs(group: NDArray[np.int64]) -> tuple[Positions, Positions]:
    """Starts and stops of the runs of equal values in a sorted array that is not empty."""
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    return starts, np.append(starts[1:], len(group))
