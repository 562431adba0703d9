"""Records leave `tiles.build` in the byte order in which Redis compares them."""

from __future__ import annotations

import numpy as np

from tally.aggregates import EventOrder
from tally.columns import column
from tally.tiles import Aggregation, TileLayout, build
from tally.windows import Window


def test_built_records_have_the_stored_byte_order() -> None:
    """The records' dtype is the layout's own, big-endian ranks included, so `tobytes` is what is stored."""
    layout = TileLayout((Aggregation("least", "x", "Int64", "min", Window(60, 5), "Int64"),))
    zeros = np.zeros(2, np.int64)
    _, records, _ = build(layout, zeros, EventOrder(zeros, zeros, np.arange(2)), {"x": column("Int64", [1, 2])})
    assert records.dtype == layout.record
    assert records.tobytes().endswith(bytes.fromhex("8000000000000001"))
