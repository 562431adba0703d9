"""A small project whose tables are real Delta tables: weather by airport (warehouse) and departures by carrier (messages)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ingestion.arrow import from_columns
from ingestion.delta import open_table, write_table
from ingestion.offline import IDENTITY, Extracted, extracted, source_hash
from tally.columns import column
from tally.functions import describe
from tally.plan import (
    Field,
    FunctionUse,
    Input,
    Plan,
    RequestFunction,
    Service,
    Source,
    View,
    ViewUse,
    hashed_service,
)
from tally.time import HOUR, MINUTE
from tally.windows import Window
from tests.oracle import Event
from tests.views import aggregation, latest_view, window_view

SERVICE = "delay"
MESSAGE = (Field("event_timestamp", "UnixTimestamp"), Field("carrier", "String"), Field("delay", "Float64"))
WEATHER = Source("weather", "WEATHER", "", "", "event_timestamp", "created", "", ())
DEPARTURES = Source("departures", "DEPARTURES", "", "", "event_timestamp", "", "departures", MESSAGE)


def against(mean: Any, temp: Any, limit: Any) -> dict[str, Any]:
    """A request function of a window, a latest row and a field of the request."""
    return {"above": mean > limit, "warm": np.where(np.isnan(temp), 0.0, temp) * 2.0}


def weather_view() -> View:
    """The weather at an airport, for six hours."""
    fields = (Field("temp", "Float64"), Field("reading", "Int64"), Field("sky", "String"))
    return latest_view("weather_now", WEATHER, [Field("origin", "String")], fields, ttl=6 * HOUR)


def delays_view() -> View:
    """What a carrier's departures were like in the last hour and the last six."""
    hour, six = Window(HOUR, 5 * MINUTE), Window(6 * HOUR, 30 * MINUTE)
    _, carrier, delay = MESSAGE
    aggregations = (
        aggregation("delay_count_1h", delay, "count", hour),
        aggregation("delay_mean_1h", delay, "mean", hour),
        aggregation("delay_std_6h", delay, "std", six),
        aggregation("delay_max_6h", delay, "max", six),
    )
    return window_view("delays", DEPARTURES, [carrier], aggregations)


def make_plan() -> Plan:
    """One service that uses the weather twice (where the flight leaves, where it lands) and a window."""
    views = (weather_view(), delays_view())
    function = RequestFunction(
        "against",
        describe(against),
        (
            Input("mean", "Float64", "delays", "delay_mean_1h"),
            Input("temp", "Float64", "there", "temp"),
            Input("limit", "Float64", "", "limit"),
        ),
        (Field("above", "Bool"), Field("warm", "Float64")),
    )
    uses = (
        ViewUse(
            "delays", "delays", ("carrier",), tuple((f.name, f.name) for f in views[1].fields if "mean" not in f.name)
        ),
        ViewUse("weather_now", "weather_now", ("origin",), (("temp", "temp"), ("reading", "reading"), ("sky", "sky"))),
        ViewUse("weather_now", "there", ("dest",), (("reading", "there__reading"),)),
    )
    outputs = (
        Field("warm", "Float64"),
        Field("temp", "Float64"),
        Field("reading", "Int64"),
        Field("sky", "String"),
        Field("there__reading", "Int64"),
        *(f for f in views[1].fields if "mean" not in f.name),
        Field("above", "Bool"),
    )
    keys = (Field("carrier", "String"), Field("origin", "String"), Field("dest", "String"))
    service = Service(
        SERVICE,
        uses,
        (FunctionUse("against", (("warm", "warm"), ("above", "above"))),),
        keys,
        (Field("limit", "Float64"),),
        outputs,
    )
    plan = Plan("flights", (WEATHER, DEPARTURES), views, (function,), ())
    return Plan("flights", plan.sources, views, plan.functions, (hashed_service(service, plan),))


PLAN = make_plan()


def land_weather(offline_uri: str, events: Sequence[Event]) -> int:
    """Append weather rows; the version that this made."""
    return _append(offline_uri, WEATHER, _typed(PLAN.view("weather_now").columns, events))


def land_departures(
    offline_uri: str,
    events: Sequence[Event],
    *,
    created: Sequence[int | None] | None = None,
    landed: Sequence[int | None] | None = None,
) -> int:
    """Append messages, each with its partition (a) and offset (b); the version that this made.

    `created` (CreateTime) and `landed` (when the warehouse had it) are the events' arrivals where they are not given.
    """
    count, arrival = len(events), [e.arrival for e in events]
    identity: list[Sequence[Any]] = [["departures"] * count, [e.a for e in events], [e.b for e in events]]
    identity += [created or arrival, landed or arrival, [None] * count]
    table = _typed(MESSAGE, events)
    for field, values in reversed(list(zip(IDENTITY, identity, strict=True))):
        table = table.add_column(0, field, pa.array(values).cast(field.type))
    ends: dict[int, int] = {}
    for event in events:
        ends[event.a] = max(event.b, ends.get(event.a, event.b))
    return _append(offline_uri, DEPARTURES, table, ends)


def _typed(fields: Sequence[Field], events: Sequence[Event]) -> pa.Table:
    return from_columns({f.name: column(f.dtype, [e.values[f.name] for e in events]) for f in fields})


def _append(offline_uri: str, source: Source, table: pa.Table, offsets: Mapping[int, int] | None = None) -> int:
    there = open_table(offline_uri, source.name)
    ends = dict(offsets or {})
    for partition, offset in (extracted(there, source.name).offsets if there else {}).items():
        ends[partition] = max(offset, ends.get(partition, offset))
    known = Extracted(source_hash(PLAN, source), offsets=ends, landed={}, instant=None).to_metadata()
    return write_table(
        offline_uri, source.name, there, table.schema, table.to_batches(), overwrite=False, metadata=known
    )


def weather(origin: str, at: int, created: int, temp: float | None, reading: int | None, sky: str | None) -> Event:
    """A warehouse row."""
    values = {"origin": origin, "temp": temp, "reading": reading, "sky": sky, "event_timestamp": at, "created": created}
    return Event(at, created, 0, created, values)


def departure(carrier: str, at: int, delay: float | None, partition: int, offset: int, arrival: int) -> Event:
    """A message."""
    return Event(at, partition, offset, arrival, {"carrier": carrier, "delay": delay, "event_timestamp": at})


def write_repo(folder: Path) -> Path:
    """A feature repository after `feast apply`, as far as training sees it."""
    repo = folder / "features"
    (repo / "data").mkdir(parents=True)
    (repo / "data" / "plan.json").write_text(PLAN.to_json())
    return repo
