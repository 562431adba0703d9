"""The flights service of `feature_repo`: its plan as `feast apply` compiles it, filled as a day in New York fills it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from redis import Redis

import feature_repo
from benchmarks.definitions import rows_of
from benchmarks.feast_command import apply
from benchmarks.measure import DifferentAnswersError
from infra.repository import load_plan
from ingestion.materialize import tile_values
from ingestion.reading import Rows
from ingestion.redis_store import LatestWriter, TileWriter
from serving_client import FeatureClient
from tally import functions
from tally.columns import Column, column
from tally.layout import entity_texts
from tally.plan import Plan, View
from tally.time import DAY, HOUR, to_datetime
from training.join import Ask, join

SERVICE: Final = "arrival_delay"
AIRCRAFT: Final = 1_000
NAMES: Final = {
    "origin": ["EWR", "JFK", "LGA"],
    "carrier": ["9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV"],
    "tailnum": [f"N{number:03d}TY" for number in range(AIRCRAFT)],
}
DEPARTURES: Final = 1_000
"""In 25 hours."""
LANDINGS: Final = 7_000
"""In 7 days."""


def flights_plan(folder: Path, redis_url: str) -> Plan:
    """What `feast apply` makes of a copy of the repository in `folder`, for its one service."""
    repo = folder / "feature_repo"
    shutil.copytree(Path(feature_repo.__file__).parent, repo, ignore=shutil.ignore_patterns("data", "__pycache__"))
    apply(repo, redis_url)
    return load_plan(repo).for_service(SERVICE)


def asked_flights(count: int, now: int) -> list[dict[str, Any]]:
    """Rows of a request: flights of the next hours, each of another aircraft."""
    rng = np.random.default_rng(2)
    return [
        {
            "origin": NAMES["origin"][rng.integers(len(NAMES["origin"]))],
            "carrier": NAMES["carrier"][rng.integers(len(NAMES["carrier"]))],
            "tailnum": NAMES["tailnum"][number],
            "scheduled_departure": to_datetime(now + int(rng.integers(HOUR, 2 * HOUR))),
            "distance": float(rng.integers(94, 2_586)),
        }
        for number in range(count)
    ]


def store_flights(redis: Redis, plan: Plan, rng: np.random.Generator, now: int) -> None:
    """Fill every view as of `now`, and look some flights up. Raises DifferentAnswersError."""
    stored = {view.name: _store(redis, plan, view, rng, now) for view in plan.views}
    for count in (1, 100):
        _check(redis, plan, stored, count, now)


def _store(redis: Redis, plan: Plan, view: View, rng: np.random.Generator, now: int) -> Rows:
    names = NAMES[view.keys[0].name]
    if view.kind == "latest":
        codes = np.arange(len(names))
        age = rng.integers(0, HOUR, len(names))
    else:
        landings = view.name == "aircraft_arrivals"
        count, span = (LANDINGS, 7 * DAY) if landings else (DEPARTURES, DAY + HOUR)
        codes = np.concatenate([np.arange(len(names)), rng.integers(0, len(names), count - len(names))])
        age = rng.integers(0, span, count)
    entities = entity_texts([column("String", names)])
    rows = _rows(view, rng, [names[code] for code in codes], now - age)
    if view.kind == "latest":
        fields = {field.name: rows.columns[field.name] for field in view.fields}
        packed = view.row_layout.pack(rows.timestamp, rows.a, rows.b, fields)
        LatestWriter(redis, plan.project, view).put(entities, packed)
    else:
        values = tile_values(view, rows, codes, len(names), {0: len(codes)})[1]
        TileWriter(redis, plan.project, view).load(entities, values)
    return rows


def _rows(view: View, rng: np.random.Generator, keys: list[str], at: NDArray[np.int64]) -> Rows:
    """What the view keeps of rows of these keys and instants: delays in whole minutes, a gust in every other hour."""
    count = len(keys)
    early = 12.0 if view.name == "aircraft_arrivals" else 0.0
    made: dict[str, Any] = {
        "delay": np.round(rng.gamma(0.6, 40.0, count)) - early,
        "landed_at": at,
        "manufacturer": rng.choice(["AIRBUS", "BOEING", "EMBRAER"], count),
        "engine_type": np.full(count, "Turbo-fan"),
        "year_built": rng.integers(1985, 2013, count),
        "seats": rng.integers(50, 380, count),
        "engines": np.full(count, 2),
        "wind_dir": rng.integers(0, 36, count) * 10,
        "wind_gust": np.where(np.arange(count) % 2, np.nan, np.round(rng.gamma(20.0, 1.2, count), 5)),
        "is_jet": np.ones(count, np.bool_),
        view.timestamp: at,
        view.keys[0].name: keys,
    }
    read = {aggregation.column for aggregation in view.aggregations} | {field.name for field in view.fields}
    columns = {}
    for field in view.columns:
        if field.name in made:
            columns[field.name] = column(field.dtype, made[field.name])
        elif field.name in read:
            columns[field.name] = column(field.dtype, np.round(rng.gamma(9.0, 6.0, count), 2))
    return rows_of(view, columns)


def _check(redis: Redis, plan: Plan, stored: dict[str, Rows], count: int, now: int) -> None:
    """The offline join of the stored rows, and the functions of what it gives, must be what the client answers."""
    asked, service = asked_flights(count, now), plan.services[0]
    fields = (*service.keys, *service.request)
    request = {field.name: column(field.dtype, [row[field.name] for row in asked]) for field in fields}
    found: dict[tuple[str, str], Column] = {("", name): values for name, values in request.items()}
    as_of = np.full(count, now)
    expected: dict[str, Column] = {}
    for use in service.views:
        view = plan.view(use.view)
        ask = Ask([request[name] for name in use.keys], as_of, [f.name for f in view.fields], "event_time", None)
        answers = join(view, stored[view.name], [ask])[0]
        found |= {(use.name, name): values for name, values in answers.items()}
        expected |= {name: answers[feature] for feature, name in use.features}
    for function_use in service.functions:
        definition = plan.function(function_use.function)
        inputs = {i.parameter: found[i.view, i.feature] for i in definition.inputs}
        outputs = functions.run(functions.load(definition.function), inputs, definition.outputs, count)
        expected |= {name: outputs[output] for output, name in function_use.features}
    answer = FeatureClient(redis, plan).get(asked, now)
    for name, values in expected.items():
        if _bits(values) != _bits(answer.columns[name]):
            raise DifferentAnswersError(
                f"The lookup of {name} does not give what the offline join gives; nothing was timed."
            )


def _bits(values: Column) -> list[Any]:
    return [value.hex() if isinstance(value, float) else value for value in values.to_list()]
