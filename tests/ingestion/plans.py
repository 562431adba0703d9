"""Plans for the tests of ingestion, made by hand."""

from __future__ import annotations

from tally.plan import Field, Function, Plan, Source, View
from tally.time import DAY, HOUR, MINUTE
from tally.windows import Window
from tests import views
from tests.views import aggregation, latest_view

CARRIER, FLIGHT, DELAY = Field("carrier", "String"), Field("flight", "Int64"), Field("dep_delay", "Float64")
MESSAGE = (Field("event_timestamp", "UnixTimestamp"), CARRIER, FLIGHT, DELAY)
LANDING = Source("departures", "FLIGHTS_DEPARTURES", "", "", "event_timestamp", "", "flights.departures", MESSAGE)
FOR_EVER = 1_000 * 365 * DAY
"""A tolerance of the future that refuses nothing: the CreateTimes of these tests are near 1970."""
BATCH = Source("weather", "WEATHER", "", "", "event_timestamp", "created", "", ())


def latest_stream_view(function: Function | None = None) -> View:
    """The last departure of each carrier."""
    return latest_view(
        "last_departure", LANDING, [CARRIER], [FLIGHT, DELAY], function=function, future_tolerance=FOR_EVER
    )


def window_view() -> View:
    """What departures of each carrier were like in the last hour and the last six."""
    hour, six = Window(HOUR, 5 * MINUTE), Window(6 * HOUR, 30 * MINUTE)
    aggregations = (
        aggregation("count_1h", DELAY, "count", hour),
        aggregation("sum_1h", DELAY, "sum", hour),
        aggregation("std_6h", DELAY, "std", six),
        aggregation("min_6h", DELAY, "min", six),
        aggregation("last_1h", FLIGHT, "last", hour),
        aggregation("flights_6h", FLIGHT, "sum", six),
    )
    return views.window_view("departure_windows", LANDING, [CARRIER], aggregations, future_tolerance=FOR_EVER)


def weather_view(ttl: int = 0) -> View:
    """The weather at each airport."""
    fields = (Field("temp", "Float64"), Field("reading", "Int64"), Field("sky", "String"))
    return latest_view("weather_now", BATCH, [Field("origin", "String")], fields, ttl=ttl)


def plan_of(*views: View) -> Plan:
    """A plan with these views and the two sources."""
    return Plan("flights", (LANDING, BATCH), views, (), ())
