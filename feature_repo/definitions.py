"""Flights out of New York: will this one arrive more than 15 minutes late, asked an hour before it leaves?

All definitions stand in this one file because `feast apply` imports each file on its own: an object imported from
another file would be found twice.
"""

from datetime import timedelta

from feast import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    KafkaSource,
    OnDemandFeatureView,
    RequestSource,
    SnowflakeSource,
    StreamFeatureView,
)
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat
from feast.types import Bool, Float64, Int64, String, UnixTimestamp
from feast.value_type import ValueType

from feature_repo import transformations
from tally.functions import as_udf

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

# Entities

origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING, description="Departure airport")
carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING, description="Airline")
aircraft = Entity(name="aircraft", join_keys=["tailnum"], value_type=ValueType.STRING, description="Tail number")

# Sources: where the data really comes from. KAFKA_BOOTSTRAP_SERVERS and SNOWFLAKE_* say where that is today.

departures_table = SnowflakeSource(
    name="flights_departures", table="FLIGHTS_DEPARTURES", timestamp_field="event_timestamp"
)
departures = KafkaSource(
    name="flights_departures_stream",
    topic="flights.departures",
    kafka_bootstrap_servers="",
    timestamp_field="event_timestamp",
    message_format=JsonFormat(
        "event_timestamp timestamp, flight_key string, carrier string, flight bigint, tailnum string, "
        "origin string, dest string, dep_delay double, distance double"
    ),
    batch_source=departures_table,
)
arrivals_table = SnowflakeSource(name="flights_arrivals", table="FLIGHTS_ARRIVALS", timestamp_field="event_timestamp")
arrivals = KafkaSource(
    name="flights_arrivals_stream",
    topic="flights.arrivals",
    kafka_bootstrap_servers="",
    timestamp_field="event_timestamp",
    message_format=JsonFormat(
        "event_timestamp timestamp, flight_key string, carrier string, tailnum string, origin string, dest string, "
        "arr_delay double, air_time double, distance double"
    ),
    batch_source=arrivals_table,
)
weather_table = SnowflakeSource(
    name="weather", table="WEATHER", timestamp_field="event_timestamp", created_timestamp_column="loaded_at"
)
aircraft_table = SnowflakeSource(
    name="aircraft", table="AIRCRAFT", timestamp_field="event_timestamp", created_timestamp_column="loaded_at"
)
flight_request = RequestSource(
    name="flight_request",
    schema=[Field(name="scheduled_departure", dtype=UnixTimestamp), Field(name="distance", dtype=Float64)],
)


# Stream views: windows over the topics


def delay_windows(prefix: str) -> list[Aggregation]:
    """Count, mean, max and standard deviation of the departure delay over 1, 3 and 24 hours."""
    return [
        Aggregation(
            column="delay",
            function=function,
            time_window=hours * HOUR,
            slide_interval=slide,
            name=f"{prefix}_delay_{function}_{hours}h",
        )
        for hours, slide in ((1, timedelta(minutes=5)), (3, timedelta(minutes=15)), (24, 2 * HOUR))
        for function in ("count", "mean", "max", "std")
    ]


def delay_fields(prefix: str) -> list[Field]:
    """The features of `delay_windows`."""
    return [Field(name=a.name, dtype=Int64 if a.function == "count" else Float64) for a in delay_windows(prefix)]


origin_departures = StreamFeatureView(
    name="origin_departures",
    entities=[origin],
    source=departures,
    timestamp_field="event_timestamp",
    **as_udf(transformations.departure_event),
    aggregations=delay_windows("origin"),
    schema=[Field(name="origin", dtype=String), *delay_fields("origin")],
    description="How late the airport's departures have been running",
)
carrier_departures = StreamFeatureView(
    name="carrier_departures",
    entities=[carrier],
    source=departures,
    timestamp_field="event_timestamp",
    **as_udf(transformations.departure_event),
    aggregations=delay_windows("carrier"),
    schema=[Field(name="carrier", dtype=String), *delay_fields("carrier")],
    description="How late the airline's departures have been running",
)
aircraft_arrivals = StreamFeatureView(
    name="aircraft_arrivals",
    entities=[aircraft],
    source=arrivals,
    timestamp_field="event_timestamp",
    **as_udf(transformations.arrival_event),
    aggregations=[
        Aggregation(column="delay", function="last", time_window=7 * DAY, slide_interval=12 * HOUR, name="last_delay"),
        Aggregation(
            column="landed_at", function="last", time_window=7 * DAY, slide_interval=12 * HOUR, name="last_landed_at"
        ),
        Aggregation(column="delay", function="count", time_window=DAY, slide_interval=2 * HOUR, name="landings_24h"),
        Aggregation(column="delay", function="mean", time_window=DAY, slide_interval=2 * HOUR, name="delay_mean_24h"),
        Aggregation(
            column="delay", function="count", time_window=7 * DAY, slide_interval=12 * HOUR, name="landings_7d"
        ),
        Aggregation(
            column="delay", function="mean", time_window=7 * DAY, slide_interval=12 * HOUR, name="delay_mean_7d"
        ),
    ],
    schema=[
        Field(name="tailnum", dtype=String),
        Field(name="last_delay", dtype=Float64),
        Field(name="last_landed_at", dtype=UnixTimestamp),
        Field(name="landings_24h", dtype=Int64),
        Field(name="delay_mean_24h", dtype=Float64),
        Field(name="landings_7d", dtype=Int64),
        Field(name="delay_mean_7d", dtype=Float64),
    ],
    description="Where the aircraft comes from: how late it has been landing",
)

