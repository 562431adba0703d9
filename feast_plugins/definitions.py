"""Compile Feast's registry into Tally's plan, or say what in the definitions cannot be done and where it stands."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from feast import (
    Entity,
    FeatureService,
    FeatureView,
    KafkaSource,
    OnDemandFeatureView,
    SnowflakeSource,
    StreamFeatureView,
)
from feast.aggregation import Aggregation as FeastAggregation
from feast.data_format import AvroFormat, JsonFormat, ProtoFormat
from feast.feature_view import DUMMY_ENTITY_NAME
from feast.feature_view_projection import FeatureViewProjection
from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto
from feast.types import PrimitiveFeastType, from_value_type
from feast.value_type import ValueType
from google.protobuf.message import Message

from ingestion import protobuf
from ingestion.decoding import wires_of
from tally import functions
from tally.aggregates import FUNCTIONS, output_dtype
from tally.columns import nulls
from tally.dtypes import DTYPES, KEY_DTYPES, Dtype
from tally.errors import DataError, DefinitionError, DefinitionMismatchError
from tally.plan import (
    FUTURE_TOLERANCE,
    Encoding,
    Field,
    Function,
    FunctionUse,
    Input,
    Plan,
    RequestFunction,
    Service,
    Source,
    View,
    ViewUse,
    hashed_service,
    hashed_view,
)
from tally.tiles import Aggregation
from tally.time import DAY, HOUR, MICROSECOND, MINUTE, SECOND
from tally.windows import window

JSON: Final = Encoding()
FUTURE_TOLERANCE_TAG: Final = "tally.future_tolerance"
"""Tag of a stream feature view: how far ahead of its message's CreateTime an event may lie, like ``10m``."""
_DTYPES: Final[dict[PrimitiveFeastType, Dtype]] = {
    PrimitiveFeastType.FLOAT64: "Float64",
    PrimitiveFeastType.FLOAT32: "Float32",
    PrimitiveFeastType.INT64: "Int64",
    PrimitiveFeastType.INT32: "Int32",
    PrimitiveFeastType.BOOL: "Bool",
    PrimitiveFeastType.STRING: "String",
    PrimitiveFeastType.BYTES: "Bytes",
    PrimitiveFeastType.UNIX_TIMESTAMP: "UnixTimestamp",
}
_MESSAGE_DTYPES: Final[dict[str, Dtype]] = {
    "double": "Float64",
    "float": "Float32",
    "bigint": "Int64",
    "long": "Int64",
    "int": "Int32",
    "integer": "Int32",
    "boolean": "Bool",
    "string": "String",
    "binary": "Bytes",
    "timestamp": "UnixTimestamp",
}
"""Names of Spark's DDL, which is what Feast's `JsonFormat` holds."""


@dataclass(frozen=True)
class Definitions:
    """The objects of one project, by name, and how to find the file that defines one of them."""

    project: str
    entities: dict[str, Entity]
    views: dict[str, FeatureView]
    on_demand: dict[str, OnDemandFeatureView]
    services: dict[str, FeatureService]
    file_of: Callable[[str], str]


def read_definitions(registry: RegistryProto, project: str, repo: Path) -> Definitions:
    """The definitions of `project` in a registry. Raises DefinitionError when a function cannot be imported."""

    def mine(protos: Iterable[Any]) -> list[Any]:
        return [proto for proto in protos if proto.spec.project == project]

    try:
        views: list[FeatureView] = [FeatureView.from_proto(p) for p in mine(registry.feature_views)]
        views += [StreamFeatureView.from_proto(p) for p in mine(registry.stream_feature_views)]
        on_demand = [OnDemandFeatureView.from_proto(p) for p in mine(registry.on_demand_feature_views)]
    except ModuleNotFoundError as error:
        raise DefinitionError(
            f"A transformation in the registry cannot be imported: {error}. Install the feature repository's package, "
            f"or put {repo.parent} on PYTHONPATH, and run feast apply again."
        ) from error
    entities = [Entity.from_proto(p) for p in mine(registry.entities)]
    services = [FeatureService.from_proto(p) for p in mine(registry.feature_services)]
    return Definitions(
        project,
        {e.name: e for e in entities},
        {v.name: v for v in views},
        {v.name: v for v in on_demand},
        {s.name: s for s in services},
        lambda name: _file_of(name, repo),
    )


