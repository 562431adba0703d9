"""Feast's own offline stores, Dask and DuckDB on files, on the inputs of `benchmarks.point_in_time`'s latest rows."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.definitions import AT, KEY, TABLE, latest_view, plan_of
from benchmarks.measure import seconds_of
from ingestion.delta import write_table
from ingestion.offline import Extracted, source_hash
from training import training_set

VIEW: Final = latest_view("x")


def feast_dask(folder: Path) -> float:
    """Feast's default file store, whose engine is Dask."""
    return _feast(folder, "dask", feast_dask.__name__)


def feast_duckdb(folder: Path) -> float:
    """Feast's DuckDB store."""
    return _feast(folder, "duckdb", feast_duckdb.__name__)


def write_stores(folder: Path) -> None:
    """The rows as Feast's stores and ours keep them: a Parquet file with times, and a Delta table."""
    table = pq.read_table(folder / "rows.parquet")
    stamps = table.column(AT.name).cast(pa.timestamp("us", tz="UTC"))
    table = table.set_column(table.column_names.index(AT.name), AT.name, stamps)
    pq.write_table(table, folder / "feast.parquet")
    plan = plan_of("bench", TABLE, [VIEW])
    knows = Extracted(source_hash(plan, TABLE), {}, {}, None).to_metadata()
    write_table(
        str(folder / "offline"), TABLE.name, None, table.schema, table.to_batches(), overwrite=False, metadata=knows
    )


def ours(folder: Path) -> float:
    """Our training set of the same, from the offline store and labels in memory to a frame in memory."""
    labels = _labels(folder)
    plan = plan_of("bench", TABLE, [VIEW])
    seconds, frame = seconds_of(
        lambda: training_set(plan, labels, service="all", offline_uri=str(folder / "offline")).to_pandas()
    )
    _keep(folder, ours.__name__, frame)
    return seconds


def compare(folder: Path, theirs: str) -> str:
    """How an answer of Feast's compares to ours: rows that it left out, values that differ."""
    one, other, ids = (
        np.load(folder / "ours.npy"),
        np.load(folder / f"{theirs}.npy"),
        np.load(folder / f"{theirs}-ids.npy"),
    )
    left_out = one.shape[1] - len(np.unique(ids))
    mine = one[:, ids]
    same = (mine.view(np.int64) == other.view(np.int64)) | (np.isnan(mine) & np.isnan(other))
    wrong = int((~same).sum())
    rows = "gives every row" if not left_out else f"leaves out {left_out:,} of {one.shape[1]:,} rows"
    return f"{rows}; {wrong:,} of its {other.size:,} values differ from ours, by bits."


def _labels(folder: Path) -> pd.DataFrame:
    labels: pd.DataFrame = pq.read_table(folder / "labels.parquet").to_pandas()
    labels["event_timestamp"] = pd.to_datetime(labels.pop(AT.name), unit="us", utc=True)
    return labels


def _keep(folder: Path, name: str, frame: pd.DataFrame) -> None:
    frame = frame.sort_values("id")
    np.save(folder / f"{name}-ids.npy", frame["id"].to_numpy())
    values = [frame[field.name].to_numpy(np.float64, na_value=np.nan) for field in VIEW.fields]
    np.save(folder / f"{name}.npy", np.stack(values))


def _feast(folder: Path, kind: str, name: str) -> float:
    """What is timed is `get_historical_features(...).to_df()`: Feast reads its file in it, labels are in memory."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, Int64

    os.chdir(folder)  # DuckDB spills into the working directory
    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            provider="local",
            registry=str(folder / f"{name}.db"),
            online_store=None,
            offline_store={"type": kind},
            entity_key_serialization_version=3,
        )
    )
    entity = Entity(name=KEY.name, join_keys=[KEY.name], value_type=ValueType.INT64)
    types = {"Float64": Float64, "Int64": Int64}
    view = FeatureView(
        name="rows",
        entities=[entity],
        ttl=timedelta(0),
        schema=[Field(name=field.name, dtype=types[field.dtype]) for field in VIEW.fields],
        source=FileSource(path=str(folder / "feast.parquet"), timestamp_field=AT.name),
        online=False,
    )
    store.apply([entity, view])
    labels = _labels(folder)
    features = [f"rows:{field.name}" for field in VIEW.fields]
    seconds, frame = seconds_of(lambda: store.get_historical_features(labels, features).to_df())
    _keep(folder, name, frame)
    return seconds
