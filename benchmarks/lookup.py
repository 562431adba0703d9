"""Lookups from Redis beside what Redis itself takes, and beside Feast's own client."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from redis import Redis

from benchmarks.definitions import (
    AT,
    KEY,
    TABLE,
    columns_of,
    latest_view,
    plan_of,
    rows_of,
    three_windowed_views,
    topic_source,
)
from benchmarks.measure import Call, DifferentAnswersError, Report, Result, Target, in_turns
from infra.local import embedded
from ingestion.materialize import tile_values
from ingestion.offline import Rows
from ingestion.redis_calls import load_library
from ingestion.redis_store import LatestWriter, TileWriter
from serving_client import FeatureClient
from tally.columns import Column, column
from tally.functions import describe
from tally.layout import entity_texts
from tally.plan import Field, Input, Plan, RequestFunction, View
from tally.time import DAY, HOUR, SECOND
from training.join import Ask, join

ENTITIES: Final = 200
EVENTS_EACH: Final = 200
ASKED: Final = 100
SAMPLES: Final = 5_000
VIEWS: Final = ("x", "y", "z")
MICROSECONDS: Final = 1e6


def per_weight(x_0: Any, weight: Any) -> dict[str, Any]:
    """The request function: a stored feature and a field of the request."""
    return {"per_weight": x_0 / weight}


def run(*, quick: bool) -> Report:
    """Time the lookups, after each side's answer was checked. Raises DifferentAnswersError."""
    samples = SAMPLES // 10 if quick else SAMPLES
    with (
        tempfile.TemporaryDirectory() as home,
        embedded(Path(home), ("redis",)) as settings,
        Redis.from_url(settings.redis_url) as redis,
    ):
        load_library(redis)
        now = time.time_ns() // 1000
        rng = np.random.default_rng(0)
        results = []
        request = RequestFunction(
            "request",
            describe(per_weight),
            (Input("x_0", "Float64", "x", "x_0"), Input("weight", "Float64", "", "weight")),
            (Field("per_weight", "Float64"),),
        )
        latest = [latest_view(name) for name in VIEWS]
        stored = {view.name: _latest_rows(rng, view, now) for view in latest}
        with_function = plan_of("bench", TABLE, latest, request)
        for view in latest:
            _store_latest(redis, with_function, view, stored[view.name])
        _check_latest(redis, with_function, stored)
        results += _beside_redis(redis, with_function, "3 views x 8 fields + function", samples, (1.6, 2.0, 2.0))

        source = topic_source("events")
        windowed = plan_of("bench", source, three_windowed_views(source))
        events = _events(rng, windowed.views[0], now)
        for view in windowed.views:
            _store_tiles(redis, windowed, view, events)
        _check_windows(redis, windowed, events, now)
        results += _beside_redis(redis, windowed, "3 views, 8 windows", samples, (2.5, None, 3.0))

        # Feast comes last: its import would weigh on what was measured before.
        plain = plan_of("bench", TABLE, latest)
        results += _beside_feast(redis, settings.redis_url, plain, stored, samples)
    return Report(results, _NOTES)


_NOTES: Final = (
    "Ours is get(...).to_dict(), Python values in hand. PING is the shortest round trip that redis-py makes.",
    "MGET fetches the same bytes in one round trip and leaves them packed: a floor, not a peer.",
    "Checked before timing: latest rows equal what was written, windows equal the offline join, Feast answers as we do.",
    "Feast: its SDK and its Redis store, the same rows in plain views; ours beside it has no request function either.",
)


def _latest_rows(rng: np.random.Generator, view: View, now: int) -> Rows:
    arrays: dict[str, NDArray[Any]] = {KEY.name: np.arange(ENTITIES), AT.name: np.full(ENTITIES, now - SECOND)}
    for field in view.fields:
        floats = field.dtype == "Float64"
        arrays[field.name] = rng.normal(size=ENTITIES) if floats else rng.integers(0, 1000, ENTITIES)
    return rows_of(view, columns_of(view, arrays))


