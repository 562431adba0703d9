"""The clients against the oracle, by bits, over a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from serving_client import AsyncFeatureClient, FeatureClient, FeatureRows
from tally.time import to_datetime
from tests.serving_client import oracle, world
from tests.serving_client.world import DELAYS, PAIRS, PLANES, SECOND

PLACES = ["JFK", "a|b", "a\\", "", "Zürich 🛫", "|", "a\\|b"]
WHEN = st.one_of(
    st.integers(-700 * SECOND, 700 * SECOND),
    st.builds(lambda k, d: k * 5 * SECOND + d, st.integers(-140, 140), st.sampled_from([-1, 0, 1])),
)
EIGHTHS = st.integers(-(2**40), 2**40).map(lambda n: n / 1024)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "Float64": EIGHTHS | st.sampled_from([-0.0, 0.0, 0.1, 1e-5, 2.0**60, float("nan")]),
    "Float32": st.integers(-(2**20), 2**20).map(lambda n: n / 1024) | st.just(-0.0),
    "Int64": st.integers(-(2**55), 2**55) | st.sampled_from([2**60 + 1, -(2**60) - 1]),
    "Int32": st.integers(-(2**31), 2**31 - 1),
    "Bool": st.booleans(),
    "String": st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    "Bytes": st.binary(max_size=8),
    "UnixTimestamp": st.integers(-(2**50), 2**50),
}


def _row(**parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(parts)


def _nullable(fields: Any) -> dict[str, st.SearchStrategy[Any]]:
    return {f.name: st.none() | VALUES[f.dtype] for f in fields}


PLACE = st.sampled_from(PLACES)
PLANE_ROWS = st.lists(_row(place=PLACE, at=WHEN, a=st.integers(0, 3), **_nullable(PLANES.fields)), max_size=6)
PAIR_ROWS = st.lists(
    _row(code=st.sampled_from([-1, 0, 2**62]), who=PLACE, at=WHEN, a=st.integers(0, 3), **_nullable(PAIRS.fields)),
    max_size=4,
)
EVENTS = st.lists(
    _row(
        place=PLACE,
        at=WHEN,
        partition=st.integers(0, 2),
        **{a.column: st.none() | VALUES[a.dtype] for a in DELAYS.aggregations},
    ),
    max_size=12,
).map(lambda rows: [{**row, "offset": position} for position, row in enumerate(rows)])
ASKED = _row(
    place=PLACE,
    other=PLACE,
    code=st.sampled_from([-1, 0, 2**62]),
    who=PLACE,
    weight=st.none() | EIGHTHS,
    label=st.none() | st.text(max_size=3),
)


def _unique(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({(*(r.get(k) for k in ("place", "code", "who")), r["at"], r["a"]): r for r in rows}.values())


@pytest.fixture(scope="module")
def clients(redis_url: str) -> Iterator[tuple[Redis, FeatureClient, Any]]:
    """A client, and the asynchronous one as a plain function."""
    with asyncio.Runner() as runner:
        there = AsyncFeatureClient(AsyncRedis.from_url(redis_url), world.ONE)
        with FeatureClient(Redis.from_url(redis_url), world.ONE) as client:
            yield Redis.from_url(redis_url), client, lambda rows, when: runner.run(there.get(rows, when))
        runner.run(there.close())


def assert_equal(rows: FeatureRows, asked: list[dict[str, Any]], as_of: list[int], stored: dict[str, Any]) -> None:
    """Every value, dtype and status is the oracle's."""
    outputs = world.ONE.services[0].outputs
    got = rows.to_dict()
    assert list(got) == [o.name for o in outputs]
    for o in outputs:
        assert rows.columns[o.name].dtype == o.dtype
        assert len(got[o.name]) == len(asked)
    for position, (one, moment) in enumerate(zip(asked, as_of, strict=True)):
        values, statuses = oracle.answer(one, moment, stored)
        for o in outputs:
            expected = values[o.name]
            if o.dtype == "UnixTimestamp" and expected is not None:
                expected = to_datetime(expected)
            assert oracle.bits(got[o.name][position]) == oracle.bits(expected), (o.name, one, moment)
            assert rows.status[o.name][position] == statuses[o.name], (o.name, one, moment)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    planes=PLANE_ROWS, pairs=PAIR_ROWS, events=EVENTS, asked=st.lists(st.tuples(ASKED, WHEN), min_size=1, max_size=5)
)
def test_every_path_equals_the_oracle(clients: Any, planes: Any, pairs: Any, events: Any, asked: Any) -> None:
    """Many rows, one row at a time, and the asynchronous client give the oracle's bits, dtypes and statuses."""
    redis, client, get_async = clients
    redis.flushall()
    stored = {"planes": _unique(planes), "pairs": _unique(pairs), "delays": events}
    world.store_latest(redis, PLANES, stored["planes"])
    world.store_latest(redis, PAIRS, stored["pairs"])
    world.store_tiles(redis, DELAYS, events)
    rows, as_of = [row for row, _ in asked], [when for _, when in asked]
    assert_equal(client.get(rows, as_of), rows, as_of, stored)
    assert_equal(get_async(rows, np.array(as_of)), rows, as_of, stored)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert_equal(client.get(columns, as_of), rows, as_of, stored)
    for row, when in asked:
        assert_equal(client.get([row], when), [row], [when], stored)
        for same in (rows, columns):  # rows of one entity share its windows
            assert_equal(client.get(same, when), rows, [when] * len(rows), stored)