# Batch views: the latest row of a warehouse table

origin_weather = FeatureView(
    name="origin_weather",
    entities=[origin],
    source=weather_table,
    ttl=3 * HOUR,
    schema=[
        Field(name="origin", dtype=String),
        Field(name="temp", dtype=Float64),
        Field(name="humid", dtype=Float64),
        Field(name="wind_dir", dtype=Int64),
        Field(name="wind_speed", dtype=Float64),
        Field(name="wind_gust", dtype=Float64),
        Field(name="precip", dtype=Float64),
        Field(name="pressure", dtype=Float64),
        Field(name="visib", dtype=Float64),
    ],
    description="Hourly weather at the airport; an observation older than three hours says nothing",
)
aircraft_registry = FeatureView(
    name="aircraft_registry",
    entities=[aircraft],
    source=aircraft_table,
    ttl=timedelta(0),
    schema=[
        Field(name="tailnum", dtype=String),
        Field(name="year_built", dtype=Int64),
        Field(name="manufacturer", dtype=String),
        Field(name="engine_type", dtype=String),
        Field(name="engines", dtype=Int64),
        Field(name="seats", dtype=Int64),
        Field(name="is_jet", dtype=Bool),
    ],
    description="What the aircraft is",
)

# On-demand views: one thin definition around each request function

hour_of_day = OnDemandFeatureView(
    name="hour_of_day",
    sources=[flight_request],
    **as_udf(transformations.hour_of_day),
    schema=[Field(name="hour_sin", dtype=Float64), Field(name="hour_cos", dtype=Float64)],
)
evening_rush = OnDemandFeatureView(
    name="evening_rush",
    sources=[flight_request],
    **as_udf(transformations.evening_rush),
    schema=[Field(name="is_evening_rush", dtype=Bool)],
)
turnaround = OnDemandFeatureView(
    name="turnaround",
    sources=[flight_request, aircraft_arrivals],
    **as_udf(transformations.turnaround),
    schema=[Field(name="minutes_since_landing", dtype=Float64)],
)
against_carrier = OnDemandFeatureView(
    name="against_carrier",
    sources=[origin_departures, carrier_departures],
    **as_udf(transformations.against_carrier),
    schema=[Field(name="delay_against_carrier", dtype=Float64)],
)
aircraft_age = OnDemandFeatureView(
    name="aircraft_age",
    sources=[aircraft_registry],
    **as_udf(transformations.aircraft_age),
    schema=[Field(name="aircraft_age", dtype=Float64)],
)
strongest_wind = OnDemandFeatureView(
    name="strongest_wind",
    sources=[origin_weather],
    **as_udf(transformations.strongest_wind),
    schema=[Field(name="strongest_wind", dtype=Float64)],
)
haul = OnDemandFeatureView(
    name="haul",
    sources=[flight_request],
    **as_udf(transformations.haul),
    schema=[Field(name="log_distance", dtype=Float64)],
)

# What a model asks for

arrival_delay = FeatureService(
    name="arrival_delay",
    features=[
        origin_departures,
        carrier_departures,
        aircraft_arrivals,
        origin_weather,
        aircraft_registry,
        hour_of_day,
        evening_rush,
        turnaround,
        against_carrier,
        aircraft_age,
        strongest_wind,
        haul,
    ],
    description="Everything known an hour before departure about a flight's arrival delay",
)
