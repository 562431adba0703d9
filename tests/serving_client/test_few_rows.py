"""Few rows in scalars and many in arrays are one lookup: the same answers on both sides of the switch between them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from serving_client import FeatureClient, FeatureRows, Status
from serving_client.few_rows import FEW, FewRequest, FewRows
from serving_client.lookup import Lookup, Request
from tally.errors import StoredBytesError
from tally.plan import Field, hashed_service
from tests.serving_client import oracle, world
from tests.serving_client.test_parity import ASKED, EVENTS, PAIR_ROWS, PLANE_ROWS, WHEN, assert_equal
from tests.serving_client.world import DELAYS, PAIRS, PLANES

AROUND = (2, FEW - 1, FEW, FEW + 1)


def assert_same(one: FeatureRows, other: FeatureRows) -> None:
    """Everything that an answer says, by bits and dtypes."""
    assert len(one) == len(other)
    assert one.as_of.tolist() == other.as_of.tolist()
    assert one.ahead.tolist() == other.ahead.tolist()
    assert one.evidence == other.evidence
    values, expected = one.to_dict(), other.to_dict()
    assert list(values) == list(expected)
    for name, items in expected.items():
        assert list(map(oracle.bits, values[name])) == list(map(oracle.bits, items))
        column, known = one.columns[name], other.columns[name]
        assert (column.dtype, column.values.dtype) == (known.dtype, known.values.dtype)
        assert column.valid.tolist() == known.valid.tolist()
        assert list(map(oracle.bits, column.values.tolist())) == list(map(oracle.bits, known.values.tolist()))
        assert one.status[name].dtype == other.status[name].dtype
        assert one.status[name].tolist() == other.status[name].tolist()
    listed, expected = one.items(), other.items()
    for name, items in expected.items():
        assert [(type(item), oracle.bits(item)) for item in listed[name]] == [
            (type(item), oracle.bits(item)) for item in items
        ]
    for name, instants in other.event_timestamps.items():
        assert one.event_timestamps[name].to_list() == instants.to_list()
    numbers = other.numeric_names
    assert one.to_numpy(numbers).tobytes() == other.to_numpy(numbers).tobytes()


def test_where_the_switch_is() -> None:
    """Lists of up to `FEW` rows are looked up in scalars; more rows, and columns, in arrays."""
    lookup = Lookup(world.ONE)
    row = {"place": "JFK", "other": "LGA", "code": 1, "who": "a|b", "weight": 2.0, "label": "!"}
    assert isinstance(lookup.request([row] * FEW), FewRequest)
    assert isinstance(lookup.request([row] * (FEW + 1)), Request)
    assert isinstance(lookup.request(world.in_columns([row])), Request)
    assert isinstance(lookup.request([]), Request)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture])
@given(
    planes=PLANE_ROWS,
    pairs=PAIR_ROWS,
    events=EVENTS,
    asked=st.lists(st.tuples(ASKED, WHEN), min_size=1, max_size=5),
    count=st.sampled_from(AROUND),
)
def test_both_sides_of_the_switch_answer_alike(
    redis: Redis, planes: Any, pairs: Any, events: Any, asked: Any, count: int
) -> None:
    """Any rows around the switch, as of one instant and of one each: the answer of arrays, and the oracle's."""
    redis.flushall()
    stored = {
        "planes": list({(r["place"], r["at"], r["a"]): r for r in planes}.values()),
        "pairs": list({(r["code"], r["who"], r["at"], r["a"]): r for r in pairs}.values()),
        "delays": events,
    }
    world.store_latest(redis, PLANES, stored["planes"])
    world.store_latest(redis, PAIRS, stored["pairs"])
    world.store_tiles(redis, DELAYS, events)
    client = FeatureClient(redis, world.ONE)
    asked = [asked[position % len(asked)] for position in range(count)]
    rows, instants = [row for row, _ in asked], [when for _, when in asked]
    for as_of in (instants, [instants[0]] * count):
        found = client.get(rows, as_of)
        assert isinstance(found, FewRows) == (count <= FEW)
        assert_same(found, client.get(world.in_columns(rows), as_of))
        assert_equal(found, rows, as_of, stored)


@pytest.mark.parametrize("field", PLANES.fields, ids=lambda field: field.dtype)
def test_a_service_of_one_output(redis: Redis, field: Field) -> None:
    """One feature alone is no special case: of each dtype, in scalars as in arrays."""
    service = world.ONE.services[0]
    planes = dataclasses.replace(service.views[0], features=((field.name, field.name),))
    narrow = dataclasses.replace(
        service, views=(planes,), functions=(), keys=service.keys[:1], request=(), outputs=(field,)
    )
    client = FeatureClient(redis, dataclasses.replace(world.ONE, services=(hashed_service(narrow, world.ONE),)))
    stored = {"place": "JFK", "at": 0, "a": 0, **{other.name: None for other in PLANES.fields}}
    value: Any = {"String": "é", "Bytes": b"\0", "Bool": True}.get(field.dtype, 1)
    world.store_latest(redis, PLANES, [{**stored, field.name: value}])
    rows = [{"place": "JFK"}, {"place": "EWR"}]
    for asked in (rows[:1], rows):
        found = client.get(asked, 0)
        assert isinstance(found, FewRows)
        assert_same(found, client.get(world.in_columns(asked), 0))
        assert found.status[field.name].tolist() == [Status.PRESENT, Status.MISSING][: len(asked)]


@pytest.mark.parametrize("count", [1, 2, FEW, FEW + 1])
def test_damage_is_named_wherever_uses_of_views_stand(redis: Redis, count: int) -> None:
    """The key whose bytes are damaged is named, also where uses of one view have one of another view between them."""
    service = world.ONE.services[0]
    uses = (service.views[0], service.views[3], service.views[1])  # planes, delays, planes once more
    outputs = tuple(Field(f"{name}{f.name}", f.dtype) for name in ("", "there__") for f in PLANES.fields)
    mixed = dataclasses.replace(
        service, views=uses, functions=(), keys=service.keys[:2], request=(), outputs=(*outputs, *DELAYS.fields)
    )
    plan = dataclasses.replace(world.ONE, services=(hashed_service(mixed, world.ONE),))
    rows = [{"place": f"p{position}", "other": f"q{position}"} for position in range(count)]
    nulls = {field.name: None for field in PLANES.fields}
    for row in rows:
        world.store_latest(redis, PLANES, [{"place": place, "at": 0, "a": 0, **nulls} for place in row.values()])
    client = FeatureClient(redis, plan)
    assert np.all(client.get(rows, 0).status["there__v_Int64"] == 0)
    damaged = world.key_of(PLANES, {"place": rows[-1]["other"]})
    redis.append(damaged, b"x")
    with pytest.raises(StoredBytesError, match=repr(damaged)[2:-1]):
        client.get(rows, 0)
