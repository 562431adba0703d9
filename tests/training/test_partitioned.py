"""What goes through files, part by part, is what is made in memory: bits, order, manifest and file."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestion.delta import read_columns
from tally.errors import DataError, UnavailableError
from tally.time import HOUR, MINUTE
from tests.training import stores
from tests.training.stores import PLAN, SERVICE
from tests.training.test_training_set import MESSAGES, READINGS, labels_frame
from training import TrainingSet, build, memory, partitioned, spill, training_set
from training import stores as chunks
from training.asks import Questions
from training.engine import pinned_versions
from training.partitioned import Local
from training.work import ViewWork, survey


@pytest.fixture(scope="module")
def offline_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An offline store with both tables; some messages landed twice."""
    uri = str(tmp_path_factory.mktemp("offline"))
    stores.land_weather(uri, READINGS)
    stores.land_departures(uri, MESSAGES)
    stores.land_departures(uri, MESSAGES[:50])
    return uri


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files of training sets go in these tests."""
    folder = tmp_path_factory.mktemp("spilled")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


class Narrow(Local):
    """A machine with room for a few rows; `wanted` parts to begin with."""

    wanted = 3
    budget = 10**9

    def __init__(self, memory: int) -> None:
        super().__init__(memory)
        self._budget = self.budget

    def parts(self, *_: Any) -> int:
        """As told."""
        return self.wanted


def _spilled(
    labels: Any, uri: str, parts: int = 3, chunk: int = 16, budget: int = 10**9, **options: Any
) -> TrainingSet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "peak", lambda *_: 1 << 62)
        patch.setattr(build, "Local", type("Parts", (Narrow,), {"wanted": parts, "budget": budget}))
        patch.setattr(partitioned, "_READ_BYTES", 4_000)
        patch.setattr(chunks, "CHUNK_ROWS", chunk)
        built = training_set(PLAN, labels, service=SERVICE, offline_uri=uri, **options)
        built.to_arrow()
        return built


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.integers(1, 9),
    chunk=st.integers(1, 70),
    budget=st.sampled_from([1_000, 30_000, 10**9]),
    mode=st.sampled_from(["event_time", "as_served"]),
    count=st.integers(1, 60),
)
def test_parts_chunks_and_budgets_decide_nothing(
    offline_uri: str, parts: int, chunk: int, budget: int, mode: Any, count: int
) -> None:
    """However keys, labels and memory are cut, the rows, their order and the manifest are those made in memory."""
    frame = labels_frame(count)
    whole = training_set(PLAN, frame, service=SERVICE, offline_uri=offline_uri, visibility=mode)
    cut = _spilled(frame, offline_uri, parts, chunk, budget, visibility=mode)
    assert cut.to_arrow().equals(whole.to_arrow())
    assert cut.manifest == whole.manifest


def test_labels_before_every_row(offline_uri: str) -> None:
    """Where no row of any view can be seen, none is read, and what was spilled of the labels is answered all the same."""
    frame = labels_frame()
    frame["event_timestamp"] -= pd.Timedelta(days=10_000)
    whole = training_set(PLAN, frame, service=SERVICE, offline_uri=offline_uri)
    cut = _spilled(frame, offline_uri)
    assert whole.to_arrow().column("delay_count_1h").to_pylist() == [0] * len(frame)
    assert cut.to_arrow().equals(whole.to_arrow())
    assert cut.manifest == whole.manifest


def test_labels_that_do_not_fit_are_read_in_pieces(
    offline_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, a folder and a Dask frame of labels go to disk as they are read; the file that comes out is the same."""
    monkeypatch.setattr("training.labels._BATCH_ROWS", 7)
    frame = pd.concat([labels_frame(), labels_frame()[::-1]], ignore_index=True)
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), tmp_path / "labels.parquet", row_group_size=11)
    whole = training_set(PLAN, tmp_path / "labels.parquet", service=SERVICE, offline_uri=offline_uri)
    whole.to_parquet(tmp_path / "whole.parquet")
    monkeypatch.setattr(build, "_LABELS_SHARE", 0.0)
    for labels in (tmp_path / "labels.parquet", dd.from_pandas(frame, npartitions=4)):
        built = training_set(PLAN, labels, service=SERVICE, offline_uri=offline_uri)
        assert built.manifest == whole.manifest
        built.to_parquet(tmp_path / "spilled.parquet")
        assert built._stored is not None, "writing does not need all rows in memory"
        assert (tmp_path / "spilled.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
        assert len(built) == 120
        assert built.to_arrow().equals(whole.to_arrow())


def test_bad_labels_are_refused_wherever_they_stand(
    offline_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    """A null key in a late piece is named by its row in the whole, and no file stays behind."""
    monkeypatch.setattr("training.labels._BATCH_ROWS", 7)
    monkeypatch.setattr(build, "_LABELS_SHARE", 0.0)
    frame = labels_frame()
    frame.loc[40, "carrier"] = None
    frame.to_parquet(tmp_path / "labels.parquet")
    with pytest.raises(DataError, match="carrier is null in 1 of 42 rows, first in row 40"):
        training_set(PLAN, tmp_path / "labels.parquet", service=SERVICE, offline_uri=offline_uri)
    assert list(temporary.iterdir()) == []


def test_an_entity_that_does_not_fit_is_refused(offline_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be divided by key is joined alone while there is room, and refused beyond, with what it needs."""
    monkeypatch.setattr(partitioned, "FIXED", 0)
    monkeypatch.setattr(build, "memory_limit", lambda _: 10_000)
    with pytest.raises(
        DataError, match=r"one entity has [1-9]\d* rows and [1-9]\d* labels, .* give memory=0\.0GB or more"
    ):
        _spilled(labels_frame(), offline_uri, budget=1_000)


def test_what_an_entity_is_joined_under(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside others within its share, alone up to what the other threads' shares leave, and not at all beyond."""
    gigabyte = 10**9
    monkeypatch.setattr(partitioned, "FIXED", 0)
    monkeypatch.setattr(partitioned, "_BEST_BYTES", 40 * gigabyte)
    monkeypatch.setattr(partitioned, "room_for_data", lambda memory: memory)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    local, work = Local(300 * gigabyte), cast(ViewWork, SimpleNamespace(view=PLAN.views[0]))
    assert isinstance(local._large(work, 50 * gigabyte, 1, [1]), nullcontext)
    assert local._large(work, 50 * gigabyte + 1, 1, [1]) is local._large(work, 220 * gigabyte, 1, [1])
    with pytest.raises(
        DataError, match=r"2 rows and 7 labels, .* about 221\.0 GB .* for 220\.0 GB; give memory=301\.0GB"
    ):
        local._large(work, 221 * gigabyte, 2, [3, 7])


def test_files_go_with_the_training_set(offline_uri: str, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spilled rows are deleted with the object that reads them, and when joining fails."""
    monkeypatch.setattr(build, "_LABELS_SHARE", 0.0)
    built = training_set(PLAN, labels_frame(), service=SERVICE, offline_uri=offline_uri)
    assert len(list(temporary.iterdir())) == 1
    del built
    assert list(temporary.iterdir()) == []

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill.pa, "OSFile", full)
    with pytest.raises(UnavailableError, match=r"cannot be written to .*No space left.*TMPDIR"):
        training_set(PLAN, labels_frame(), service=SERVICE, offline_uri=offline_uri)
    assert list(temporary.iterdir()) == []


def test_only_what_a_service_asks_for_is_read(offline_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of a latest view that no feature needs are not read, unless rows tie in all else."""
    read: list[list[str]] = []

    def watched(table: Any, columns: Any, condition: Any = None) -> Any:
        read.append(list(columns))
        return read_columns(table, columns, condition)

    monkeypatch.setattr("ingestion.reading.read_columns", watched)
    service = PLAN.service(SERVICE)
    one = dataclasses.replace(
        service,
        views=(dataclasses.replace(service.views[1], features=(("temp", "temp"),)),),
        functions=(),
        keys=service.keys[1:2],
        request=(),
        outputs=(service.outputs[1],),
    )
    plan = dataclasses.replace(PLAN, services=(one,))
    frame = labels_frame()[["origin", "event_timestamp"]]
    full = training_set(PLAN, labels_frame(), service=SERVICE, offline_uri=offline_uri)
    read.clear()
    narrow = training_set(plan, frame, service=SERVICE, offline_uri=offline_uri)
    assert read == [["origin", "temp", "event_timestamp", "created"]]
    assert narrow.columns["temp"].to_list() == full.columns["temp"].to_list()


def test_only_the_time_that_labels_can_touch_is_read(tmp_path: Path) -> None:
    """Of files of an hour each, those before every window and time to live and those after the last label are left out."""
    uri, start = str(tmp_path), READINGS[0].timestamp
    for hour in range(24):
        at = start + hour * HOUR
        stores.land_weather(uri, [stores.weather("JFK", at, at, 1.0, hour, None)])
        stores.land_departures(uri, [stores.departure("AA", at, 1.0, 0, hour, at)])
    questions = Questions(PLAN, PLAN.service(SERVICE), "event_time")
    versions = pinned_versions(PLAN, questions.service, uri, {})
    work = survey(questions, uri, versions, start + 12 * HOUR, start + 13 * HOUR - 1)
    assert {one.view.name: one.rows for one in work} == {"delays": 7, "weather_now": 7}  # of 6 o'clock up to that of 12
    late = survey(questions, uri, versions, start + 12 * HOUR + 30 * MINUTE, start + 13 * HOUR)
    assert {one.view.name: one.rows for one in late} == {"delays": 7, "weather_now": 7}  # of 7 o'clock up to that of 13


def test_rows_that_tie_are_told_apart_by_all_their_columns(tmp_path: Path) -> None:
    """Warehouse rows with one time and one `created` differ only in columns that are not asked for: then these are read."""
    at = READINGS[0].timestamp
    tied = [stores.weather("JFK", at, at, 1.0, reading, sky) for reading, sky in ((1, "b"), (2, "a"), (3, None))]
    uri = str(tmp_path)
    stores.land_weather(uri, tied)
    stores.land_departures(uri, MESSAGES)
    frame = labels_frame(5).assign(
        origin="JFK", dest="JFK", event_timestamp=pd.to_datetime([at] * 5, unit="us", utc=True)
    )
    whole = training_set(PLAN, frame, service=SERVICE, offline_uri=uri)
    assert len(set(whole.columns["reading"].to_list())) == 1
    service = PLAN.service(SERVICE)
    narrow_use = dataclasses.replace(service.views[1], features=(("reading", "reading"),))
    one = dataclasses.replace(
        service, views=(narrow_use,), functions=(), keys=service.keys[1:2], request=(), outputs=(service.outputs[2],)
    )
    plan = dataclasses.replace(PLAN, services=(one,))
    few = frame[["origin", "event_timestamp"]]
    narrow = training_set(plan, few, service=SERVICE, offline_uri=uri)
    assert narrow.columns["reading"].to_list() == whole.columns["reading"].to_list()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_LABELS_SHARE", 0.0)
        spilled = training_set(plan, few, service=SERVICE, offline_uri=uri)
        assert spilled.columns["reading"].to_list() == whole.columns["reading"].to_list()


@pytest.mark.parametrize(("text", "size"), [("4GB", 4 * 10**9), ("1GiB", 2**30), (10**9, 10**9)])
def test_sizes_of_memory(text: Any, size: int) -> None:
    """Bytes, or text with a unit."""
    assert memory.memory_limit(text) == size


@pytest.mark.parametrize("text", ["much", "4 elephants", "1MB", "700MB", -1])
def test_sizes_that_are_none(text: Any) -> None:
    """What is no size, or less than can be kept to, is refused with what to give."""
    with pytest.raises(DataError, match="give"):
        memory.memory_limit(text)


def test_a_container_may_have_less_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a size it is a part of what is free, by the group's limit where there is one."""
    (tmp_path / "max").write_text("3000000000\n")
    (tmp_path / "current").write_text("1000000000\n")
    monkeypatch.setattr(memory, "_CGROUPS", ((tmp_path / "max", tmp_path / "current"),))
    assert memory.memory_limit(None) == 1_200_000_000
    (tmp_path / "max").write_text("max\n")
    assert memory.memory_limit(None) > 1_200_000_000


def test_tables_that_were_rewritten(offline_uri: str, tmp_path: Path) -> None:
    """What delta-rs deletes from or compacts is written with other types of text; it is read like any other, both ways."""
    uri = str(tmp_path / "offline")
    shutil.copytree(offline_uri, uri)
    labels = labels_frame(40)
    expected = _spilled(labels, uri).to_arrow()
    for name, column in (("departures", "carrier"), ("weather", "sky")):
        DeltaTable(f"{uri}/{name}").optimize.compact()
        DeltaTable(f"{uri}/{name}").update(updates={column: column})
    for found in (_spilled(labels, uri), training_set(PLAN, labels, service=SERVICE, offline_uri=uri)):
        assert found.to_arrow().replace_schema_metadata(None).equals(expected.replace_schema_metadata(None))
