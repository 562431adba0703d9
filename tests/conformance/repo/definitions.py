"""Every kind of view that Tally has, over columns of every dtype."""

from datetime import timedelta

from conformance_repo import row_messages, transformations  # type: ignore[import-not-found]  # what tests call a copy of this
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
from feast.data_format import AvroFormat, JsonFormat, ProtoFormat
from feast.types import Bool, Bytes, Float32, Float64, Int32, Int64, PrimitiveFeastType, String, UnixTimestamp
from feast.value_type import ValueType

from tally.functions import as_udf

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

case = Entity(name="case", join_keys=["case"], value_type=ValueType.STRING)
left = Entity(name="left", join_keys=["left"], value_type=ValueType.STRING)
right = Entity(name="right", join_keys=["right"], value_type=ValueType.STRING)
code_s = Entity(name="code_s", join_keys=["code_s"], value_type=ValueType.STRING)
code_i = Entity(name="code_i", join_keys=["code_i"], value_type=ValueType.INT64)
code_n = Entity(name="code_n", join_keys=["code_n"], value_type=ValueType.INT32)
code_b = Entity(name="code_b", join_keys=["code_b"], value_type=ValueType.BOOL)
code_t = Entity(name="code_t", join_keys=["code_t"], value_type=ValueType.UNIX_TIMESTAMP)

events_table = SnowflakeSource(name="events", table="CONFORMANCE_EVENTS", timestamp_field="event_timestamp")
events = KafkaSource(
    name="events_stream",
    topic="conformance.events",
    kafka_bootstrap_servers="",
    timestamp_field="event_timestamp",
    message_format=JsonFormat(
        "event_timestamp timestamp, case string, left string, right string, f64 double, divisor double, f32 float, "
        "i64 bigint, big bigint, i32 int, b boolean, ts timestamp, s string, y binary"
    ),
    batch_source=events_table,
)
rows_table = SnowflakeSource(name="rows", table="CONFORMANCE_ROWS", timestamp_field="event_timestamp")
rows = KafkaSource(
    name="rows_stream",
    topic="conformance.rows",
    kafka_bootstrap_servers="",
    timestamp_field="event_timestamp",
    message_format=JsonFormat(
        "event_timestamp timestamp, case string, r_f64 double, r_f32 float, r_i64 bigint, r_i32 int, r_b boolean, "
        "r_s string, r_y binary, r_t timestamp"
    ),
    batch_source=rows_table,
)
avro_table = SnowflakeSource(name="avro_rows", table="CONFORMANCE_AVRO", timestamp_field="event_timestamp")
avro_rows = KafkaSource(
    name="avro_rows_stream",
    topic="conformance.avro",
    kafka_bootstrap_servers="",
    timestamp_field="event_timestamp",
    message_format=AvroFormat(row_messages.AVRO),
    batch_source=avro_table,
)
protobuf_table = SnowflakeSource(name="protobuf_rows", table="CONFORMANCE_PROTOBUF", timestamp_field="event_timestamp")
protobuf_rows = KafkaSource(
    name="protobuf_rows_stream",
    topic="conformance.protobuf",
    kafka_bootstrap_servers="",
    timestamp_field="event_timestamp",
    message_format=ProtoFormat("conformance_repo.row_messages.Row"),
    batch_source=protobuf_table,
)
fading_table = SnowflakeSource(
    name="fading", table="CONFORMANCE_FADING", timestamp_field="event_timestamp", created_timestamp_column="created"
)
lasting_table = SnowflakeSource(
    name="lasting", table="CONFORMANCE_LASTING", timestamp_field="event_timestamp", created_timestamp_column="created"
)
request = RequestSource(name="request", schema=[Field(name="weight", dtype=Float64), Field(name="label", dtype=String)])

NUMBERS = ("count", "sum", "mean", "min", "max", "std", "var", "first", "last")
ORDERED = ("count", "min", "max", "first", "last")
FUNCTIONS = {
    "f64": NUMBERS,
    "f32": ("sum", "min", "max", "std", "last"),
    "i64": NUMBERS,
    "big": ORDERED,
    "i32": ("sum", "mean", "min", "first"),
    "b": NUMBERS,
    "ts": ORDERED,
    "s": ORDERED,
    "y": ("max", "last"),
}
DTYPES = {
    "f64": Float64, "f32": Float32, "i64": Int64, "big": Int64, "i32": Int32, "b": Bool, "ts": UnixTimestamp, "s": String,
    "y": Bytes,
}  # fmt: skip
WINDOWS = {
    "1h": (HOUR, HOUR),  # no slide interval given
    "50m": (timedelta(minutes=50), timedelta(minutes=7)),  # a slide interval that does not divide the window
    "1d": (DAY, 2 * HOUR),
}


