"""Windows read from tiles: those of several views in one pass, since a call of NumPy costs as much as a hundred values.

The records of all views stand one after the other. One search finds the stretch of them that each window of each row
sees, and the sums over a stretch are the difference of two running sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tally.aggregates import Cell, Ranks, State, Wanted, cells_of, finalize_all, limb_count
from tally.columns import Column
from tally.dtypes import VARIABLE_WIDTH, Dtype
from tally.tiles import Positions, Records, TileLayout
from tally.windows import Window

_SUMS: Final = ("sum", "squares")
_OF_ROWS: Final = ("first", "last")


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of n rows: `sizes` (n,) says how many of the `records` each row has, `as_of` int64 µs (n,) what it may see.

    Records are sorted by (row, level, tile). They are taken whole: none may hold an event after its row's `as_of`.
    """

    records: Records
    sizes: Positions
    as_of: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Part:
    """The features, as (function, name), of one column of a view over one of the view's windows."""

    view: int
    window: int
    dtype: Dtype
    features: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of the records of a view; `count` is the number of the field that counts its column's non-nulls."""

    view: int
    name: str
    count: int


@dataclass(frozen=True, slots=True)
class _Fields:
    """Fields that are merged in one go: numbers of `width` limbs, or ranks, which are texts where `width` is -1.

    `parts` are pairs: the number of a part, and that of its field in `fields`.
    """

    cell: Cell | None
    width: int
    fields: list[_Field]
    parts: list[tuple[int, int]]

    def add(self, part: int, field: _Field) -> int:
        """Take part `part` of `field` in. Gives the field's number."""
        if field not in self.fields:
            self.fields.append(field)
        number = self.fields.index(field)
        self.parts.append((part, number))
        return number


