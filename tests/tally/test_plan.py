"""The plan: a document that comes back whole, and hashes that change with what decides a value, and with nothing else."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tally.errors import DefinitionError, NotReadyError, UnknownServiceError
from tally.plan import (
    PLAN_FORMAT,
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
    digest,
    hashed_service,
    hashed_view,
)
from tally.tiles import Aggregation
from tally.windows import Window

HOUR = Window(3_600, 300)
SOURCE = Source(
    "trips", "TRIPS", "DB", "RAW", "at", "", "trips.topic", (Field("at", "UnixTimestamp"), Field("x", "Float64"))
)
TABLE = Source("people", "PEOPLE", "", "", "at", "created", "", ())
WINDOWS = View(
    name="trip_windows", kind="window", source="trips", keys=(Field("id", "Int64"), Field("place", "String")),
    fields=(Field("x_sum", "Float64"),),
    columns=(Field("id", "Int64"), Field("place", "String"), Field("at", "UnixTimestamp"), Field("x", "Float64")),
    timestamp="at", created="", ttl=0, online=True, stream=True, function=Function("repo:landed", "aa"),
    aggregations=(
        Aggregation("x_sum", "x", "Float64", "sum", HOUR, "Float64"),
        Aggregation("x_max", "x", "Float64", "max", HOUR, "Float64"),
    ),
)  # fmt: skip
LATEST = View(
    name="people_latest", kind="latest", source="people", keys=(Field("id", "Int64"),), fields=(Field("age", "Int32"),),
    columns=(Field("id", "Int64"), Field("age", "Int32"), Field("at", "UnixTimestamp")), timestamp="at", created="created",
    ttl=60, online=True, stream=False, function=None, aggregations=(),
)  # fmt: skip
RATIO = RequestFunction(
    "ratio", Function("repo:ratio", "bb"),
    (Input("x_sum", "Float64", "trip_windows", "x_sum"), Input("asked", "Float64", "", "asked")), (Field("r", "Float64"),),
)  # fmt: skip
SERVICE = Service(
    name="fares",
    views=(
        ViewUse("trip_windows", "trip_windows", ("id", "place"), (("x_sum", "x_sum"),)),
        ViewUse("people_latest", "driver", ("driver_id",), (("age", "driver__age"),)),
    ),
    functions=(FunctionUse("ratio", (("r", "r"),)),),
    keys=(Field("id", "Int64"), Field("place", "String"), Field("driver_id", "Int64")),
    request=(Field("asked", "Float64"),),
    outputs=(Field("x_sum", "Float64"), Field("driver__age", "Int32"), Field("r", "Float64")),
)
LONELY = Service(
    "lonely", (ViewUse("people_latest", "people_latest", ("id",), ()),), (), (Field("id", "Int64"),), (), ()
)


def plan_of(
    *, windows: View = WINDOWS, source: Source = SOURCE, function: RequestFunction = RATIO, service: Service = SERVICE
) -> Plan:
    """A plan of everything above, with one part exchanged."""
    views = (hashed_view(LATEST, TABLE), hashed_view(windows, source))
    plan = Plan("taxis", (TABLE, source), views, (function,), ())
    return replace(plan, services=(hashed_service(service, plan), hashed_service(LONELY, plan)))


PLAN = plan_of()
FIELDS = (Field("other", "Bool"),)
FIRST = WINDOWS.aggregations[0]


# The document


def test_a_plan_comes_back_whole() -> None:
    """Text and bytes decode to an equal plan, with equal types all the way down, and equal plans are equal texts."""
    text = PLAN.to_json()
    for form in (text, text.encode()):
        again = Plan.from_json(form)
        assert again == PLAN
        assert repr(again) == repr(PLAN)
        assert again.to_json() == text
        assert again.hash == PLAN.hash
    assert json.loads(text)["format"] == PLAN_FORMAT


NAMES = st.text(max_size=5)
DTYPES = st.sampled_from(["Float64", "String", "UnixTimestamp"])


@given(
    st.builds(
        Plan,
        NAMES,
        st.lists(st.builds(Source, *[NAMES] * 7, st.lists(st.builds(Field, NAMES, DTYPES), max_size=2).map(tuple)), max_size=2).map(tuple),
        st.lists(st.builds(View, name=NAMES, kind=st.sampled_from(["latest", "window"]), source=NAMES,
            keys=st.just(()), fields=st.just(FIELDS), columns=st.just(()), timestamp=NAMES, created=NAMES,
            ttl=st.integers(0, 2**62), online=st.booleans(), stream=st.booleans(),
            function=st.one_of(st.none(), st.builds(Function, NAMES, NAMES)),
            aggregations=st.sampled_from([(), WINDOWS.aggregations]), hash=NAMES), max_size=2).map(tuple),
        st.just((RATIO,)),
        st.just((SERVICE,)),
    )
)  # fmt: skip
def test_any_plan_comes_back_whole(plan: Plan) -> None:
    """Empty and odd names, big numbers, missing functions."""
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("written", [0, PLAN_FORMAT + 1, None, "1"])
def test_another_format_is_refused(written: Any) -> None:
    """A plan of another version: NotReadyError naming both formats and the way out."""
    document = {**json.loads(PLAN.to_json()), "format": written}
    with pytest.raises(NotReadyError, match=rf"format {written!r}.* reads {PLAN_FORMAT}; run feast apply"):
        Plan.from_json(json.dumps(document))


@given(st.data())
def test_a_damaged_plan_is_refused_in_words(data: st.DataObject) -> None:
    """Cut off anywhere, or with a part missing: NotReadyError, never a decoder's own error."""
    text = PLAN.to_json()
    with pytest.raises(NotReadyError, match=r"damaged.*feast apply"):
        Plan.from_json(text[: data.draw(st.integers(0, len(text) - 1))])
    document = json.loads(text)
    part = data.draw(st.sampled_from([document, document["views"][0], document["sources"][0], document["services"][0]]))
    key = data.draw(st.sampled_from(sorted(set(part) - {"hash"})))
    del part[key]
    with pytest.raises(NotReadyError, match=r"damaged.*feast apply"):
        Plan.from_json(json.dumps(document))


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "5", '"x"', "{}", '{"format":1}', '{"format":1,"views":5}', b"\xff"]
)
def test_what_is_no_plan_is_refused_in_words(text: str | bytes) -> None:
    """Another document altogether: NotReadyError."""
    with pytest.raises(NotReadyError, match="feast apply"):
        Plan.from_json(text)


