"""The bytes of tiles are the layout's own."""

from __future__ import annotations

import numpy as np

from tally import tiles
from tally.aggregates import EventOrder
from tally.columns import column
from tally.tiles import Aggregation, TileLayout
from tally.windows import Window


def test_built_records_have_the_layouts_bytes() -> None:
    """Records of several levels keep the layout's packed dtype, big-endian ranks included, so their bytes can be stored."""
    layout = TileLayout(
        tuple(
            Aggregation(f"{function}_{length}", "v", "Int64", function, Window(length, 10), "Int64")
            for function in ("min", "last")
            for length in (60, 600)
        )
    )
    zeros = np.zeros(1, np.int64)
    _, records, _ = tiles.build(layout, zeros, EventOrder(zeros, zeros, zeros), {"v": column("Int64", [5])})
    assert records.dtype == layout.record
    again = np.frombuffer(records.tobytes(), layout.record)
    rows = np.zeros(len(again), np.int64)
    assert {c.to_list()[0] for c in tiles.read(layout, again, rows, zeros).values()} == {5}
