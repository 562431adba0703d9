"""Tiles: partial aggregates of one view's rows over one hop, and windows read from them.

A view has one *level* per distinct hop of its windows. A tile is a packed record: its level, its index (its start divided
by the hop) and, for each aggregated column, a count of non-nulls and the cells of `tally.aggregates`. Tiles of one level
do not overlap, so the first row of a window lies in its first tile that is not empty, and the last row in the last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tally import exact
from tally.aggregates import Cell, EventOrder, State, cells_of, finalize, integer_ranks, limb_count, limbs_of, ranks
from tally.columns import Column
from tally.dtypes import Dtype
from tally.windows import Window

Records = NDArray[np.void]
Positions = NDArray[np.int64]

_ENTRY: Final = np.dtype([("timestamp", ">u8"), ("partition", ">u4"), ("offset", ">u8"), ("value", ">u8")])
"""A first or last entry: ranks, big-endian, so that Redis compares them 32 bits at a time."""


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
        """The packed dtype of one tile."""
        fields: list[Any] = [("level", "u1"), ("tile", "<i8")]
        for position, (dtype, cells) in enumerate(self.columns.values()):
            fields.append((f"count{position}", "<u8"))
            for cell in cells:
                if cell in ("sum", "squares"):
                    fields.append((f"{cell}{position}", "<u4", (limb_count(cell, dtype),)))
                elif cell in ("min", "max"):
                    fields.append((f"{cell}{position}", ">u8"))
                else:
                    fields.append((f"{cell}{position}", _ENTRY))
        return np.dtype(fields)

    @cached_property
    def merge_program(self) -> str:
        """How Redis merges two records, as JSON: what `ingestion/redis_functions.lua` needs to know of the layout."""
        columns = [
            [[cell, limb_count(cell, dtype) if cell in ("sum", "squares") else 0] for cell in cells]
            for dtype, cells in self.columns.values()
        ]
        program = {"size": self.record.itemsize, "columns": columns, "levels": [list(level) for level in self.levels]}
        return json.dumps(program, separators=(",", ":"))

    def oldest_tile(self, level: int, newest: NDArray[np.int64] | int) -> Any:
        """Index of the oldest tile of `level` that a window as of `newest` or later can see."""
        hop, length = self.levels[level]
        return (newest - length) // hop


def build(
    layout: TileLayout, keys: NDArray[np.int64], order: EventOrder, columns: Mapping[str, Column]
) -> tuple[NDArray[np.int64], Records, Positions]:
    """Tiles of a set of rows: (key of each record, records, number of rows in each record).

    `keys` are any integers that stand for entities, shape (n,); rows may come in any order. Records are sorted by
    (key, level, tile), canonical, and every tile is kept: retention is the caller's.
    """
    position = np.lexsort((*order.sort_keys(), keys))
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
            entry = np.zeros(len(filled), _ENTRY)
            entry["timestamp"] = integer_ranks(order.timestamp[chosen])
            entry["partition"] = order.partition[chosen]
            entry["offset"] = order.offset[chosen]
            entry["value"] = values[chosen]
            target[filled] = entry


def _runs(group: NDArray[np.int64]) -> tuple[Positions, Positions]:
    """Starts and stops of the runs of equal values in a sorted array that is not empty."""
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    return starts, np.append(starts[1:], len(group))


def read(layout: TileLayout, records: Records, rows: Positions, as_of: NDArray[np.int64]) -> dict[str, Column]:
    """Every windowed feature of `layout` as of `as_of` (shape (n,)), from records sorted by (row, level, tile).

    `rows` says which of the n rows each record belongs to. Tiles are taken whole: they must hold no event after `as_of`.
    """
    values: dict[str, Column] = {}
    levels, tiles = records["level"], records["tile"].astype(np.int64)
    for window in dict.fromkeys(a.window for a in layout.aggregations):
        level = layout.level_of_hop[window.hop]
        inside = (
            (levels == level) & (tiles >= window.first_tile(as_of)[rows]) & (tiles <= window.last_tile(as_of)[rows])
        )
        visible = np.flatnonzero(inside)
        owners = rows[visible]
        for position, (name, (dtype, _)) in enumerate(layout.columns.items()):
            wanted = [a for a in layout.aggregations if a.window == window and a.column == name]
            if not wanted:
                continue
            cells = cells_of(a.function for a in wanted)
            state = _merge(records, visible, owners, position, dtype, cells, len(as_of))
            for a in wanted:
                values[a.feature] = finalize(a.function, dtype, state, a.feature)
    return values


def _merge(
    records: Records,
    visible: Positions,
    rows: Positions,
    position: int,
    dtype: Dtype,
    cells: Sequence[Cell],
    count: int,
) -> State:
    """The state of one column for each of `count` rows, from the records at `visible`, which belong to `rows`."""
    state = State(np.zeros(count, np.int64), {}, {})
    for cell in cells:
        if cell in ("sum", "squares"):
            state.limbs[cell] = np.zeros((count, limb_count(cell, dtype)), np.int64)
        else:
            state.rank[cell] = np.zeros(count, np.uint64)
    counts = records[f"count{position}"][visible].astype(np.int64)
    filled = counts > 0
    if not filled.all():
        visible, rows, counts = visible[filled], rows[filled], counts[filled]
    if len(rows) == 0:
        return state
    starts, stops = _runs(rows)
    owners = rows[starts]
    state.count[owners] = np.add.reduceat(counts, starts)
    for cell in cells:
        stored = records[f"{cell}{position}"]
        if cell in ("first", "last"):
            stored = stored["value"][visible[starts if cell == "first" else stops - 1]]
            state.rank[cell][owners] = stored.astype(np.uint64)
            continue
        stored = stored[visible]
        if cell in ("sum", "squares"):
            limbs = stored.astype(np.int64)
            limbs[:, -1] = limbs[:, -1].astype(np.uint32).view(np.int32)  # the top limb is signed
            state.limbs[cell][owners] = np.add.reduceat(limbs, starts, axis=0)
        else:
            extreme = np.minimum if cell == "min" else np.maximum
            state.rank[cell][owners] = extreme.reduceat(stored.astype(np.uint64), starts)
    return state
