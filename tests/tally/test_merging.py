"""Windows of several views in one pass: what each view gives alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tally import merging
from tally.aggregates import finalize_all
from tally.merging import Tiles, Windows
from tally.tiles import Records, TileLayout
from tests.oracle import Event
from tests.tally.windowed import KEYS, build, events, instants, layouts, packed, plain

ASKS = st.lists(st.tuples(st.sampled_from(KEYS), instants()), max_size=3)


def tiles_of(layout: TileLayout, rows: list[Event], asks: list[tuple[int, int]]) -> Tiles:
    """The tiles that each (key, instant) may see."""
    stored: list[Records] = [build(layout, [row for row in rows if row.timestamp <= at])[key] for key, at in asks]
    records, sizes, _ = layout.unpack([packed(layout, part) for part in stored])
    return Tiles(records, sizes, np.array([at for _, at in asks], np.int64))


@given(st.lists(st.tuples(layouts(), ASKS), max_size=4), events(), st.data())
def test_views_together_give_what_each_gives_alone(
    views: list[tuple[TileLayout, list[tuple[int, int]]]], rows: list[Event], data: st.DataObject
) -> None:
    """Views of any layouts, each with rows of its own, of which some features are asked for."""
    asked, tiles = [], []
    for layout, asks in views:
        asked.append((layout, [a.feature for a in layout.aggregations if data.draw(st.booleans())]))
        tiles.append(tiles_of(layout, rows, asks))
    together = Windows(asked).states(tiles)
    for (layout, features), own, wanted in zip(asked, tiles, together, strict=True):
        alone = merging.read(layout, own)
        found = dict(zip(wanted, finalize_all(list(wanted.values())), strict=True))
        assert set(found) == set(features)
        for name, values in found.items():
            assert values.dtype == alone[name].dtype
            assert repr(plain(values)) == repr(plain(alone[name]))
            assert values.values.tobytes() == alone[name].values.tobytes() or values.dtype in ("String", "Bytes")


@given(st.lists(layouts(), min_size=1, max_size=3), events(), ASKS)
def test_features_finalized_together_are_those_of_each(
    layouts_: list[TileLayout], rows: list[Event], asks: list[tuple[int, int]]
) -> None:
    """One call for the features of several views gives what a call for each gives."""
    asked = [(layout, [a.feature for a in layout.aggregations]) for layout in layouts_]
    states = Windows(asked).states([tiles_of(layout, rows, asks) for layout in layouts_])
    wanted = [one for found in states for one in found.values()]
    for together, one in zip(finalize_all(wanted), wanted, strict=True):
        (alone,) = finalize_all([one])
        assert (together.dtype, repr(plain(together))) == (alone.dtype, repr(plain(alone)))
