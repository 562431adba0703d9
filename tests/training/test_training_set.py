"""Training sets from real Delta tables: right, in the order of the labels, and the same however the work is divided."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client, LocalCluster

import tally
from tally.errors import DataError, NotReadyError, UnknownServiceError
from tally.served import EVIDENCE_COLUMN
from tally.time import HOUR, MINUTE, from_datetime
from tests import oracle
from tests.oracle import Event
from tests.training import stores
from tests.training.stores import PLAN, SERVICE, departure, weather
from training import TrainingSet, build_training_set, training_set
from training.asks import Questions
from training.cluster import Cluster
from training.engine import pinned_versions
from training.memory import LEAST, room_for_data
from training.work import survey

START = from_datetime(datetime(2013, 3, 1, tzinfo=UTC))
BIG = 2**60 + 1


def _events() -> tuple[list[Event], list[Event]]:
    chance = random.Random(7)
    skies = ["clear", None, "été"]
    readings = [
        weather(origin, START + hour * HOUR, START + hour * HOUR + late, hour / 3, chance.choice([BIG, None]), chance.choice(skies))
        for origin in ("JFK", "LGA")
        for hour in range(24)
        for late in (MINUTE, 90 * MINUTE)
    ]  # fmt: skip
    messages = [
        departure(chance.choice(["AA", "UA"]), at, chance.choice([None, 0.1, 1e9, -3.5]), offset % 2, offset, at + late)
        for offset in range(400)
        for at, late in [(START + chance.randrange(24 * 60) * MINUTE, chance.randrange(20) * MINUTE)]
    ]
    return readings, messages


READINGS, MESSAGES = _events()


def labels_frame(count: int = 60) -> pd.DataFrame:
    """Labels of known and unknown entities, some of them after the last event."""
    chance = random.Random(11)
    return pd.DataFrame(
        {
            "row": range(count),
            "carrier": [chance.choice(["AA", "UA", "never"]) for _ in range(count)],
            "origin": [chance.choice(["JFK", "LGA"]) for _ in range(count)],
            "dest": [chance.choice(["JFK", "nowhere"]) for _ in range(count)],
            "limit": [chance.choice([None, 0.5]) for _ in range(count)],
            "event_timestamp": pd.to_datetime(
                [START + chance.randrange(36 * 60) * MINUTE for _ in range(count)], unit="us", utc=True
            ),
        }
    )


def _instants(labels: pd.DataFrame) -> list[int]:
    return [from_datetime(at.to_pydatetime()) for at in labels["event_timestamp"]]


@pytest.fixture(scope="module")
def offline_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An offline store with both tables; some messages landed twice."""
    uri = str(tmp_path_factory.mktemp("offline"))
    stores.land_weather(uri, READINGS)
    stores.land_departures(uri, MESSAGES)
    stores.land_departures(uri, MESSAGES[:50])
    return uri


@pytest.fixture
def build(offline_uri: str) -> Callable[..., TrainingSet]:
    """`training_set` of the project."""

    def built(labels: Any, **options: Any) -> TrainingSet:
        return training_set(PLAN, labels, service=SERVICE, offline_uri=offline_uri, **options)

    return built


def _expected(labels: pd.DataFrame, sees: Callable[[int], oracle.Sees]) -> list[dict[str, Any]]:
    rows = []
    for label, at in zip(labels.to_dict("records"), _instants(labels), strict=True):
        delays = oracle.features(PLAN.view("delays"), [label["carrier"]], at, MESSAGES, sees(at))
        here = oracle.features(PLAN.view("weather_now"), [label["origin"]], at, READINGS, sees(at))
        there = oracle.features(PLAN.view("weather_now"), [label["dest"]], at, READINGS, sees(at))
        mean, limit = delays.pop("delay_mean_1h"), label["limit"]
        above = not (mean is None or np.isnan(limit)) and mean > limit
        warm = (there["temp"] or 0.0) * 2.0
        rows.append({**delays, **here, "there__reading": there["reading"], "above": bool(above), "warm": warm})
    return rows


@pytest.mark.parametrize("visibility", ["event_time", "as_served"])
def test_values_are_the_oracles(build: Callable[..., TrainingSet], visibility: str) -> None:
    """Latest rows, windows and request functions of every label, in the order of the labels, to the bit."""
    labels = labels_frame()
    sees = oracle.arrived_by if visibility == "as_served" else lambda _: oracle.everything
    dataset = build(labels, visibility=visibility)
    assert list(dataset.columns) == [f.name for f in PLAN.service(SERVICE).outputs]
    expected = _expected(labels, sees)
    for name, values in dataset.columns.items():
        for row, (one, other) in enumerate(zip(values.to_list(), expected, strict=True)):
            assert oracle.same(one, other[name]), f"{name} of row {row}: {one!r}, expected {other[name]!r}"


