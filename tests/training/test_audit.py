"""Audits of rows that a real client served from a real Redis: equal where nothing was touched, and why where something was."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis

from infra.local.ephemeral import embedded
from ingestion.materialize import bootstrap_view, materialize_view
from serving_client import Fallback, FeatureClient, FeatureRows, ParquetSink, ServedLog
from tally.errors import DataError, NotReadyError
from tally.plan import Plan
from tally.served import DEFINITION_COLUMN, EVIDENCE_COLUMN, SERVED, SERVICE_COLUMN, STATUS_COLUMN
from tally.time import HOUR, MINUTE, from_datetime
from tests.training import stores
from tests.training.stores import PLAN, SERVICE, departure, weather
from training import Audit, auditing
from training.audit_page import SHOWN, bars, share, shown
from training.audit_results import KEPT, ServiceAudit
from training.auditing import audit_log
from training.why import UNEXPLAINED, Gaps

NOON = from_datetime(datetime(2013, 3, 1, 12, tzinfo=UTC))
ASKED: dict[str, Any] = {
    "carrier": ["AA", "AA", "UA", "XX"],
    "origin": ["JFK", "LGA", "JFK", "nowhere"],
    "dest": ["LGA", "JFK", "JFK", "JFK"],
    "limit": [0.5, None, 2.0, 0.0],
}
LATE = departure("AA", NOON - 10 * MINUTE, 0.7, 0, 3, NOON + 5 * MINUTE)
FEATURES = len(PLAN.services[0].outputs)


@dataclasses.dataclass(frozen=True)
class World:
    """An offline store, and the log of what was loaded from it into Redis and served at noon."""

    offline: str
    log: Path
    rows: FeatureRows

    def audit(self, plan: Plan = PLAN) -> Audit:
        """What comes of the log."""
        return audit_log(plan, self.log, offline_uri=self.offline)

    def changed(self, change: Callable[[pa.Table], pa.Table]) -> Audit:
        """What comes of the rows that `change` makes of the log's."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "changed.parquet"
            pq.write_table(change(logged(self.log)), path)
            return dataclasses.replace(self, log=path).audit()


def logged(folder: Path) -> pa.Table:
    """The rows of the one file of a log."""
    (path,) = folder.rglob("*.parquet")
    return pq.read_table(path)


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    """The table with other values in a column."""
    at = table.column_names.index(name)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


def reasons(part: ServiceAudit) -> dict[str, set[tuple[int, str]]]:
    """By reason, the rows and features that differ for it."""
    found: dict[str, set[tuple[int, str]]] = {}
    for one in part.differences:
        found.setdefault(one.why, set()).add((one.row, one.feature))
    return found


def land(offline: str) -> None:
    """Three messages and two readings that have landed before noon."""
    stores.land_departures(
        offline,
        [
            departure("AA", NOON - 50 * MINUTE, 0.1, 0, 0, NOON - 50 * MINUTE),
            departure("UA", NOON - 40 * MINUTE, 0.2, 1, 0, NOON - 40 * MINUTE),
            departure("AA", NOON - 30 * MINUTE, 250_000.25, 0, 2, NOON - 30 * MINUTE),
            departure("UA", NOON - 20 * MINUTE, None, 0, 1, NOON - 20 * MINUTE),
        ],
    )
    stores.land_weather(
        offline,
        [
            weather("JFK", NOON - HOUR, NOON - HOUR, 10.0, 2**60 + 1, "clear"),
            weather("LGA", NOON - 7 * HOUR, NOON - 7 * HOUR, 3.0, 3, "fog"),
        ],
    )


def load(offline: str, redis: Redis) -> None:
    """All that has landed, to Redis."""
    bootstrap_view(PLAN, PLAN.view("delays"), offline, redis)
    materialize_view(PLAN, PLAN.view("weather_now"), offline, redis, end=NOON)


def serve(url: str, folder: Path, as_of: int = NOON, fallback: Fallback | None = None) -> FeatureRows:
    """What is answered at `as_of`, and logged."""
    plan = PLAN.for_service(SERVICE)
    with ServedLog(ParquetSink(folder)) as log, Redis.from_url(url) as redis:
        return FeatureClient(redis, plan, log=log, fallback=fallback, timeout=0.2).get(ASKED, as_of)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of these tests."""
    with embedded(tmp_path_factory.mktemp("redis"), ("redis",)) as settings:
        yield str(settings.redis_url)


@pytest.fixture(scope="module")
def served(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    """What was served at noon; tests that change the offline store take a copy (`world`)."""
    folder = tmp_path_factory.mktemp("world")
    offline, log = str(folder / "offline"), folder / "served"
    land(offline)
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
        load(offline, redis)
    return World(offline, log, serve(redis_url, log))


@pytest.fixture
def world(served: World, tmp_path: Path) -> World:
    """What was served at noon, and an offline store of one's own."""
    shutil.copytree(served.offline, tmp_path / "offline")
    return dataclasses.replace(served, offline=str(tmp_path / "offline"))


