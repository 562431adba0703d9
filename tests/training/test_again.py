"""Time travel: older versions, instants, and manifests that make the same file again or say what no longer fits."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from tally.errors import DataError, DefinitionMismatchError, TallyError
from tally.plan import Plan, hashed_service, hashed_view
from tally.served import EVIDENCE_COLUMN
from tally.time import HOUR, MINUTE, from_datetime, to_datetime
from tests.training import stores
from tests.training.stores import PLAN, SERVICE, departure, weather
from training import build_training_set, rebuild_training_set, training_set

START = from_datetime(datetime(2013, 3, 1, tzinfo=UTC))
LABELS = pd.DataFrame(
    {
        "row": [1, 2, 3, 4],
        "carrier": ["AA", "UA", "AA", "UA"],
        "origin": ["JFK", "LGA", "LGA", "JFK"],
        "dest": ["LGA", "JFK", "JFK", "LGA"],
        "limit": [0.5, None, 2.0, 0.0],
        "event_timestamp": pd.to_datetime([START + h * HOUR for h in (2, 3, 3, 5)], unit="us", utc=True),
    }
)


def land(uri: str, hours: range) -> None:
    """Some of the rows of both tables."""
    readings = [
        weather(origin, START + hour * HOUR, START + hour * HOUR, hour / 3, hour, None)
        for hour in hours
        for origin in ("JFK", "LGA")
    ]
    messages = [
        departure(carrier, START + hour * HOUR + MINUTE, hour + 0.1, partition, hour, START + hour * HOUR + MINUTE)
        for hour in hours
        for partition, carrier in enumerate(("AA", "UA"))
    ]
    stores.land_weather(uri, readings)
    stores.land_departures(uri, messages)


def committed_at(uri: str, name: str, version: int) -> int:
    """The instant (ms) at which a version was committed."""
    commits = {commit["version"]: commit["timestamp"] for commit in DeltaTable(f"{uri}/{name}").history()}
    return int(commits[version])


@dataclasses.dataclass(frozen=True)
class Place:
    """A repository, its offline store with two versions, labels on disk, and an export of the first version."""

    repo: Path
    uri: str
    labels: Path
    out: Path

    @property
    def manifest(self) -> Path:
        """The manifest beside the export."""
        return self.out.with_name("t.parquet.manifest.json")

    def again(self, labels: Any = None, manifest: Any = None) -> Any:
        """The export once more."""
        return rebuild_training_set(manifest or self.manifest, labels, repo=self.repo, offline_uri=self.uri)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An export, and rows that were ingested after it."""
    made = Place(stores.write_repo(tmp_path), str(tmp_path / "offline"), tmp_path / "l.parquet", tmp_path / "t.parquet")
    land(made.uri, range(3))
    LABELS.to_parquet(made.labels)
    build_training_set(made.labels, service=SERVICE, repo=made.repo, offline_uri=made.uri).to_parquet(made.out)
    land(made.uri, range(3, 6))
    return made


def test_a_manifest_makes_the_same_file_again(place: Place) -> None:
    """Byte for byte, manifest included, although both tables have newer rows; the present set is another."""
    again = place.out.with_name("again.parquet")
    place.again().to_parquet(again)
    assert again.read_bytes() == place.out.read_bytes()
    assert again.with_name("again.parquet.manifest.json").read_bytes() == place.manifest.read_bytes()
    now = build_training_set(place.labels, service=SERVICE, repo=place.repo, offline_uri=place.uri)
    assert not now.to_arrow().equals(pq.read_table(place.out))


@pytest.mark.parametrize("evidence", [None, {"delays": {"fences": {"0": 1}}, "weather_now": None, "there": None}])
def test_a_set_as_served_is_made_again(place: Place, evidence: Any) -> None:
    """By arrival, or by the labels' evidence; from a version that was asked for, times in another column: byte for byte."""
    labels = LABELS.rename(columns={"event_timestamp": "asked"}).assign(dest="LGA")
    if evidence is not None:
        labels[EVIDENCE_COLUMN] = json.dumps(evidence)
    options: dict[str, Any] = {"visibility": "as_served", "timestamp": "asked", "offline_version": 0}
    first = build_training_set(labels, service=SERVICE, repo=place.repo, offline_uri=place.uri, **options)
    first.to_parquet(place.out)
    place.again(labels).to_parquet(place.out.with_name("again.parquet"))
    assert place.out.with_name("again.parquet").read_bytes() == place.out.read_bytes()
    assert first.manifest["evidence"] == (evidence is not None)
    assert (first.columns["delay_count_1h"].to_list(), first.columns["reading"].to_list()) == (
        ([1, 1, 1, 0], [2, 2, 2, 2]) if evidence is None else ([1, 0, 0, 0], [None] * 4)
    )


def test_labels_may_have_moved(place: Place) -> None:
    """Given labels are used instead of those that the manifest names, as a path or as a frame."""
    moved = place.labels.rename(place.labels.with_name("moved.parquet"))
    with pytest.raises(DataError, match=r"no labels at .*l\.parquet"):
        place.again()
    for labels in (moved, LABELS):
        assert place.again(labels).to_arrow().equals(pq.read_table(place.out))


def test_a_set_from_memory_needs_its_labels(place: Place) -> None:
    """The manifest of a set whose labels came from a notebook makes it again once they are given."""
    first = build_training_set(LABELS, service=SERVICE, repo=place.repo, offline_uri=place.uri)
    assert place.again(LABELS, first.manifest).to_arrow().equals(first.to_arrow())
    with pytest.raises(DataError, match="does not say where its labels are"):
        place.again(None, first.manifest)


