"""Feast definitions become a plan, or a sentence with the file, the object and the fix."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    KafkaSource,
    OnDemandFeatureView,
    PushSource,
    RequestSource,
    SnowflakeSource,
    StreamFeatureView,
)
from feast.aggregation import Aggregation
from feast.data_format import AvroFormat, JsonFormat, ProtoFormat, StreamFormat
from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType

from feast_plugins.compiler import Definitions, compile_plan, read_definitions
from tally.errors import DefinitionError
from tally.functions import as_udf, describe
from tally.plan import Field as PlanField
from tally.plan import Input, Plan
from tally.time import DAY, HOUR, MINUTE
from tally.windows import Window
from tests.feast_plugins import transforms

FILE = "repo/definitions.py"
ONE_HOUR = timedelta(hours=1)
MESSAGE = "at timestamp, place string, x double, n bigint, ok boolean"

pytestmark = pytest.mark.filterwarnings("ignore")  # Feast warns of features that are in development


def place(**change: Any) -> Entity:
    """The entity of all views."""
    return Entity(**{"name": "place", "join_keys": ["place"], "value_type": ValueType.STRING, **change})


def table(**change: Any) -> SnowflakeSource:
    """A table of rows."""
    return SnowflakeSource(**{"name": "trips", "table": "TRIPS", "timestamp_field": "at", **change})


def topic(**change: Any) -> KafkaSource:
    """A topic of messages."""
    fields = {
        "name": "trips_stream", "topic": "trips", "kafka_bootstrap_servers": "", "timestamp_field": "at",
        "message_format": JsonFormat(MESSAGE), "batch_source": table(),
    }  # fmt: skip
    return KafkaSource(**{**fields, **change})


class ThriftFormat(StreamFormat):  # type: ignore[misc]
    """A format that Feast may have one day."""

    def to_proto(self) -> Any:
        """Feast's own message for Avro: only its kind matters here."""
        return AvroFormat("").to_proto()


def avro(**fields: Any) -> AvroFormat:
    """A record of these fields."""
    described = [{"name": name, "type": kind} for name, kind in fields.items()]
    return AvroFormat(json.dumps({"type": "record", "name": "Trip", "fields": described}))


def batch(**change: Any) -> FeatureView:
    """A view of the latest row of a table."""
    fields = {
        "name": "latest", "entities": [place()], "source": table(), "ttl": ONE_HOUR,
        "schema": [Field(name="place", dtype=String), Field(name="x", dtype=Float64)],
    }  # fmt: skip
    return FeatureView(**{**fields, **change})


def total(**change: Any) -> Aggregation:
    """The sum of x over an hour."""
    return Aggregation(**{"column": "x", "function": "sum", "time_window": ONE_HOUR, "name": "total", **change})


TOTAL = [Field(name="place", dtype=String), Field(name="total", dtype=Float64)]


def windows(**change: Any) -> StreamFeatureView:
    """A view of windows."""
    fields = {
        "name": "windows", "entities": [place()], "source": topic(), "timestamp_field": "at", "aggregations": [total()],
        "schema": TOTAL, **as_udf(transforms.doubled),
    }  # fmt: skip
    return StreamFeatureView(**{**fields, **change})


def streamed(**change: Any) -> StreamFeatureView:
    """A view of the latest message."""
    schema = [Field(name="place", dtype=String), Field(name="twice", dtype=Float64)]
    return windows(**{"name": "streamed", "aggregations": [], "schema": schema, **change})


ASKED = RequestSource(name="asked", schema=[Field(name="x", dtype=Float64)])


def on_demand(**change: Any) -> OnDemandFeatureView:
    """A request function."""
    fields = {
        "name": "request", "sources": [ASKED], "schema": [Field(name="twice", dtype=Float64)],
        **as_udf(transforms.doubled),
    }  # fmt: skip
    return OnDemandFeatureView(**{**fields, **change})


def compiled(*objects: Any) -> Plan:
    """The plan of some objects, and of the entity."""
    known: tuple[Any, ...] = objects if any(isinstance(o, Entity) for o in objects) else (place(), *objects)

    def named(kind: Any, *but: Any) -> dict[str, Any]:
        return {o.name: o for o in known if isinstance(o, kind) and not (but and isinstance(o, but))}

    views = named(FeatureView, OnDemandFeatureView)
    services = named(FeatureService)
    return compile_plan(Definitions("p", named(Entity), views, named(OnDemandFeatureView), services, lambda _: FILE))


