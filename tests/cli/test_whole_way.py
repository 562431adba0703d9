from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from infra.local import embedded
from infra.local.snowflake_load import connected, load_table
from infra.settings import Settings
from ingestion.materialize import materialize_view
from serving_client import FeatureClient, ParquetSink, ServedLog
from tally.layout import views_key
from tests.cli.conftest import Tally, small_plan

LANDED = "INSERT INTO RIDES SELECT PARSE_JSON(%s), PARSE_JSON(%s)"
MIDNIGHT = 1_700_006_400_000_000
MINUTE = 60_000_000


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Redis and the Snowflake emulator, with three rides that landed (one twice, one unreadable) and some weather."""
    with embedded(tmp_path_factory.mktemp("services"), ("redis", "snowflake")) as settings:
        with connected(settings) as connection:
            cursor = connection.cursor()
            cursor.execute("CREATE TABLE RIDES (RECORD_METADATA VARIANT, RECORD_CONTENT VARIANT)")
            for offset, content in ((0, ride(1, "2.5")), (1, ride(2, "0.1")), (1, ride(2, "0.1")), (2, ride(3, '"x"'))):
                metadata = f'{{"topic":"rides","partition":0,"offset":{offset},"CreateTime":{MIDNIGHT // 1000}}}'
                cursor.execute(LANDED, (metadata, content))
        instant = pa.array([MIDNIGHT], pa.timestamp("us", "UTC"))
        load_table(settings, "HOURLY_WEATHER", pa.table({"city": ["Rome"], "temp": [20.5], "event_timestamp": instant}))
        yield settings


def ride(minute: int, fare: str) -> str:
    """A message of topic `rides`."""
    return f'{{"city":"Rome","event_timestamp":"2023-11-15T00:{minute:02}:00Z","fare":{fare}}}'


@pytest.fixture
def offline(
    tally: Tally,  # noqa: ARG001 first, for it clears what is set here
    tmp_path: Path,
    services: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """An offline store that is not there yet, in an environment that leads to it and to the services."""
    for name, value in services.model_dump().items():
        if name.startswith(("snowflake_", "redis_")) and value:
            monkeypatch.setenv(name.upper(), getattr(value, "get_secret_value", lambda v=value: str(v))())
    monkeypatch.setenv("TALLY_OFFLINE_URI", str(tmp_path / "offline"))
    return str(tmp_path / "offline")


@pytest.mark.usefixtures("offline")
def test_ingest_bootstrap_export(tally: Tally, repo: Path, tmp_path: Path, services: Settings) -> None:
    """From Snowflake to Redis and to a training set; what was new, doubled and unreadable is shown; a second run adds nothing."""
    labels = pa.table(
        {
            "ride": ["late", "early"],
            "city": ["Rome", "Rome"],
            "event_timestamp": pa.array([MIDNIGHT + 2 * MINUTE, MIDNIGHT], pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(labels, tmp_path / "labels.parquet")
    out = tmp_path / "training.parquet"

    first = tally("ingest", "--repo", repo)
    again = tally("ingest", "RIDES", "--repo", repo)
    bootstrapped = tally("bootstrap", "--repo", repo)
    exported = tally("export", "fare", "--labels", tmp_path / "labels.parquet", "--out", out, "--repo", repo)
    repeated = tally(
        *("export", "--from-manifest", f"{out}.manifest.json", "--out", tmp_path / "2.parquet", "--repo", repo),
        *("--memory", "1GB"),
    )
    document = json.loads(Path(f"{out}.manifest.json").read_text())
    assert document.pop("export")["labels"] == str(tmp_path / "labels.parquet")
    (tmp_path / "kept.json").write_text(json.dumps(document))
    from_memory = tally(
        *("export", "--from-manifest", tmp_path / "kept.json", "--labels", tmp_path / "labels.parquet"),
        *("--out", out, "--repo", repo),
    )
    older = tally(
        *("export", "fare", "--labels", tmp_path / "labels.parquet", "--out", tmp_path / "3.parquet", "--repo", repo),
        *("--offline-version", "2001-01-01T00:00:00Z"),
    )
    by_name = {line.split()[0]: line.split()[1:] for line in first.out.splitlines() if line}
    trained = pq.read_table(out).to_pydict()

    assert [one.code for one in (first, again, bootstrapped, exported)] == [0, 0, 0, 0]
    assert by_name["rides"][:3] == ["2", "1", "1"]
    assert by_name["weather"][:3] == ["1", "0", "0"]
    assert "rides__rejected" in first.out
    assert again.out.splitlines()[1].split()[:2] == ["rides", "0"]
    assert "rides_by_city: 1 keys" in bootstrapped.out
    assert f"{out}: 2 rows x 2 features" in exported.out
    assert "rides version 0, weather version 0" in exported.out
    assert "byte for byte" in repeated.out
    assert "could not be compared" in from_memory.out
    assert (tmp_path / "2.parquet").read_bytes() == out.read_bytes()
    assert older.code == 1
    assert "no version as old as 2001-01-01" in older.err
    assert trained["ride"] == ["late", "early"]
    assert trained["fare_sum_1h"] == [2.6, None]
    assert trained["temp"] == [20.5, 20.5]

    plan = small_plan()
    with redis.Redis.from_url(services.redis_url) as store:
        assert store.hkeys(views_key(plan.project)) == [f"rides_by_city@{plan.view('rides_by_city').hash}".encode()]
        served = FeatureClient(store, plan.for_service("fare")).get([{"city": "Rome"}], as_of=MIDNIGHT + 2 * MINUTE)
    assert served.to_dict()["fare_sum_1h"] == [2.6]


def test_audit(tally: Tally, repo: Path, tmp_path: Path, services: Settings, offline: str) -> None:
    """What was served is replayed: equal, exit 0; a value that was changed in the log is found and shown, exit 1."""
    plan = small_plan()
    assert tally("ingest", "--repo", repo).code == 0
    assert tally("bootstrap", "--repo", repo).code == 0
    with redis.Redis.from_url(services.redis_url) as store, ServedLog(ParquetSink(tmp_path / "served")) as log:
        materialize_view(plan, plan.view("weather"), offline, store, end=MIDNIGHT)
        client = FeatureClient(store, plan.for_service("fare"), log=log)
        client.get([{"city": "Rome"}, {"city": "Oslo"}], as_of=MIDNIGHT + 2 * MINUTE)
    (path,) = (tmp_path / "served").rglob("*.parquet")

    agrees = tally("audit", tmp_path / "served", "--repo", repo)
    table = pq.read_table(path)
    at = table.column_names.index("served__temp")
    pq.write_table(table.set_column(at, "served__temp", pa.array([20.500000000000004, None])), path)
    report = tmp_path / "audit.html"
    differs = tally("audit", path, "--repo", repo, "--html", report, "--offline-version", "0")
    pq.write_table(table.slice(0, 0), path)
    nothing = tally("audit", path, "--repo", repo)
    nowhere = tally("audit", path, "--repo", repo, "--html", tmp_path / "no" / "audit.html")

    assert agrees.code == 0
    assert f"fare {plan.service('fare').hash[:8]}: 2 of 2 rows compared" in agrees.out
    assert "read        rides version 0, weather version 0" in agrees.out
    assert "audit: 4 values compared, 0 differ" in agrees.out
    assert differs.code == 1
    assert "differ      1 of 4 values: unexplained" in differs.out
    shown = next(line for line in differs.out.splitlines() if line.startswith("city=Rome"))
    assert shown.split()[-3:] == ["temp", "20.500000000000004", "20.5"]
    assert "audit: 4 values compared, 1 differ" in differs.out
    assert "1 of 4 values differ" in report.read_text()
    assert nothing.code == 1
    assert "audit: nothing was compared" in nothing.out
    assert nowhere.code == 2
    assert "There is no folder" in nowhere.err
