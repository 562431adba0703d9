"""Which rows of a view count. The stream and the offline store refuse the same rows for the same reasons."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tally.aggregates import CELLS, LONGEST_TEXT, storable, summable
from tally.columns import Column
from tally.plan import View


def refusals(view: View, columns: Mapping[str, Column]) -> tuple[NDArray[np.bool_], dict[int, str]]:
    """(rows that count, reason for each other row) of a view's columns after its event function.

    Refused are rows without a timestamp or an entity key, and rows with a value that cannot be summed exactly: an
    infinity, or 2^64 and above in magnitude, in a column that the view sums; and texts that are too long for a tile, in a
    column of which the view keeps one. (NaN is null, and nulls are skipped.)
    """
    count = len(columns[view.timestamp])
    accepted = np.ones(count, np.bool_)
    reasons: dict[int, str] = {}

    def refuse(wrong: NDArray[np.bool_], reason: str) -> None:
        for row in np.flatnonzero(wrong & accepted).tolist():
            reasons[row] = f"{view.name}: {reason}"
        accepted[wrong] = False

    refuse(~columns[view.timestamp].valid, f"event timestamp {view.timestamp} is null")
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
