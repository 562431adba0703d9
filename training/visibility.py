"""What the online store had seen when a row was served: which rows of a timeline count for which label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.timeline import Instants, Positions, Timeline, first_beyond

Mask = NDArray[np.bool_]


class Visibility(Protocol):
    """Which rows each label may see. Labels and places are positions, arrays of one shape."""

    def sees(self, labels: Positions, places: Positions) -> Mask:
        """Whether each label sees the row at its place."""

    def certain_until(self, labels: Positions, starts: Positions, stops: Positions) -> Positions:
        """A place in ``starts..stops`` before which each label sees every row (any such place will do)."""


class ByArrival:
    """Rows that had arrived by the label's instant."""

    def __init__(self, timeline: Timeline, arrival: Instants, as_of: Instants) -> None:
        """`arrival` (µs) is in the order of the rows that the timeline was made of; `as_of` has one entry per label."""
        self._arrival = arrival[timeline.order]
        self._highest = _highest_so_far(timeline, self._arrival)
        self._as_of = as_of

    def sees(self, labels: Positions, places: Positions) -> Mask:
        """See `Visibility`."""
        return np.asarray(self._arrival[places] <= self._as_of[labels])

    def certain_until(self, labels: Positions, starts: Positions, stops: Positions) -> Positions:
        """See `Visibility`."""
        return first_beyond(self._highest, starts, stops, self._as_of[labels])


class ByFences:
    """Rows at or behind the label's fence of their partition; nothing of a partition without one."""

    def __init__(
        self, timeline: Timeline, partition: Positions, offset: Positions, fences: Sequence[dict[int, int]]
    ) -> None:
        """`partition` and `offset` are in the order of the timeline's rows; `fences` has one entry per label."""
        present, column = np.unique(partition, return_inverse=True)
        self._column = column[timeline.order]
        self._offset = offset[timeline.order]
        known = present.tolist()
        self._fences = np.array([[fence.get(p, -1) for p in known] for fence in fences], np.int64)
        self._fences = self._fences.reshape(len(fences), len(known))
        self._highest = [
            _highest_so_far(timeline, np.where(self._column == one, self._offset, -1)) for one in range(len(known))
        ]

    def sees(self, labels: Positions, places: Positions) -> Mask:
        """See `Visibility`."""
        return np.asarray(self._offset[places] <= self._fences[labels, self._column[places]])

    def certain_until(self, labels: Positions, starts: Positions, stops: Positions) -> Positions:
        """See `Visibility`."""
        for column, highest in enumerate(self._highest):
            stops = first_beyond(highest, starts, stops, self._fences[labels, column])
        return stops


class ByVersion:
    """Rows up to the one that was served: ``(timestamp, a, b)`` at or before the label's; nothing where it saw none."""

    def __init__(
        self, timeline: Timeline, a: Positions, b: Positions, versions: Sequence[tuple[int, int, int] | None]
    ) -> None:
        """`a` and `b` are in the order of the timeline's rows; `versions` has one entry per label."""
        self._timestamp, self._a, self._b = timeline.timestamp, a[timeline.order], b[timeline.order]
        self._some = np.array([version is not None for version in versions], np.bool_)
        self._version = np.array([version or (0, 0, 0) for version in versions], np.int64).reshape(len(versions), 3)

    def sees(self, labels: Positions, places: Positions) -> Mask:
        """See `Visibility`."""
        timestamp, a, b = self._version[labels].T
        at, first, second = self._timestamp[places], self._a[places], self._b[places]
        behind = (first < a) | ((first == a) & (second <= b))
        return np.asarray(self._some[labels] & ((at < timestamp) | ((at == timestamp) & behind)))

    def certain_until(self, labels: Positions, starts: Positions, stops: Positions) -> Positions:
        """See `Visibility`."""
        before = first_beyond(self._timestamp, starts, stops, self._version[labels, 0] - 1)
        return np.where(self._some[labels], before, starts)


def _highest_so_far(timeline: Timeline, values: Positions) -> Positions:
    """The greatest value among each place's entity's rows up to that place."""
    distinct, rank = np.unique(values, return_inverse=True)
    entity = np.repeat(np.arange(len(timeline.starts) - 1), np.diff(timeline.starts))
    shifted = entity * len(distinct) + rank  # entities rise, so that a maximum never crosses into the next one
    return np.asarray(distinct[np.maximum.accumulate(shifted) - entity * len(distinct)])
