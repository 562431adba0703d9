"""Rows of one view in the order of time, entity by entity, and binary search in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tally.blocks import one_by_one
from tally.latest import Codes, sorted_positions
from training.threads import MANY, on_threads, over_blocks

Positions = NDArray[np.int64]
Instants = NDArray[np.int64]

_COUNTED_AT_ONCE: Final = 1 << 19
"""`numpy.bincount` makes a wider copy of what it counts."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Rows sorted by (entity, timestamp, a, b): `order` holds their positions in the given rows, shape (n,).

    Everywhere else a *place* is an index into this order. `timestamp` is in this order; the places of entity `k` are
    ``starts[k]..starts[k + 1]``, and `starts` has one entry more than there are entities.
    """

    order: Positions
    timestamp: Instants
    starts: Positions

    def span(self, codes: Codes) -> tuple[Positions, Positions]:
        """First place and end of each entity's rows; both 0 for the code -1, which has none."""
        known = codes >= 0
        safe = np.where(known, codes, 0)
        return np.where(known, self.starts[safe], 0), np.where(known, self.starts[safe + 1], 0)


def timeline(
    codes: Codes,
    count: int,
    timestamp: Instants,
    a: Instants,
    b: Instants,
    packed: Callable[[Positions], list[bytes]] | None = None,
) -> Timeline:
    """The timeline of rows whose entities are `codes` (0..count-1); `packed` breaks full ties (`tally.latest`)."""
    order = sorted_positions(codes, timestamp, a, b, packed, one_by_one if len(codes) < MANY else on_threads)
    starts = np.zeros(max(count, 1) + 1, np.int64)
    some = max(count, _COUNTED_AT_ONCE)
    for start in range(0, len(codes), some):
        starts[1:] += np.bincount(codes[start : start + some], minlength=max(count, 1))
    np.cumsum(starts, out=starts)
    in_order = np.empty(len(order), np.int64)

    def take(block: slice) -> None:
        in_order[block] = timestamp[order[block]]

    over_blocks(take, len(order))
    return Timeline(order, in_order, starts)


def first_beyond(
    values: NDArray[np.int64], starts: Positions, stops: Positions, limits: NDArray[np.int64]
) -> Positions:
    """For each query the first place in ``starts..stops`` whose value is greater than its limit, else `stops`.

    `values` rise within each query's places.
    """
    found = np.empty(len(starts), np.int64)

    def search(block: slice) -> None:
        low, high, limit = starts[block], stops[block], limits[block]
        widest = int((high - low).max(initial=0))
        for _ in range(widest.bit_length()):
            middle = (low + high) >> 1
            open_ = low < high
            within = values[np.where(open_, middle, 0)] <= limit
            low = np.where(open_ & within, middle + 1, low)
            high = np.where(open_ & ~within, middle, high)
        found[block] = low

    over_blocks(search, len(starts))
    return found