def _changed_labels(place: Place) -> None:
    LABELS.assign(row=[1, 2, 3, 5]).to_parquet(place.labels)


def _fewer_labels(place: Place) -> None:
    LABELS[:3].to_parquet(place.labels)


def _changed_view(place: Place) -> None:
    view = hashed_view(dataclasses.replace(PLAN.view("weather_now"), ttl=HOUR, hash=""), PLAN.source("weather"))
    plan = dataclasses.replace(PLAN, views=(view, PLAN.view("delays")))
    _write(place, plan)


def _changed_service(place: Place) -> None:
    outputs = PLAN.service(SERVICE).outputs[::-1]
    _write(place, dataclasses.replace(PLAN, services=(dataclasses.replace(PLAN.service(SERVICE), outputs=outputs),)))


def _write(place: Place, plan: Plan) -> None:
    service = hashed_service(dataclasses.replace(plan.service(SERVICE), hash=""), plan)
    document = dataclasses.replace(plan, services=(service,)).to_json()
    (place.repo / "data" / "plan.json").write_text(document)


def _made_anew(place: Place) -> None:
    shutil.rmtree(f"{place.uri}/weather")
    land(place.uri, range(3))


def _never_there(place: Place) -> None:
    shutil.rmtree(f"{place.uri}/weather")


def _no_such_version(place: Place) -> None:
    document = json.loads(place.manifest.read_text())
    document["offline_versions"]["departures"] = 7
    place.manifest.write_text(json.dumps(document))


def _other_rows(place: Place) -> None:
    document = json.loads(place.manifest.read_text())
    document["packages"]["numpy"] = "0.1"
    document["export"]["rows_digest"] = "0" * 64
    place.manifest.write_text(json.dumps(document))


def _not_json(place: Place) -> None:
    shutil.copy(place.out, place.manifest)


def _not_a_manifest(place: Place) -> None:
    place.manifest.write_text('{"service": "delay"}')


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_changed_labels, DataError, r"labels at .*l\.parquet are not those of the manifest .*: 4 rows with digest \w+, not 4"),
        (_fewer_labels, DataError, "3 rows with digest .* not 4 with"),
        (_changed_view, DefinitionMismatchError, "changed: view weather_now. Apply the definitions of then"),
        (_changed_service, DefinitionMismatchError, "changed: its features, keys or request functions"),
        (_made_anew, DataError, "offline table weather was deleted and made anew .* version 0 is another"),
        (_never_there, TallyError, "tally ingest weather"),
        (_no_such_version, DataError, "departures has versions 0 to 1, not 7"),
        (_other_rows, DataError, r"digest .* had 0000000000000000, .* packages that differ: numpy \S+ \(then 0.1\)"),
        (_not_json, DataError, r"is not JSON; give the file T\.parquet\.manifest\.json"),
        (_not_a_manifest, DataError, "says nothing of label_digest, "),
    ],
)  # fmt: skip
def test_what_no_longer_fits_is_named(
    place: Place, change: Callable[[Place], None], error: type[TallyError], message: str
) -> None:
    """Labels, definition, tables, versions or values that are others: refused, saying which."""
    change(place)
    with pytest.raises(error, match=message):
        place.again()


def test_an_instant_reads_the_tables_as_they_were(place: Place) -> None:
    """Each table as of the newest version committed at or before an instant: datetimes and ISO texts, naive ones are UTC."""
    millis = committed_at(place.uri, "departures", 0)
    assert millis < committed_at(place.uri, "weather", 1)
    at = to_datetime(millis * 1000)
    for instant in (
        at,
        at.isoformat(),
        at.replace(tzinfo=None).isoformat(),
        at.astimezone(UTC) + timedelta(microseconds=1),
    ):
        found = training_set(PLAN, LABELS, service=SERVICE, offline_uri=place.uri, offline_version=instant)
        assert found.manifest["offline_versions"] == {"departures": 0, "weather": 0}
        assert found.to_arrow().equals(pq.read_table(place.out))
    found = training_set(PLAN, LABELS, service=SERVICE, offline_uri=place.uri, offline_version=datetime.now(UTC))
    assert set(found.manifest["offline_versions"].values()) == {1}


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("2001-01-01", "no version as old as 2001-01-01T00:00:00.*choose a later instant"),
        ("yesterday", "'yesterday' is neither a version number nor an instant such as"),
        (2, "versions 0 to 1, not 2"),
        (-1, "versions 0 to 1, not -1"),
    ],
)
def test_versions_that_are_not_there(place: Place, version: Any, message: str) -> None:
    """A version or instant that the tables do not reach is refused, with those that they have."""
    with pytest.raises(DataError, match=message):
        training_set(PLAN, LABELS, service=SERVICE, offline_uri=place.uri, offline_version=version)


def test_how_labels_came_does_not_reach_the_file(place: Place, tmp_path: Path) -> None:
    """Labels in many chunks, in several files or with metadata of their own give the same bytes."""
    folder = tmp_path / "labels"
    folder.mkdir()
    table = pa.Table.from_pandas(LABELS, preserve_index=False)
    pq.write_table(table.slice(3), folder / "b.parquet")
    pq.write_table(table.slice(0, 3), folder / "a.parquet")
    pieces = pa.concat_tables([table.slice(i, 1) for i in range(4)])
    for number, labels in enumerate((folder, pieces, LABELS)):
        out = tmp_path / f"{number}.parquet"
        place.again(labels).to_parquet(out)
        assert out.read_bytes() == place.out.read_bytes()
