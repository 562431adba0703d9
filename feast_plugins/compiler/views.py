"""Feature views and their sources."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Final

from feast import FeatureView, KafkaSource, SnowflakeSource, StreamFeatureView
from feast.aggregation import Aggregation as FeastAggregation
from feast.feature_view import DUMMY_ENTITY_NAME
from feast.types import from_value_type
from feast.value_type import ValueType

from feast_plugins.compiler.definitions import Definitions, doubled
from feast_plugins.compiler.messages import JSON, message_of
from tally import functions
from tally.aggregates import FUNCTIONS, output_dtype
from tally.columns import nulls
from tally.dtypes import KEY_DTYPES, Dtype
from tally.errors import DataError, DefinitionError, DefinitionMismatchError
from tally.plan import FUTURE_TOLERANCE, Encoding, Field, Function, Source, View, hashed_view
from tally.tiles import Aggregation
from tally.time import DAY, HOUR, MICROSECOND, MINUTE, SECOND
from tally.windows import window

FUTURE_TOLERANCE_TAG: Final = "tally.future_tolerance"
"""Tag of a stream feature view: how far ahead of its message's CreateTime an event may lie, like ``10m``."""


def compile_view(definitions: Definitions, view: FeatureView) -> tuple[Source, View]:
    """A view with its source. Raises DefinitionError."""
    if isinstance(view, StreamFeatureView):
        return _compile_stream_view(definitions, view)
    table = view.batch_source
    if not isinstance(table, SnowflakeSource):
        raise definitions.refused(view.name, f"its source is a {type(table).__name__}; use a SnowflakeSource")
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
        raise definitions.refused(name, f"source {table.name} is a query; name a table (or create a view in Snowflake)")
    if table.field_mapping:
        raise definitions.refused(name, f"source {table.name} has a field_mapping; rename the columns in Snowflake")
    if not table.timestamp_field:
        raise definitions.refused(name, f"source {table.name} has no timestamp_field; name its event timestamp column")
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
        raise definitions.refused(view.name, "it has no entity; give it one, whose join key says which row is whose")
    for entity_name in view.entities:
        entity = definitions.entities.get(entity_name)
        if entity is None:
            raise definitions.refused(view.name, f"entity {entity_name} is not defined; add it to the repository")
        declared = [f.dtype for f in view.entity_columns if f.name == entity.join_key]
        dtype = declared[0] if declared else from_value_type(entity.value_type)
        if entity.value_type == ValueType.UNKNOWN and not declared:
            raise definitions.refused(view.name, f"entity {entity_name} has no value_type; give it one")
        key = Field(entity.join_key, definitions.dtype(view.name, entity.join_key, dtype))
        if key.dtype not in KEY_DTYPES:
            raise definitions.refused(
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
    return tuple(Field(f.name, definitions.dtype(view.name, f.name, f.dtype)) for f in features)


def _compile_stream_view(definitions: Definitions, view: StreamFeatureView) -> tuple[Source, View]:
    stream, table = view.stream_source, view.batch_source
    if not isinstance(stream, KafkaSource):
        raise definitions.refused(view.name, f"its source is a {type(stream).__name__}; use a KafkaSource")
    if not isinstance(table, SnowflakeSource):
        raise definitions.refused(
            view.name, f"source {stream.name} needs a batch_source: the topic's table in Snowflake"
        )
    message, encoding = message_of(definitions, view.name, stream)
    source = _compile_source(definitions, view.name, table, stream.kafka_options.topic, message, encoding)
    function, columns = _event_columns(definitions, view, message)
    dtypes = {f.name: f.dtype for f in columns}
    keys = _keys(definitions, view)
    timestamp = view.timestamp_field or source.timestamp
    for needed in (*keys, Field(timestamp, "UnixTimestamp")):
        if dtypes.get(needed.name) != needed.dtype:
            raise definitions.refused(
                view.name,
                f"column {needed.name} must be {needed.dtype}, it is {dtypes.get(needed.name, 'not there')}; "
                f"its rows have {_listed(columns)}",
            )
    fields = _fields(definitions, view, keys)
    if view.aggregations:
        aggregations = tuple(_compile_aggregation(definitions, view.name, a, dtypes) for a in view.aggregations)
        if twice := doubled(a.feature for a in aggregations):
            raise definitions.refused(
                view.name, f"its aggregations give the name {twice} twice; give each a name of its own"
            )
        _check_schema(definitions, view, fields, [Field(a.feature, a.output) for a in aggregations])
        if view.ttl:
            raise definitions.refused(view.name, "a view of windows has no ttl: each window says how far it looks back")
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
        raise definitions.refused(
            view.name,
            f"its tag {FUTURE_TOLERANCE_TAG} is {text!r}; write a number and s, m, h or d, like 10m",
        )
    return int(parts[1]) * {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}[parts[2]]


def _event_columns(
    definitions: Definitions, view: StreamFeatureView, message: tuple[Field, ...]
) -> tuple[Function | None, tuple[Field, ...]]:
    """The event function, and the columns it makes of a message: found by running it on no rows."""
    function = None if view.udf is None else definitions.shared_function(view.name, view.udf)
    try:
        described = None if function is None else functions.describe(function)
        columns = functions.run_on_events(function, {f.name: nulls(f.dtype, 0) for f in message}, 0)
    except (DataError, DefinitionError, DefinitionMismatchError) as error:
        raise definitions.refused(view.name, str(error).rstrip(".")) from error
    except Exception as error:
        raise definitions.refused(
            view.name, f"its function fails on columns without rows ({type(error).__name__}: {error})"
        ) from error
    return described, tuple(Field(name, column.dtype) for name, column in columns.items())


def _compile_aggregation(
    definitions: Definitions, name: str, aggregation: FeastAggregation, dtypes: dict[str, Dtype]
) -> Aggregation:
    if aggregation.function == "count_distinct":
        raise definitions.refused(
            name,
            f"the aggregation 'count_distinct' of {aggregation.column} is not offered: it cannot be exact in bounded space, "
            "and Tally estimates nothing (docs/decisions/011); where the values are few, count a column of the view's "
            "function for each",
        )
    if aggregation.function not in FUNCTIONS:
        raise definitions.refused(
            name,
            f"the aggregation {aggregation.function!r} of {aggregation.column} does not exist; use one of {', '.join(FUNCTIONS)}",
        )
    length = _micros(aggregation.time_window)
    slide = _micros(aggregation.slide_interval)
    feature = aggregation.resolved_name(aggregation.time_window)
    if length <= 0:
        raise definitions.refused(name, f"the aggregation {feature} has no time_window; give it one")
    if not 0 < slide <= length:
        raise definitions.refused(name, f"the slide_interval of {feature} is longer than its window; make it shorter")
    if aggregation.column not in dtypes:
        raise definitions.refused(
            name,
            f"the aggregation {feature} is of column {aggregation.column!r}; its rows have {sorted(dtypes)}",
        )
    dtype = dtypes[aggregation.column]
    try:
        output = output_dtype(aggregation.function, dtype)
    except DataError as error:
        raise definitions.refused(name, f"the aggregation {feature}: {error}") from error
    return Aggregation(feature, aggregation.column, dtype, aggregation.function, window(length, slide), output)


def _check_schema(
    definitions: Definitions, view: StreamFeatureView, fields: Sequence[Field], made: Sequence[Field]
) -> None:
    wrong = [f for f in fields if f not in made]
    if wrong:
        raise definitions.refused(
            view.name,
            f"its schema has {_listed(wrong)}, which its rows do not give; they give {_listed(made)}",
        )
    names = {f.name for f in fields}
    forgotten = [f for f in made if f.name not in names]
    if view.aggregations and forgotten:
        raise definitions.refused(view.name, f"its schema lacks {_listed(forgotten)}; add a Field for each aggregation")


def _listed(fields: Iterable[Field]) -> str:
    return ", ".join(f"{f.name} {f.dtype}" for f in fields)


def _micros(duration: timedelta | None) -> int:
    return 0 if duration is None else duration // MICROSECOND