def test_what_was_served_is_what_is_replayed(served: World) -> None:
    """Every value of every row is compared, none differs, and the audit says what it read."""
    found = served.audit()
    (part,) = found.parts
    assert (found.agrees, found.values, found.differ) == (True, 4 * FEATURES, 0)
    assert (part.rows, part.audited, part.first, part.last) == (4, 4, NOON, NOON)
    assert part.versions == {"departures": 0, "weather": 0}
    assert (part.left_out, part.why, part.differences, part.flagged, part.later) == ({}, {}, [], {}, 0)
    assert part.hours == {NOON // HOUR: (4 * FEATURES, 0, 0)}


def test_what_came_late_is_told_apart(world: World) -> None:
    """A message that arrived after noon: what was served still tallies, and would be another value by event time."""
    stores.land_departures(world.offline, [LATE])
    (part,) = world.audit().parts
    late = {one.name: one.later for one in part.features if one.later}
    assert part.differ == 0
    assert late == {"delay_count_1h": 2, "delay_std_6h": 2}
    assert part.hours == {NOON // HOUR: (4 * FEATURES, 0, 4)}


NAMES = [output.name for output in PLAN.services[0].outputs]


@hypothesis_settings(max_examples=25)
@given(changes=st.sets(st.tuples(st.integers(0, 3), st.sampled_from(NAMES)), min_size=1, max_size=3))
def test_a_changed_value_is_found(served: World, changes: set[tuple[int, str]]) -> None:
    """Whatever values of a log are changed, by one bit or to null, these and no others differ."""

    def change(table: pa.Table) -> pa.Table:
        for row, name in changes:
            values = table.column(SERVED + name).to_pylist()
            values[row] = other(values[row], table.schema.field(SERVED + name).type)
            table = with_column(table, SERVED + name, values)
        return table

    (part,) = served.changed(change).parts
    assert {(one.row, one.feature) for one in part.differences} == changes
    assert part.why == {UNEXPLAINED: len(changes)}
    assert {one.name: one.differ for one in part.features} == {n: sum(c == n for _, c in changes) for n in NAMES}


def other(value: Any, kind: pa.DataType) -> Any:
    """Another value of the same type: the nearest number, null for a text, zero for a null."""
    if value is None:
        return "" if pa.types.is_string(kind) else kind.to_pandas_dtype()(0)
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return float(np.nextafter(value, np.inf))
    return value + 1 if isinstance(value, int) else None


def test_a_row_that_was_deleted(world: World) -> None:
    """What was made from it differs, request functions too, and each says that the row is gone."""
    DeltaTable(f"{world.offline}/weather").delete("origin = 'JFK'")
    (part,) = world.audit().parts
    gone = "the row of {} that was served is not in offline table weather version 1: deleted, or replaced by another"
    assert reasons(part) == {
        gone.format("weather_now"): {(row, name) for row in (0, 2) for name in ("temp", "reading", "sky")},
        gone.format("there"): {(row, name) for row in (1, 2, 3) for name in ("there__reading", "warm")},
    }
    assert part.versions["weather"] == 1


def test_a_row_that_was_changed_in_place(world: World) -> None:
    """The same time and tie breakers, other values."""
    DeltaTable(f"{world.offline}/weather").update(updates={"temp": "10.5"}, predicate="origin = 'JFK'")
    (part,) = world.audit().parts
    changed = "the row of {} that was served has other values in offline table weather version 1: changed in place"
    assert reasons(part) == {
        changed.format("weather_now"): {(0, "temp"), (2, "temp")},
        changed.format("there"): {(row, "warm") for row in (1, 2, 3)},
    }


def test_a_message_that_the_warehouse_lost(world: World) -> None:
    """A window that lacks a message names the first offset that never landed; rows that never saw it agree."""
    DeltaTable(f"{world.offline}/departures").delete("_partition = 0 and _offset = 2")
    (part,) = world.audit().parts
    ((why, found),) = reasons(part).items()
    assert "lacks 1 offsets of departures up to where delays had read, the first of them 2 of partition 0" in why
    assert {row for row, _ in found} == {0, 1}
    assert {name for _, name in found} >= {"delay_count_1h", "delay_max_6h"}


def test_what_has_not_landed_is_left_out(served: World) -> None:
    """A row that had read beyond the offline store is not compared with less; the others are."""

    def change(table: pa.Table) -> pa.Table:
        evidence = [json.loads(text) for text in table.column(EVIDENCE_COLUMN).to_pylist()]
        evidence[1]["delays"]["fences"]["0"] = 99
        return with_column(table, EVIDENCE_COLUMN, [json.dumps(one) for one in evidence])

    found = served.changed(change)
    (part,) = found.parts
    assert part.left_out == {
        "had read messages that offline table departures does not have yet; run: tally ingest departures": 1
    }
    assert (found.agrees, part.rows, part.audited, part.values) == (True, 4, 3, 3 * FEATURES)


def test_rows_of_other_definitions_are_left_out(served: World) -> None:
    """Of a file with rows of three definitions, those of the plan's are compared; the others are counted, each with why."""

    def change(table: pa.Table) -> pa.Table:
        older = with_column(table, DEFINITION_COLUMN, ["0" * 16] * 4)
        gone = with_column(table, SERVICE_COLUMN, ["gone"] * 4)
        return pa.concat_tables([older.slice(0, 1), table, gone.slice(0, 3), older.slice(1, 1)])

    found = served.changed(change)
    left_out = {(part.service, reason): rows for part in found.parts for reason, rows in part.left_out.items()}
    assert left_out == {
        (SERVICE, f"served under another definition than the plan's, {PLAN.services[0].hash[:8]}"): 2,
        ("gone", "the plan has no service gone"): 3,
    }
    assert (found.agrees, found.values) == (True, 4 * FEATURES)


def test_nothing_compared_is_no_agreement(served: World) -> None:
    """A log of which nothing can be compared proves nothing."""
    found = served.changed(lambda table: with_column(table, DEFINITION_COLUMN, ["0" * 16] * 4))
    assert (found.agrees, found.values, found.differ) == (False, 0, 0)
    assert "Nothing was compared" in found.to_html()


def test_answers_that_said_so_themselves_are_not_compared(redis_url: str, world: World, tmp_path: Path) -> None:
    """Defaults while Redis was away, and windows of a store that was ahead, are counted by status."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        defaults = Fallback(defaults={"temp": 1.5})
        serve(f"redis://127.0.0.1:{nobody.getsockname()[1]}", tmp_path / "away", fallback=defaults)
    (part,) = dataclasses.replace(world, log=tmp_path / "away").audit().parts
    assert part.flagged == {"default": 4 * FEATURES}
    assert (part.values, part.audited) == (0, 4)

    serve(redis_url, tmp_path / "ahead", as_of=NOON - 25 * MINUTE)
    (part,) = dataclasses.replace(world, log=tmp_path / "ahead").audit().parts
    assert part.differ == 0
    assert {one.name for one in part.features if one.flagged["ahead"]} >= {"delay_count_1h", "delay_max_6h"}
    assert part.flagged["ahead"] + part.values == 4 * FEATURES


def test_many_differences_are_all_counted(served: World) -> None:
    """Only so many are kept one by one; the counts, and the page, speak of all."""
    times = KEPT // 4 + 1

    def change(table: pa.Table) -> pa.Table:
        table = with_column(table, f"{SERVED}sky", ["<b>hail</b>"] * 4)
        return pa.concat_tables([table] * times)

    found = served.changed(change)
    (part,) = found.parts
    assert (found.differ, len(part.differences), part.why) == (4 * times, KEPT, {UNEXPLAINED: 4 * times})
    text = found.to_html()
    assert f"{4 * times:,} of {found.values:,} values differ" in text
    assert "<b>hail" not in text
    assert text.count("&lt;b&gt;hail") == SHOWN
    assert found._repr_html_() in text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda table: table.drop_columns([SERVICE_COLUMN]), "has no column tally_service, so it is not a log"),
        (lambda table: table.drop_columns([f"{SERVED}temp"]), "has no column served__temp, which rows served by delay"),
        (
            lambda table: with_column(table, EVIDENCE_COLUMN, ["{"] * 4),
            "Column tally_evidence of the log holds '{', which is no JSON object",
        ),
        (
            lambda table: with_column(table, EVIDENCE_COLUMN, ["{}"] * 4),
            "evidence without fences of delays, which rows",
        ),
        (lambda table: with_column(table, EVIDENCE_COLUMN, ['{"delays":5}'] * 4), "evidence without fences of delays"),
        (
            lambda table: with_column(table, EVIDENCE_COLUMN, ['{"delays":null}'] * 4),
            "evidence without version of weather",
        ),
        (
            lambda table: with_column(table, STATUS_COLUMN, [None] * 4),
            "Column tally_status of the log holds None, which is no JSON object",
        ),
    ],
)
def test_what_is_no_log(served: World, spoil: Callable[[pa.Table], pa.Table], said: str) -> None:
    """Each is refused in a sentence that names the column."""
    with pytest.raises(DataError, match=said):
        served.changed(spoil)


def test_files_that_are_no_log(served: World, tmp_path: Path) -> None:
    """No folder, an empty one, and a file that is not Parquet; files in the making (with a dot in front) are passed over."""
    for path, said in ((tmp_path / "nowhere", "There is no log"), (tmp_path, "holds no Parquet file")):
        with pytest.raises(DataError, match=said):
            dataclasses.replace(served, log=path).audit()
    (tmp_path / ".served-1.parquet").write_bytes(b"half")
    with pytest.raises(DataError, match="holds no Parquet file"):
        dataclasses.replace(served, log=tmp_path).audit()
    (tmp_path / "served-1.parquet").write_bytes(b"half")
    with pytest.raises(DataError, match=r"served-1\.parquet is not Parquet that can be read"):
        dataclasses.replace(served, log=tmp_path).audit()


def test_before_the_first_ingestion(served: World, tmp_path: Path) -> None:
    """There is nothing to compare with yet: the error says what to run."""
    with pytest.raises(NotReadyError, match="tally ingest"):
        dataclasses.replace(served, offline=str(tmp_path / "nothing")).audit()


def test_a_long_log_in_pieces(served: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and replayed a few rows at a time, a log of many files gives the same counts, in the order of its rows."""
    whole = served.changed(lambda table: with_column(table, f"{SERVED}sky", ["hail"] * 4))
    monkeypatch.setattr(auditing, "_VALUES_AT_ONCE", FEATURES)
    done: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        table = with_column(logged(served.log), f"{SERVED}sky", ["hail"] * 4)
        for row in range(4):
            pq.write_table(table.slice(row, 1), Path(folder) / f"served-{row}.parquet")
        found = audit_log(PLAN, folder, offline_uri=served.offline, progress=lambda *moved: done.append(moved))
    assert found.parts == whole.parts
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4), (4, 4)]


