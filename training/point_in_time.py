"""The point-in-time join: features of entities as of instants, from all rows of a view. Pure functions of arrays.

Rows lie on a `Timeline`; each label is an entity code and an instant (µs). A label's rows are found by binary search, and
whatever is asked of a range of rows is answered from prefix sums and range minima, so the cost is (rows + labels) x log
rows, however many rows an entity has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tally.aggregates import Cell, Ranks, State, cells_of, finalize_all, limb_count, limbs_of, ordinals, ranks
from tally.blocks import blocks_of
from tally.columns import Column
from tally.dtypes import VARIABLE_WIDTH, Dtype
from tally.latest import Codes
from tally.tiles import Aggregation
from training.dominance import Seen, running_extremes, seen_rows
from training.threads import over_blocks
from training.timeline import Instants, Positions, Timeline, first_beyond
from training.visibility import LatestVisibility, Mask, WindowVisibility


def latest_rows(
    timeline: Timeline, codes: Codes, as_of: Instants, ttl: int, visibility: LatestVisibility | None = None
) -> tuple[Positions, Mask]:
    """(position of each label's latest row in the rows of the timeline, whether there is one that has not expired).

    The latest row is the last with ``timestamp <= as_of`` that the label sees. It has expired when it is older than `ttl`
    (µs; 0: never). Positions are 0 where there is none.
    """
    if visibility is not None:
        return _latest(timeline, codes, as_of, ttl, visibility)
    positions, found = np.empty(len(codes), np.int64), np.empty(len(codes), np.bool_)

    def look(block: slice) -> None:
        positions[block], found[block] = _latest(timeline, codes[block], as_of[block], ttl, None)

    over_blocks(look, len(codes))
    return positions, found


def _latest(
    timeline: Timeline, codes: Codes, as_of: Instants, ttl: int, visibility: LatestVisibility | None
) -> tuple[Positions, Mask]:
    starts, stops = timeline.span(codes)
    ends = first_beyond(timeline.timestamp, starts, stops, as_of)
    place = ends - 1 if visibility is None else visibility.latest(starts, ends)
    found = (codes >= 0) & (place >= starts)
    safe = np.where(found, place, 0)
    if ttl and len(timeline.timestamp):
        found &= as_of - timeline.timestamp[safe] <= ttl
        safe = np.where(found, safe, 0)
    positions = timeline.order[safe] if len(timeline.order) else np.zeros(len(codes), np.int64)
    return positions, found


def window_features(
    timeline: Timeline,
    columns: Mapping[str, Column],
    aggregations: Sequence[Aggregation],
    codes: Codes,
    as_of: Instants,
    visibility: WindowVisibility | None = None,
) -> dict[str, Column]:
    """Every aggregation's value as of each label, by feature name; shape (labels,).

    `columns` are in the order of the rows that the timeline was made of. Raises DataError when a sum of integers does not
    fit int64.
    """
    starts, stops = timeline.span(codes)
    ends = first_beyond(timeline.timestamp, starts, stops, as_of)
    ranges = {}
    for window in dict.fromkeys(a.window for a in aggregations):
        begins = first_beyond(timeline.timestamp, starts, ends, window.lower(as_of) - 1)
        certain = ends
        if visibility is not None:
            certain = visibility.certain_until(begins, ends)
        ranges[window] = (begins, certain, ends)
    values: dict[str, Column] = {}
    for name in dict.fromkeys(a.column for a in aggregations):
        wanted = [a for a in aggregations if a.column == name]
        rows = _ColumnRows.of(columns[name].take(timeline.order), cells_of(a.function for a in wanted))
        for window in dict.fromkeys(a.window for a in wanted):
            own = [a for a in wanted if a.window == window]
            begins, certain, ends = ranges[window]
            cells = cells_of(a.function for a in own)
            state = rows.over(begins, certain, cells)
            if visibility is not None:
                rows.add_visible(state, certain, ends, cells, visibility)
            state = rows.named(state)
            columns_of = finalize_all([(a.function, a.dtype, state, a.feature) for a in own])
            values.update({a.feature: found for a, found in zip(own, columns_of, strict=True)})
    return {a.feature: values[a.feature] for a in aggregations}


@dataclass(frozen=True, slots=True)
class _ColumnRows:
    """The rows of a column that are not null, in the order of the timeline.

    `before[i]` says how many of them lie before place i; `places` where each lies. `prefix` has for each sum cell
    the running sums of its limbs, shape (k, n + 1): below 2^34 each, so that 2^29 rows stay within int64; what a row adds
    to one is a row's limb. The `rank` of a text is its position in `texts`, the distinct ones in order.
    """

    dtype: Dtype
    before: Positions
    places: Positions
    prefix: dict[Cell, NDArray[np.int64]]
    rank: NDArray[np.uint64]
    texts: Ranks | None

    @staticmethod
    def of(column: Column, cells: Sequence[Cell]) -> _ColumnRows:
        before = np.zeros(len(column) + 1, np.int64)
        np.cumsum(column.valid, out=before[1:])
        places = np.flatnonzero(column.valid)
        present = column if column.complete else column.take(places)
        prefix: dict[Cell, NDArray[np.int64]] = {
            cell: _running_sums(present, cell) for cell in cells if cell in ("sum", "squares")
        }
        ordered = any(cell not in prefix for cell in cells)
        rank, texts = np.zeros(0, np.uint64), None
        if ordered:
            rank, texts = ordinals(present) if column.dtype in VARIABLE_WIDTH else (ranks(present), None)
        return _ColumnRows(column.dtype, before, places, prefix, rank, texts)

    def named(self, state: State) -> State:
        """A state of this column, with texts for their positions."""
        if self.texts is None:
            return state
        return State(state.count, state.limbs, {cell: self.texts[rank] for cell, rank in state.rank.items()})

    def over(self, begins: Positions, ends: Positions, cells: Sequence[Cell]) -> State:
        """States of all rows in the places ``begins..ends``."""
        low, high = self.before[begins], self.before[ends]
        state = State(high - low, {}, {})
        some = state.count > 0
        for cell in cells:
            if cell in ("sum", "squares"):
                sums = self.prefix[cell]
                state.limbs[cell] = np.stack([one[high] - one[low] for one in sums], axis=1)
            elif cell in ("min", "max"):
                state.rank[cell] = _extremes(self.rank, low, high, np.minimum if cell == "min" else np.maximum)
            else:
                state.rank[cell] = np.zeros(len(low), np.uint64)
                chosen = low if cell == "first" else high - 1
                state.rank[cell][some] = self.rank[chosen[some]]
        return state

    def add_visible(
        self,
        state: State,
        begins: Positions,
        ends: Positions,
        cells: Sequence[Cell],
        visibility: WindowVisibility,
    ) -> None:
        """Add to the states what each label sees in the places ``begins..ends``, all of them behind what they hold."""
        low, high = self.before[begins], self.before[ends]
        empty = state.count == 0
        first, last = np.full(len(low), len(self.places)), np.full(len(low), -1)
        for part in visibility.limited():
            among = None if part.among is None else part.among[self.places]
            for seen in seen_rows(part.keys[self.places], low, high, part.limits, among):
                self._add(state, seen, cells)
                if "first" in cells:
                    earliest = running_extremes(seen.rows, seen.size, np.minimum)
                    for asked in seen.parts:
                        first[asked.queries] = np.minimum(first[asked.queries], earliest[asked.stops - 1])
                if "last" in cells:
                    latest = running_extremes(seen.rows, seen.size, np.maximum)
                    for asked in seen.parts:
                        last[asked.queries] = np.maximum(last[asked.queries], latest[asked.stops - 1])
        if "first" in cells:
            fresh = empty & (first < len(self.places))
            state.rank["first"][fresh] = self.rank[first[fresh]]
        if "last" in cells:
            state.rank["last"][last >= 0] = self.rank[last[last >= 0]]

    def _add(self, state: State, seen: Seen, cells: Sequence[Cell]) -> None:
        sums = {
            cell: [_running(one[seen.rows + 1] - one[seen.rows]) for one in self.prefix[cell]]
            for cell in cells
            if cell in ("sum", "squares")
        }
        picks = {cell: np.minimum if cell == "min" else np.maximum for cell in cells if cell in ("min", "max")}
        best = {cell: running_extremes(self.rank[seen.rows], seen.size, pick) for cell, pick in picks.items()}
        for asked in seen.parts:
            own = asked.queries
            for cell, running in sums.items():
                state.limbs[cell][own] += np.stack([one[asked.stops] - one[asked.starts] for one in running], axis=1)
            for extreme, pick in picks.items():
                added, held = best[extreme][asked.stops - 1], state.rank[extreme][own]
                state.rank[extreme][own] = np.where(state.count[own] == 0, added, pick(added, held))
            state.count[own] += asked.stops - asked.starts


def _running_sums(column: Column, cell: Cell) -> NDArray[np.int64]:
    """The running sums of each limb of a column without nulls, shape (k, n + 1)."""
    sums = np.zeros((limb_count(cell, column.dtype), len(column) + 1), np.int64)
    for block in blocks_of(len(column)):
        limbs = limbs_of(Column(column.dtype, column.values[block], column.valid[block]), cell)
        sums[:, block.start + 1 : block.stop + 1] = limbs.T
    np.cumsum(sums, axis=1, out=sums)
    return sums


def _running(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(values)])


def _extremes(rank: Ranks, low: Positions, high: Positions, pick: Any) -> Ranks:
    """The least or greatest rank in each range ``low..high``; 0 for an empty one.

    A range of length m is covered by two spans of the greatest power of two that is at most m. Spans of one power are
    computed from those of the one before, and the ranges that need them are answered before the next.
    """
    out = np.zeros(len(low), np.uint64)
    power = np.frexp((high - low).astype(np.float64))[1] - 1
    by_power = np.argsort(power, kind="stable")
    bounds = np.searchsorted(power[by_power], np.arange(int(power.max(initial=-1)) + 2))
    spans = rank
    for level in range(len(bounds) - 1):
        asked = by_power[bounds[level] : bounds[level + 1]]
        out[asked] = pick(spans[low[asked]], spans[high[asked] - (1 << level)])
        if level + 2 < len(bounds):
            spans = pick(spans[: -(1 << level)], spans[1 << level :])
    return out
