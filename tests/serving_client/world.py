"""A small project with every dtype and every kind of view, and how its rows get into Redis without any job."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from redis import Redis

from tally import tiles
from tally.aggregates import FUNCTIONS, EventOrder
from tally.columns import column
from tally.dtypes import DTYPES, Dtype
from tally.functions import describe
from tally.layout import entity_texts, pack_tiles, plan_key, services_key, version_key, views_key
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
from tally.windows import Window
from tests.views import aggregation, latest_view, window_view

PROJECT = "world"
SECOND = 1_000_000
TTL = 60 * SECOND
SHORT = Window(60 * SECOND, 5 * SECOND)
LONG = Window(600 * SECOND, 60 * SECOND)
NUMBERS: tuple[Dtype, ...] = ("Float64", "Float32", "Int64", "Int32", "Bool")

Row = Mapping[str, Any]


def combine(f64: Any, i64: Any, total: Any, weight: Any) -> dict[str, Any]:
    """A request function: stored features, one of them windowed, with a request field. It writes into what it is given."""
    heavy = weight > 1.5
    weight *= f64
    f64[:] = total
    i64 += 1
    return {"score": weight + f64, "next": i64, "heavy": heavy}


def echo(text: Any, label: Any) -> dict[str, Any]:
    """A request function of request fields alone."""
    return {
        "both": np.array([None if a is None or b is None else a + b for a, b in zip(text, label, strict=True)], object)
    }


def clock(moment: Any) -> dict[str, Any]:
    """A request function of a time in the request."""
    return {"later": moment + np.timedelta64(1, "us"), "day": moment.astype("datetime64[D]").astype("datetime64[us]")}


def _fields(**dtypes: Dtype) -> tuple[Field, ...]:
    return tuple(Field(name, dtype) for name, dtype in dtypes.items())


SOURCE = Source("rows", "ROWS", "", "", "at", "created", "", ())
STREAM = Source("events", "EVENTS", "", "", "at", "", "events", _fields(place="String", at="UnixTimestamp"))
PLACE = _fields(place="String")
EVERY = tuple(Field(f"v_{dtype}", dtype) for dtype in DTYPES)


AT = _fields(at="UnixTimestamp")
CODES = _fields(code="Int64", who="String")
NOTES = _fields(level="Int64", note="String")
PLANES = latest_view("planes", SOURCE, PLACE, EVERY, columns=(*PLACE, *EVERY, *AT), ttl=TTL)
PAIRS = latest_view("pairs", STREAM, CODES, NOTES, columns=(*CODES, *NOTES, *AT))
DELAYS = window_view(
    "delays",
    STREAM,
    PLACE,
    [
        aggregation(f"{function}_{field.dtype}_{label}", field, function, window)
        for field in EVERY
        for function in FUNCTIONS
        if field.dtype in NUMBERS or function not in ("sum", "mean", "std", "var")
        for label, window in (("short", SHORT), ("long", LONG))
    ],
    columns=(*PLACE, *EVERY, *AT),
)


def make_plan() -> Plan:
    """The project's plan: one service that uses `planes` and `delays` twice, under two columns of the request."""
    combined = RequestFunction(
        "combined",
        describe(combine),
        (
            Input("f64", "Float64", "planes", "v_Float64"),
            Input("i64", "Int64", "planes", "v_Int64"),
            Input("total", "Float64", "delays", "sum_Float64_long"),
            Input("weight", "Float64", "", "weight"),
        ),
        _fields(score="Float64", next="Int64", heavy="Bool"),
    )
    echoed = RequestFunction(
        "echoed",
        describe(echo),
        (Input("text", "String", "", "place"), Input("label", "String", "", "label")),
        _fields(both="String"),
    )
    uses = (
        ViewUse("planes", "planes", ("place",), tuple((f.name, f.name) for f in EVERY)),
        ViewUse("planes", "there", ("other",), tuple((f.name, f"there__{f.name}") for f in EVERY)),
        ViewUse("pairs", "pairs", ("code", "who"), (("note", "note"), ("level", "level"))),
        ViewUse("delays", "delays", ("place",), tuple((f.name, f.name) for f in DELAYS.fields)),
        ViewUse("delays", "delays_there", ("other",), (("sum_Int64_short", "there__sum"),)),
    )
    functions = (
        FunctionUse("combined", (("score", "score"), ("next", "next"), ("heavy", "is_heavy"))),
        FunctionUse("echoed", (("both", "both"),)),
    )
    outputs = (
        *_fields(score="Float64", is_heavy="Bool", next="Int64", both="String"),
        *EVERY,
        *(Field(f"there__{f.name}", f.dtype) for f in EVERY),
        *_fields(note="String", level="Int64", there__sum="Int64"),
        *DELAYS.fields,
    )
    service = Service(
        "everything",
        uses,
        functions,
        _fields(place="String", other="String", code="Int64", who="String"),
        _fields(weight="Float64", label="String"),
        outputs,
    )
    plan = Plan(PROJECT, (SOURCE, STREAM), (PLANES, PAIRS, DELAYS), (combined, echoed), ())
    small = Service(
        "small", uses[2:3], (), _fields(code="Int64", who="String"), (), _fields(note="String", level="Int64")
    )
    timed = RequestFunction(
        "timed",
        describe(clock),
        (Input("moment", "UnixTimestamp", "", "moment"),),
        _fields(later="UnixTimestamp", day="UnixTimestamp"),
    )
    plan = dataclasses.replace(plan, functions=(combined, echoed, timed))
    clocked = Service(
        "clocked",
        (ViewUse("pairs", "pairs", ("code", "who"), ()),),
        (FunctionUse("timed", (("later", "later"), ("day", "day"))),),
        _fields(code="Int64", who="String"),
        _fields(moment="UnixTimestamp"),
        _fields(later="UnixTimestamp", day="UnixTimestamp"),
    )
    services = tuple(hashed_service(one, plan) for one in (service, small, clocked))
    return dataclasses.replace(plan, services=services)


