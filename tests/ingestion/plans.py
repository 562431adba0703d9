"""Plans for the tests of ingestion, made by hand."""

from __future__ import annotations

from tally.plan import Field, Function, Plan, Source, View, hashed_view
from tally.tiles import Aggregation
from tally.time import DAY, HOUR, MINUTE
from tally.windows import Window

MESSAGE = (
    Field("event_timestamp", "UnixTimestamp"),
    Field("carrier", "String"),
    Field("flight", "Int64"),
    Field("dep_delay", "Float64"),
)
LANDING = Source("departures", "FLIGHTS_DEPARTURES", "", "", "event_timestamp", "", "flights.departures", MESSAGE)
FOR_EVER = 1_000 * 365 * DAY
"""A tolerance of the future that refuses nothing: the CreateTimes of these tests are near 1970."""
BATCH = Source("weather", "WEATHER", "", "", "event_timestamp", "created", "", ())


def latest_stream_view(function: Function | None = None) -> View:
    """The last departure of each carrier."""
    view = View(
        name="last_departure",
        kind="latest",
        source="departures",
        keys=(Field("carrier", "String"),),
        fields=(Field("flight", "Int64"), Field("dep_delay", "Float64")),
        columns=MESSAGE,
        timestamp="event_timestamp",
        created="",
        ttl=0,
        online=True,
        stream=True,
        function=function,
        aggregations=(),
        future_tolerance=FOR_EVER,
    )
    return hashed_view(view, LANDING)


def window_view() -> View:
    """What departures of each carrier were like in the last hour and the last six."""
    hour, six = Window(HOUR, 5 * MINUTE), Window(6 * HOUR, 30 * MINUTE)
    view = View(
        name="departure_windows",
        kind="window",
        source="departures",
        keys=(Field("carrier", "String"),),
        fields=(),
        columns=MESSAGE,
        timestamp="event_timestamp",
        created="",
        ttl=0,
        online=True,
        stream=True,
        function=None,
        aggregations=(
            Aggregation("count_1h", "dep_delay", "Float64", "count", hour, "Int64"),
            Aggregation("sum_1h", "dep_delay", "Float64", "sum", hour, "Float64"),
            Aggregation("std_6h", "dep_delay", "Float64", "std", six, "Float64"),
            Aggregation("min_6h", "dep_delay", "Float64", "min", six, "Float64"),
            Aggregation("last_1h", "flight", "Int64", "last", hour, "Int64"),
            Aggregation("flights_6h", "flight", "Int64", "sum", six, "Int64"),
        ),
        future_tolerance=FOR_EVER,
    )
    return hashed_view(view, LANDING)


def weather_view(ttl: int = 0) -> View:
    """The weather at each airport."""
    fields = (Field("temp", "Float64"), Field("reading", "Int64"), Field("sky", "String"))
    keys = (Field("origin", "String"),)
    stamps = (Field("event_timestamp", "UnixTimestamp"), Field("created", "UnixTimestamp"))
    view = View(
        name="weather_now",
        kind="latest",
        source="weather",
        keys=keys,
        fields=fields,
        columns=(*keys, *fields, *stamps),
        timestamp="event_timestamp",
        created="created",
        ttl=ttl,
        online=True,
        stream=False,
        function=None,
        aggregations=(),
    )
    return hashed_view(view, BATCH)


def plan_of(*views: View) -> Plan:
    """A plan with these views and the two sources."""
    return Plan("flights", (LANDING, BATCH), views, (), ())
