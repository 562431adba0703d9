"""The views that the benchmarks read and write, as `feast apply` would compile them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ingestion.reading import Rows
from tally.aggregates import output_dtype
from tally.columns import Column, column
from tally.dtypes import Dtype
from tally.plan import (
    Field,
    FunctionUse,
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
from tally.time import DAY, HOUR
from tally.windows import Window, default_hop

KEY: Final = Field("k", "Int64")
AT: Final = Field("ts", "UnixTimestamp")
AMOUNT: Final = Field("amount", "Float64")
MESSAGE: Final = (AT, KEY, AMOUNT)
TABLE: Final = Source("rows", "ROWS", "", "", AT.name, "", "", ())
WINDOWS: Final = {"1h": Window(HOUR, default_hop(HOUR)), "24h": Window(DAY, default_hop(DAY))}
EIGHT: Final[tuple[Dtype, ...]] = ("Float64", "Float64", "Float64", "Int64", "Int64", "Float64", "Float64", "Int64")
THREE_VIEWS: Final = {
    "first": (("count", "1h"), ("sum", "1h"), ("mean", "24h")),
    "second": (("count", "1h"), ("max", "24h")),
    "third": (("sum", "24h"), ("mean", "1h"), ("count", "24h")),
}
"""Eight windows in three views: (function, window) of the column `amount`."""


def topic_source(topic: str) -> Source:
    """The source whose messages are `MESSAGE`, in `topic`."""
    return Source("events", "EVENTS", "", "", AT.name, "", topic, MESSAGE)


def latest_view(name: str, dtypes: Sequence[Dtype] = EIGHT) -> View:
    """A view of the latest row, with fields ``<name>_0`` and so on of these dtypes; it never expires."""
    fields = tuple(Field(f"{name}_{i}", dtype) for i, dtype in enumerate(dtypes))
    return hashed_view(_view(name, "latest", TABLE, fields, (KEY, *fields, AT), ()), TABLE)


def windowed_view(name: str, wanted: Sequence[tuple[str, str]], source: Source) -> View:
    """A view of windows of `amount`; its features are called ``<name>_<function>_<window>``."""
    aggregations = tuple(
        Aggregation(
            f"{name}_{function}_{window}",
            AMOUNT.name,
            AMOUNT.dtype,
            function,
            WINDOWS[window],
            output_dtype(function, AMOUNT.dtype),
        )
        for function, window in wanted
    )
    fields = tuple(Field(a.feature, a.output) for a in aggregations)
    return hashed_view(_view(name, "window", source, fields, MESSAGE, aggregations), source)


def _view(
    name: str,
    kind: str,
    source: Source,
    fields: tuple[Field, ...],
    columns: tuple[Field, ...],
    aggregations: tuple[Aggregation, ...],
) -> View:
    return View(
        name=name,
        kind="window" if kind == "window" else "latest",
        source=source.name,
        keys=(KEY,),
        fields=fields,
        columns=columns,
        timestamp=AT.name,
        created="",
        ttl=0,
        online=True,
        stream=kind == "window",
        function=None,
        aggregations=aggregations,
    )


def three_windowed_views(source: Source) -> tuple[View, ...]:
    """The views of `THREE_VIEWS`."""
    return tuple(windowed_view(name, wanted, source) for name, wanted in THREE_VIEWS.items())


def plan_of(project: str, source: Source, views: Sequence[View], request: RequestFunction | None = None) -> Plan:
    """A plan whose one service, `all`, answers every field of `views`, and what the request function gives."""
    inputs = () if request is None else request.inputs
    asked = tuple(Field(i.feature, i.dtype) for i in inputs if not i.view)
    outputs = () if request is None else request.outputs
    service = Service(
        "all",
        tuple(ViewUse(v.name, v.name, (KEY.name,), tuple((f.name, f.name) for f in v.fields)) for v in views),
        () if request is None else (FunctionUse(request.name, tuple((f.name, f.name) for f in outputs)),),
        (KEY,),
        asked,
        (*(field for view in views for field in view.fields), *outputs),
    )
    plan = Plan(project, (source,), tuple(views), () if request is None else (request,), ())
    return dataclasses.replace(plan, services=(hashed_service(service, plan),))


def columns_of(view: View, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Column]:
    """The view's columns from arrays of those names; the timestamp is int64 µs."""
    return {field.name: column(field.dtype, arrays[field.name]) for field in view.columns}


def rows_of(view: View, columns: dict[str, Column]) -> Rows:
    """Rows as the offline store gives them, as if they had come in their order through one partition."""
    at = columns[view.timestamp].values
    return Rows(columns, at, np.zeros(len(at), np.int64), np.arange(len(at)), at, {}, 0)
