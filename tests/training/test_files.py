"""A file is there as a whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tally.columns import Column
from tally.errors import DataError, UnavailableError
from training import TrainingSet
from training.files import replacing

ROWS = 100_000


def a_set(rows: int = ROWS) -> TrainingSet:
    """A training set of about a megabyte for each 100,000 rows, which no compression makes smaller."""
    values = np.random.default_rng(rows).random(rows)
    columns = {"value": Column("Float64", values, np.ones(rows, np.bool_))}
    return TrainingSet(pa.table({"row": pa.array(np.arange(rows))}), columns, {"service_hash": "0" * 32})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of half a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(small_disk: Path) -> None:
    """The error names the file, the reason and the free room; nothing of the new set stays, the earlier one is whole."""
    out = small_disk / "t.parquet"
    a_set(10).to_parquet(out)
    before = {path.name: path.read_bytes() for path in small_disk.iterdir()}
    with pytest.raises(
        UnavailableError, match=r"t\.parquet could not be written \(No space left on device\).*MB are free"
    ):
        a_set().to_parquet(out)
    assert {path.name: path.read_bytes() for path in small_disk.iterdir()} == before
    assert sorted(before) == ["t.parquet", "t.parquet.manifest.json"]


def test_a_disk_that_is_full_when_the_manifest_is_written(small_disk: Path) -> None:
    """Rows and manifest take their places together: a set that has no room for its manifest is not kept."""
    for size in range(1, 130):
        with (small_disk / "ballast").open("wb") as ballast:
            ballast.write(bytes(4096 * (128 - size)))
        before = sorted(path.name for path in small_disk.iterdir())
        try:
            a_set(100).to_parquet(small_disk / "t.parquet")
        except UnavailableError:
            assert sorted(path.name for path in small_disk.iterdir()) == before
        else:
            break
    assert size > 1
    assert sorted(p.name for p in small_disk.iterdir()) == ["ballast", "t.parquet", "t.parquet.manifest.json"]


@pytest.fixture
def small_files() -> Iterator[None]:
    """This process may write no file beyond 200 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """A process that may write no file of that size says so and leaves nothing."""
    with pytest.raises(UnavailableError, match=r"t\.parquet could not be written \(File too large\)"):
        a_set().to_parquet(tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_parquet_does_not_have(tmp_path: Path) -> None:
    """A label column that cannot be kept is an error of the labels, and leaves nothing."""
    spans = pa.table({"span": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pytest.raises(DataError, match=r"no form in Parquet .*interval.*t\.parquet; convert it"):
        TrainingSet(spans, {}, {"service_hash": ""}).to_parquet(tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == []


def _half_written(path: Path) -> None:
    with replacing(path) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt


def test_an_interruption_leaves_what_was_there(tmp_path: Path) -> None:
    """Whatever ends the writing, Ctrl-C too, the file is what it was and nothing lies beside it."""
    path = tmp_path / "t.parquet"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        _half_written(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing/t.parquet", "There is no folder .*missing for the training set"),
        ("folder", r"folder could not be written \(Is a directory\)"),
    ],
)
def test_places_that_cannot_be_written(tmp_path: Path, place: str, message: str) -> None:
    """A folder that is missing, or one where the file should be."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnavailableError, match=message):
        a_set(1).to_parquet(tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
