"""What the online store had seen when a row was served: which rows of a timeline count for which label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tally.layout import row_check
from training.dominance import last_within
from training.timeline import Instants, Positions, Timeline, first_beyond

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Limited:
    """The rows `among` all (by place; None: all of them), of which a label sees those whose key is at most its limit."""

    keys: Positions
    limits: Positions
    among: Mask | None


class LatestVisibility(Protocol):
    """Which row is the latest that each label sees."""

    def latest(self, starts: Positions, stops: Positions) -> Positions:
        """For each label the last place in ``starts..stops`` that it sees, else ``starts - 1``."""


class WindowVisibility(Protocol):
    """Which rows of a window each label sees."""

    def certain_until(self, starts: Positions, stops: Positions) -> Positions:
        """A place in ``starts..stops`` before which each label sees every row (any such place will do)."""

    def limited(self) -> Iterator[Limited]:
        """Parts that hold each row once, and what each label sees of them."""


class ByArrival:
    """Rows that had arrived by the label's instant."""

    def __init__(self, timeline: Timeline, arrival: Instants, as_of: Instants) -> None:
        """`arrival` (µs) is in the order of the rows that the timeline was made of; `as_of` has one entry per label."""
        self._timeline = timeline
        self._arrival = arrival[timeline.order]
        self._as_of = as_of

    def latest(self, starts: Positions, stops: Positions) -> Positions:
        """See `LatestVisibility`."""
        return last_within(self._arrival, starts, stops, self._as_of)

    def certain_until(self, starts: Positions, stops: Positions) -> Positions:
        """See `WindowVisibility`."""
        return first_beyond(self._highest, starts, stops, self._as_of)

    def limited(self) -> Iterator[Limited]:
        """See `WindowVisibility`."""
        yield Limited(self._arrival, self._as_of, None)

    @cached_property
    def _highest(self) -> Positions:
        return _highest_so_far(self._timeline, self._arrival)


class ByFences:
    """Rows at or behind the label's fence of their partition; nothing of a partition without one."""

    def __init__(
        self, timeline: Timeline, partition: Positions, offset: Positions, fences: Sequence[dict[int, int]]
    ) -> None:
        """`partition` and `offset` are in the order of the timeline's rows; `fences` has one entry per label."""
        self._timeline = timeline
        self._offset = offset[timeline.order]
        present, column = np.unique(partition, return_inverse=True)
        self._among = [column[timeline.order] == one for one in range(len(present))]
        self._fences = [np.array([fence.get(p, -1) for fence in fences], np.int64) for p in present.tolist()]

    def certain_until(self, starts: Positions, stops: Positions) -> Positions:
        """See `WindowVisibility`."""
        for highest, fences in zip(self._highest, self._fences, strict=True):
            stops = first_beyond(highest, starts, stops, fences)
        return stops

    def limited(self) -> Iterator[Limited]:
        """See `WindowVisibility`."""
        for among, fences in zip(self._among, self._fences, strict=True):
            yield Limited(self._offset, fences, among)

    @cached_property
    def _highest(self) -> list[Positions]:
        return [_highest_so_far(self._timeline, np.where(among, self._offset, -1)) for among in self._among]


class ByVersion:
    """Rows up to the one that was served; nothing where it saw none.

    A version is ``(timestamp, a, b, check)``. Of rows that tie in the first three the one that was served is known by its
    bytes (`tally.layout.row_check`); versions without a check, and those whose row is gone, see all rows of the tie.
    """

    def __init__(
        self,
        timeline: Timeline,
        a: Positions,
        b: Positions,
        versions: Sequence[Sequence[int] | None],
        packed: Callable[[Positions], list[bytes]],
    ) -> None:
        """`a`, `b` and what `packed` gives are of the timeline's rows, in their order; `versions` has one entry per label."""
        self._timeline = timeline
        self._a, self._b, self._packed = a[timeline.order], b[timeline.order], packed
        self._some = np.array([version is not None for version in versions], np.bool_)
        padded = [(*version[:3], version[3] if len(version) > 3 else -1) if version else (0, 0, 0, -1) for version in versions]  # fmt: skip
        self._version = np.array(padded, np.int64).reshape(len(versions), 4)

    def latest(self, starts: Positions, stops: Positions) -> Positions:
        """See `LatestVisibility`."""
        stops = np.where(self._some, stops, starts)
        ends = self._first_behind(starts, stops, 1)
        latest = ends - 1
        begins = self._first_behind(starts, ends, 0)
        tied = np.flatnonzero((ends - begins > 1) & (self._version[:, 3] >= 0))
        for begin in np.unique(begins[tied]).tolist():
            labels = tied[begins[tied] == begin]
            places = np.arange(begin, ends[labels].max())
            checks = [row_check(value) for value in self._packed(self._timeline.order[places])]
            same = self._version[labels, 3][:, None] == np.array(checks)
            last = len(places) - 1 - np.argmax(same[:, ::-1], axis=1)
            latest[labels] = np.where(same.any(axis=1), places[last], latest[labels])
        return latest

    def _first_behind(self, starts: Positions, stops: Positions, ties: int) -> Positions:
        """The first place in ``starts..stops`` that is not before each label's version (`ties` 1: nor at it)."""
        timestamp, a, b, _ = self._version.T
        low, high = starts, stops
        for _ in range(int((stops - starts).max(initial=0)).bit_length()):
            middle = (low + high) >> 1
            open_ = low < high
            at = np.where(open_, middle, 0)
            when, first, second = self._timeline.timestamp[at], self._a[at], self._b[at]
            before = (when < timestamp) | (
                (when == timestamp) & ((first < a) | ((first == a) & (second < b + ties)))
            )  # fmt: skip
            low = np.where(open_ & before, middle + 1, low)
            high = np.where(open_ & ~before, middle, high)
        return low


def _highest_so_far(timeline: Timeline, values: Positions) -> Positions:
    """The greatest value among each place's entity's rows up to that place."""
    distinct, rank = np.unique(values, return_inverse=True)
    entity = np.repeat(np.arange(len(timeline.starts) - 1), np.diff(timeline.starts))
    shifted = entity * len(distinct) + rank  # entities rise, so that a maximum never crosses into the next one
    return np.asarray(distinct[np.maximum.accumulate(shifted) - entity * len(distinct)])