def _file_of(name: str, repo: Path) -> str:
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path is None or not Path(path).resolve().is_relative_to(repo.resolve()):
            continue
        if any(getattr(item, "name", None) == name for item in vars(module).values()):
            return str(path)
    return str(repo)


def compile_plan(definitions: Definitions) -> Plan:
    """The plan of a project. Raises DefinitionError naming the file, the object and the fix."""
    sources: dict[str, Source] = {}
    views: list[View] = []
    for name in sorted(definitions.views):
        source, view = _compile_view(definitions, definitions.views[name])
        known = sources.setdefault(source.name, source)
        if known != source:
            raise _refused(
                definitions, name, f"its source {source.name} is defined in two ways; give one of them another name"
            )
        views.append(view)
    plan = Plan(definitions.project, tuple(sources[n] for n in sorted(sources)), tuple(views), (), ())
    request_functions = tuple(
        _compile_function(definitions, plan, definitions.on_demand[name]) for name in sorted(definitions.on_demand)
    )
    plan = replace(plan, functions=request_functions)
    services = tuple(
        compile_service(definitions, plan, name, definitions.services[name].feature_view_projections)
        for name in sorted(definitions.services)
    )
    return replace(plan, services=services)


def _refused(definitions: Definitions, name: str, problem: str) -> DefinitionError:
    return DefinitionError(f"{definitions.file_of(name)}: {name}: {problem}.")


def _dtype(definitions: Definitions, name: str, field: str, dtype: Any) -> Dtype:
    if dtype not in _DTYPES:
        raise _refused(
            definitions,
            name,
            f"field {field} has type {dtype}, which Tally does not store; use one of {', '.join(DTYPES)}",
        )
    return _DTYPES[dtype]


def _micros(duration: timedelta | None) -> int:
    return 0 if duration is None else duration // MICROSECOND


# Views


def _compile_view(definitions: Definitions, view: FeatureView) -> tuple[Source, View]:
    if isinstance(view, StreamFeatureView):
        return _compile_stream_view(definitions, view)
    table = view.batch_source
    if not isinstance(table, SnowflakeSource):
        raise _refused(definitions, view.name, f"its source is a {type(table).__name__}; use a SnowflakeSource")
    source = _compile_source(definitions, view.name, table)
    keys = _keys(definitions, view)
    fields = _fields(definitions, view, keys)
    columns = [*keys, *fields, Field(source.timestamp, "UnixTimestamp")]
    if source.created:
        columns.append(Field(source.created, "UnixTimestamp"))
    compiled = View(
        name=view.name,
        kind="latest",
        source=source.name,
        keys=keys,
        fields=fields,
        columns=tuple(dict.fromkeys(columns)),
        timestamp=source.timestamp,
        created=source.created,
        ttl=_micros(view.ttl),
        online=view.online,
        stream=False,
        function=None,
        aggregations=(),
    )
    return source, hashed_view(compiled, source)


def _compile_source(
    definitions: Definitions,
    name: str,
    table: SnowflakeSource,
    topic: str = "",
    message: tuple[Field, ...] = (),
    encoding: Encoding = JSON,
) -> Source:
    if table.query or not table.table:
        raise _refused(
            definitions, name, f"source {table.name} is a query; name a table (or create a view in Snowflake)"
        )
    if table.field_mapping:
        raise _refused(definitions, name, f"source {table.name} has a field_mapping; rename the columns in Snowflake")
    if not table.timestamp_field:
        raise _refused(
            definitions, name, f"source {table.name} has no timestamp_field; name its event timestamp column"
        )
    return Source(
        name=table.name,
        table=table.table,
        database=table.database or "",
        schema=table.schema or "",
        timestamp=table.timestamp_field,
        created=table.created_timestamp_column or "",
        topic=topic,
        message=message,
        encoding=encoding,
    )


