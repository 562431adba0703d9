from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.end_to_end.bits import of_table
from tests.end_to_end.world import SERVICE, World
from training import TrainingSet, build_training_set


@pytest.fixture(scope="module")
def exported(world: World) -> dict[str, Path]:
    """`tally export` of a day's labels, by visibility."""
    paths = {name: world.folder / f"{name}.parquet" for name in ("event_time", "as_served")}
    started = {
        name: world.start(
            "tally", "export", SERVICE, "--labels", str(world.labels_path), "--out", str(path), "--visibility", name
        )
        for name, path in paths.items()
    }
    for process in started.values():
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        assert f"{len(world.labels):,} rows" in out
    return paths


def built(world: World, visibility: Any) -> TrainingSet:
    """The builder's answer for the same labels."""
    return build_training_set(
        world.labels_path,
        service=SERVICE,
        repo=world.repo,
        visibility=visibility,
        offline_uri=world.settings.offline_uri(),
    )


@pytest.mark.parametrize("visibility", ["event_time", "as_served"])
def test_an_exported_training_set(world: World, exported: dict[str, Path], visibility: str) -> None:
    """The file is what `build_training_set` returns, bit for bit and type for type; its manifest lies beside it and in it."""
    path = exported[visibility]
    expected = built(world, visibility)
    table = pq.read_table(path)
    manifest = json.loads(path.with_name(f"{path.name}.manifest.json").read_text())

    assert table.schema.equals(expected.to_arrow().schema)
    assert of_table(table, table.column_names) == of_table(expected.to_arrow(), table.column_names)
    assert manifest.pop("export")["labels"] == str(world.labels_path)
    assert manifest == json.loads(json.dumps(expected.manifest))
    assert json.loads(table.schema.metadata[b"tally"]) == manifest
    assert manifest["visibility"] == visibility
    assert manifest["service_hash"] == world.plan.service(SERVICE).hash


def test_labels_in_are_rows_out(world: World, exported: dict[str, Path]) -> None:
    """Every label comes back, in its order, with its other columns."""
    labels, table = pq.read_table(world.labels_path), pq.read_table(exported["event_time"])

    assert table.num_rows == labels.num_rows > 800
    for name in ("flight_key", "late"):
        assert table.column(name).to_pylist() == labels.column(name).to_pylist()


def test_as_served_sees_less(exported: dict[str, Path], world: World) -> None:
    """Messages came up to ten minutes late: as served, windows hold at most as many events, and some hold fewer."""
    by_event, served = (pq.read_table(exported[name]) for name in ("event_time", "as_served"))
    counts = [
        f.name for f in world.plan.service(SERVICE).outputs if f.name.endswith(("_1h", "_3h")) and "count" in f.name
    ]
    fewer = 0
    for name in counts:
        for all_of_them, arrived in zip(
            by_event.column(name).to_pylist(), served.column(name).to_pylist(), strict=True
        ):
            assert arrived <= all_of_them
            fewer += arrived < all_of_them

    assert len(counts) == 4
    assert fewer > 0


def test_an_older_version(world: World) -> None:
    """The manifest's offline versions build the same set again after more was ingested."""
    now = built(world, "event_time")
    again = build_training_set(
        world.labels_path,
        service=SERVICE,
        repo=world.repo,
        offline_version=now.manifest["offline_versions"],
        offline_uri=world.settings.offline_uri(),
    )
    before = build_training_set(
        world.labels_path,
        service=SERVICE,
        repo=world.repo,
        offline_version=0,
        offline_uri=world.settings.offline_uri(),
    )

    assert again.manifest == now.manifest
    assert set(before.manifest["offline_versions"].values()) == {0}
    assert isinstance(before.to_arrow(), pa.Table)
    assert before.columns["origin_delay_count_24h"].values.sum() < now.columns["origin_delay_count_24h"].values.sum()
