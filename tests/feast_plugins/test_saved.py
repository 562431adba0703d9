"""Rows that Feast keeps: as Delta tables of their own, never over a table that is something else."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalMetadata
from feast.infra.offline_stores.snowflake_source import SavedDatasetSnowflakeStorage

from feast_plugins.offline_store import MANIFEST_KEY, TallyRetrievalJob
from tally.errors import DataError

AT = datetime(2013, 3, 1, tzinfo=UTC)
MANIFEST = {"tally": json.dumps({"service": "delay"})}


def job(folder: Path, rows: int = 2, time: str = "event_timestamp", **more: Any) -> TallyRetrievalJob:
    """A job whose rows are known."""
    moments = pa.array([AT.replace(minute=i) for i in range(rows)], pa.timestamp("us", "UTC"))
    table = pa.table({time: moments, "delay": pa.array([2**60 + 1] * rows, pa.int64()), **more}, metadata=MANIFEST)
    return TallyRetrievalJob(lambda: table, str(folder), False, RetrievalMetadata(["delays:delay"], []))


def kept_as(name: str) -> Any:
    """Storage under a name."""
    return SavedDatasetSnowflakeStorage(table_ref=name)


def test_rows_are_kept_with_their_manifest(tmp_path: Path) -> None:
    """As a Delta table with the same values and types, whose commit holds the manifest."""
    one = job(tmp_path)
    one.persist(kept_as("kept"))
    table = DeltaTable(str(tmp_path / "kept"))
    assert table.to_pyarrow_table().equals(one.to_arrow().replace_schema_metadata(None))
    assert json.loads(table.history(1)[0][MANIFEST_KEY]) == {"service": "delay"}


def test_a_name_is_overwritten_only_when_that_is_asked_for(tmp_path: Path) -> None:
    """Also with other columns; without being asked the first rows stay."""
    job(tmp_path).persist(kept_as("kept"))
    other = job(tmp_path, 3, more=pa.array(["a", "b", None]))
    with pytest.raises(DataError, match=r"a saved dataset kept already; .* allow_overwrite=True"):
        other.persist(kept_as("kept"))
    other.persist(kept_as("kept"), allow_overwrite=True)
    assert DeltaTable(str(tmp_path / "kept")).to_pyarrow_table().column_names == ["event_timestamp", "delay", "more"]


def test_a_table_of_the_offline_store_is_never_overwritten(tmp_path: Path) -> None:
    """What `tally ingest` keeps under that name stays, even where overwriting is allowed."""
    source = pa.table({"x": [1]})
    write_deltalake(str(tmp_path / "departures"), source)
    with pytest.raises(DataError, match="departures is a table of the offline store"):
        job(tmp_path).persist(kept_as("departures"), allow_overwrite=True)
    assert DeltaTable(str(tmp_path / "departures")).to_pyarrow_table().equals(source)


@pytest.mark.parametrize(
    ("storage", "time", "message"),
    [
        (SavedDatasetFileStorage(path="x.parquet"), "event_timestamp", "use SavedDatasetSnowflakeStorage"),
        (kept_as("../kept"), "event_timestamp", "cannot be the name of a saved dataset"),
        (kept_as("kept"), "moment", "by its column event_timestamp"),
    ],
)
def test_what_cannot_be_kept(tmp_path: Path, storage: Any, time: str, message: str) -> None:
    """Another kind of storage, a name that leads elsewhere, rows that Feast could not read again."""
    with pytest.raises(DataError, match=message):
        job(tmp_path, time=time).persist(storage)
    assert list(tmp_path.iterdir()) == []


def test_the_span_of_the_rows(tmp_path: Path) -> None:
    """Feast reads a saved dataset by the first and last instant, which an empty one has as well."""
    found = job(tmp_path).metadata
    assert (found.min_event_timestamp, found.max_event_timestamp) == (AT, AT.replace(minute=1))
    assert job(tmp_path, 0).metadata.max_event_timestamp is not None