def plain(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 Feast refuses other annotations
    """A function that Feast would run by itself."""
    return x


Made = Callable[[], Any]
REFUSED: list[tuple[str, str, Made, str]] = [
    # what is wrong, the object that is named, the definitions, the sentence
    ("a file", "latest", lambda: batch(source=FileSource(name="f", path="f.parquet", timestamp_field="at")),
     "its source is a FileSource; use a SnowflakeSource"),
    ("a query", "latest", lambda: batch(source=table(query="SELECT 1", table=None)),
     "source trips is a query; name a table"),
    ("a field mapping", "latest", lambda: batch(source=table(field_mapping={"a": "b"})),
     "source trips has a field_mapping; rename the columns"),
    ("no timestamp", "latest", lambda: batch(source=table(timestamp_field="")),
     "source trips has no timestamp_field; name its event timestamp column"),
    ("an unknown entity", "latest", lambda: (place(name="other"), batch()),
     "entity place is not defined; add it"),
    ("no entity", "latest", lambda: batch(entities=[]), "it has no entity; give it one"),
    ("an entity without a type", "latest",
     lambda: (place(value_type=ValueType.UNKNOWN), batch(schema=[Field(name="x", dtype=Float64)], entities=[place(value_type=ValueType.UNKNOWN)])),
     "entity place has no value_type; give it one"),
    ("a float as a key", "latest",
     lambda: (place(value_type=ValueType.DOUBLE), batch(entities=[place(value_type=ValueType.DOUBLE)], schema=[Field(name="x", dtype=Float64)])),
     "entity key place has type Float64; use one of Bool, Bytes"),
    ("a list as a field", "latest", lambda: batch(schema=[Field(name="x", dtype=Array(Int64))]),
     "field x has type Array(Int64), which Tally does not store; use one of Float64"),
    ("no topic", "windows", lambda: windows(source=PushSource(name="push", batch_source=table())),
     "its source is a PushSource; use a KafkaSource"),
    ("a topic without a table", "windows", lambda: windows(source=topic(batch_source=FileSource(name="f", path="f.parquet", timestamp_field="at"))),
     "source trips_stream needs a batch_source: the topic's table in Snowflake"),
    ("another format", "windows", lambda: windows(source=topic(message_format=ThriftFormat())),
     "source trips_stream: it has ThriftFormat where Tally reads JsonFormat, AvroFormat or ProtoFormat"),
    ("Avro that is no JSON", "windows", lambda: windows(source=topic(message_format=AvroFormat("at long"))),
     "source trips_stream: its Avro schema is not JSON"),
    ("Avro that is no schema", "windows", lambda: windows(source=topic(message_format=AvroFormat('{"type": "wrong"}'))),
     "source trips_stream: its Avro schema is not one"),
    ("Avro without the time", "windows", lambda: windows(source=topic(message_format=avro(place="string", x="double"))),
     "column at must be UnixTimestamp, it is not there; its rows have place String, x Float64"),
    ("Avro with a time of another type", "windows",
     lambda: windows(source=topic(message_format=avro(at="long", place="string", x="double"))),
     "column at must be UnixTimestamp, it is Int64"),
    ("no class", "windows", lambda: windows(source=topic(message_format=ProtoFormat("com.acme.Trip"))),
     "its class_path 'com.acme.Trip' cannot be imported"),
    ("no name", "windows", lambda: windows(source=topic(message_format=ProtoFormat("tests.feast_plugins.transforms.Trip"))),
     "its class_path 'tests.feast_plugins.transforms.Trip' cannot be imported"),
    ("a class of another kind", "windows", lambda: windows(source=topic(message_format=ProtoFormat("datetime.datetime"))),
     "its class_path 'datetime.datetime' is no Protobuf message; it is the Python class that protoc generated"),
    ("a tolerance without a unit", "windows", lambda: windows(tags={"tally.future_tolerance": "10"}),
     "its tag tally.future_tolerance is '10'; write a number and s, m, h or d, like 10m"),
    ("a type that JSON has not", "windows", lambda: windows(source=topic(message_format=JsonFormat("at timestamp, x decimal"))),
     "'x decimal' in its JsonFormat is not `name type` with a type of double"),
    ("no type", "windows", lambda: windows(source=topic(message_format=JsonFormat("at"))), "'at' in its JsonFormat is not"),
    ("an empty schema", "windows", lambda: windows(source=topic(message_format=JsonFormat(""))), "'' in its JsonFormat is not"),
    ("a field twice", "windows", lambda: windows(source=topic(message_format=JsonFormat(MESSAGE + ", x bigint"))),
     "source trips_stream: its JsonFormat names ['x'] twice; name each field once"),
    ("a message without the key", "windows", lambda: windows(source=topic(message_format=JsonFormat("at timestamp, x double"))),
     "column place must be String, it is not there; its rows have at UnixTimestamp, x Float64, twice Float64"),
    ("a message without the time", "windows", lambda: windows(source=topic(message_format=JsonFormat("place string, x double"))),
     "column at must be UnixTimestamp, it is not there"),
    ("a key of another type", "windows", lambda: windows(**as_udf(transforms.rekeyed)),
     "column place must be String, it is Float64"),
    ("a time of another type", "windows", lambda: windows(**as_udf(transforms.retimed)),
     "column at must be UnixTimestamp, it is Float64"),
    ("a function of Feast's own", "windows", lambda: windows(udf=plain, udf_string="def plain(x): return x"),
     "its function is not a shared transformation; pass **as_udf(transformations.YOURS)"),
    ("a function that asks for more", "windows", lambda: windows(**as_udf(transforms.asking)),
     "asking asks for ['nowhere'], the message has ['at', 'n', 'ok', 'place', 'x']"),
    ("a function that fails", "windows", lambda: windows(**as_udf(transforms.failing)),
     "its function fails on columns without rows (IndexError"),
    ("a function of durations", "windows", lambda: windows(**as_udf(transforms.durations)), "timedelta64[s] has no feature dtype"),
    ("inputs without names", "windows", lambda: windows(**as_udf(transforms.starred)), "starred must name its inputs one by one"),
    ("an unknown aggregation", "windows", lambda: windows(aggregations=[total(function="median")]),
     "the aggregation 'median' of x does not exist; use one of count, sum, mean"),
    ("distinct values", "windows", lambda: windows(aggregations=[total(function="count_distinct")]),
     "the aggregation 'count_distinct' of x is not offered: it cannot be exact in bounded space"),
    ("no window", "windows", lambda: windows(aggregations=[total(time_window=None)]), "the aggregation total has no time_window; give it one"),
    ("a slide beyond the window", "windows", lambda: windows(aggregations=[total(slide_interval=timedelta(hours=2))]),
     "the slide_interval of total is longer than its window; make it shorter"),
    ("an unknown column", "windows", lambda: windows(aggregations=[total(column="y")]),
     "the aggregation total is of column 'y'; its rows have ['at', 'n', 'ok', 'place', 'twice', 'x']"),
    ("a sum of texts", "windows", lambda: windows(aggregations=[total(column="place")]),
     "the aggregation total: sum does not apply to String columns; count, min, max, first, last do"),
    ("a time to live of windows", "windows", lambda: windows(ttl=ONE_HOUR), "a view of windows has no ttl: each window says"),
    ("a feature too many", "windows", lambda: windows(schema=[*TOTAL, Field(name="more", dtype=Float64)]),
     "its schema has more Float64, which its rows do not give; they give total Float64"),
    ("a feature too few", "windows", lambda: windows(aggregations=[total(), total(function="max", name="top")]),
     "its schema lacks top Float64; add a Field for each aggregation"),
    ("a feature of another type", "windows", lambda: windows(schema=[TOTAL[0], Field(name="total", dtype=Int64)]),
     "its schema has total Int64, which its rows do not give; they give total Float64"),
    ("a name for two aggregations", "windows", lambda: windows(aggregations=[total(), total(function="max")]),
     "its aggregations give the name ['total'] twice; give each a name of its own"),
    ("a column that no row has", "streamed", lambda: streamed(schema=[Field(name="thrice", dtype=Float64)]),
     "its schema has thrice Float64, which its rows do not give"),
    ("a request function of Feast's own", "request", lambda: on_demand(udf=plain, udf_string="def plain(x): return x"),
     "its function is not a shared transformation"),
    ("a request function that asks for more", "request", lambda: on_demand(**as_udf(transforms.asking)),
     "its function asks for ['nowhere'], its sources have ['x']"),
    ("an output that is not returned", "request", lambda: on_demand(schema=[Field(name="thrice", dtype=Float64)]),
     "doubled returned ['twice'], its definition promises 'thrice' too"),
    ("an output of another type", "request", lambda: on_demand(**as_udf(transforms.texts)),
     "texts output twice: "),
    ("a request function that fails", "request", lambda: on_demand(**as_udf(transforms.breaking)),
     "its function fails on a row of nulls (RuntimeError: no 1)"),
    ("request inputs without names", "request", lambda: on_demand(**as_udf(transforms.starred)), "starred must name its inputs"),
    ("an input that two sources have", "request", lambda: (batch(), on_demand(sources=[ASKED, batch()])),
     "its function asks for x, which latest and asked both have; rename one of them"),
    ("a list as an output", "request", lambda: on_demand(schema=[Field(name="twice", dtype=Array(Float64))]),
     "field twice has type Array(Float64), which Tally does not store"),
    ("a name for two features", "both",
     lambda: (batch(), batch(name="second"), FeatureService(name="both", features=[batch(), batch(name="second")])),
     "features ['x'] come from more than one view; ask for full feature names or rename them"),
    ("a source in two ways", "second", lambda: (batch(), batch(name="second", source=table(table="OTHER"))),
     "its source trips is defined in two ways; give one of them another name"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "made", "sentence"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refusals_name_the_file_the_object_and_the_fix(name: str, made: Made, sentence: str) -> None:
    """One sentence: file, object, what is wrong and what to do."""
    objects = made()
    with pytest.raises(DefinitionError) as refusal:
        compiled(*(objects if isinstance(objects, tuple) else (objects,)))
    text = str(refusal.value)
    assert text.startswith(f"{FILE}: {name}: "), text
    assert sentence in text
    assert text.endswith(".")
    assert ".." not in text.replace("...", "")


def test_the_good_definitions_compile() -> None:
    """What the refusals change is good as it stands: each refusal is of its own change alone."""
    service = FeatureService(name="all", features=[windows(), on_demand()])
    people = table(name="people", created_timestamp_column="seen")
    plan = compiled(batch(source=people), windows(), streamed(), on_demand(), service)
    assert [(v.name, v.kind, v.stream, v.ttl) for v in plan.views] == [
        ("latest", "latest", False, HOUR), ("streamed", "latest", True, 0), ("windows", "window", True, 0)
    ]  # fmt: skip
    view = plan.view("windows")
    assert view.keys == (PlanField("place", "String"),)
    assert view.function == describe(transforms.doubled)
    assert [(f.name, f.dtype) for f in view.columns] == [
        ("at", "UnixTimestamp"), ("place", "String"), ("x", "Float64"), ("n", "Int64"), ("ok", "Bool"), ("twice", "Float64")
    ]  # fmt: skip
    assert [(a.feature, a.output, a.window) for a in view.aggregations] == [
        ("total", "Float64", Window(HOUR, 5 * MINUTE))
    ]
    assert plan.source("trips").topic == "trips"
    assert [(f.name, f.dtype) for f in plan.service("all").outputs] == [("total", "Float64"), ("twice", "Float64")]
    assert plan.service("all").request == (PlanField("x", "Float64"),)
    assert all(len(v.hash) == 32 for v in plan.views)


def test_joined_entities_and_names_of_their_own() -> None:
    """A view used under another name, by another key, is a use of the same view."""
    renamed = batch().with_name("start").with_join_key_map({"place": "start_place"})
    plan = compiled(batch(), FeatureService(name="s", features=[renamed]))
    (use,) = plan.service("s").views
    assert (use.view, use.name, use.keys) == ("latest", "start", ("start_place",))
    assert plan.service("s").keys == (PlanField("start_place", "String"),)


@pytest.mark.parametrize("dtype", [Int32, Float32, Bool, UnixTimestamp])
def test_fields_keep_their_types(dtype: Any) -> None:
    """Types of a batch view are stored as they are declared."""
    plan = compiled(batch(schema=[Field(name="place", dtype=String), Field(name="x", dtype=dtype)]))
    assert [f.dtype for f in plan.view("latest").fields] == [str(dtype)]


def test_the_same_definitions_have_the_same_hash() -> None:
    """Compiled twice, listed otherwise, described otherwise: the same plan; another window: another hash."""
    schema = [Field(name="place", dtype=String), Field(name="total", dtype=Float64), Field(name="top", dtype=Float64)]
    both = [total(), total(function="max", name="top")]
    one = compiled(windows(aggregations=both, schema=schema))
    assert compiled(windows(aggregations=both, schema=schema[::-1], description="what", tags={"a": "b"})) == one
    longer = [both[0], total(function="max", name="top", time_window=2 * ONE_HOUR)]
    assert compiled(windows(aggregations=longer, schema=schema)).view("windows").hash != one.view("windows").hash


# The example


FLIGHTS = {
    **{
        f"{who}_delay_{function}_{hours}h": "Int64" if function == "count" else "Float64"
        for who in ("origin", "carrier")
        for hours in (1, 3, 24)
        for function in ("count", "mean", "max", "std")
    },
    "last_delay": "Float64", "last_landed_at": "UnixTimestamp", "landings_24h": "Int64", "delay_mean_24h": "Float64",
    "landings_7d": "Int64", "delay_mean_7d": "Float64",
    "temp": "Float64", "humid": "Float64", "wind_dir": "Int64", "wind_speed": "Float64", "wind_gust": "Float64",
    "precip": "Float64", "pressure": "Float64", "visib": "Float64",
    "year_built": "Int64", "manufacturer": "String", "engine_type": "String", "engines": "Int64", "seats": "Int64",
    "is_jet": "Bool",
    "hour_sin": "Float64", "hour_cos": "Float64", "is_evening_rush": "Bool", "minutes_since_landing": "Float64",
    "delay_against_carrier": "Float64", "aircraft_age": "Float64", "strongest_wind": "Float64", "log_distance": "Float64",
}  # fmt: skip


@pytest.fixture(scope="module")
def flights() -> Definitions:
    """The example's definitions, by way of a registry as `feast apply` writes it."""
    from feature_repo import definitions

    registry = RegistryProto()
    lists = {
        StreamFeatureView: registry.stream_feature_views, OnDemandFeatureView: registry.on_demand_feature_views,
        FeatureView: registry.feature_views, Entity: registry.entities, FeatureService: registry.feature_services,
    }  # fmt: skip
    for thing in vars(definitions).values():
        kind = next((kind for kind in lists if isinstance(thing, kind)), None)
        if kind is not None:
            proto = thing.to_proto()
            proto.spec.project = "flights"
            lists[kind].append(proto)
    other = place().to_proto()
    other.spec.project = "another"
    registry.entities.append(other)
    return read_definitions(registry, "flights", Path(definitions.__file__).parent)


def test_the_example_has_its_52_features(flights: Definitions) -> None:
    """Names, dtypes and order of all features of the flights repository, and what a request must hold."""
    plan = compile_plan(flights)
    service = plan.service("arrival_delay")
    assert len(FLIGHTS) == len(service.outputs) == 52
    assert [(f.name, f.dtype) for f in service.outputs] == list(FLIGHTS.items())
    assert [f.name for f in service.keys] == ["origin", "carrier", "tailnum"]
    assert service.request == (PlanField("scheduled_departure", "UnixTimestamp"), PlanField("distance", "Float64"))


def test_the_example_has_its_views(flights: Definitions) -> None:
    """Kinds, keys, time to live, windows and sources."""
    plan = compile_plan(flights)
    assert {v.name: (v.kind, v.keys[0].name, v.ttl, v.stream, v.source) for v in plan.views} == {
        "aircraft_arrivals": ("window", "tailnum", 0, True, "flights_arrivals"),
        "aircraft_registry": ("latest", "tailnum", 0, False, "aircraft"),
        "carrier_departures": ("window", "carrier", 0, True, "flights_departures"),
        "origin_departures": ("window", "origin", 0, True, "flights_departures"),
        "origin_weather": ("latest", "origin", 3 * HOUR, False, "weather"),
    }
    assert {a.window for a in plan.view("origin_departures").aggregations} == {
        Window(HOUR, 5 * MINUTE), Window(3 * HOUR, 15 * MINUTE), Window(DAY, 2 * HOUR)
    }  # fmt: skip
    turnaround = plan.function("turnaround")
    assert turnaround.inputs == (
        Input("scheduled_departure", "UnixTimestamp", "", "scheduled_departure"),
        Input("last_landed_at", "UnixTimestamp", "aircraft_arrivals", "last_landed_at"),
    )
    assert Plan.from_json(plan.to_json()) == plan


def test_only_the_projects_own_objects_are_read(flights: Definitions) -> None:
    """A registry may hold several projects; and an object is traced to the file that defines it."""
    assert sorted(flights.entities) == ["aircraft", "carrier", "origin"]
    assert Path(flights.file_of("origin_weather")).name == "definitions.py"
    assert Path(flights.file_of("nowhere")).name == "feature_repo"


def test_a_function_that_cannot_be_imported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry names a module that is not installed here: DefinitionError saying where it should be."""
    (tmp_path / "elsewhere.py").write_text("def doubled(x):\n    return {'twice': x * 2}\n")
    with monkeypatch.context() as there:
        there.syspath_prepend(tmp_path)
        proto = on_demand(**as_udf(importlib.import_module("elsewhere").doubled)).to_proto()
    del sys.modules["elsewhere"]
    proto.spec.project = "p"
    registry = RegistryProto(on_demand_feature_views=[proto])
    with pytest.raises(
        DefinitionError, match=r"cannot be imported: No module named 'elsewhere'.*put work on PYTHONPATH"
    ):
        read_definitions(registry, "p", Path("work/feature_repo"))
