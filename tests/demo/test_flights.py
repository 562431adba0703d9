"""The demo's data: real rows of every trap, and the counts that docs/flights.md states."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.compute as pc  # type: ignore[import-untyped, unused-ignore]
import pytest
from pandas.api.typing import NaTType

from demo.flights import (
    NEW_YORK,
    aircraft,
    destination_zones,
    flights,
    labels,
    published_flights,
    weather,
)
from demo.messages import arrival_messages, arrival_times, departure_messages

DAY = 1440


@pytest.fixture(scope="module")
def every() -> pd.DataFrame:
    """Every flight, read once."""
    return flights()


@pytest.fixture(scope="module")
def published(every: pd.DataFrame) -> pd.DataFrame:
    """The published columns beside ours, row by row."""
    rows = published_flights().to_pandas()
    date = pd.to_datetime(rows[["year", "month", "day"]]).dt.strftime("%Y-%m-%d")
    rows["flight_key"] = date + "|" + rows["carrier"] + "|" + rows["flight"].astype(str) + "|" + rows["origin"]
    columns = ["flight_key", "dep_time", "arr_time", "sched_dep_time", "sched_arr_time", "time_hour"]
    beside = every.merge(rows[columns], on="flight_key", validate="one_to_one")
    assert len(beside) == len(rows)
    return beside


@pytest.fixture(scope="module")
def departures(every: pd.DataFrame) -> pa.Table:
    """The departure messages of every flight."""
    return departure_messages(every)


@pytest.fixture(scope="module")
def arrivals(every: pd.DataFrame) -> pa.Table:
    """The arrival messages of every flight."""
    return arrival_messages(every)


def month_to_minute(stamp: pd.Timestamp | NaTType) -> str | None:
    """An instant as `month-day hour:minute`; None for NaT."""
    return None if isinstance(stamp, NaTType) else stamp.strftime("%m-%d %H:%M")


def clock_minutes(instants: pd.Series, zones: pd.Series) -> pd.Series:
    """Minutes since local midnight, NaN for NaT."""
    minutes = pd.Series(np.nan, index=instants.index)
    for zone in zones.unique():
        local = instants[zones == zone].dt.tz_convert(zone)
        minutes[zones == zone] = local.dt.hour * 60 + local.dt.minute
    return minutes


def published_minutes(hhmm: pd.Series) -> pd.Series:
    """Minutes since midnight of the data's HHMM numbers; 2400 is 0."""
    return (hhmm // 100 * 60 + hhmm % 100) % DAY


# key, scheduled departure, departure, scheduled arrival, arrival; instants in UTC, all in 2013
ROWS = {
    "an ordinary morning, landing an hour west": (
        "2013-01-01|UA|1545|EWR", "01-01 10:15", "01-01 10:17", "01-01 14:19", "01-01 14:30"
    ),
    "the last flight before the clocks go forward, leaving after New York's midnight": (
        "2013-03-09|B6|727|JFK", "03-10 04:59", "03-10 05:53", "03-10 08:38", "03-10 09:04"
    ),
    "in the air when the clocks go forward: arr_time says 203, an hour that was skipped": (
        "2013-03-09|B6|35|JFK", "03-10 02:45", "03-10 04:06", "03-10 05:34", "03-10 07:03"
    ),
    "the first morning of summer time": (
        "2013-03-10|US|1113|EWR", "03-10 09:00", "03-10 08:54", "03-10 10:48", "03-10 10:28"
    ),
    "the last flight before the clocks go back": (
        "2013-11-02|B6|1503|JFK", "11-03 03:59", "11-03 03:58", "11-03 07:40", "11-03 07:50"
    ),
    "the first morning of winter time": (
        "2013-11-03|UA|322|EWR", "11-03 10:20", "11-03 10:19", "11-03 14:00", "11-03 13:51"
    ),
    "left at 2400, the midnight that ends the day": (
        "2013-10-30|B6|839|JFK", "10-31 03:59", "10-31 04:00", "10-31 07:37", "10-31 07:27"
    ),
    "landed at 2400": (
        "2013-01-01|B6|1109|JFK", "01-02 02:55", "01-02 03:09", "01-02 04:37", "01-02 05:00"
    ),
    "scheduled to land at 0018 the next day, landed the day before": (
        "2013-01-05|B6|383|LGA", "01-06 02:30", "01-06 02:16", "01-06 05:18", "01-06 05:00"
    ),
    "798 minutes late, leaving the next day at dep_time 603": (
        "2013-11-03|DL|2042|EWR", "11-03 21:45", "11-04 11:03", "11-04 00:13", "11-04 13:29"
    ),
    "Honolulu, without summer time, five hours west": (
        "2013-01-01|HA|51|JFK", "01-01 14:00", "01-01 13:57", "01-02 01:30", "01-02 01:16"
    ),
    "Anchorage": (
        "2013-07-06|UA|887|EWR", "07-06 20:15", "07-06 20:29", "07-07 03:53", "07-07 03:54"
    ),
    "San Juan, not in airports.csv": (
        "2013-01-01|B6|709|JFK", "01-01 11:15", "01-01 11:15", "01-01 15:00", "01-01 14:39"
    ),
    "Aguadilla, not in airports.csv, overnight": (
        "2013-01-01|UA|1071|EWR", "01-02 00:20", "01-02 00:29", "01-02 04:07", "01-02 04:03"
    ),
    "Ponce, not in airports.csv": (
        "2013-01-01|B6|739|JFK", "01-02 04:59", "01-02 04:53", "01-02 08:45", "01-02 08:25"
    ),
    "St. Thomas, not in airports.csv": (
        "2013-01-01|AA|655|JFK", "01-01 13:10", "01-01 14:09", "01-01 17:15", "01-01 17:31"
    ),
    "cancelled": ("2013-01-01|EV|4308|EWR", "01-01 21:30", None, "01-01 23:15", None),
    "cancelled, and never given an aircraft": (
        "2013-07-27|US|1632|EWR", "07-27 05:06", None, "07-27 06:45", None
    ),
    "diverted: it has an arr_time but no arr_delay": (
        "2013-01-01|MQ|4525|LGA", "01-01 20:30", "01-01 20:25", "01-02 00:05", None
    ),
    "left and has no arr_time": (
        "2013-01-01|EV|4204|EWR", "01-02 00:30", "01-02 01:16", "01-02 04:20", None
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_instants_of_real_flights(every: pd.DataFrame, row: tuple[str, str, str | None, str, str | None]) -> None:
    """Flights chosen for their traps (zones, midnight, changes of the clock) have the UTC instants worked out by hand."""
    found = every[every["flight_key"] == row[0]]
    assert len(found) == 1
    instants = found.iloc[0][["scheduled_departure", "departure", "scheduled_arrival", "arrival"]]
    assert tuple(map(month_to_minute, instants)) == row[1:]
    assert found.iloc[0]["prediction_time"] == found.iloc[0]["scheduled_departure"] - timedelta(hours=1)
    assert pd.isna(found.iloc[0]["late"]) == (row[4] is None)


def test_every_flight_is_there_once(every: pd.DataFrame) -> None:
    """No flight is lost or doubled, and they come in the order of their scheduled departure."""
    assert len(every) == 336_776
    assert every["flight_key"].is_unique
    assert every["scheduled_departure"].is_monotonic_increasing
    assert set(every["origin"]) == {"EWR", "JFK", "LGA"}
    assert int((every["tailnum"] == "unassigned").sum()) == 2_512
    assert not every["tailnum"].isna().any()


def test_instants_are_microseconds_in_utc(every: pd.DataFrame) -> None:
    """Every instant has the dtype that the store keeps."""
    for column in ["scheduled_departure", "departure", "scheduled_arrival", "arrival", "prediction_time"]:
        assert str(every[column].dtype) == "datetime64[us, UTC]"


def test_what_is_missing_is_counted(published: pd.DataFrame) -> None:
    """Cancelled and diverted flights lack instants, and there are as many as the data says."""
    cancelled = published["departure"].isna()
    diverted = ~cancelled & published["arrival"].isna()
    assert int(cancelled.sum()) == 8_255
    assert int(diverted.sum()) == 1_175
    assert int((diverted & published["arr_time"].notna()).sum()) == 717
    assert not published.loc[cancelled, "arrival"].notna().any()
    assert not (published["tailnum"].eq("unassigned") & ~cancelled).any()
    assert int((published["dep_time"] == 2400).sum()) == 29
    assert int((published["arr_time"] == 2400).sum()) == 150


def test_late_is_more_than_fifteen_minutes(every: pd.DataFrame) -> None:
    """The label is null where nobody knows, and true beyond fifteen minutes."""
    assert str(every["late"].dtype) == "boolean"
    assert int(every["late"].sum()) == 77_630
    assert int(every["late"].isna().sum()) == 9_430
    edge = every[every["arr_delay"].isin([15, 16])]
    assert (edge["late"] == (edge["arr_delay"] == 16)).all()


def test_scheduled_departure_agrees_with_time_hour(published: pd.DataFrame) -> None:
    """Our schedule in UTC agrees with the only UTC column that the data publishes."""
    assert (published["scheduled_departure"].dt.floor("h") == published["time_hour"]).all()


def test_departure_agrees_with_dep_time(published: pd.DataFrame) -> None:
    """Delay added to the schedule gives the local time that was published, midnight included."""
    left = published[published["departure"].notna()]
    shown = clock_minutes(left["departure"], pd.Series(NEW_YORK, index=left.index))
    assert (shown == published_minutes(left["dep_time"])).all()
    assert (left["departure"] > left["prediction_time"]).all()
    assert int((left["dep_time"] < left["sched_dep_time"])[left["dep_delay"] > 0].sum()) == 1_207


def test_arrival_agrees_with_arr_time_but_for_one_flight(published: pd.DataFrame) -> None:
    """The same at the destination, in its own zone, save for one arr_time in the hour that the clocks skipped."""
    landed = published[published["arrival"].notna()]
    shown = clock_minutes(landed["arrival"], landed["dest"].map(destination_zones()))
    differs = landed[shown != published_minutes(landed["arr_time"])]
    assert differs["flight_key"].tolist() == ["2013-03-09|B6|35|JFK"]


def test_time_on_the_ground_is_plausible_for_every_flight(every: pd.DataFrame) -> None:
    """No flight is in the air longer than it was away: a day or an hour too many would show here."""
    landed = every[every["arrival"].notna()]
    ground = (landed["arrival"] - landed["departure"]).dt.total_seconds() / 60 - landed["air_time"]
    assert (ground.min(), ground.median(), ground.max()) == (5, 28, 235)
    # An hour's error in a zone would move its destinations' medians by 60.
    medians = ground.groupby(landed["dest"]).median()
    assert (medians.min(), medians.max()) == (20, 37)
    assert medians[["BQN", "PSE", "SJU", "STT"]].tolist() == [22, 21, 28, 29]


def test_scheduled_arrival_follows_the_departure(published: pd.DataFrame) -> None:
    """Scheduled arrivals after midnight fall on the next day."""
    block = (published["scheduled_arrival"] - published["scheduled_departure"]).dt.total_seconds() / 60
    assert (block.min(), block.max()) == (50, 700)
    assert int((published["sched_arr_time"] < published["sched_dep_time"]).sum()) == 6_078


def test_destinations_without_a_published_zone(every: pd.DataFrame) -> None:
    """The four airports that the data does not list have a zone, and nobody is left without one."""
    zones = destination_zones()
    unlisted = every[every["dest"].isin(["BQN", "PSE", "SJU", "STT"])]
    assert len(unlisted) == 7_602
    assert {zones[code] for code in ["BQN", "PSE", "SJU"]} == {"America/Puerto_Rico"}
    assert zones["STT"] == "America/St_Thomas"
    assert set(every["dest"]) <= set(zones)


def test_a_departure_message(departures: pa.Table) -> None:
    """A departure message has the key, fields and time that the docs promise."""
    assert departures.schema.types == [pa.binary(), pa.binary(), pa.int64()]
    first = departures.slice(0, 1).to_pylist()[0]
    assert first["key"] == b"2013-01-01|UA|1545|EWR"
    assert first["event_time_us"] == 1_357_035_420_000_000
    assert first["value"] == (
        b'{"event_timestamp":"2013-01-01T10:17:00Z","flight_key":"2013-01-01|UA|1545|EWR","carrier":"UA",'
        b'"flight":1545,"tailnum":"N14228","origin":"EWR","dest":"IAH","dep_delay":2.0,"distance":1400.0}'
    )


def test_an_arrival_message(arrivals: pa.Table) -> None:
    """An arrival message has the fields that the docs promise."""
    assert arrivals.schema.types == [pa.binary(), pa.binary(), pa.int64()]
    first = json.loads(arrivals["value"][0].as_py())
    assert first == {
        "event_timestamp": "2013-01-01T12:02:00Z",
        "flight_key": "2013-01-01|B6|1806|JFK",
        "carrier": "B6",
        "tailnum": "N708JB",
        "origin": "JFK",
        "dest": "BOS",
        "arr_delay": -4.0,
        "air_time": 44.0,
        "distance": 187.0,
    }


def test_one_message_per_departure_and_per_arrival_in_order(departures: pa.Table, arrivals: pa.Table) -> None:
    """Cancelled flights send nothing; every other sends once, in the order of its events."""
    assert (departures.num_rows, arrivals.num_rows) == (328_521, 327_346)
    for messages in (departures, arrivals):
        assert len(set(messages["key"].to_pylist())) == messages.num_rows
        assert (np.diff(messages["event_time_us"].to_numpy()) >= 0).all()
        assert [column.null_count for column in messages.columns] == [0, 0, 0]


@pytest.mark.parametrize(("topic", "instant"), [("departures", "departure"), ("arrivals", "arrival")])
def test_messages_say_what_the_flights_say(
    every: pd.DataFrame, topic: str, instant: str, request: pytest.FixtureRequest
) -> None:
    """Decoded again, messages hold the same values as the flights they came from."""
    every_fifth = slice(None, None, 5)
    messages: pa.Table = request.getfixturevalue(topic)
    messages = messages.take(pa.array(range(messages.num_rows)[every_fifth]))
    decoded = pd.DataFrame(json.loads(b"[" + b",".join(messages["value"].to_pylist()) + b"]"))
    happened = every[every[instant].notna()].sort_values([instant, "flight_key"])
    happened = happened[every_fifth].reset_index(drop=True)
    for column in set(decoded.columns) - {"event_timestamp"}:
        assert decoded[column].tolist() == happened[column].tolist(), column
    stamps = pd.to_datetime(decoded["event_timestamp"], format="%Y-%m-%dT%H:%M:%SZ", utc=True)
    assert (stamps == happened[instant]).all()
    assert (happened[instant].astype("int64") == messages["event_time_us"].to_numpy()).all()


def test_an_unknown_number_is_null_in_json_and_never_nan(every: pd.DataFrame) -> None:
    """JSON has no NaN: an unknown number is null."""
    row = every[every["arrival"].notna()].head(1).assign(air_time=np.nan)
    assert b'"air_time":null' in arrival_messages(row)["value"][0].as_py()


def test_no_flights_make_no_messages(every: pd.DataFrame) -> None:
    """Nothing in, nothing out, with the same columns."""
    none = departure_messages(every.head(0))
    assert none.num_rows == 0
    assert arrival_times(none, seed=1).num_rows == 0


def test_arrival_times_are_a_function_of_the_seed(departures: pa.Table) -> None:
    """The disorder of a replay can be repeated."""
    some = departures.slice(0, 20_000)
    assert arrival_times(some, seed=7).equals(arrival_times(some, seed=7))
    assert not arrival_times(some, seed=7).equals(arrival_times(some, seed=8))


def test_arrival_times_are_late_and_double_as_promised(departures: pa.Table) -> None:
    """The promised shares of messages come late and twice, and none before its event."""
    seen = arrival_times(departures, seed=7).to_pandas()
    assert seen["arrival_us"].is_monotonic_increasing
    delay = seen["arrival_us"] - seen["event_time_us"]
    copy = seen["key"].duplicated()
    assert delay.min() == 0
    assert delay[~copy].max() <= 600_000_000
    assert delay[copy].max() <= 1_200_000_000
    assert (delay[~copy] > 0).mean() == pytest.approx(0.05, abs=0.002)
    assert copy.sum() / departures.num_rows == pytest.approx(0.05, abs=0.002)
    assert set(seen["key"]) == set(departures["key"].to_pylist())
    assert len(seen.drop_duplicates(["key", "value", "event_time_us"])) == departures.num_rows


def test_arrival_times_without_trouble_are_the_event_times(departures: pa.Table) -> None:
    """Without disorder every message arrives when it happened."""
    calm = arrival_times(departures, seed=7, share_late=0.0, share_twice=0.0)
    assert calm.drop_columns(["arrival_us"]).equals(departures)
    assert calm["arrival_us"].equals(departures["event_time_us"])


def test_arrival_times_can_double_everything(departures: pa.Table) -> None:
    """Shares up to one and delays down to nothing work."""
    some = departures.slice(0, 1_000)
    assert arrival_times(some, seed=7, share_twice=1.0).num_rows == 2_000
    at_once = arrival_times(some, seed=7, max_delay=timedelta(0), share_late=1.0)
    assert at_once["arrival_us"].equals(at_once["event_time_us"])


def test_labels_are_the_flights_of_a_half_open_interval(every: pd.DataFrame) -> None:
    """Labels have the service's keys and request fields, start included, end not."""
    chosen = labels(every, "2013-01-01T09:15Z", datetime(2013, 1, 1, 10, 0, tzinfo=UTC))
    assert chosen.columns.tolist() == [
        "flight_key",
        "origin",
        "dest",
        "carrier",
        "tailnum",
        "distance",
        "scheduled_departure",
        "event_timestamp",
        "late",
    ]
    assert chosen["flight_key"].iloc[0] == "2013-01-01|UA|1545|EWR"
    assert chosen["event_timestamp"].is_monotonic_increasing
    assert chosen["event_timestamp"].max() == pd.Timestamp("2013-01-01T09:59Z")
    assert [str(chosen[column].dtype) for column in ["distance", "event_timestamp", "late"]] == [
        "float64",
        "datetime64[us, UTC]",
        "boolean",
    ]


def test_labels_lose_no_flight(every: pd.DataFrame) -> None:
    """Adjoining intervals together have every flight, once."""
    parts = [labels(every, "2013-01-01", "2013-07-01"), labels(every, "2013-07-01", "2014-01-02")]
    whole = pd.concat(parts, ignore_index=True)
    assert whole["flight_key"].tolist() == every["flight_key"].tolist()
    assert int(whole["late"].isna().sum()) == 9_430


def test_labels_read_naive_bounds_as_utc(every: pd.DataFrame) -> None:
    """Naive bounds are UTC; aware ones are honoured."""
    naive = labels(every, datetime(2013, 3, 10), datetime(2013, 3, 11))
    aware = labels(every, datetime(2013, 3, 10, tzinfo=UTC), pd.Timestamp("2013-03-10T20:00", tz=NEW_YORK))
    pd.testing.assert_frame_equal(naive, aware)


def test_weather_keeps_every_row_and_its_nulls() -> None:
    """All weather rows are there, and nulls stay nulls."""
    table = weather()
    assert table.num_rows == 26_115
    nulls = {name: table[name].null_count for name in table.column_names if table[name].null_count}
    assert nulls == {
        "temp": 1,
        "dewp": 1,
        "humid": 1,
        "wind_dir": 460,
        "wind_speed": 4,
        "wind_gust": 20_778,
        "pressure": 2_729,
    }
    assert not any(pc.any(pc.is_nan(table[name])).as_py() for name in nulls)
    assert table.schema.field("wind_dir").type == pa.int64()
    assert table.schema.field("event_timestamp").type == pa.timestamp("us", tz="UTC")
    assert table["loaded_at"].equals(table["event_timestamp"])


def test_weather_is_known_when_its_hour_was_read() -> None:
    """A weather row is stamped with its last reading, so that nobody sees it earlier."""
    first = weather().slice(0, 3).to_pylist()
    assert [row["origin"] for row in first] == ["EWR", "JFK", "LGA"]
    assert {row["event_timestamp"] for row in first} == {datetime(2013, 1, 1, 6, 51, tzinfo=UTC)}


def test_weather_has_two_distinct_hours_where_the_clocks_go_back() -> None:
    """The hour that happens twice on the local clock is two rows in UTC."""
    rows = weather().to_pandas()
    assert not rows.duplicated(["origin", "event_timestamp"]).any()
    newark = rows[(rows["origin"] == "EWR") & (rows["event_timestamp"].dt.strftime("%m%d") == "1103")]
    night = newark[newark["event_timestamp"].dt.hour.isin([5, 6])]
    assert night["temp"].tolist() == [51.98, 50.00]


def test_aircraft() -> None:
    """Every aircraft is there once, with its dtypes."""
    table = aircraft()
    assert table.num_rows == 3_322
    assert len(set(table["tailnum"].to_pylist())) == 3_322
    assert (table["year_built"].null_count, table["speed"].null_count) == (70, 3_299)
    assert sum(table["is_jet"].to_pylist()) == 3_285
    assert table.slice(0, 1).to_pylist() == [
        {
            "tailnum": "N10156",
            "event_timestamp": datetime(2013, 1, 1, tzinfo=UTC),
            "loaded_at": datetime(2013, 1, 1, tzinfo=UTC),
            "year_built": 2004,
            "manufacturer": "EMBRAER",
            "model": "EMB-145XR",
            "engine_type": "Turbo-fan",
            "engines": 2,
            "seats": 55,
            "speed": None,
            "is_jet": True,
        }
    ]