PLAN = make_plan()
ONE = PLAN.for_service("everything")


def key_of(view: View, row: Row) -> bytes:
    """The Redis key of a row's entity."""
    return view.prefix(PROJECT) + entity_texts([column(k.dtype, [row[k.name]]) for k in view.keys])[0]


def store_latest(redis: Redis, view: View, rows: Sequence[Row]) -> None:
    """Write the greatest row of each entity; rows have the view's columns, `at` in µs, and the tie-break `a`."""
    newest: dict[bytes, Row] = {}
    for row in sorted(rows, key=lambda r: (r["at"], r["a"])):
        newest[key_of(view, row)] = row
    for key, row in newest.items():
        columns = {f.name: column(f.dtype, [row[f.name]], f.name) for f in view.fields}
        at, a = (np.array([row[name]], np.int64) for name in ("at", "a"))
        redis.set(key, view.row_layout.pack(at, a, np.zeros(1, np.int64), columns)[0])


def store_tiles(redis: Redis, view: View, rows: Sequence[Row]) -> None:
    """Write the tiles of each entity; rows have the view's keys and aggregated columns, `at`, `partition`, `offset`."""
    entities: dict[bytes, list[Row]] = {}
    for row in rows:
        entities.setdefault(key_of(view, row), []).append(row)
    dtypes = {a.column: a.dtype for a in view.aggregations}
    for key, own in entities.items():
        order = EventOrder(*(np.array([r[name] for r in own], np.int64) for name in ("at", "partition", "offset")))
        columns = {name: column(dtype, [r[name] for r in own], name) for name, dtype in dtypes.items()}
        _, records, _ = tiles.build(view.tile_layout, np.zeros(len(own), np.int64), order, columns)
        (packed,) = view.tile_layout.pack(records, np.zeros(1, np.int64))
        redis.set(key, pack_tiles(view.tag, int(order.timestamp.max()), fences_of(own), packed))


def fences_of(rows: Sequence[Row]) -> dict[int, int]:
    """The last offset of each partition."""
    fences: dict[int, int] = {}
    for row in rows:
        fences[row["partition"]] = max(row["offset"], fences.get(row["partition"], 0))
    return fences


def publish(redis: Redis, plan: Plan = PLAN, views: Sequence[View] | None = None) -> None:
    """What `feast apply` and the loading jobs leave in Redis."""
    for service in plan.services:
        redis.set(plan_key(plan.project, service.name), plan.for_service(service.name).to_json())
        redis.hset(services_key(plan.project), service.name, service.hash)
        redis.set(version_key(plan.project, service.name), service.hash)
    for view in plan.views if views is None else views:
        redis.hset(views_key(plan.project), f"{view.name}@{view.hash}", "{}")


def in_columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows of a request as columns, which arrays answer however few they are."""
    return {name: [row[name] for row in rows] for name in rows[0]}
