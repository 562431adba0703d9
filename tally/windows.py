"""Windows: which rows a windowed feature sees, and the tiles that hold them.

A feature as of `t` sees the rows with ``floor(t - length, hop) <= event_timestamp <= t``: the head is exact, the tail
moves in hops, both ends are inclusive. A tile is the half-open span ``[index * hop, (index + 1) * hop)``; because the
lower end is a multiple of the hop, a window's rows up to `t` are exactly those of the tiles `first..last` at or before `t`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tally.time import DAY, HOUR, MINUTE, SECOND, floor

NICE_HOPS: Final = (
    SECOND, 5 * SECOND, 10 * SECOND, 15 * SECOND, 30 * SECOND,
    MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE,
    HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY,
)  # fmt: skip
PARTS: Final = 12


@dataclass(frozen=True, slots=True)
class Window:
    """A window of `length` microseconds whose tail moves in steps of `hop` microseconds."""

    length: int
    hop: int

    def lower(self, as_of: NDArray[np.int64] | int) -> Any:
        """The first instant that the window sees as of `as_of` (inclusive)."""
        return floor(as_of - self.length, self.hop)

    def first_tile(self, as_of: NDArray[np.int64] | int) -> Any:
        """Index of the oldest tile inside the window."""
        return (as_of - self.length) // self.hop

    def last_tile(self, as_of: NDArray[np.int64] | int) -> Any:
        """Index of the newest tile inside the window: the one that holds `as_of`."""
        return as_of // self.hop


def default_hop(length: int) -> int:
    """The hop of a window for which none was given: the greatest round one of at most a twelfth of the window."""
    fitting = [hop for hop in NICE_HOPS if hop * PARTS <= length]
    return fitting[-1] if fitting else max(1, length // PARTS)


def window(length: int, slide_interval: int) -> Window:
    """The window of a Feast aggregation. A slide interval equal to the length is Feast's value for "not given"."""
    return Window(length, default_hop(length) if slide_interval == length else slide_interval)