def test_event_time_and_as_served_differ(build: Callable[..., TrainingSet]) -> None:
    """The two visibilities are not the same thing here, so that the tests above mean something."""
    assert not build(labels_frame()).to_arrow().equals(build(labels_frame(), visibility="as_served").to_arrow())


def test_evidence_is_replayed(build: Callable[..., TrainingSet]) -> None:
    """Each label sees exactly what its evidence names: fences for windows, a version for latest rows."""
    labels = labels_frame(20)
    reading = READINGS[3]
    seen = {
        "delays": {"fences": {"0": 100, "1": 51}},
        "weather_now": {"version": [reading.timestamp, reading.a, reading.b]},
        "there": None,
    }
    labels[EVIDENCE_COLUMN] = json.dumps(seen)
    dataset = build(labels, visibility="as_served")
    fences = oracle.behind_fences({0: 100, 1: 51})
    version = oracle.up_to_version((reading.timestamp, reading.a, reading.b))
    for row, (label, at) in enumerate(zip(labels.to_dict("records"), _instants(labels), strict=True)):
        delays = oracle.features(PLAN.view("delays"), [label["carrier"]], at, MESSAGES, fences)
        here = oracle.features(PLAN.view("weather_now"), [label["origin"]], at, READINGS, version)
        assert oracle.same(dataset.columns["delay_std_6h"].to_list()[row], delays["delay_std_6h"])
        assert oracle.same(dataset.columns["temp"].to_list()[row], here["temp"])
        assert dataset.columns["there__reading"].to_list()[row] is None


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        ('{"delays": null}', "row 0 has no version of weather_now"),
        ('{"delays": {"version": [1, 0, 0]}}', "row 0 has no fences of delays"),
        ("null", "row 0 has no fences of delays"),
        ("{", "row 0 is not JSON"),
        (None, "tally_evidence is null in 2 of 2 rows"),
    ],
)
def test_evidence_of_something_else_is_refused(
    build: Callable[..., TrainingSet], evidence: str | None, message: str
) -> None:
    """Evidence that says nothing of a view is an error, not an empty answer."""
    labels = labels_frame(2).assign(**{EVIDENCE_COLUMN: evidence})
    with pytest.raises(DataError, match=message):
        build(labels, visibility="as_served")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A small Dask cluster in this process."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def test_a_cluster_gives_the_same_bits(build: Callable[..., TrainingSet], client: Client) -> None:
    """A Dask cluster, given or active, divides the keys and changes nothing, also of labels in a Dask frame; progress is told."""
    labels = labels_frame()
    told: list[tuple[int, int]] = []
    given = build(labels, visibility="as_served", client=client, progress=lambda *step: told.append(step))
    assert told[-1][0] == told[-1][1] == 2 * (len(READINGS) + len(MESSAGES) + 50)
    assert told == sorted(told)
    steps = len(told)
    with client.as_current():
        active = build(labels, visibility="as_served", progress=lambda *step: told.append(step))
    assert told[-1] == told[steps - 1]
    local = build(labels, visibility="as_served").to_arrow()
    assert given.to_arrow().equals(local)
    assert active.to_arrow().equals(local)
    with client.as_current():
        assert build(dd.from_pandas(labels, npartitions=3), visibility="as_served").to_arrow().equals(local)


def test_a_cluster_keeps_to_the_memory_of_the_caller(client: Client, offline_uri: str) -> None:
    """Answers come back a part at a time: many labels and little memory here make more parts, whatever the workers have."""
    questions = Questions(PLAN, PLAN.service(SERVICE), "event_time")
    versions = pinned_versions(PLAN, questions.service, offline_uri, {})
    little, much = Cluster(client, LEAST), Cluster(client, 10**12)
    works = survey(questions, offline_uri, versions, START, START + 36 * HOUR)
    assert works
    for work in works:
        assert little.parts(work, 1_000) == much.parts(work, 1_000)
        labels = 20_000_000
        here = work.cost(0, [labels] * len(work.uses))
        assert here / little.parts(work, labels) <= room_for_data(LEAST)
        assert little.parts(work, labels) > much.parts(work, labels)


def test_progress_locally(build: Callable[..., TrainingSet]) -> None:
    """A callback hears of each task; True draws a bar."""
    told: list[tuple[int, int]] = []
    build(labels_frame(3), progress=lambda *step: told.append(step))
    assert sorted(told) == [(1, 2), (2, 2)]
    assert len(build(labels_frame(3), progress=True)) == 3