@given(offsets=st.sets(st.integers(0, 30)), beyond=st.integers(0, 3), until=st.integers(-1, 40))
def test_gaps(offsets: set[int], beyond: int, until: int) -> None:
    """The offsets up to the last that nobody has, up to any of them."""
    last = max(offsets, default=-1) + beyond
    missing = set(range(last + 1)) - offsets
    found = Gaps.among(np.array(sorted(offsets, reverse=True), np.int64), last)
    assert found.until(until) == sum(offset <= until for offset in missing)
    assert found.first.tolist()[:1] == sorted(missing)[:1]


def test_shares_of_a_whole() -> None:
    """Something is never shown as nothing, nor less than all as all."""
    assert [share(part, 10_000) for part in (0, 1, 10, 5_000, 9_999, 10_000)] == [
        *("0 %", "< 0.1 %", "0.1 %", "50.0 %", "99.9 %", "100 %"),
    ]


def test_bars_of_hours() -> None:
    """Hours without rows are bars without values; long stretches are taken together, and nothing is lost."""
    assert bars({5: (1, 0, 0)}) == []
    found = bars({0: (10, 1, 2), 2: (20, 0, 0)})
    assert [(bar.values, bar.differ, bar.later) for bar in found] == [(10, 0.1, 0.2), (0, 0.0, 0.0), (20, 0.0, 0.0)]
    many = bars(dict.fromkeys(range(1000), (1, 1, 0)))
    assert len(many) <= 96
    assert sum(bar.values for bar in many) == 1000
    assert {bar.differ for bar in many} == {1.0}


def test_values_as_people_read_them() -> None:
    """Floats by all their digits, instants in UTC, nulls as such."""
    moment = datetime(2013, 3, 1, 12, 0, 0, 5, tzinfo=UTC)
    assert [shown(item) for item in (0.1 + 0.2, "a", None, moment)] == [
        *("0.30000000000000004", "'a'", "None", "2013-03-01 12:00:00.000005"),
    ]
