"""Instants: int64 µs UTC, whatever they come in."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tally.errors import DataError
from tally.time import DAY, EPOCH, floor, from_datetime, from_datetime64, instant, instants, to_datetime, to_datetimes

INT64 = st.integers(-(2**63) + 1, 2**63 - 1)  # the least int64 is NumPy's NaT
ATTOSECONDS = {"s": 10**18, "ms": 10**15, "us": 10**12, "ns": 10**9, "ps": 10**6, "fs": 10**3, "as": 1}
ATTOSECONDS |= {"W": 7 * 86_400 * 10**18, "D": 86_400 * 10**18, "h": 3_600 * 10**18, "m": 60 * 10**18}


@given(st.datetimes())
def test_a_naive_datetime_is_utc(moment: datetime) -> None:
    """A datetime without a zone means UTC, and comes back with it."""
    assert from_datetime(moment) == from_datetime(moment.replace(tzinfo=UTC))
    assert to_datetime(from_datetime(moment)) == moment.replace(tzinfo=UTC)


@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1)), st.integers(-1_439, 1_439))
def test_a_zone_is_honoured(moment: datetime, minutes: int) -> None:
    """An instant is the same in every zone."""
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    expected = (moment - timedelta(minutes=minutes) - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    assert from_datetime(aware) == instant(aware) == expected


@given(st.sampled_from(sorted(ATTOSECONDS)), INT64, st.integers(1, 60), st.sampled_from("<>"))
def test_datetime64_of_every_unit_is_floored_or_refused(unit: str, number: int, step: int, order: str) -> None:
    """Any unit, any step, either byte order: the floor to µs, also before 1970; outside int64 it is refused."""
    values = np.array([number]).view(f"<M8[{step}{unit}]").astype(f"{order}M8[{step}{unit}]")
    expected = number * step * ATTOSECONDS[unit] // ATTOSECONDS["us"]
    try:
        assert from_datetime64(values).tolist() == [expected]
    except DataError:
        held = number * step if ATTOSECONDS[unit] < ATTOSECONDS["us"] else expected
        assert not -(2**63) < held < 2**63


@pytest.mark.parametrize(("nanoseconds", "micros"), [(-1, -1), (-1_000, -1), (-1_001, -2), (999, 0), (1_000, 1)])
def test_nanoseconds_are_floored_on_both_sides_of_1970(nanoseconds: int, micros: int) -> None:
    """Floored, not cut: one nanosecond before the epoch is in the microsecond before it."""
    assert from_datetime64(np.array([nanoseconds]).view("M8[ns]")).tolist() == [micros]
    assert instant(pd.Timestamp(nanoseconds)) == micros
    assert instant(np.datetime64(nanoseconds, "ns")) == micros


def test_years_and_months_are_calendar_ones() -> None:
    """Units without a fixed length follow the calendar."""
    assert to_datetime(instant(np.datetime64("1968-03", "M"))) == datetime(1968, 3, 1, tzinfo=UTC)
    assert to_datetime(instant(np.datetime64("2001", "Y"))) == datetime(2001, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "values",
    [
        np.array([2**62]).view("M8[s]"),
        np.array([2**50]).view("M8[h]"),
        np.array([-(2**40)]).view("M8[D]"),
        np.array([2**62]).view("M8[Y]"),
        np.array([2**40]).view("M8[M]"),
    ],
)
def test_out_of_range_is_refused(values: Any) -> None:
    """A timestamp beyond int64 µs is an error, never another timestamp."""
    with pytest.raises(DataError, match="outside the years"):
        from_datetime64(values)


def test_strided_arrays_are_read_in_place() -> None:
    """A view that skips rows is read as it stands."""
    values = (np.arange(10) * 1_000).view("M8[ns]")[::3]
    assert from_datetime64(values).tolist() == [0, 3, 6, 9]


@given(INT64)
def test_an_integer_is_microseconds(micros: int) -> None:
    """An int is taken as it is, Python's or NumPy's."""
    assert instant(micros) == instant(np.int64(micros)) == micros


@pytest.mark.parametrize(
    "wrong",
    [True, 1.5, "2020-01-01", None, 2**63, -(2**63) - 1, pd.NaT, np.datetime64("NaT"), np.timedelta64(5, "s"), [0]],
)
def test_what_is_not_an_instant_is_refused(wrong: Any) -> None:
    """Nulls, texts, fractions, durations and numbers beyond int64 are DataErrors, alone and in a list."""
    with pytest.raises(DataError, match=r"nstant"):
        instant(wrong)
    with pytest.raises(DataError, match=r"nstant"):
        instants([0, wrong], 2)


@pytest.mark.parametrize(
    "wrong",
    [
        np.array(["2020", "NaT"], "M8[us]"),
        np.array([1.0, 2.0]),
        np.array([True, False]),
        np.array([None, 1], object),
        np.array([1, 2**63], np.uint64),
        pd.Series([1, 2]),
        "no",
    ],
)
def test_arrays_that_are_not_instants_are_refused(wrong: Any) -> None:
    """An array of floats, bools or with NaT is a DataError, never a wrong instant."""
    with pytest.raises(DataError):
        instants(wrong, 2)


def test_instants_take_every_form() -> None:
    """One for all rows, a list, a tuple, and arrays of integers, datetimes or objects mean the same."""
    moment = datetime(2013, 6, 1, 12, tzinfo=UTC)
    micros = from_datetime(moment)
    for form in (
        moment,
        micros,
        np.datetime64("2013-06-01T12"),
        [moment, micros],
        (pd.Timestamp(moment), np.int64(micros)),
        np.array([micros, micros]),
        np.array([micros, micros], np.uint64),
        np.array(["2013-06-01T12"] * 2, "M8[h]"),
        np.array([moment, pd.Timestamp(moment)], object),
    ):
        found = instants(form, 2)
        assert found.dtype == np.int64
        assert found.tolist() == [micros, micros]
    assert instants([], 0).tolist() == []


def test_the_number_of_instants_must_fit() -> None:
    """One instant too few or too many is refused with both numbers."""
    for form in ([1, 2, 3], np.array([1, 2, 3]), np.array([[1, 2, 3]])):
        with pytest.raises(DataError, match="3 instants for 2 rows"):
            instants(form, 2)


@pytest.mark.parametrize("micros", [2**62, -(2**62), -(2**63), 2**63 - 1])
def test_instants_beyond_datetimes_say_so(micros: int) -> None:
    """Python's datetimes hold the years 1 to 9999; other instants are refused in words."""
    with pytest.raises(DataError, match=f"{micros}.*1 to 9999"):
        to_datetime(micros)
    with pytest.raises(DataError, match=f"{micros}.*1 to 9999"):
        to_datetimes(np.array([0, micros]))


@given(st.lists(st.datetimes(timezones=st.just(UTC)), max_size=5))
def test_datetimes_of_many_are_those_of_each(moments: list[datetime]) -> None:
    """All years that datetimes hold, as aware UTC datetimes."""
    micros = [from_datetime(moment) for moment in moments]
    found = to_datetimes(np.array(micros, np.int64))
    assert found == [to_datetime(one) for one in micros] == moments
    assert all(one.tzinfo is UTC for one in found)


@given(st.integers(-(2**62), 2**62), st.integers(1, 400 * DAY))
def test_floor_is_the_multiple_at_or_before(micros: int, interval: int) -> None:
    """A floor is a multiple of the interval since the epoch, also for negative times, for numbers and arrays."""
    expected = math.floor(Fraction(micros, interval)) * interval
    assert floor(micros, interval) == expected
    assert floor(np.array([micros]), interval).tolist() == [expected]
    assert floor(expected, interval) == expected


def test_the_epoch_is_zero() -> None:
    """Counting starts in 1970."""
    assert from_datetime(EPOCH) == 0
    assert to_datetime(0) == EPOCH
