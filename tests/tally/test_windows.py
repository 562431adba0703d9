"""Windows: ``floor(t - length, hop) <= event_timestamp <= t``, as instants and as tiles."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tally.time import DAY, HOUR, MINUTE, SECOND
from tally.windows import NICE_HOPS, PARTS, Window, default_hop, window

TIMES = st.one_of(st.integers(-(10**16), 10**16), st.integers(-50, 50).map(lambda n: n * MINUTE))
LENGTHS = st.one_of(st.integers(1, 400 * DAY), st.sampled_from([SECOND, MINUTE, 50 * MINUTE, HOUR, DAY, 7 * DAY]))


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """Any window: hops that divide the length, that do not, and that equal it."""
    length = draw(LENGTHS)
    hop = draw(st.one_of(st.integers(1, length), st.just(length), st.just(default_hop(length))))
    return Window(length, hop)


@given(windows(), TIMES)
@example(Window(50 * MINUTE, 7 * MINUTE), 0)
@example(Window(HOUR, 5 * MINUTE), -1)
@example(Window(HOUR, HOUR), -HOUR)
@example(Window(1, 1), -1)
def test_lower_is_the_floor_of_the_tail(one: Window, as_of: int) -> None:
    """The tail is the greatest multiple of the hop at or before t - length, also before 1970."""
    expected = math.floor(Fraction(as_of - one.length, one.hop)) * one.hop
    assert one.lower(as_of) == expected
    assert one.lower(np.array([as_of])).tolist() == [expected]


@given(windows(), TIMES, st.data())
def test_tiles_hold_exactly_the_rows_of_the_window(one: Window, as_of: int, data: st.DataObject) -> None:
    """A row at or before t lies in tiles first..last if and only if the inclusive rule sees it."""
    lower = one.lower(as_of)
    edges = [lower - 1, lower, lower + 1, as_of - 1, as_of, lower + one.hop - 1, lower + one.hop]
    anywhere = st.integers(lower - 2 * one.hop, as_of)
    timestamp = min(data.draw(st.one_of(st.sampled_from(edges), anywhere)), as_of)
    inside = one.first_tile(as_of) <= timestamp // one.hop <= one.last_tile(as_of)
    assert inside == (lower <= timestamp <= as_of)


@given(windows(), TIMES)
def test_the_first_tile_starts_at_the_lower_end(one: Window, as_of: int) -> None:
    """Tiles and instants are one rule: the first tile begins at the tail, the last one holds t."""
    assert one.first_tile(as_of) * one.hop == one.lower(as_of)
    assert one.last_tile(as_of) * one.hop <= as_of < (one.last_tile(as_of) + 1) * one.hop
    both = np.array([as_of, as_of + one.hop])
    assert one.first_tile(both).tolist() == [one.first_tile(as_of), one.first_tile(as_of) + 1]
    assert one.last_tile(both).tolist() == [one.last_tile(as_of), one.last_tile(as_of) + 1]


@given(windows(), TIMES)
def test_a_window_sees_its_length_and_less_than_a_hop_more(one: Window, as_of: int) -> None:
    """The tail never cuts into the window, and never reaches a whole hop beyond it."""
    assert one.length <= as_of - one.lower(as_of) < one.length + one.hop


def test_both_ends_are_inclusive() -> None:
    """A row exactly an hour old counts where the tail stands on a hop, and so does a row of this very microsecond."""
    one = Window(HOUR, 5 * MINUTE)
    assert one.lower(10 * HOUR) == 9 * HOUR
    assert one.lower(10 * HOUR + 1) == 9 * HOUR
    assert one.lower(10 * HOUR - 1) == 9 * HOUR - 5 * MINUTE
    assert one.lower(0) == -HOUR
    assert one.lower(-1) == -HOUR - 5 * MINUTE


@given(LENGTHS)
def test_the_default_hop_is_the_greatest_round_one_that_fits_twelve_times(length: int) -> None:
    """At most a twelfth of the window, and no other round hop lies between; a microsecond at least."""
    hop = default_hop(length)
    assert hop >= 1
    if length >= PARTS:
        assert hop * PARTS <= length
    if length >= PARTS * SECOND:
        assert hop in NICE_HOPS
        assert not [other for other in NICE_HOPS if hop < other and other * PARTS <= length]


@pytest.mark.parametrize(
    ("length", "hop"),
    [
        (1, 1), (11, 1), (12, 1), (23, 1), (24, 2), (12 * SECOND - 1, SECOND - 1), (12 * SECOND, SECOND),
        (MINUTE, 5 * SECOND), (HOUR - 1, MINUTE), (HOUR, 5 * MINUTE), (3 * HOUR, 15 * MINUTE), (DAY - 1, HOUR),
        (DAY, 2 * HOUR), (7 * DAY, 12 * HOUR), (12 * DAY, DAY), (400 * DAY, DAY),
    ],
)  # fmt: skip
def test_default_hops(length: int, hop: int) -> None:
    """Hops that are picked for usual windows, and at the edges of the rule."""
    assert default_hop(length) == hop


@given(LENGTHS, st.data())
def test_a_slide_interval_equal_to_the_window_means_none_given(length: int, data: st.DataObject) -> None:
    """Feast writes the window's length where no slide interval was given; every other one is taken as it is."""
    assert window(length, length) == Window(length, default_hop(length))
    slide = data.draw(st.integers(1, length))
    if slide != length:
        assert window(length, slide) == Window(length, slide)


def test_round_hops_divide_a_day() -> None:
    """Tails stand on the wall clock's round minutes and hours, every day alike."""
    assert list(NICE_HOPS) == sorted(NICE_HOPS)
    assert all(DAY % hop == 0 for hop in NICE_HOPS)
