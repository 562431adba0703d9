"""Which rows of a view count. The stream and the offline store refuse the same rows for the same reasons."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tally.aggregates import CELLS, LONGEST_TEXT, storable, summable
from tally.columns import Column
from tally.plan import View
from tally.time import MILLISECOND

FOR_VIEW: Final = "tally-for-view"
"""A message with this header counts only where the header says so (`named_in`): it is the replay of one that had been refused
there (`ingestion.dead_letters`), and others, of this project or another that reads the topic, have counted the original."""
UNKNOWN_TIME: Final = np.iinfo(np.int64).max
"""A CreateTime that nobody knows: no event is too far ahead of it."""


def create_times(millis: NDArray[np.int64]) -> NDArray[np.int64]:
    """CreateTimes (µs) of Kafka's, which are milliseconds; UNKNOWN_TIME for none (negative), or one that µs cannot hold."""
    known = (millis >= 0) & (millis <= (UNKNOWN_TIME - 1) // MILLISECOND)
    return np.where(known, np.where(known, millis, 0) * MILLISECOND, UNKNOWN_TIME)


def for_view(project: str, view: str) -> str:
    """The value of FOR_VIEW with which a message counts for one view of a project; for all of them where `view` is empty."""
    return f"{project}/{view}"


def named_in(project: str, view: str) -> tuple[str, ...]:
    """The values of FOR_VIEW with which a message counts for a view. A name alone is that of replays without a project."""
    return for_view(project, view), for_view(project, ""), view


def refusals(
    view: View, columns: Mapping[str, Column], create_time: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.bool_], dict[int, str]]:
    """(rows that count, reason for each other row) of a view's columns after its event function.

    Refused are rows without a timestamp or an entity key; events whose timestamp is later than their `create_time` (µs,
    UNKNOWN_TIME where there is none) by more than `View.future_tolerance`; rows with a value that cannot be summed exactly:
    an infinity, or 2^64 and above in magnitude, in a column that the view sums; and texts that are too long for a tile, in
    a column of which the view keeps one. (NaN is null, and nulls are skipped.) Kafka's CreateTime is part of the message, so
    the stream and the offline store refuse the same events, whenever they look.
    """
    count = len(columns[view.timestamp])
    accepted = np.ones(count, np.bool_)
    reasons: dict[int, str] = {}

    def refuse(wrong: NDArray[np.bool_], reason: str) -> None:
        for row in np.flatnonzero(wrong & accepted).tolist():
            reasons[row] = f"{view.name}: {reason}"
        accepted[wrong] = False

    refuse(~columns[view.timestamp].valid, f"event timestamp {view.timestamp} is null")
    if create_time is not None:
        latest = np.where(
            create_time > UNKNOWN_TIME - view.future_tolerance, UNKNOWN_TIME, create_time + view.future_tolerance
        )
        tolerance = timedelta(microseconds=view.future_tolerance)
        refuse(
            columns[view.timestamp].values > latest,
            f"event timestamp {view.timestamp} is more than {tolerance} after the message was made",
        )
    for key in view.keys:
        refuse(~columns[key.name].valid, f"entity key {key.name} is null")
    for aggregation in view.aggregations:
        if "sum" in CELLS[aggregation.function]:
            refuse(
                ~summable(columns[aggregation.column]),
                f"{aggregation.column} is infinite or at least 2^64 in magnitude, which cannot be summed exactly",
            )
        elif CELLS[aggregation.function]:
            refuse(
                ~storable(columns[aggregation.column]),
                f"{aggregation.column} is longer than the {LONGEST_TEXT} bytes that a window keeps of a text",
            )
    return accepted, reasons
