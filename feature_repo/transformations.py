"""The one shared transformation module: plain functions on NumPy columns, run by both sides.

A function's parameters name its inputs and it returns a dict of new columns, one value for each row. Nulls come and go
in NumPy's own forms: NaN in floats, NaT in ``datetime64[us]``, None in object arrays of strings, masks (`numpy.ma`) in
integers and booleans. The offline store calls each with a million rows, a lookup with one: the same code, the same bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Moments = NDArray[np.datetime64]

MINUTE = np.timedelta64(60_000_000, "us")
HOUR = np.timedelta64(3_600_000_000, "us")
DAY = np.timedelta64(86_400_000_000, "us")
YEAR_OF_DATA = 2013
PEAK_HOURS = (20, 23)
"""UTC hours (from, until before) in which New York's evening rush departs."""


# Event functions: from a message's fields to the columns of a stream view.


def departure_event(dep_delay: Floats) -> dict[str, Floats]:
    """Departure delay in minutes; leaving early counts as leaving on time."""
    return {"delay": np.where(dep_delay < 0.0, 0.0, dep_delay)}


def arrival_event(event_timestamp: Moments, arr_delay: Floats) -> dict[str, NDArray[np.generic]]:
    """Arrival delay in minutes (early is negative) and when the aircraft landed, as a value of its own."""
    return {"delay": arr_delay, "landed_at": event_timestamp}


# Request functions: from stored features and the request's fields to features.


def hour_of_day(scheduled_departure: Moments) -> dict[str, Floats]:
    """The scheduled hour as a point on a circle, so that 23:59 lies beside 00:00."""
    hours = (scheduled_departure - scheduled_departure.astype("datetime64[D]")) / HOUR
    angle = hours * (2.0 * np.pi / 24.0)
    return {"hour_sin": np.sin(angle), "hour_cos": np.cos(angle)}


def evening_rush(scheduled_departure: Moments) -> dict[str, NDArray[np.bool_]]:
    """Whether the flight leaves in the evening rush."""
    hour = (scheduled_departure - scheduled_departure.astype("datetime64[D]")) // HOUR
    return {"is_evening_rush": (hour >= PEAK_HOURS[0]) & (hour < PEAK_HOURS[1])}


def turnaround(scheduled_departure: Moments, last_landed_at: Moments) -> dict[str, Floats]:
    """Minutes between the aircraft's last landing and the scheduled departure; null when it has not landed lately."""
    return {"minutes_since_landing": (scheduled_departure - last_landed_at) / MINUTE}


def against_carrier(origin_delay_mean_1h: Floats, carrier_delay_mean_24h: Floats) -> dict[str, Floats]:
    """How much worse the airport runs right now than the carrier usually does, in minutes."""
    return {"delay_against_carrier": origin_delay_mean_1h - carrier_delay_mean_24h}


def aircraft_age(year_built: Integers) -> dict[str, Floats]:
    """Years since the aircraft was built; null where the registry does not say."""
    return {"aircraft_age": YEAR_OF_DATA - np.ma.filled(year_built.astype(np.float64), np.nan)}


def strongest_wind(wind_speed: Floats, wind_gust: Floats) -> dict[str, Floats]:
    """The gust where one was reported, else the steady wind, in miles an hour."""
    return {"strongest_wind": np.where(np.isnan(wind_gust), wind_speed, wind_gust)}


def haul(distance: Floats) -> dict[str, Floats]:
    """The distance on a logarithmic scale: 100 miles more matter on a short hop."""
    return {"log_distance": np.log1p(distance)}
