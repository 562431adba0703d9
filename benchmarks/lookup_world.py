"""What the lookup benchmarks look up: three plain views, three windowed ones, 200 entities; and whether answers are right."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from redis import Redis

from benchmarks.definitions import AT, KEY, columns_of, rows_of
from benchmarks.measure import DifferentAnswersError
from ingestion.materialize import tile_values
from ingestion.reading import Rows
from ingestion.redis_store import LatestWriter, TileWriter
from serving_client import FeatureClient
from tally.columns import Column, column
from tally.layout import entity_texts
from tally.plan import Plan, View
from tally.time import DAY, HOUR, SECOND
from training.join import Ask, join

ENTITIES: Final = 1_000
EVENTS_EACH: Final = 200
PARTITIONS: Final = 4
_CHECKED: Final = 100


def latest_rows(rng: np.random.Generator, view: View, now: int) -> Rows:
    """Rows of a second ago, one for each entity."""
    arrays: dict[str, NDArray[Any]] = {KEY.name: np.arange(ENTITIES), AT.name: np.full(ENTITIES, now - SECOND)}
    for field in view.fields:
        floats = field.dtype == "Float64"
        arrays[field.name] = rng.normal(size=ENTITIES) if floats else rng.integers(0, 1000, ENTITIES)
    return rows_of(view, columns_of(view, arrays))


def events(rng: np.random.Generator, view: View, now: int) -> Rows:
    """Events of the last 25 hours."""
    count = ENTITIES * EVENTS_EACH
    arrays = {
        KEY.name: rng.integers(0, ENTITIES, count),
        AT.name: now - rng.integers(0, DAY + HOUR, count),
        "amount": np.round(rng.gamma(2.0, 30.0, count), 2),
    }
    return rows_of(view, columns_of(view, arrays))


def entities() -> list[bytes]:
    """The entity part of each key."""
    return entity_texts([keys(ENTITIES)])


def keys(count: int) -> Column:
    """The keys 0 to `count`."""
    return column("Int64", np.arange(count))


def store_latest(redis: Redis, plan: Plan, view: View, rows: Rows) -> None:
    """Write the rows of a plain view to Redis, each under its key."""
    fields = {field.name: rows.columns[field.name] for field in view.fields}
    values = view.row_layout.pack(rows.timestamp, rows.a, rows.b, fields)
    LatestWriter(redis, plan.project, view).put(entity_texts([rows.columns[KEY.name]]), values)


def store_tiles(redis: Redis, plan: Plan, view: View, rows: Rows) -> None:
    """Write the tiles of a windowed view to Redis."""
    codes = rows.columns[KEY.name].values
    fences = dict.fromkeys(range(PARTITIONS), len(codes))
    TileWriter(redis, plan.project, view).load(entities(), tile_values(view, rows, codes, ENTITIES, fences)[1])


def asked(count: int) -> list[dict[str, Any]]:
    """Rows of a request for the first `count` entities."""
    return [{KEY.name: number, "weight": 2.0} for number in range(count)]


def check_latest(redis: Redis, plan: Plan, stored: dict[str, Rows]) -> None:
    """Raises DifferentAnswersError unless what was written is answered."""
    client = FeatureClient(redis, plan)
    expected = {
        field.name: stored[view.name].columns[field.name].values for view in plan.views for field in view.fields
    }
    expected["per_weight"] = expected["x_0"] / 2.0
    _equal(client, None, {name: values[:_CHECKED] for name, values in expected.items()})


def check_windows(redis: Redis, plan: Plan, events: Rows, now: int) -> None:
    """Raises DifferentAnswersError unless the windows are those of the offline join."""
    expected: dict[str, NDArray[Any]] = {}
    for view in plan.views:
        names = tuple(field.name for field in view.fields)
        ask = Ask([keys(_CHECKED)], np.full(_CHECKED, now), names, "event_time", None)
        expected |= {name: answer.values for name, answer in join(view, events, [ask])[0].items()}
    _equal(FeatureClient(redis, plan), now, expected)


def _equal(client: FeatureClient, as_of: int | None, expected: dict[str, NDArray[Any]]) -> None:
    """Whether many rows and one row answer `expected`, by bits."""
    many = client.get(asked(_CHECKED), as_of)
    one = client.get(asked(1), as_of)
    for name, values in expected.items():
        if not (
            many.columns[name].values.tobytes() == values.tobytes()
            and one.columns[name].values.tobytes() == values[:1].tobytes()
        ):
            raise DifferentAnswersError(f"The lookup of {name} does not give what was written; nothing was timed.")