def _events(rng: np.random.Generator, view: View, now: int) -> Rows:
    count = ENTITIES * EVENTS_EACH
    arrays = {
        KEY.name: rng.integers(0, ENTITIES, count),
        AT.name: now - rng.integers(0, DAY + HOUR, count),
        "amount": np.round(rng.gamma(2.0, 30.0, count), 2),
    }
    return rows_of(view, columns_of(view, arrays))


def _entities() -> list[bytes]:
    return entity_texts([_keys(ENTITIES)])


def _keys(count: int) -> Column:
    return column("Int64", np.arange(count))


def _store_latest(redis: Redis, plan: Plan, view: View, rows: Rows) -> None:
    fields = {field.name: rows.columns[field.name] for field in view.fields}
    values = view.row_layout.pack(rows.timestamp, rows.a, rows.b, fields)
    LatestWriter(redis, plan.project, view).put(_entities(), values)


def _store_tiles(redis: Redis, plan: Plan, view: View, rows: Rows) -> None:
    codes = rows.columns[KEY.name].values
    fences = dict.fromkeys(range(4), len(codes))
    TileWriter(redis, plan.project, view).load(_entities(), tile_values(view, rows, codes, ENTITIES, fences)[1])


def _asked(count: int) -> list[dict[str, Any]]:
    return [{KEY.name: number, "weight": 2.0} for number in range(count)]


def _check_latest(redis: Redis, plan: Plan, stored: dict[str, Rows]) -> None:
    client = FeatureClient(redis, plan)
    expected = {
        field.name: stored[view.name].columns[field.name].values for view in plan.views for field in view.fields
    }
    expected["per_weight"] = expected["x_0"] / 2.0
    _equal(client, None, {name: values[:ASKED] for name, values in expected.items()})


def _check_windows(redis: Redis, plan: Plan, events: Rows, now: int) -> None:
    expected: dict[str, NDArray[Any]] = {}
    for view in plan.views:
        names = tuple(field.name for field in view.fields)
        ask = Ask([_keys(ASKED)], np.full(ASKED, now), names, "event_time", None)
        expected |= {name: answer.values for name, answer in join(view, events, [ask])[0].items()}
    _equal(FeatureClient(redis, plan), now, expected)


def _equal(client: FeatureClient, as_of: int | None, expected: dict[str, NDArray[Any]]) -> None:
    """Whether many rows and one row answer `expected`, by bits."""
    many = client.get(_asked(ASKED), as_of)
    one = client.get(_asked(1), as_of)
    for name, values in expected.items():
        if not (
            many.columns[name].values.tobytes() == values.tobytes()
            and one.columns[name].values.tobytes() == values[:1].tobytes()
        ):
            raise DifferentAnswersError(f"The lookup of {name} does not give what was written; nothing was timed.")


def _beside_redis(
    redis: Redis, plan: Plan, what: str, samples: int, bounds: tuple[float, float | None, float]
) -> list[Result]:
    """`bounds`: of one row's p50 and p99 beside PING, and of many rows' p50 beside MGET."""
    client = FeatureClient(redis, plan)
    one, many = _asked(1), _asked(ASKED)
    cases: dict[str, Call] = {
        "1 row": lambda: client.get(one).to_dict(),
        "PING": redis.ping,
        "MGET of 1 row": _mget(redis, plan, 1),
    }
    times = in_turns(cases, samples)
    p50, p99, many_p50 = bounds
    results = [
        _result(f"{what}, 1 row, p50, beside PING", times["1 row"], times["PING"], 50, p50),
        _result(f"{what}, 1 row, p99, beside PING", times["1 row"], times["PING"], 99, p99),
        _result(f"{what}, 1 row, p50, beside MGET", times["1 row"], times["MGET of 1 row"], 50, None),
        _result(f"{what}, 1 row, p99, beside MGET", times["1 row"], times["MGET of 1 row"], 99, None),
    ]
    cases = {"many": lambda: client.get(many).to_dict(), "MGET": _mget(redis, plan, ASKED)}
    times = in_turns(cases, samples)
    return [
        *results,
        _result(f"{what}, {ASKED} rows, p50, beside MGET", times["many"], times["MGET"], 50, many_p50),
        _result(f"{what}, {ASKED} rows, p99, beside MGET", times["many"], times["MGET"], 99, None),
    ]