# Names


def test_unknown_names_list_what_exists() -> None:
    """Each look-up finds its object, or says what there is."""
    assert PLAN.view("trip_windows").name == "trip_windows"
    assert PLAN.source("trips") == SOURCE
    assert PLAN.function("ratio") == RATIO
    assert PLAN.service("fares").name == "fares"
    for find, message in (
        (PLAN.view, "taxis has no feature view 'nope'. It has: people_latest, trip_windows."),
        (PLAN.source, "taxis has no source 'nope'. It has: people, trips."),
        (PLAN.function, "taxis has no on-demand view 'nope'. It has: ratio."),
    ):
        with pytest.raises(NotReadyError, match=message):
            find("nope")
    with pytest.raises(UnknownServiceError, match=r"taxis has no feature service 'nope'. It has: fares, lonely\."):
        PLAN.service("nope")
    with pytest.raises(UnknownServiceError, match="It has: none"):
        Plan("taxis", (), (), (), ()).service("fares")
    with pytest.raises(NotReadyError, match="It has: none"):
        Plan("taxis", (), (), (), ()).view("v")


def test_a_services_plan_has_what_it_needs() -> None:
    """Its views, their sources and its functions, and nothing of other services; hashes stay."""
    assert PLAN.for_service("fares") == replace(PLAN, services=(PLAN.service("fares"),))
    lonely = PLAN.for_service("lonely")
    assert [v.name for v in lonely.views] == ["people_latest"]
    assert [s.name for s in lonely.sources] == ["people"]
    assert lonely.functions == ()
    assert lonely.services == (PLAN.service("lonely"),)
    assert lonely.view("people_latest").hash == PLAN.view("people_latest").hash
    with pytest.raises(UnknownServiceError):
        PLAN.for_service("nope")