def _keys(definitions: Definitions, view: FeatureView) -> tuple[Field, ...]:
    keys = []
    if view.entities in ([], [DUMMY_ENTITY_NAME]):
        raise _refused(definitions, view.name, "it has no entity; give it one, whose join key says which row is whose")
    for entity_name in view.entities:
        entity = definitions.entities.get(entity_name)
        if entity is None:
            raise _refused(definitions, view.name, f"entity {entity_name} is not defined; add it to the repository")
        declared = [f.dtype for f in view.entity_columns if f.name == entity.join_key]
        dtype = declared[0] if declared else from_value_type(entity.value_type)
        if entity.value_type == ValueType.UNKNOWN and not declared:
            raise _refused(definitions, view.name, f"entity {entity_name} has no value_type; give it one")
        key = Field(entity.join_key, _dtype(definitions, view.name, entity.join_key, dtype))
        if key.dtype not in KEY_DTYPES:
            raise _refused(
                definitions,
                view.name,
                f"entity key {key.name} has type {key.dtype}; use one of {', '.join(sorted(KEY_DTYPES))}",
            )
        keys.append(key)
    return tuple(keys)


def _fields(definitions: Definitions, view: FeatureView, keys: Sequence[Field]) -> tuple[Field, ...]:
    # By name: Feast keeps fields in a set now and then, so the order in which it returns them is not the definition's, and
    # the hash must not depend on it.
    names = {key.name for key in keys}
    features = sorted((f for f in view.features if f.name not in names), key=lambda f: f.name)
    return tuple(Field(f.name, _dtype(definitions, view.name, f.name, f.dtype)) for f in features)


def _compile_stream_view(definitions: Definitions, view: StreamFeatureView) -> tuple[Source, View]:
    stream, table = view.stream_source, view.batch_source
    if not isinstance(stream, KafkaSource):
        raise _refused(definitions, view.name, f"its source is a {type(stream).__name__}; use a KafkaSource")
    if not isinstance(table, SnowflakeSource):
        raise _refused(
            definitions, view.name, f"source {stream.name} needs a batch_source: the topic's table in Snowflake"
        )
    message, encoding = _message(definitions, view.name, stream)
    source = _compile_source(definitions, view.name, table, stream.kafka_options.topic, message, encoding)
    function, columns = _event_columns(definitions, view, message)
    dtypes = {f.name: f.dtype for f in columns}
    keys = _keys(definitions, view)
    timestamp = view.timestamp_field or source.timestamp
    for needed in (*keys, Field(timestamp, "UnixTimestamp")):
        if dtypes.get(needed.name) != needed.dtype:
            raise _refused(
                definitions,
                view.name,
                f"column {needed.name} must be {needed.dtype}, it is {dtypes.get(needed.name, 'not there')}; "
                f"its rows have {_listed(columns)}",
            )
    fields = _fields(definitions, view, keys)
    if view.aggregations:
        aggregations = tuple(_compile_aggregation(definitions, view.name, a, dtypes) for a in view.aggregations)
        if doubled := _doubled(a.feature for a in aggregations):
            raise _refused(
                definitions, view.name, f"its aggregations give the name {doubled} twice; give each a name of its own"
            )
        _check_schema(definitions, view, fields, [Field(a.feature, a.output) for a in aggregations])
        if view.ttl:
            raise _refused(
                definitions, view.name, "a view of windows has no ttl: each window says how far it looks back"
            )
    else:
        aggregations = ()
        _check_schema(definitions, view, fields, columns)
    compiled = View(
        name=view.name,
        kind="window" if aggregations else "latest",
        source=source.name,
        keys=keys,
        fields=fields,
        columns=columns,
        timestamp=timestamp,
        created="",
        ttl=_micros(view.ttl),
        online=view.online,
        stream=True,
        function=function,
        aggregations=aggregations,
        future_tolerance=_future_tolerance(definitions, view),
    )
    return source, hashed_view(compiled, source)


