"""Feast's side of the lookups: its SDK and its Redis store, with the rows of the plain views."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from benchmarks.definitions import AT, KEY
from benchmarks.measure import DifferentAnswersError
from ingestion.reading import Rows
from tally.plan import View

PYTHON: Final = "per_weight_python"
PANDAS: Final = "per_weight_pandas"
DATABASE: Final = 1


def database_url(redis_url: str, database: int) -> str:
    """The address of one of our server's databases."""
    return f"redis://{_address(redis_url)}/{database}"


def feast_url(redis_url: str) -> str:
    """Where Feast's data is: database 1 of our server."""
    return database_url(redis_url, DATABASE)


def _address(redis_url: str) -> str:
    return redis_url.removeprefix("redis://").split("/")[0]


def open_store(folder: Path, redis_url: str, database: int) -> Any:
    """An empty store whose data goes to that database of the server, in Feast's own format."""
    from feast import FeatureStore, RepoConfig  # not before the lookups that stand alone were timed

    config = RepoConfig(
        project="bench",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={"type": "redis", "connection_string": f"{_address(redis_url)},db={database}"},
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
    )
    return FeatureStore(config=config)


def store_rows(store: Any, folder: Path, views: Sequence[View], stored: dict[str, Rows]) -> list[Any]:
    """Apply the views and write their rows; the views as Feast's objects."""
    import pandas as pd
    from feast import Entity, FeatureView, FileSource, ValueType
    from feast import Field as FeastField
    from feast.types import Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp

    types = {
        "Float64": Float64,
        "Float32": Float32,
        "Int64": Int64,
        "Int32": Int32,
        "Bool": Bool,
        "String": String,
        "UnixTimestamp": UnixTimestamp,
    }
    entity = Entity(name=KEY.name, join_keys=[KEY.name], value_type=ValueType.INT64)
    feast_views = []
    for view in views:
        rows = stored[view.name]
        arrays: dict[str, Any] = {
            name: rows.columns[name].values for name in (KEY.name, *(f.name for f in view.fields))
        }
        instants = [AT.name, *(f.name for f in view.fields if f.dtype == "UnixTimestamp")]
        arrays |= {name: pd.to_datetime(rows.columns[name].values, unit="us", utc=True) for name in instants}
        frame = pd.DataFrame(arrays)
        path = folder / f"{view.name}.parquet"
        frame.to_parquet(path)
        feast_view = FeatureView(
            name=view.name,
            entities=[entity],
            schema=[FeastField(name=f.name, dtype=types[f.dtype]) for f in (KEY, *view.fields)],
            source=FileSource(name=f"{view.name}_rows", path=str(path), timestamp_field=AT.name),
            ttl=timedelta(0),
        )
        feast_views.append(feast_view)
        store.apply([entity, feast_view])
        store.write_to_online_store(view.name, frame)
    return feast_views


def feast_store(folder: Path, redis_url: str, views: Sequence[View], stored: dict[str, Rows]) -> tuple[Any, list[str]]:
    """(a store with the rows in its own format in database 1 of the server, references of all stored features).

    The on-demand views `PYTHON` and `PANDAS` compute what our request function does.
    """
    from feast import Field as FeastField
    from feast import OnDemandFeatureView, RequestSource
    from feast.types import Float64

    store = open_store(folder, redis_url, DATABASE)
    feast_views = store_rows(store, folder, views, stored)
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


def require_equal(theirs: Any, ours: Any, on_demand: str = "") -> None:
    """Raises DifferentAnswersError where Feast answers something else; our `per_weight` is its view `on_demand`."""
    for feature, values in ours.items():
        if theirs[on_demand if feature == "per_weight" else feature] != values:
            raise DifferentAnswersError(f"Feast's {feature} is not ours for the same rows; nothing was measured.")


def _in_python(inputs: dict[str, Any]) -> dict[str, Any]:
    pairs = zip(inputs["x_0"], inputs["weight"], strict=True)
    return {PYTHON: [value / weight for value, weight in pairs]}


def _in_pandas(inputs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 Feast refuses other annotations
    import pandas as pd

    return pd.DataFrame({PANDAS: inputs["x_0"] / inputs["weight"]})