class Windows:
    """Windowed features of some views: `asked` are the layout of each view and the names of its features."""

    def __init__(self, asked: Sequence[tuple[TileLayout, Iterable[str]]]) -> None:
        self._parts: list[_Part] = []
        self._counts = _Fields(None, 1, [], [])
        groups: dict[tuple[Cell, int], _Fields] = {}
        windows: list[list[Window]] = []
        for view, (layout, features) in enumerate(asked):
            names = frozenset(features)
            wanted = [a for a in layout.aggregations if a.feature in names]
            windows.append(list(dict.fromkeys(a.window for a in wanted)))
            for position, (column, (dtype, _)) in enumerate(layout.columns.items()):
                for number, window in enumerate(windows[view]):
                    own = [a for a in wanted if a.column == column and a.window == window]
                    if not own:
                        continue
                    part = len(self._parts)
                    self._parts.append(_Part(view, number, dtype, tuple((a.function, a.feature) for a in own)))
                    count = self._counts.add(part, _Field(view, f"count{position}", 0))
                    for cell in cells_of(a.function for a in own):
                        rank = -1 if dtype in VARIABLE_WIDTH else 0
                        width = limb_count(cell, dtype) if cell in _SUMS else rank
                        group = groups.setdefault((cell, width), _Fields(cell, width, [], []))
                        group.add(part, _Field(view, f"{cell}{position}", count))
        self._groups = list(groups.values())
        levels = [[hop for hop, _ in layout.levels] for layout, _ in asked]
        self._levels = max(map(len, levels), default=0) + 1  # the last for levels that there are not
        self._hops = _table(levels, self._levels)
        most = max(map(len, windows), default=0)
        numbers = [[layout.level_of_hop[w.hop] for w in own] for (layout, _), own in zip(asked, windows, strict=True)]
        self._level = _table(numbers, most).T
        self._lengths = _table([[w.length for w in own] for own in windows], most).T
        self._window_hops = _table([[w.hop for w in own] for own in windows], most).T
        self._most = max((length // hop for layout, _ in asked for hop, length in layout.levels), default=0) + 2

    def states(self, tiles: Sequence[Tiles]) -> list[dict[str, Wanted]]:
        """For each view its features, before the operation that gives each its value (`aggregates.finalize_all`)."""
        if not self._parts:
            return [{} for _ in tiles]
        rows = _starts([len(one.as_of) for one in tiles])
        records = _starts([len(one.records) for one in tiles])
        bounds = self._bounds(tiles)
        stretches = [bounds[:, part.window, rows[part.view] : rows[part.view + 1]] for part in self._parts]
        merging = _Merging(tiles, records, stretches)
        counts, filled = merging.counts(self._counts)
        states = [State(counts[place], {}, {}) for place in merging.places]
        for group in self._groups:
            merging.merge(group, filled, states)
        wanted: list[dict[str, Wanted]] = [{} for _ in tiles]
        for part, state in zip(self._parts, states, strict=True):
            for function, feature in part.features:
                wanted[part.view][feature] = function, part.dtype, state, feature
        return wanted

    def _bounds(self, tiles: Sequence[Tiles]) -> Positions:
        """The first record that each window of each row sees, and the one after the last: shape (2, windows, rows).

        Records and windows get places, integers that rise by (row, level, tile). Tiles are counted from the one that holds
        the row's `as_of`, and all that no window sees are one, so that places are small whatever was stored.
        """
        as_of = np.concatenate([one.as_of for one in tiles])
        views = np.arange(len(tiles)).repeat([len(one.as_of) for one in tiles])
        newest = as_of[:, None] // self._hops.take(views, axis=0)
        slots = np.arange(len(as_of)) * self._levels
        own = slots.repeat(np.concatenate([one.sizes for one in tiles]))
        own += np.minimum(np.concatenate([one.records["level"] for one in tiles]), self._levels - 1)
        back = np.concatenate([one.records["tile"] for one in tiles]) - newest.take(own)
        np.maximum(back, -self._most, out=back)
        np.minimum(back, self._most - 1, out=back)
        own *= 2 * self._most
        own += back
        windows: Any = Window(self._lengths.take(views, axis=1), self._window_hops.take(views, axis=1))  # type: ignore[arg-type]  # all at once
        last = (slots + self._level.take(views, axis=1)) * (2 * self._most)
        wanted = np.empty((2, *last.shape), np.int64)
        np.add(last, windows.first_tile(as_of) - windows.last_tile(as_of), out=wanted[0])
        np.add(last, 1, out=wanted[1])
        return own.searchsorted(wanted)


class _Merging:
    """The records of all views, and for each part the `stretches` of them that its rows see, of shape (2, rows).

    `places` say where each part's rows stand in what is merged for all parts.
    """

    def __init__(self, tiles: Sequence[Tiles], starts: list[int], stretches: list[Positions]) -> None:
        self._tiles = tiles
        self._starts = starts
        self._stretches = stretches
        self.places = _places(stretches)

    def counts(self, fields: _Fields) -> tuple[NDArray[np.int64], list[NDArray[np.bool_]] | None]:
        """(non-nulls of all parts, for each field which records have any: None where all have)."""
        limbs, starts = self._limbs(fields)
        filled = None
        if not limbs[0, 1:].all():
            filled = [
                limbs[0, start + 1 : start + 1 + len(self._tiles[field.view].records)] > 0
                for field, start in zip(fields.fields, starts[:-1], strict=True)
            ]
        return self._sums(fields, limbs, starts)[0], filled

    def merge(self, fields: _Fields, filled: list[NDArray[np.bool_]] | None, states: list[State]) -> None:
        """Put what `fields` give into the states of their parts."""
        assert fields.cell is not None
        if fields.width > 0:
            limbs, starts = self._limbs(fields)
            if filled is not None:
                for field, start in zip(fields.fields, starts[:-1], strict=True):
                    limbs[:, start + 1 + np.flatnonzero(~filled[field.count])] = 0  # as they are in undamaged bytes
            sums = self._sums(fields, limbs, starts).T
            for (part, _), place in zip(fields.parts, self._places_of(fields), strict=True):
                states[part].limbs[fields.cell] = sums[place]
        else:
            ranks = self._extremes(fields, filled)
            for (part, _), place in zip(fields.parts, self._places_of(fields), strict=True):
                states[part].rank[fields.cell] = ranks[place]

    def _places_of(self, fields: _Fields) -> list[slice]:
        return _places([self._stretches[part] for part, _ in fields.parts])

    def _limbs(self, fields: _Fields) -> tuple[NDArray[np.int64], list[int]]:
        """(each limb of each record behind a zero, fields one after the other; where each field begins)."""
        starts = _starts([len(self._tiles[field.view].records) for field in fields.fields])
        limbs = np.empty((fields.width, starts[-1] + 1), np.int64)
        limbs[:, 0] = 0
        for field, start, stop in zip(fields.fields, starts[:-1], starts[1:], strict=True):
            stored = self._tiles[field.view].records[field.name]
            limbs[:, start + 1 : stop + 1] = stored.T
            if fields.cell is not None:
                limbs[-1, start + 1 : stop + 1] = stored[:, -1].view(np.int32)  # the top limb is signed
        return limbs, starts

    def _sums(self, fields: _Fields, limbs: NDArray[np.int64], starts: list[int]) -> NDArray[np.int64]:
        """Sums over the stretches of all parts, from what `_limbs` gives; shape (limbs, rows)."""
        np.add.accumulate(limbs, axis=1, out=limbs)
        begin, end = self._stretches_in(fields, starts)
        sums: NDArray[np.int64] = limbs.take(end, axis=1)
        sums -= limbs.take(begin, axis=1)
        return sums

    def _extremes(self, fields: _Fields, filled: list[NDArray[np.bool_]] | None) -> Ranks:
        """The rank that is asked for of the stretches of all parts: zero, or an empty text, where there is none."""
        assert fields.cell is not None
        stored = [self._tiles[field.view].records[field.name] for field in fields.fields]
        if fields.cell in _OF_ROWS:
            stored = [entries["value"] for entries in stored]
        kept = None
        if filled is not None:
            own = [filled[field.count] for field in fields.fields]
            stored = [ranks[there] for ranks, there in zip(stored, own, strict=True)]
            kept = [np.concatenate([[0], there.cumsum()]) for there in own]
        starts = _starts([len(ranks) for ranks in stored])
        held = np.empty(starts[-1] + 1, object if fields.width < 0 else np.uint64)
        held[-1] = b"" if fields.width < 0 else 0  # the last stretch may end here
        np.concatenate(stored, out=held[:-1])
        begin, end = self._stretches_in(fields, starts, kept)
        there = np.flatnonzero(end > begin)
        if len(there) == len(begin):
            return _extreme(fields.cell, held, begin, end)
        merged = np.full(len(begin), b"", object) if fields.width < 0 else np.zeros(len(begin), np.uint64)
        if len(there):
            merged[there] = _extreme(fields.cell, held, begin[there], end[there])
        return merged

    def _stretches_in(self, fields: _Fields, starts: list[int], kept: list[Positions] | None = None) -> Positions:
        """The stretches of all parts among the records of `fields`, which begin at `starts`; shape (2, rows).

        `kept` says how many of a field's records are kept before each of them, where not all are.
        """
        found = []
        for part, number in fields.parts:
            stretch, before = self._stretches[part], self._starts[fields.fields[number].view]
            if kept is not None:
                stretch, before = kept[number].take(stretch - before), 0
            found.append(stretch + (starts[number] - before) if starts[number] != before else stretch)
        return np.concatenate(found, axis=1)


def read(layout: TileLayout, tiles: Tiles) -> dict[str, Column]:
    """Every windowed feature of `layout`."""
    (wanted,) = Windows([(layout, [a.feature for a in layout.aggregations])]).states([tiles])
    return dict(zip(wanted, finalize_all(list(wanted.values())), strict=True))


def _table(rows: Sequence[Sequence[int]], width: int) -> Positions:
    """`rows` as one array, with ones behind those that are shorter."""
    return np.array([[*row, *[1] * (width - len(row))] for row in rows], np.int64).reshape(len(rows), width)


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where each of several arrays begins, one after the other, and where the last ends."""
    return [0, *accumulate(lengths)]


def _places(stretches: Sequence[Positions]) -> list[slice]:
    return [slice(*bounds) for bounds in pairwise(_starts([stretch.shape[1] for stretch in stretches]))]


def _extreme(cell: Cell, ranks: Ranks, starts: Positions, stops: Positions) -> Ranks:
    """The rank that is asked for of each stretch; there is at least one, none is empty, and all end before the last rank."""
    if cell == "first":
        return ranks[starts]
    if cell == "last":
        return ranks[stops - 1]
    bounds = np.empty(2 * len(starts), np.int64)
    bounds[::2], bounds[1::2] = starts, stops
    found: Ranks = (np.minimum if cell == "min" else np.maximum).reduceat(ranks, bounds)[::2]
    return found