def test_where_an_input_comes_from() -> None:
    """The use whose name it bears, the request, or a DefinitionError."""
    assert SERVICE.origin(Input("p", "Int32", "driver", "age")) == 1
    assert SERVICE.origin(Input("p", "Float64", "", "asked")) == -1
    with pytest.raises(DefinitionError, match="fares has no view people_latest"):
        SERVICE.origin(Input("p", "Int32", "people_latest", "age"))


def test_a_views_bytes_follow_its_hash() -> None:
    """Tag and key prefix begin with the hash, and fields and aggregations lay out the bytes."""
    view = PLAN.view("trip_windows")
    assert view.tag == bytes.fromhex(view.hash)[:8]
    assert view.prefix("taxis") == f"taxis/trip_windows@{view.hash[:8]}/".encode()
    assert view.row_layout.fields == (("x_sum", "Float64"),)
    assert view.tile_layout.aggregations == WINDOWS.aggregations


@pytest.mark.parametrize(
    ("view", "kept"),
    [
        (replace(LATEST, ttl=0), 0),
        (replace(LATEST, ttl=0, stream=True, future_tolerance=7), 0),
        (replace(LATEST, ttl=60, future_tolerance=7), 60),
        (replace(LATEST, ttl=60, stream=True, future_tolerance=7), 67),
        (replace(WINDOWS, ttl=0, stream=False, future_tolerance=7), 3_900),
        (replace(WINDOWS, ttl=60, future_tolerance=7), 3_907),
    ],
)
def test_how_long_a_key_stays(view: View, kept: int) -> None:
    """As long as a lookup can see its events, and the tolerance more where events come ahead; without a TTL for ever."""
    assert view.kept == kept


# Hashes


VIEW_CHANGES: dict[str, Any] = {
    "name": "another", "kind": "latest", "source": "another", "keys": WINDOWS.keys[::-1], "fields": FIELDS, "columns": FIELDS,
    "timestamp": "x", "created": "x", "ttl": 1, "stream": False, "aggregations": WINDOWS.aggregations[:1],
    "future_tolerance": 1,
}  # fmt: skip
AGGREGATION_CHANGES: dict[str, Any] = {
    "feature": "another", "column": "another", "dtype": "Float32", "function": "mean", "window": Window(3_600, 60),
    "output": "Float32",
}  # fmt: skip


def test_every_field_of_a_view_is_looked_at() -> None:
    """A new field of a definition must be put to one side or the other of these tests."""
    assert {f.name for f in dataclasses.fields(View)} == {*VIEW_CHANGES, "function", "online", "hash"}
    assert {f.name for f in dataclasses.fields(Aggregation)} == set(AGGREGATION_CHANGES)
    assert {f.name for f in dataclasses.fields(Source)} == {
        "name", "table", "database", "schema", "timestamp", "created", "topic", "message", "encoding"
    }  # fmt: skip
    assert {f.name for f in dataclasses.fields(Service)} == {*SERVICE_CHANGES, "hash"}
    assert {f.name for f in dataclasses.fields(RequestFunction)} == set(FUNCTION_CHANGES)
    assert {f.name for f in dataclasses.fields(Field)} == {"name", "dtype"}
    assert {f.name for f in dataclasses.fields(Encoding)} == {"format", "schema"}
    assert {f.name for f in dataclasses.fields(Window)} == {"length", "hop"}
    assert {f.name for f in dataclasses.fields(ViewUse)} == {"view", "name", "keys", "features"}


CHANGED_VIEWS = [
    *({name: value} for name, value in VIEW_CHANGES.items()),
    *({"function": function} for function in (None, Function("repo:landed", "ab"), Function("repo:other", "aa"))),
    *({"aggregations": (replace(FIRST, **{n: v}), *WINDOWS.aggregations[1:])} for n, v in AGGREGATION_CHANGES.items()),
    {"aggregations": (replace(FIRST, window=Window(7_200, 300)), *WINDOWS.aggregations[1:])},
    {"keys": (Field("id", "Int32"), WINDOWS.keys[1])},
]


