"""Feast's side of the lookups: its SDK and its Redis store, with the rows of the plain views."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from benchmarks.definitions import AT, KEY
from ingestion.reading import Rows
from tally.plan import View

PYTHON: Final = "per_weight_python"
PANDAS: Final = "per_weight_pandas"


def feast_url(redis_url: str) -> str:
    """Where Feast's data is: database 1 of our server."""
    return f"redis://{redis_url.removeprefix('redis://').split('/')[0]}/1"


def feast_store(folder: Path, redis_url: str, views: Sequence[View], stored: dict[str, Rows]) -> tuple[Any, list[str]]:
    """(a store with the rows in its own format in database 1 of the server, references of all stored features).

    The on-demand views `PYTHON` and `PANDAS` compute what our request function does.
    """
    import pandas as pd  # not before the lookups that stand alone were timed
    from feast import (
        Entity,
        FeatureStore,
        FeatureView,
        FileSource,
        OnDemandFeatureView,
        RepoConfig,
        RequestSource,
        ValueType,
    )
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
    feast_views = []
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
        feast_views.append(feast_view)
        store.apply([entity, feast_view])
        store.write_to_online_store(view.name, frame)
    asked = RequestSource(name="asked", schema=[FeastField(name="weight", dtype=Float64)])
    for name, mode, function in ((PYTHON, "python", _in_python), (PANDAS, "pandas", _in_pandas)):
        view = OnDemandFeatureView(
            name=name,
            sources=[feast_views[0], asked],
            schema=[FeastField(name=name, dtype=Float64)],
            mode=mode,
            udf=function,
            udf_string=f"from {__name__} import {function.__name__} as shared\n{function.__name__} = shared\n",
        )
        store.apply([view])
    return store, [f"{view.name}:{field.name}" for view in views for field in view.fields]


def _in_python(inputs: dict[str, Any]) -> dict[str, Any]:
    pairs = zip(inputs["x_0"], inputs["weight"], strict=True)
    return {PYTHON: [value / weight for value, weight in pairs]}


def _in_pandas(inputs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 Feast refuses other annotations
    import pandas as pd

    return pd.DataFrame({PANDAS: inputs["x_0"] / inputs["weight"]})