def test_labels_of_every_kind(build: Callable[..., TrainingSet], tmp_path: Path) -> None:
    """pandas, Arrow, a Parquet file, a folder of Parquet and a Dask frame give one result."""
    frame = labels_frame()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, tmp_path / "labels.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    pq.write_table(table.slice(0, 25), folder / "part-0.parquet")
    pq.write_table(table.slice(25), folder / "part-1.parquet")
    expected = build(frame)
    for labels in (table, tmp_path / "labels.parquet", str(folder), dd.from_pandas(frame, npartitions=3)):
        again = build(labels)
        assert again.to_arrow().equals(expected.to_arrow())
        assert again.manifest["label_digest"] == expected.manifest["label_digest"]
    assert expected.to_arrow().column_names[:6] == list(frame.columns)


def test_times_of_every_kind(build: Callable[..., TrainingSet]) -> None:
    """Naive times are UTC, other zones are converted, and nanoseconds are floored."""
    frame = labels_frame()
    utc = frame["event_timestamp"]
    expected = build(frame).to_arrow()
    east = utc.dt.tz_convert(timezone(timedelta(hours=5, minutes=30)))
    for other in (utc.dt.tz_localize(None), east, utc.dt.as_unit("ns") + pd.Timedelta(999, "ns")):
        assert build(frame.assign(event_timestamp=other)).to_arrow().equals(expected)


def test_duplicates_and_order_are_kept(build: Callable[..., TrainingSet]) -> None:
    """Rows in are rows out, in order: equal labels, unknown entities and expired rows included."""
    frame = pd.concat([labels_frame(), labels_frame()[::-1]], ignore_index=True)
    assert build(frame).to_pandas()["row"].tolist() == frame["row"].tolist()


def test_nothing_in_gives_nothing_with_dtypes(build: Callable[..., TrainingSet]) -> None:
    """An empty label frame gives an empty set with the dtypes of a full one."""
    full, empty = build(labels_frame()), build(labels_frame().iloc[:0])
    assert len(empty) == 0
    assert empty.to_arrow().schema.equals(full.to_arrow().schema)
    assert empty.to_pandas().dtypes.equals(full.to_pandas().dtypes)


def test_pandas_keeps_integers(build: Callable[..., TrainingSet]) -> None:
    """2**60 + 1 beside a null stays itself; booleans, strings and times are nullable, times are UTC microseconds."""
    frame = build(labels_frame()).to_pandas()
    assert frame["reading"].isna().any()
    assert set(frame["reading"].dropna()) == {BIG}
    dtypes = {"reading": "Int64", "above": "boolean", "sky": "string", "temp": "float64"}
    assert {name: str(frame[name].dtype) for name in dtypes} == dtypes
    assert str(frame["event_timestamp"].dtype) == "datetime64[us, UTC]"


def test_versions_build_the_same_set_again(tmp_path: Path) -> None:
    """A manifest's versions read the tables as they were, whatever was ingested since; an unknown one is refused."""
    uri = str(tmp_path)
    stores.land_weather(uri, READINGS[:40])
    stores.land_departures(uri, MESSAGES[:200])
    first = training_set(PLAN, labels_frame(), service=SERVICE, offline_uri=uri)
    stores.land_weather(uri, READINGS[40:])
    stores.land_departures(uri, MESSAGES[200:])
    now = training_set(PLAN, labels_frame(), service=SERVICE, offline_uri=uri)
    assert not now.to_arrow().equals(first.to_arrow())
    for version in (0, first.manifest["offline_versions"]):
        again = training_set(PLAN, labels_frame(), service=SERVICE, offline_uri=uri, offline_version=version)
        assert again.to_arrow().equals(first.to_arrow())
        assert again.manifest == first.manifest
    with pytest.raises(DataError, match="versions 0 to 1"):
        training_set(PLAN, labels_frame(), service=SERVICE, offline_uri=uri, offline_version=7)
    with pytest.raises(DataError, match="other"):
        training_set(PLAN, labels_frame(), service=SERVICE, offline_uri=uri, offline_version={"other": 0})


