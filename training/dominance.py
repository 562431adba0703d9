"""Rows that lie in a range of places and have a key within a limit: found for all queries at once, without a look at each row.

This is how a label sees only what had arrived: the range is its window, the key a row's arrival, the limit the label's time.
Everything costs (rows + queries) x the logarithm of the widest range, however many rows a query does not see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
Keys = NDArray[np.int64]
Mask = NDArray[np.bool_]

_NEVER: Final = np.iinfo(np.int64).max


def last_within(keys: Keys, starts: Positions, stops: Positions, limits: Keys) -> Positions:
    """For each query the last place in ``starts..stops`` whose key is at most its limit, else ``starts - 1``."""
    found = np.maximum(stops, starts) - 1
    open_ = np.flatnonzero(found >= starts)
    open_ = open_[keys[found[open_]] > limits[open_]]
    if len(open_) == 0:
        return found
    # Climb: blocks of 1, 2, 4, ... rows to the left, until one holds a small enough key. `minima` has the least of each.
    minima = [keys]
    ends = found[open_]  # in units of the level's blocks, and exclusive: what lies there is too great already
    found[open_] = starts[open_] - 1
    landed: list[tuple[Positions, Positions]] = []
    while len(open_):
        level = len(minima) - 1
        low = starts[open_] >> level
        block = ends - 1
        odd = (ends & 1 == 1) & (block >= low)
        hit = np.zeros(len(open_), np.bool_)
        hit[odd] = minima[level][block[odd]] <= limits[open_[odd]]
        landed.append((open_[hit], block[hit]))
        ends = ends >> 1
        going = ~hit & (ends > low >> 1)
        open_, ends = open_[going], ends[going]
        if len(open_):
            minima.append(_least_of_pairs(minima[level]))
    # Descend: to the last row of the block whose key is small enough.
    queries, blocks = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for level in range(len(landed) - 1, -1, -1):
        queries = np.concatenate([queries, landed[level][0]])
        blocks = np.concatenate([blocks, landed[level][1]])
        if level:
            blocks = 2 * blocks + 1
            last = np.minimum(blocks, len(minima[level - 1]) - 1)
            blocks -= (last < blocks) | (minima[level - 1][last] > limits[queries])
    found[queries] = np.maximum(blocks, starts[queries] - 1)
    return found


def _least_of_pairs(keys: Keys) -> Keys:
    even = keys if len(keys) % 2 == 0 else np.append(keys, _NEVER)
    return np.minimum(even[::2], even[1::2])


@dataclass(frozen=True, slots=True)
class Asked:
    """Queries, none of them twice, and where in the rows of their `Seen` each one's begin and end."""

    queries: Positions
    starts: Positions
    stops: Positions


@dataclass(frozen=True, slots=True)
class Seen:
    """Some of what some queries see: of query ``queries[i]`` of each part the rows ``rows[starts[i]:stops[i]]``.

    `rows` are in blocks of `size`, each sorted by key; every start is the start of a block, and its stop lies in it.
    """

    rows: Positions
    size: int
    parts: tuple[Asked, ...]


def seen_rows(keys: Keys, low: Positions, high: Positions, limits: Keys, among: Mask | None = None) -> Iterator[Seen]:
    """For each query the rows in ``low..high``, of those `among` (None: all), whose key is at most its limit.

    What a query sees comes in several parts, each row in one of them.
    """
    open_ = low < high
    covered = np.zeros(len(keys) + 1, np.int64)
    np.add.at(covered, low[open_], 1)
    np.subtract.at(covered, high[open_], 1)
    wanted = np.cumsum(covered)[:-1] > 0
    if among is not None:
        wanted &= among
    rows = np.flatnonzero(wanted)
    count = len(rows)
    before = np.zeros(len(keys) + 1, np.int64)
    np.cumsum(wanted, out=before[1:])
    queries = np.flatnonzero(open_ & (before[high] > before[low]))
    low, high = before[low[queries]], before[high[queries]]
    by_key = np.argsort(keys[rows], kind="stable")
    rank = np.empty(count, np.int64)
    rank[by_key] = np.arange(count)
    bound = np.searchsorted(keys[rows][by_key], limits[queries], side="right")
    place = np.arange(count)
    level = 0
    while len(queries):
        left, right = low & 1 == 1, high & 1 == 1
        if left.any() or right.any():
            # Each block's ranks in order, the blocks one after the other: `base` tells them apart.
            base = (place >> level) * count
            sorted_ranks = np.sort(base + rank)
            ordered = rows[by_key[sorted_ranks - base]]
            parts = []
            for chosen, block in ((left, low), (right, high - 1)):
                own = block[chosen]
                starts = own << level
                stops = np.searchsorted(sorted_ranks, own * count + bound[chosen])
                some = stops > starts
                parts.append(Asked(queries[chosen][some], starts[some], stops[some]))
            yield Seen(ordered, 1 << level, tuple(parts))
        low, high = (low + 1) >> 1, high >> 1
        going = low < high
        queries, low, high, bound = queries[going], low[going], high[going], bound[going]
        level += 1


def running_extremes(values: NDArray[Any], size: int, pick: Any) -> NDArray[Any]:
    """The least or greatest value of each block of `size` values up to each of them; `pick` is np.minimum or np.maximum."""
    blocks = -(-len(values) // size)
    padded = np.zeros(blocks * size, values.dtype)
    padded[: len(values)] = values
    return pick.accumulate(padded.reshape(blocks, size), axis=1).reshape(-1)[: len(values)]  # type: ignore[no-any-return]
