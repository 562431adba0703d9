"""Rows of one view in the order of time, entity by entity, and binary search in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tally.latest import sorted_positions

Positions = NDArray[np.int64]
Instants = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Rows sorted by (entity, timestamp, a, b): `order` holds their positions in the given rows, shape (n,).

    Everywhere else a *place* is an index into this order. `timestamp` is in this order; the places of entity `k` are
    ``starts[k]..starts[k + 1]``, and `starts` has one entry more than there are entities.
    """

    order: Positions
    timestamp: Instants
    starts: Positions

    def span(self, codes: Positions) -> tuple[Positions, Positions]:
        """First place and end of each entity's rows; both 0 for the code -1, which has none."""
        known = codes >= 0
        safe = np.where(known, codes, 0)
        return np.where(known, self.starts[safe], 0), np.where(known, self.starts[safe + 1], 0)


def timeline(
    codes: Positions,
    count: int,
    timestamp: Instants,
    a: Instants,
    b: Instants,
    packed: Callable[[Positions], list[bytes]] | None = None,
) -> Timeline:
    """The timeline of rows whose entities are `codes` (0..count-1); `packed` breaks full ties (`tally.latest`)."""
    order = sorted_positions(codes, timestamp, a, b, packed)
    starts = np.zeros(max(count, 1) + 1, np.int64)
    np.cumsum(np.bincount(codes, minlength=max(count, 1)), out=starts[1:])
    return Timeline(order, timestamp[order], starts)


def first_beyond(
    values: NDArray[np.int64], starts: Positions, stops: Positions, limits: NDArray[np.int64]
) -> Positions:
    """For each query the first place in ``starts..stops`` whose value is greater than its limit, else `stops`.

    `values` rise within each query's places.
    """
    low, high = starts, stops
    widest = int((stops - starts).max(initial=0))
    for _ in range(widest.bit_length()):
        middle = (low + high) >> 1
        open_ = low < high
        within = values[np.where(open_, middle, 0)] <= limits
        low = np.where(open_ & within, middle + 1, low)
        high = np.where(open_ & ~within, middle, high)
    return low
