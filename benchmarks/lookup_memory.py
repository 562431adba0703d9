"""How many bytes of Redis an entity takes, by the shape of its views: our values, and Feast's own hash of the same ones."""

from __future__ import annotations

import string
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from redis import Redis

from benchmarks.definitions import AT, EIGHT, KEY, TABLE, columns_of, latest_view, plan_of, rows_of
from benchmarks.lookup_feast import database_url, open_store, require_equal, store_rows
from benchmarks.lookup_world import asked, store_latest
from benchmarks.measure import Result, Target
from ingestion.reading import Rows
from serving_client import FeatureClient
from tally.dtypes import Dtype
from tally.plan import View
from tally.time import DAY, SECOND

OURS: Final = 2
THEIRS: Final = 3
"""Databases of the server, emptied for each shape."""
MIXED: Final[tuple[Dtype, ...]] = ("Int64", "Int64", "Int32", "Bool", "Float32", "Float64", "UnixTimestamp", "String")
SHORT: Final = 12
LONG: Final = 120
"""How many characters a text has, at most; how many a long one has."""
ENTITIES: Final = 200
_CHECKED: Final = 20
_LETTERS: Final = np.array(list(string.ascii_letters))


@dataclass(frozen=True)
class Shape:
    """Views named `x`, `y` and so on, all with fields of `dtypes`; in the last one, texts are long where `long` says so."""

    name: str
    views: int
    dtypes: tuple[Dtype, ...]
    long: bool = False


SHAPES: Final = (
    Shape("1 view x 8 fields", 1, EIGHT),
    Shape("3 views x 8 fields", 3, EIGHT),
    Shape("3 views x 8 fields of mixed types", 3, MIXED),
    Shape(f"3 views x 8 fields of mixed types, one a text of {LONG} characters", 3, MIXED, long=True),
    Shape("4 views x 40 fields", 4, EIGHT * 5),
    Shape("4 views x 40 fields of mixed types", 4, MIXED * 5),
    Shape("4 views x 160 fields", 4, EIGHT * 20),
)
"""Numbers as in the timings; what real views have; what takes Feast's hash out of its compact form: a text of more than 64
bytes, or more fields than `hash-max-listpack-entries` (512 in the server that comes along)."""


def bytes_per_entity(redis_url: str, now: int) -> list[Result]:
    """What an entity of each shape takes, from MEMORY USAGE of all keys. Raises DifferentAnswersError.

    Both sides hold the same values: Feast answers for them what we do.
    """
    return [_measured(redis_url, shape, np.random.default_rng(0), now) for shape in SHAPES]


def _measured(redis_url: str, shape: Shape, rng: np.random.Generator, now: int) -> Result:
    views = [latest_view(name, shape.dtypes) for name in "wxyz"[-shape.views :]]
    stored = {view.name: _rows(rng, view, now, long=shape.long and view is views[-1]) for view in views}
    plan = plan_of("bench", TABLE, views)
    with (
        tempfile.TemporaryDirectory() as folder,
        Redis.from_url(database_url(redis_url, OURS)) as ours,
        Redis.from_url(database_url(redis_url, THEIRS)) as theirs,
    ):
        for redis in (ours, theirs):
            redis.flushdb()
        for view in views:
            store_latest(ours, plan, view, stored[view.name])
        store = open_store(Path(folder), redis_url, THEIRS)
        store_rows(store, Path(folder), views, stored)
        _check_answers(store, FeatureClient(ours, plan), views)
        result = Result(
            f"lookup: bytes per entity, {shape.name}, beside Feast's hash",
            _per_entity(ours),
            _per_entity(theirs),
            "bytes",
            Target("ratio", "<=", 0.4),
        )
        for redis in (ours, theirs):
            redis.flushdb()
    return result


def _rows(rng: np.random.Generator, view: View, now: int, *, long: bool) -> Rows:
    """Rows of a second ago, one for each entity. Instants among the features are whole seconds: Feast keeps no more."""
    arrays: dict[str, Any] = {
        KEY.name: np.arange(ENTITIES),
        AT.name: np.full(ENTITIES, now - SECOND),
    }
    for field in view.fields:
        if field.dtype == "String":
            lengths = np.full(ENTITIES, LONG) if long else rng.integers(3, SHORT + 1, ENTITIES)
            arrays[field.name] = ["".join(rng.choice(_LETTERS, length)) for length in lengths.tolist()]
        elif field.dtype == "UnixTimestamp":
            arrays[field.name] = (now - rng.integers(0, 365 * DAY, ENTITIES)) // SECOND * SECOND
        elif field.dtype == "Bool":
            arrays[field.name] = rng.integers(0, 2, ENTITIES).astype(np.bool_)
        elif field.dtype in ("Float64", "Float32"):
            arrays[field.name] = rng.normal(size=ENTITIES)
        else:
            arrays[field.name] = rng.integers(0, 1000, ENTITIES)
    return rows_of(view, columns_of(view, arrays))


def _check_answers(store: Any, client: FeatureClient, views: Sequence[View]) -> None:
    rows = asked(_CHECKED)
    references = [f"{view.name}:{field.name}" for view in views for field in view.fields]
    theirs = store.get_online_features(references, [{KEY.name: row[KEY.name]} for row in rows]).to_dict()
    require_equal(theirs, client.get(rows).to_dict())


def _per_entity(redis: Redis) -> float:
    keys = list(redis.scan_iter(count=1000))
    with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.memory_usage(key, samples=0)
        return float(sum(pipe.execute())) / ENTITIES