def output(column: str, function: str) -> PrimitiveFeastType:
    """The type of an aggregation's value."""
    if function == "count":
        return Int64
    if function == "sum" and column in ("i64", "i32", "b"):
        return Int64
    if function in ("sum", "mean", "std", "var"):
        return Float64
    return DTYPES[column]


NAMED = [
    (f"{column}_{function}_{window}", column, function, window)
    for column, functions in FUNCTIONS.items()
    for function in functions
    for window in WINDOWS
]

windows = StreamFeatureView(
    name="windows",
    entities=[case],
    source=events,
    timestamp_field="event_timestamp",
    **as_udf(transformations.event),
    aggregations=[
        Aggregation(
            column=column,
            function=function,
            time_window=WINDOWS[window][0],
            slide_interval=WINDOWS[window][1],
            name=name,
        )
        for name, column, function, window in NAMED
    ],
    schema=[
        Field(name="case", dtype=String),
        *[Field(name=name, dtype=output(column, function)) for name, column, function, _ in NAMED],
    ],
)
pairs = StreamFeatureView(
    name="pairs",
    entities=[left, right],
    source=events,
    timestamp_field="event_timestamp",
    aggregations=[
        Aggregation(column="i64", function="sum", time_window=HOUR, slide_interval=HOUR, name="pair_sum"),
        Aggregation(column="f64", function="count", time_window=HOUR, slide_interval=HOUR, name="pair_count"),
    ],
    schema=[
        Field(name="left", dtype=String),
        Field(name="right", dtype=String),
        Field(name="pair_sum", dtype=Int64),
        Field(name="pair_count", dtype=Int64),
    ],
)
latest = StreamFeatureView(
    name="latest",
    entities=[case],
    source=rows,
    timestamp_field="event_timestamp",
    ttl=timedelta(0),
    schema=[
        Field(name="case", dtype=String),
        Field(name="r_f64", dtype=Float64),
        Field(name="r_f32", dtype=Float32),
        Field(name="r_i64", dtype=Int64),
        Field(name="r_i32", dtype=Int32),
        Field(name="r_b", dtype=Bool),
        Field(name="r_s", dtype=String),
        Field(name="r_y", dtype=Bytes),
        Field(name="r_t", dtype=UnixTimestamp),
    ],
)
ROW = {
    "f64": Float64,
    "f32": Float32,
    "i64": Int64,
    "i32": Int32,
    "b": Bool,
    "s": String,
    "y": Bytes,
    "t": UnixTimestamp,
}
latest_avro = StreamFeatureView(
    name="latest_avro",
    entities=[case],
    source=avro_rows,
    timestamp_field="event_timestamp",
    ttl=timedelta(0),
    schema=[Field(name="case", dtype=String), *(Field(name=f"a_{name}", dtype=dtype) for name, dtype in ROW.items())],
)
latest_protobuf = StreamFeatureView(
    name="latest_protobuf",
    entities=[case],
    source=protobuf_rows,
    timestamp_field="event_timestamp",
    ttl=timedelta(0),
    **as_udf(transformations.timed),
    schema=[Field(name="case", dtype=String), *(Field(name=f"p_{name}", dtype=dtype) for name, dtype in ROW.items())],
)
fading = FeatureView(
    name="fading",
    entities=[case],
    source=fading_table,
    ttl=30 * DAY,
    schema=[
        Field(name="case", dtype=String),
        Field(name="temperature", dtype=Float64),
        Field(name="reading", dtype=Int64),
        Field(name="note", dtype=String),
    ],
)
lasting = FeatureView(
    name="lasting",
    entities=[code_s, code_i, code_n, code_b, code_t],
    source=lasting_table,
    ttl=timedelta(0),
    schema=[
        Field(name="code_s", dtype=String),
        Field(name="code_i", dtype=Int64),
        Field(name="code_n", dtype=Int32),
        Field(name="code_b", dtype=Bool),
        Field(name="code_t", dtype=UnixTimestamp),
        Field(name="level", dtype=Int64),
        Field(name="ratio", dtype=Float32),
        Field(name="small", dtype=Int32),
        Field(name="flag", dtype=Bool),
        Field(name="name", dtype=String),
        Field(name="seen_at", dtype=UnixTimestamp),
    ],
)

combined = OnDemandFeatureView(
    name="combined",
    sources=[windows, fading, request],
    **as_udf(transformations.combined),
    schema=[Field(name="score", dtype=Float64), Field(name="is_heavy", dtype=Bool)],
)
next_reading = OnDemandFeatureView(
    name="next_reading",
    sources=[latest],
    **as_udf(transformations.next_reading),
    schema=[Field(name="next_reading", dtype=Int64)],
)
greeting = OnDemandFeatureView(
    name="greeting",
    sources=[latest, request],
    **as_udf(transformations.greeting),
    schema=[Field(name="greeting", dtype=String)],
)

everything = FeatureService(
    name="everything",
    features=[windows, pairs, latest, latest_avro, latest_protobuf, fading, lasting, combined, next_reading, greeting],
)