def _future_tolerance(definitions: Definitions, view: StreamFeatureView) -> int:
    text = (view.tags or {}).get(FUTURE_TOLERANCE_TAG)
    if text is None:
        return FUTURE_TOLERANCE
    parts = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if parts is None:
        raise _refused(
            definitions,
            view.name,
            f"its tag {FUTURE_TOLERANCE_TAG} is {text!r}; write a number and s, m, h or d, like 10m",
        )
    return int(parts[1]) * {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}[parts[2]]


def _message(definitions: Definitions, name: str, stream: KafkaSource) -> tuple[tuple[Field, ...], Encoding]:
    """The columns of a source's messages, and how they are written."""
    message_format = stream.kafka_options.message_format
    if isinstance(message_format, JsonFormat):
        return _json_fields(definitions, name, stream.name, message_format), JSON
    try:
        encoding = _encoding(message_format)
        return tuple(wire.field for wire in wires_of(encoding)), encoding
    except DefinitionError as error:
        raise _refused(definitions, name, f"source {stream.name}: {str(error).rstrip('.')}") from error


def _encoding(message_format: Any) -> Encoding:
    if isinstance(message_format, ProtoFormat):
        return Encoding("protobuf", protobuf.describe(_imported(message_format.class_path)))
    if isinstance(message_format, AvroFormat):
        try:
            schema = json.loads(message_format.schema_json)
        except json.JSONDecodeError as error:
            raise DefinitionError(f"its Avro schema is not JSON ({error})") from error
        return Encoding("avro", json.dumps(schema, separators=(",", ":")))
    raise DefinitionError(
        f"it has {type(message_format).__name__} where Tally reads JsonFormat, AvroFormat or ProtoFormat"
    )


def _imported(class_path: str) -> type[Message]:
    """The generated class at ``module.Class``. Raises DefinitionError."""
    module_name, _, class_name = class_path.rpartition(".")
    advice = "it is the Python class that protoc generated, like flights_pb2.Departure, and must be on PYTHONPATH"
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise DefinitionError(f"its class_path {class_path!r} cannot be imported ({error}); {advice}") from error
    if not (isinstance(found, type) and issubclass(found, Message)):
        raise DefinitionError(f"its class_path {class_path!r} is no Protobuf message; {advice}")
    return found


def _json_fields(definitions: Definitions, name: str, source: str, message_format: JsonFormat) -> tuple[Field, ...]:
    fields = []
    for part in re.split(r"\s*,\s*", message_format.schema_json.strip()):
        words = part.split()
        if len(words) != 2 or words[1].lower() not in _MESSAGE_DTYPES:
            raise _refused(
                definitions,
                name,
                f"source {source}: {part!r} in its JsonFormat is not `name type` with a type of "
                f"{', '.join(_MESSAGE_DTYPES)}",
            )
        fields.append(Field(words[0], _MESSAGE_DTYPES[words[1].lower()]))
    if doubled := _doubled(f.name for f in fields):
        raise _refused(
            definitions, name, f"source {source}: its JsonFormat names {doubled} twice; name each field once"
        )
    return tuple(fields)


def _event_columns(
    definitions: Definitions, view: StreamFeatureView, message: tuple[Field, ...]
) -> tuple[Function | None, tuple[Field, ...]]:
    """The event function, and the columns it makes of a message: found by running it on no rows."""
    function = None if view.udf is None else _plain_function(definitions, view.name, view.udf)
    try:
        described = None if function is None else functions.describe(function)
        columns = functions.run_on_events(function, {f.name: nulls(f.dtype, 0) for f in message}, 0)
    except (DataError, DefinitionError, DefinitionMismatchError) as error:
        raise _refused(definitions, view.name, str(error).rstrip(".")) from error
    except Exception as error:
        raise _refused(
            definitions, view.name, f"its function fails on columns without rows ({type(error).__name__}: {error})"
        ) from error
    return described, tuple(Field(name, column.dtype) for name, column in columns.items())