def _mget(redis: Redis, plan: Plan, count: int) -> Call:
    keys = [view.prefix(plan.project) + entity for view in plan.views for entity in _entities()[:count]]
    return lambda: redis.mget(keys)


def _result(
    name: str, ours: NDArray[np.float64], theirs: NDArray[np.float64], percent: int, at_most: float | None
) -> Result:
    target = None if at_most is None else Target("ratio", "<=", at_most)
    return Result(
        f"lookup: {name}",
        float(np.percentile(ours, percent)) * MICROSECONDS,
        float(np.percentile(theirs, percent)) * MICROSECONDS,
        "us",
        target,
    )


def _beside_feast(redis: Redis, redis_url: str, plan: Plan, stored: dict[str, Rows], samples: int) -> list[Result]:
    client = FeatureClient(redis, plan)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        store, features = _feast(Path(folder), redis_url, plan.views, stored)
        for count, name, at_most in ((1, "1 row", 1 / 5), (ASKED, f"{ASKED} rows", 1 / 20)):
            rows = _asked(count)
            entities = [{KEY.name: row[KEY.name]} for row in rows]
            cases: dict[str, Call] = {
                "ours": lambda rows=rows: client.get(rows).to_dict(),  # type: ignore[misc]
                "Feast": lambda entities=entities: store.get_online_features(features, entities).to_dict(),  # type: ignore[misc]
            }
            theirs, ours = store.get_online_features(features, entities).to_dict(), client.get(rows).to_dict()
            if any(theirs[feature] != values for feature, values in ours.items()):
                raise DifferentAnswersError("Feast's answer is not ours for the same rows; nothing was timed.")
            times = in_turns(cases, samples)
            what = f"3 views x 8 fields, {name}"
            results += [
                _result(f"{what}, p50, beside Feast", times["ours"], times["Feast"], 50, at_most),
                _result(f"{what}, p99, beside Feast", times["ours"], times["Feast"], 99, None),
            ]
    return results


def _feast(folder: Path, redis_url: str, views: Sequence[View], stored: dict[str, Rows]) -> tuple[Any, list[str]]:
    """A Feast store with the same rows in its own Redis format (another database of the server), and its features."""
    import pandas as pd  # not before the lookups that stand alone were timed
    from feast import Entity, FeatureStore, FeatureView, FileSource, RepoConfig, ValueType
    from feast import Field as FeastField
    from feast.types import Float64, Int64

    address = redis_url.removeprefix("redis://").split("/")[0]
    config = RepoConfig(
        project="bench",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={"type": "redis", "connection_string": f"{address},db=1"},
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    entity = Entity(name=KEY.name, join_keys=[KEY.name], value_type=ValueType.INT64)
    types = {"Float64": Float64, "Int64": Int64}
    for view in views:
        rows = stored[view.name]
        frame = pd.DataFrame({name: rows.columns[name].values for name in (KEY.name, *(f.name for f in view.fields))})
        frame[AT.name] = pd.to_datetime(rows.timestamp, unit="us", utc=True)
        path = folder / f"{view.name}.parquet"
        frame.to_parquet(path)
        schema = [FeastField(name=f.name, dtype=types[f.dtype]) for f in view.fields]
        source = FileSource(name=f"{view.name}_rows", path=str(path), timestamp_field=AT.name)
        feast_view = FeatureView(
            name=view.name,
            entities=[entity],
            schema=[FeastField(name=KEY.name, dtype=Int64), *schema],
            source=source,
            ttl=timedelta(0),
        )
        store.apply([entity, feast_view])
        store.write_to_online_store(view.name, frame)
    return store, [f"{view.name}:{field.name}" for view in views for field in view.fields]