@pytest.mark.parametrize("change", CHANGED_VIEWS, ids=str)
def test_whatever_decides_a_value_changes_the_views_hash(change: dict[str, Any]) -> None:
    """Each field of the definition, of its function and of its aggregations."""
    assert hashed_view(replace(WINDOWS, **change), SOURCE).hash != hashed_view(WINDOWS, SOURCE).hash


@pytest.mark.parametrize(
    "change",
    [
        {"topic": "another"},
        {"message": SOURCE.message[:1]},
        {"message": (Field("at", "Int64"), SOURCE.message[1])},
        {"encoding": Encoding("avro", "{}")},
        {"encoding": Encoding("json", "{}")},
    ],
)
def test_what_a_message_is_changes_the_views_hash(change: dict[str, Any]) -> None:
    """The topic and the message's schema decide what a row is."""
    assert hashed_view(WINDOWS, replace(SOURCE, **change)).hash != hashed_view(WINDOWS, SOURCE).hash


@pytest.mark.parametrize("change", [{"table": "T2"}, {"database": "D2"}, {"schema": "S2"}])
def test_where_a_table_stands_does_not_change_the_hash(change: dict[str, str]) -> None:
    """The same rows may be kept elsewhere: neither the view's hash nor the service's changes; the plan's does."""
    moved = plan_of(source=replace(SOURCE, **cast(Any, change)))
    assert moved.views == PLAN.views
    assert moved.services == PLAN.services
    assert moved.hash != PLAN.hash


def test_serving_a_view_or_not_does_not_change_its_hash() -> None:
    """`online` says where a value is kept, not what it is; a hash that was there before is not hashed."""
    expected = hashed_view(WINDOWS, SOURCE).hash
    assert hashed_view(replace(WINDOWS, online=False), SOURCE).hash == expected
    assert not hashed_view(replace(WINDOWS, online=False), SOURCE).online
    assert hashed_view(hashed_view(WINDOWS, SOURCE), SOURCE).hash == expected
    assert len(expected) == 32


SERVICE_CHANGES: dict[str, Any] = {
    "name": "another",
    "views": (replace(SERVICE.views[0], keys=("place", "id")), SERVICE.views[1]),
    "functions": (), "keys": SERVICE.keys[:1], "request": (), "outputs": SERVICE.outputs[::-1],
}  # fmt: skip
FUNCTION_CHANGES: dict[str, Any] = {
    "name": "another", "function": Function("repo:ratio", "bc"), "inputs": RATIO.inputs[:1], "outputs": FIELDS,
}  # fmt: skip


@pytest.mark.parametrize("change", SERVICE_CHANGES)
def test_whatever_decides_an_answer_changes_the_services_hash(change: str) -> None:
    """Names, keys, request and outputs, and their order."""
    assert (
        plan_of(service=replace(SERVICE, **{change: SERVICE_CHANGES[change]})).services[0].hash != PLAN.services[0].hash
    )


@pytest.mark.parametrize("change", [name for name in FUNCTION_CHANGES if name != "name"])
def test_a_functions_source_changes_the_hash_of_services_that_use_it(change: str) -> None:
    """And of no other service."""
    changed = plan_of(function=replace(RATIO, **{change: FUNCTION_CHANGES[change]}))
    assert changed.services[0].hash != PLAN.services[0].hash
    assert changed.services[1].hash == PLAN.services[1].hash


def test_a_views_hash_changes_that_of_services_that_use_it() -> None:
    """And of no other service."""
    changed = plan_of(windows=replace(WINDOWS, function=None))
    assert changed.services[0].hash != PLAN.services[0].hash
    assert changed.services[1].hash == PLAN.services[1].hash


def test_digests_are_of_the_document() -> None:
    """The order of a mapping does not matter, that of a list does."""
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert len(digest(None)) == 32