def _plain_function(definitions: Definitions, name: str, udf: Any) -> functions.Transformation:
    function = getattr(udf, "transformation", None)
    if function is None:
        raise _refused(
            definitions, name, "its function is not a shared transformation; pass **as_udf(transformations.YOURS)"
        )
    return function  # type: ignore[no-any-return]


def _compile_aggregation(
    definitions: Definitions, name: str, aggregation: FeastAggregation, dtypes: dict[str, Dtype]
) -> Aggregation:
    if aggregation.function == "count_distinct":
        raise _refused(
            definitions,
            name,
            f"the aggregation 'count_distinct' of {aggregation.column} is not offered: it cannot be exact in bounded space, "
            "and Tally estimates nothing (docs/decisions/011); where the values are few, count a column of the view's "
            "function for each",
        )
    if aggregation.function not in FUNCTIONS:
        raise _refused(
            definitions,
            name,
            f"the aggregation {aggregation.function!r} of {aggregation.column} does not exist; use one of {', '.join(FUNCTIONS)}",
        )
    length = _micros(aggregation.time_window)
    slide = _micros(aggregation.slide_interval)
    feature = aggregation.resolved_name(aggregation.time_window)
    if length <= 0:
        raise _refused(definitions, name, f"the aggregation {feature} has no time_window; give it one")
    if not 0 < slide <= length:
        raise _refused(definitions, name, f"the slide_interval of {feature} is longer than its window; make it shorter")
    if aggregation.column not in dtypes:
        raise _refused(
            definitions,
            name,
            f"the aggregation {feature} is of column {aggregation.column!r}; its rows have {sorted(dtypes)}",
        )
    dtype = dtypes[aggregation.column]
    try:
        output = output_dtype(aggregation.function, dtype)
    except DataError as error:
        raise _refused(definitions, name, f"the aggregation {feature}: {error}") from error
    return Aggregation(feature, aggregation.column, dtype, aggregation.function, window(length, slide), output)


def _check_schema(
    definitions: Definitions, view: StreamFeatureView, fields: Sequence[Field], made: Sequence[Field]
) -> None:
    wrong = [f for f in fields if f not in made]
    if wrong:
        raise _refused(
            definitions,
            view.name,
            f"its schema has {_listed(wrong)}, which its rows do not give; they give {_listed(made)}",
        )
    names = {f.name for f in fields}
    forgotten = [f for f in made if f.name not in names]
    if view.aggregations and forgotten:
        raise _refused(
            definitions, view.name, f"its schema lacks {_listed(forgotten)}; add a Field for each aggregation"
        )