def test_manifest_says_what_it_was_made_from(build: Callable[..., TrainingSet], tmp_path: Path) -> None:
    """The manifest lies beside the file and inside it, and names hashes, versions and counts."""
    dataset = build(labels_frame())
    dataset.to_parquet(tmp_path / "t.parquet")
    service = PLAN.service(SERVICE)
    manifest = json.loads((tmp_path / "t.parquet.manifest.json").read_text())
    export = manifest.pop("export")
    assert manifest == dataset.manifest
    assert manifest["service_hash"] == dataset.definition == service.hash
    assert manifest["plan_hash"] == PLAN.hash
    assert manifest["view_hashes"] == {v.name: v.hash for v in PLAN.views}
    assert manifest["offline_versions"] == {"weather": 0, "departures": 1}
    assert (manifest["label_rows"], manifest["rows"], manifest["tally_version"]) == (60, 60, tally.__version__)
    assert (manifest["visibility"], manifest["timestamp"]) == ("event_time", "event_timestamp")
    assert manifest["offline_tables"].keys() == {"weather", "departures"}
    assert export["sha256"] == hashlib.sha256((tmp_path / "t.parquet").read_bytes()).hexdigest()
    assert export["labels"] is None
    assert manifest["refused"] == {"delays": {}, "weather_now": {}}
    stored = pq.read_table(tmp_path / "t.parquet")
    assert stored.equals(dataset.to_arrow())
    assert json.loads(stored.schema.metadata[b"tally"]) == dataset.manifest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.parquet", "t.parquet.manifest.json"]


def test_refused_rows_are_counted(tmp_path: Path) -> None:
    """An infinity cannot be summed: it is left out, and the manifest says so."""
    uri = str(tmp_path)
    stores.land_weather(uri, READINGS)
    infinite = departure("AA", START + 2 * HOUR, float("inf"), 0, 999, START)
    stores.land_departures(uri, [*MESSAGES, infinite])
    dataset = training_set(PLAN, labels_frame(), service=SERVICE, offline_uri=uri)
    assert list(dataset.manifest["refused"]["delays"].values()) == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="dest"), r"no column 'dest'.*needs carrier \(String\), origin.*have row, carrier"),
        (lambda f: f.drop(columns="limit"), "no column 'limit'"),
        (lambda f: f.rename(columns={"event_timestamp": "when"}), 'timestamp="..."'),
        (lambda f: f.assign(carrier=[None, *f["carrier"][1:]]), "carrier is null in 1 of 60 rows, first in row 0"),
        (
            lambda f: f.assign(event_timestamp=f["event_timestamp"].where(f["row"] > 1)),
            "event_timestamp is null in 2 of",
        ),
        (lambda f: f.assign(limit="much"), "Label column limit holds .*string.* that do not fit Float64"),
        (lambda f: f.assign(carrier=1), "Label column carrier holds int64 values that do not fit String"),
        (lambda f: f.assign(event_timestamp="2013-03-01"), "event_timestamp holds .*string"),
        (lambda f: f.assign(limit=[1.0, "x"] * 30), "Label column limit mixes types"),
        (lambda f: f.assign(temp=1.0), "'temp' has the name of a feature"),
        (lambda f: pd.concat([f, f[["row"]]], axis=1), "more than one column 'row'"),
        (lambda f: f.to_dict(), "not dict"),
        (lambda _: "/no/such/file.parquet", "no labels at /no/such/file.parquet"),
    ],
)
def test_bad_labels_are_refused(
    build: Callable[..., TrainingSet], change: Callable[[pd.DataFrame], Any], message: str
) -> None:
    """What is wrong with the labels is named, with what to do."""
    with pytest.raises(DataError, match=message):
        build(change(labels_frame()))


def test_a_file_that_is_not_parquet_is_refused(build: Callable[..., TrainingSet], tmp_path: Path) -> None:
    """A CSV under the name of labels is named as such."""
    (tmp_path / "labels.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="not Parquet"):
        build(tmp_path / "labels.parquet")


def test_unknown_visibility_is_refused(build: Callable[..., TrainingSet]) -> None:
    """A misspelt visibility is not taken for the default."""
    with pytest.raises(DataError, match="event_time, as_served"):
        build(labels_frame(2), visibility="eventtime")


def test_build_reads_the_repository(offline_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan comes from the repository, the offline store from TALLY_OFFLINE_URI; without a plan the error says apply."""
    repo = stores.write_repo(tmp_path)
    monkeypatch.setenv("TALLY_OFFLINE_URI", offline_uri)
    dataset = build_training_set(labels_frame(5), service=SERVICE, repo=repo)
    assert dataset.to_arrow().equals(
        training_set(PLAN, labels_frame(5), service=SERVICE, offline_uri=offline_uri).to_arrow()
    )
    with pytest.raises(UnknownServiceError, match=SERVICE):
        build_training_set(labels_frame(5), service="other", repo=repo)
    with pytest.raises(NotReadyError, match=r"feast -c .*nothing apply"):
        build_training_set(labels_frame(5), service=SERVICE, repo=tmp_path / "nothing")


def test_a_source_that_was_never_ingested(tmp_path: Path) -> None:
    """The error names the command that makes the table."""
    with pytest.raises(NotReadyError, match="tally ingest"):
        training_set(PLAN, labels_frame(5), service=SERVICE, offline_uri=str(tmp_path))