def _doubled(names: Iterable[str]) -> list[str]:
    """Names that occur more than once."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _listed(fields: Iterable[Field]) -> str:
    return ", ".join(f"{f.name} {f.dtype}" for f in fields)


# Request functions and services


def _compile_function(definitions: Definitions, plan: Plan, view: OnDemandFeatureView) -> RequestFunction:
    if view.feature_transformation is None or getattr(view, "aggregations", None):
        raise _refused(definitions, view.name, "an on-demand view must be one function without aggregations")
    function = _plain_function(definitions, view.name, view.feature_transformation.udf)
    offered: dict[str, Input] = {}
    origins: dict[str, list[str]] = {}
    for projection in _sources(view):
        for field in projection.features:
            dtype = _dtype(definitions, view.name, field.name, field.dtype)
            offered[field.name] = Input(field.name, dtype, projection.name_to_use(), field.name)
            origins.setdefault(field.name, []).append(projection.name_to_use())
    for request_name, request in view.source_request_sources.items():
        for field in request.schema:
            origins.setdefault(field.name, []).append(request_name)
            dtype = _dtype(definitions, view.name, field.name, field.dtype)
            offered[field.name] = Input(field.name, dtype, "", field.name)
    try:
        described = functions.describe(function)
        names = functions.parameters(function)
    except DefinitionError as error:
        raise _refused(definitions, view.name, str(error).rstrip(".")) from error
    missing = [name for name in names if name not in offered]
    if missing:
        raise _refused(definitions, view.name, f"its function asks for {missing}, its sources have {sorted(offered)}")
    for name in names:
        if len(origins[name]) > 1:
            raise _refused(
                definitions,
                view.name,
                f"its function asks for {name}, which {' and '.join(origins[name])} both have; rename one of them",
            )
    outputs = tuple(Field(f.name, _dtype(definitions, view.name, f.name, f.dtype)) for f in view.features)
    compiled = RequestFunction(view.name, described, tuple(offered[name] for name in names), outputs)
    try:
        functions.run(function, {i.parameter: nulls(i.dtype, 1) for i in compiled.inputs}, outputs, 1)
    except DataError as error:
        raise _refused(definitions, view.name, str(error).rstrip(".")) from error
    except Exception as error:
        raise _refused(
            definitions, view.name, f"its function fails on a row of nulls ({type(error).__name__}: {error})"
        ) from error
    return compiled


def _sources(view: OnDemandFeatureView) -> list[FeatureViewProjection]:
    """The views that an on-demand view reads, by name: the registry holds them in a map, which has no order."""
    return sorted(view.source_feature_view_projections.values(), key=FeatureViewProjection.name_to_use)


def compile_service(
    definitions: Definitions,
    plan: Plan,
    name: str,
    projections: Iterable[FeatureViewProjection],
    *,
    full_names: bool = False,
) -> Service:
    """The service that answers `projections` in their order. `full_names` answers ``view__feature``, as Feast does.

    Raises DefinitionError when two features have one name, or a projection is of something unknown.
    """
    uses: dict[str, ViewUse] = {}
    function_uses: list[FunctionUse] = []
    outputs: list[Field] = []
    for projection in projections:
        used_as = projection.name_to_use()
        wanted = [(f.name, f"{used_as}__{f.name}" if full_names else f.name) for f in projection.features]
        if projection.name in definitions.on_demand:
            function = plan.function(projection.name)
            dtypes = {f.name: f.dtype for f in function.outputs}
            function_uses.append(FunctionUse(function.name, tuple(wanted)))
            for source in _sources(definitions.on_demand[projection.name]):
                uses.setdefault(source.name_to_use(), _view_use(plan, source, []))
        else:
            dtypes = {f.name: f.dtype for f in plan.view(projection.name).fields}
            uses[used_as] = _view_use(plan, projection, wanted)
        for feature, answered in wanted:
            outputs.append(Field(answered, dtypes[feature]))
    if doubled := _doubled(f.name for f in outputs):
        raise _refused(
            definitions,
            name,
            f"features {doubled} come from more than one view; ask for full feature names or rename them",
        )
    keys: dict[str, Field] = {}
    for use in uses.values():
        for column, key in zip(use.keys, plan.view(use.view).keys, strict=True):
            keys.setdefault(column, Field(column, key.dtype))
    request = {
        i.feature: Field(i.feature, i.dtype)
        for use in function_uses
        for i in plan.function(use.function).inputs
        if not i.view
    }
    service = Service(
        name, tuple(uses.values()), tuple(function_uses), tuple(keys.values()), tuple(request.values()), tuple(outputs)
    )
    return hashed_service(service, plan)


def _view_use(plan: Plan, projection: FeatureViewProjection, wanted: list[tuple[str, str]]) -> ViewUse:
    view = plan.view(projection.name)
    keys = tuple(projection.join_key_map.get(key.name, key.name) for key in view.keys)
    return ViewUse(view.name, projection.name_to_use(), keys, tuple(wanted))
