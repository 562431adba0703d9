"""Extraction from the real emulator: nothing lost, nothing doubled, whatever lands in between."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import snowflake.connector
from deltalake import DeltaTable
from snowflake.connector.arrow_context import ArrowConverterContext
from snowflake.connector.nanoarrow_arrow_iterator import PyArrowTableIterator

from infra.local import embedded
from infra.settings import Settings
from ingestion import delta, extraction, offline
from ingestion.extraction import Extraction, Ingested, quoted
from ingestion.offline import high_watermarks
from ingestion.reading import read_rows
from ingestion.snowflake import ingest
from tally.errors import ArgumentError, DataError, NotReadyError, UnavailableError
from tally.events import FOR_VIEW
from tally.plan import Field, Plan, Source, View, hashed_view
from tally.time import from_datetime
from tests.ingestion import plans
from tests.views import latest_view

NOON = "2013-01-01T12:00:00Z"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A Snowflake emulator."""
    with embedded(tmp_path_factory.mktemp("snowflake"), ["snowflake"]) as settings:
        yield settings


@pytest.fixture
def run(services: Settings) -> Iterator[Callable[..., Any]]:
    """Runs SQL in a database without our tables."""
    with closing(snowflake.connector.connect(**services.snowflake_connect_args())) as connection:

        def execute(sql: str, values: Sequence[Any] = ()) -> Any:
            return connection.cursor().execute(sql, tuple(values)).fetchall()

        for table in ("FLIGHTS_DEPARTURES", "WEATHER"):
            execute(f'DROP TABLE IF EXISTS "{table}"')
        yield execute


@pytest.fixture
def land(run: Callable[..., Any]) -> Callable[..., None]:
    """Lands messages: (partition, offset, content) as Snowflake's Kafka connector does."""
    run('CREATE TABLE "FLIGHTS_DEPARTURES" (RECORD_METADATA VARIANT, RECORD_CONTENT VARIANT)')

    def insert(*messages: tuple[int, int, Any], topic: str = "flights.departures", **more: Any) -> None:
        for partition, offset, content in messages:
            metadata = {
                "topic": topic,
                "partition": partition,
                "offset": offset,
                "CreateTime": 1000 + offset,
                "SnowflakeConnectorPushTime": 2000 + offset,
                **more,
            }
            text = None if content is None else json.dumps(content)
            run('INSERT INTO "FLIGHTS_DEPARTURES" SELECT PARSE_JSON(%s), PARSE_JSON(%s)', (json.dumps(metadata), text))

    return insert


def departure(flight: int = 1, **others: Any) -> dict[str, Any]:
    """The object of a good message."""
    return {"event_timestamp": NOON, "carrier": "UA", "flight": flight, **others}


@pytest.fixture
def take(services: Settings, tmp_path: Path) -> Callable[..., Ingested]:
    """Ingests one source of a plan."""

    def ingest_one(plan: Plan, source: str, **options: Any) -> Ingested:
        return ingest(plan, [source], services.snowflake_connect_args(), str(tmp_path), **options)[0]

    return ingest_one


STREAM = plans.plan_of(plans.latest_stream_view())
WEATHER = plans.plan_of(plans.weather_view())


def offsets(uri: Path) -> list[tuple[int, int]]:
    """(partition, offset) of every row that the store has."""
    table = DeltaTable(str(uri / "departures")).to_pyarrow_table(columns=["_partition", "_offset"])
    return sorted(zip(table["_partition"].to_pylist(), table["_offset"].to_pylist(), strict=True))


def test_messages_arrive_decoded(land: Any, take: Any, tmp_path: Path) -> None:
    """Fields have their types, the event its identity and its times."""
    land((3, 5, departure(2**60 + 1, dep_delay=0.1, unknown=[1])))
    done = take(STREAM, "departures")
    rows = DeltaTable(str(tmp_path / "departures")).to_pyarrow_table().to_pylist()

    assert done == Ingested("departures", 1, 0, 0, 0, {3: 5}, whole=True)
    assert len(rows) == 1
    assert (rows[0]["_topic"], rows[0]["_partition"], rows[0]["_offset"]) == ("flights.departures", 3, 5)
    assert [rows[0][name].isoformat() for name in ("event_timestamp", "_create_time", "_landed_at")] == [
        "2013-01-01T12:00:00+00:00",
        "1970-01-01T00:00:01.005000+00:00",
        "1970-01-01T00:00:02.005000+00:00",
    ]
    assert (rows[0]["flight"], rows[0]["dep_delay"].hex()) == (2**60 + 1, (0.1).hex())


def test_only_what_is_new_is_read(land: Any, take: Any, tmp_path: Path) -> None:
    """A second run adds what landed since, in old partitions and new ones; a third finds nothing and commits nothing."""
    land((0, 0, departure()), (0, 1, departure()), (1, 7, departure()))
    take(STREAM, "departures")
    land((0, 2, departure()), (2, 0, departure()))

    assert take(STREAM, "departures") == Ingested("departures", 2, 0, 0, 1, {0: 2, 1: 7, 2: 0}, whole=False)
    assert take(STREAM, "departures") == Ingested("departures", 0, 0, 0, 1, {0: 2, 1: 7, 2: 0}, whole=False)
    assert offsets(tmp_path) == [(0, 0), (0, 1), (0, 2), (1, 7), (2, 0)]
    assert high_watermarks(STREAM, plans.LANDING, str(tmp_path), 0) == {0: 1, 1: 7}


def test_replays_count_where_they_are_for(land: Any, take: Any, tmp_path: Path) -> None:
    """A view, all views of the project, and a view of any project, as before projects were named; nowhere else."""
    view = STREAM.views[0]
    ours = [f"{STREAM.project}/{view.name}", f"{STREAM.project}/", view.name]
    others = [f"other/{view.name}", "other/", f"{STREAM.project}/other", "other"]
    for offset, value in enumerate([*ours, *others]):
        land(
            (0, offset, departure(offset)),
            headers={FOR_VIEW: value},
            CreateTime=from_datetime(datetime.now(UTC)) // 1000,
        )
    take(STREAM, "departures")

    rows = read_rows(STREAM, view, str(tmp_path))

    assert sorted(rows.columns["flight"].to_list()) == [0, 1, 2]
    assert rows.refused == {}


def test_duplicates_fall_away(land: Any, take: Any, tmp_path: Path) -> None:
    """An event that landed twice is one row, in one extract and across runs, and counted where the partition is looked at."""
    land((0, 0, departure()), (0, 0, departure()), (0, 3, departure()))
    assert take(STREAM, "departures").duplicates == 1
    land((0, 3, departure()), (0, 4, departure()), (0, 4, departure()))
    assert take(STREAM, "departures").duplicates == 3
    assert offsets(tmp_path) == [(0, 0), (0, 3), (0, 4)]
    assert take(STREAM, "departures").duplicates == 0
    land((0, 1, departure()), (0, 1, departure()))
    assert take(STREAM, "departures").duplicates == 4
    land((0, 1, departure()))
    again = take(STREAM, "departures")

    assert (again.rows, again.duplicates) == (0, 5)
    assert offsets(tmp_path) == [(0, 0), (0, 1), (0, 3), (0, 4)]


def test_an_older_offset_that_lands_late_is_not_lost(land: Any, take: Any, tmp_path: Path) -> None:
    """A file-based connector may land offsets out of order; rejected ones are known, too, and not rejected twice."""
    land((0, 3, departure()), (0, 1, {"flight": "x"}), (1, 0, departure()))
    take(STREAM, "departures")
    land((0, 2, departure()))
    late = take(STREAM, "departures")

    assert (late.rows, late.rejected, late.watermark, late.whole) == (1, 0, {0: 3, 1: 0}, False)
    assert offsets(tmp_path) == [(0, 2), (0, 3), (1, 0)]
    assert take(STREAM, "departures").version == late.version


def test_deletions_hide_no_late_offset(land: Any, run: Any, take: Any, tmp_path: Path) -> None:
    """Old messages are deleted and one lands late between two runs: the table has no more rows than before, and one is new."""
    land(*((0, offset, departure()) for offset in (0, 1, 2, 3, 5)), (0, 7, None))
    take(STREAM, "departures")
    run('DELETE FROM "FLIGHTS_DEPARTURES" WHERE RECORD_METADATA:offset::int < 2')
    land((0, 4, departure()), (0, 6, None))
    late = take(STREAM, "departures")

    assert (late.rows, late.rejected, late.watermark, late.whole) == (1, 1, {0: 7}, False)
    assert offsets(tmp_path) == [(0, offset) for offset in (0, 1, 2, 3, 4, 5)]
    assert take(STREAM, "departures").version == late.version


def test_deletions_alone_are_known_after_one_run(land: Any, run: Any, take: Any, tmp_path: Path) -> None:
    """What is kept stays, and the next run has nothing to look at."""
    land((0, 0, departure()), (0, 1, departure()), (1, 0, departure()))
    first = take(STREAM, "departures")
    run('DELETE FROM "FLIGHTS_DEPARTURES" WHERE RECORD_METADATA:offset::int = 0')

    assert take(STREAM, "departures") == Ingested("departures", 0, 0, 0, first.version + 1, {0: 1, 1: 0}, whole=False)
    assert take(STREAM, "departures").version == first.version + 1
    land((1, 0, departure()))
    assert take(STREAM, "departures").rows == 0
    assert offsets(tmp_path) == [(0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize(
    "metadata",
    [None, {"partition": 0, "offset": 1}, {"topic": "flights.departures", "offset": 1}]
    + [{"topic": "flights.departures", "partition": 0, "offset": offset} for offset in (None, -1)],
)
def test_rows_that_do_not_say_which_event_they_are(land: Any, run: Any, take: Any, metadata: Any) -> None:
    """As a connector lands them that was told to leave out metadata: refused, for else they would be missed by nobody."""
    land((0, 0, departure()))
    text = None if metadata is None else json.dumps(metadata)
    run('INSERT INTO "FLIGHTS_DEPARTURES" SELECT PARSE_JSON(%s), PARSE_JSON(%s)', (text, json.dumps(departure())))

    with pytest.raises(DataError, match=r"1 rows of .* have no topic, partition or offset of Kafka's"):
        take(STREAM, "departures")


def test_a_create_time_in_nanoseconds(land: Any, run: Any, take: Any, tmp_path: Path) -> None:
    """A producer that mistakes the unit stops no extraction: what microseconds cannot hold is not known."""
    land((0, 0, departure()))
    metadata = {"topic": "flights.departures", "partition": 0, "offset": 1, "CreateTime": 1_700_000_000_000_000_000}
    run(
        'INSERT INTO "FLIGHTS_DEPARTURES" SELECT PARSE_JSON(%s), PARSE_JSON(%s)',
        (json.dumps(metadata), json.dumps(departure())),
    )
    take(STREAM, "departures")
    rows = DeltaTable(str(tmp_path / "departures")).to_pyarrow_table().sort_by("_offset").to_pylist()

    assert [row["_create_time"] is None for row in rows] == [False, True]


def test_what_a_restore_took_back_is_taken_again(land: Any, take: Any, tmp_path: Path) -> None:
    """A table that was set back to an earlier version knows what that version knew."""
    land((0, 0, departure()))
    take(STREAM, "departures")
    land((0, 1, departure()))
    take(STREAM, "departures")
    DeltaTable(str(tmp_path / "departures")).restore(0)

    assert high_watermarks(STREAM, plans.LANDING, str(tmp_path)) == {0: 0}
    assert take(STREAM, "departures").rows == 1
    assert offsets(tmp_path) == [(0, 0), (0, 1)]


def test_bad_messages_lie_beside_with_their_reasons(land: Any, take: Any, tmp_path: Path) -> None:
    """They count, move the watermark, and are found in a table of their own."""
    land((0, 0, departure()), (0, 1, None), (0, 2, {"flight": "x"}), (0, 3, "text"))
    done = take(STREAM, "departures")
    rejected = DeltaTable(str(tmp_path / "departures__rejected")).to_pyarrow_table().sort_by("_offset").to_pylist()

    assert (done.rows, done.rejected, done.watermark) == (1, 3, {0: 3})
    assert [row["_offset"] for row in rejected] == [1, 2, 3]
    assert [row["reason"] for row in rejected] == [
        "tombstone (null value)",
        'field flight: "x" is not Int64',
        'not JSON: an object was expected, not "text"',
    ]
    assert rejected[1]["content"] == b'{"flight":"x"}'


def test_only_bad_messages_still_move_the_watermark(land: Any, take: Any, tmp_path: Path) -> None:
    """A run without a good message commits its watermark, so that it is not repeated for ever."""
    land((0, 0, departure()))
    take(STREAM, "departures")
    land((0, 1, None))

    assert take(STREAM, "departures") == Ingested("departures", 0, 1, 0, 1, {0: 1}, whole=False)
    assert take(STREAM, "departures").version == 1
    assert len(read_rows(STREAM, STREAM.views[0], str(tmp_path)).timestamp) == 1


def test_other_topics_in_the_table_are_others(land: Any, take: Any, tmp_path: Path) -> None:
    """A landing table may hold several topics; a source is one of them."""
    land((0, 0, departure()))
    land((0, 9, departure()), topic="other")

    assert take(STREAM, "departures").watermark == {0: 0}
    assert offsets(tmp_path) == [(0, 0)]


def test_a_crash_leaves_nothing_half_done(
    land: Any, take: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fails in the middle changes nothing; the next one does all its work, and rejects nothing twice."""
    land((0, 0, departure()), (0, 1, None))
    take(STREAM, "departures")
    land(*[(0, offset, departure()) for offset in range(2, 7)], (0, 7, None))
    monkeypatch.setattr(extraction, "SLICE", 2)

    def failing(_source: str, done: int, _total: int | None) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(STREAM, "departures", progress=failing)
    assert offsets(tmp_path) == [(0, 0)]

    whole = delta.write_table

    def crash_before_the_last_commit(uri: str, name: str, *arguments: Any, **options: Any) -> int:
        if name == "departures":
            for _ in arguments[2]:
                pass
            raise KeyboardInterrupt
        return whole(uri, name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "write_table", crash_before_the_last_commit)
        with pytest.raises(KeyboardInterrupt):
            take(STREAM, "departures")
    assert offsets(tmp_path) == [(0, 0)]

    assert take(STREAM, "departures").rows == 5
    assert offsets(tmp_path) == [(0, offset) for offset in (0, *range(2, 7))]
    rejected = DeltaTable(str(tmp_path / "departures__rejected")).to_pyarrow_table()
    assert sorted(rejected["_offset"].to_pylist()) == [1, 7]


def test_a_changed_message_needs_a_whole_extraction(land: Any, take: Any, tmp_path: Path) -> None:
    """Rows that were decoded under other fields are never mixed; --full reads all again, and old versions stay."""
    land((0, 0, departure(gate="B12")))
    take(STREAM, "departures")
    source = dataclasses.replace(plans.LANDING, message=(*plans.MESSAGE, Field("gate", "String")))
    changed = Plan("flights", (source,), (hashed_view(plans.latest_stream_view(), source),), (), ())

    with pytest.raises(NotReadyError, match="run: tally ingest --full departures"):
        take(changed, "departures")
    done = take(changed, "departures", full=True)

    assert (done.rows, done.version, done.whole) == (1, 1, True)
    assert DeltaTable(str(tmp_path / "departures")).to_pyarrow_table()["gate"].to_pylist() == ["B12"]
    assert len(read_rows(STREAM, STREAM.views[0], str(tmp_path), version=0).timestamp) == 1


def test_an_empty_landing_table(land: Any, take: Any, tmp_path: Path) -> None:
    """Nothing landed yet: the offline table is there, empty."""
    assert take(STREAM, "departures") == Ingested("departures", 0, 0, 0, 0, {}, whole=True)
    assert len(read_rows(STREAM, STREAM.views[0], str(tmp_path)).timestamp) == 0
    land((0, 0, departure()))
    assert take(STREAM, "departures").rows == 1


def test_progress_reaches_the_total(land: Any, take: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers can draw a bar."""
    monkeypatch.setattr(extraction, "SLICE", 2)
    land(*[(0, offset, departure()) for offset in range(5)])
    seen: list[tuple[str, int, int | None]] = []
    take(STREAM, "departures", progress=lambda *step: seen.append(step))

    assert seen == [("departures", 2, 5), ("departures", 4, 5), ("departures", 5, 5)]


# Batch tables -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def weather(run: Callable[..., Any]) -> Callable[..., None]:
    """Inserts rows (origin, event_timestamp, created, temp, reading) into a warehouse table."""
    run(
        'CREATE TABLE "WEATHER" (ORIGIN VARCHAR, EVENT_TIMESTAMP TIMESTAMP_NTZ, CREATED TIMESTAMP_NTZ, '
        "TEMP FLOAT, READING NUMBER(38,0), SKY VARCHAR)"
    )

    def insert(*rows: tuple[Any, ...]) -> None:
        for row in rows:
            run('INSERT INTO "WEATHER" VALUES (%s, %s, %s, %s, %s, NULL)', row)

    return insert


def row(origin: str, created: str | None, temp: float | None = 1.0, reading: int | None = None) -> tuple[Any, ...]:
    """A row of the weather table at noon."""
    return origin, "2013-01-01 12:00:00", None if created is None else f"2013-01-01 {created}", temp, reading


def stored(uri: Path) -> list[dict[str, Any]]:
    """Every row that the store has, by origin."""
    found: list[dict[str, Any]] = DeltaTable(str(uri / "weather")).to_pyarrow_table().to_pylist()
    return sorted(found, key=lambda one: str(one["origin"]))


def origins(uri: Path) -> list[str]:
    """The origin of every row that the store has."""
    return [one["origin"] for one in stored(uri)]


def test_warehouse_rows_keep_their_values(weather: Any, take: Any, tmp_path: Path) -> None:
    """Big integers, floats and nulls, timestamps above all, come as they are; names are found in the other case."""
    weather(row("JFK", "12:30:00.123456", 0.1, 2**60 + 1), row("LGA", None, None, None))
    done = take(WEATHER, "weather")
    rows = read_rows(WEATHER, WEATHER.views[0], str(tmp_path))
    by_origin = dict(zip(rows.columns["origin"].to_list(), range(2), strict=True))
    jfk, lga = by_origin["JFK"], by_origin["LGA"]

    assert (done.rows, done.watermark, done.whole) == (2, 1_357_043_400_123_456, True)
    assert rows.columns["reading"].to_list()[jfk] == 2**60 + 1
    assert rows.columns["temp"].to_list()[jfk].hex() == (0.1).hex()
    assert [rows.columns[name].to_list()[lga] for name in ("temp", "reading", "created")] == [None, None, None]


def test_ties_at_the_watermark_are_neither_lost_nor_doubled(weather: Any, take: Any, tmp_path: Path) -> None:
    """Rows with the greatest created time are read again and recognised, each as often as it is there."""
    weather(row("A", "12:00:00"), row("B", "13:00:00"), row("B", "13:00:00"), row("N", None))
    assert take(WEATHER, "weather").rows == 4
    weather(row("C", "13:00:00"), row("B", "13:00:00"), row("M", None), row("D", "14:00:00"))
    second = take(WEATHER, "weather")

    assert (second.rows, second.whole) == (4, False)
    assert origins(tmp_path) == ["A", "B", "B", "B", "C", "D", "M", "N"]
    third = take(WEATHER, "weather")
    assert (third.rows, third.version) == (0, second.version)


def test_rows_behind_the_watermark_are_not_lost(weather: Any, take: Any, tmp_path: Path) -> None:
    """A backfill or a deletion changes the number of older rows, and then the table is read whole."""
    weather(row("A", "12:00:00"), row("B", "13:00:00"))
    take(WEATHER, "weather")
    weather(row("LATE", "11:00:00"))
    done = take(WEATHER, "weather")

    assert (done.rows, done.whole) == (3, True)
    assert origins(tmp_path) == ["A", "B", "LATE"]
    assert len(read_rows(WEATHER, WEATHER.views[0], str(tmp_path), version=0).timestamp) == 2


def test_deleted_rows_go(weather: Any, run: Any, take: Any, tmp_path: Path) -> None:
    """The store follows a deletion behind the watermark."""
    weather(row("A", "12:00:00"), row("B", "13:00:00"))
    take(WEATHER, "weather")
    run("DELETE FROM \"WEATHER\" WHERE ORIGIN = 'A'")

    assert take(WEATHER, "weather").whole
    assert origins(tmp_path) == ["B"]


def test_rows_that_are_gone_at_the_watermark(weather: Any, run: Any, take: Any, tmp_path: Path) -> None:
    """A deletion or a change of the newest rows, or of one without a time, makes the table be read whole."""
    weather(row("A", "12:00:00"), row("B", "13:00:00"), row("C", "13:00:00"), row("N", None))
    take(WEATHER, "weather")

    run("UPDATE \"WEATHER\" SET TEMP = 2.0 WHERE ORIGIN = 'C'")
    assert take(WEATHER, "weather").whole
    assert [one["temp"] for one in stored(tmp_path)] == [1.0, 1.0, 2.0, 1.0]
    run("DELETE FROM \"WEATHER\" WHERE ORIGIN = 'B'")
    weather(row("D", "14:00:00"))
    assert take(WEATHER, "weather").whole
    run("DELETE FROM \"WEATHER\" WHERE ORIGIN = 'N'")
    assert take(WEATHER, "weather").whole
    assert origins(tmp_path) == ["A", "C", "D"]
    run('DELETE FROM "WEATHER"')
    assert (take(WEATHER, "weather").whole, origins(tmp_path)) == (True, [])
    assert take(WEATHER, "weather").rows == 0


def test_a_table_that_is_made_anew(weather: Any, run: Any, take: Any, tmp_path: Path) -> None:
    """Rows that all have the time of their load are replaced by those of the next load, as many or not."""
    weather(row("A", "12:00:00"), row("B", "12:00:00"))
    take(WEATHER, "weather")
    run('DELETE FROM "WEATHER"')
    weather(row("A", "13:00:00"), row("C", "13:00:00"))

    assert take(WEATHER, "weather").whole
    assert origins(tmp_path) == ["A", "C"]


def test_zeros_at_the_watermark_keep_their_signs(weather: Any, run: Any, take: Any, tmp_path: Path) -> None:
    """A row with -0.0 is not the one with 0.0 that is there already."""
    weather(("A", "2013-01-01 00:00:00", "2013-01-01 12:00:00", 0.0, None))
    take(WEATHER, "weather")
    run('DELETE FROM "WEATHER"')
    for temp in ("'-0.0'::FLOAT", "0.0"):
        run(f"INSERT INTO \"WEATHER\" VALUES ('A', '2013-01-01', '2013-01-01 12:00:00', {temp}, NULL, NULL)")
    take(WEATHER, "weather")

    assert sorted(one["temp"].hex() for one in stored(tmp_path)) == ["-0x0.0p+0", "0x0.0p+0"]


def test_days_tell_what_is_new(run: Any, take: Any, tmp_path: Path) -> None:
    """Rows of the newest day are taken at once, and those that come on it later, where the column holds dates."""
    run(
        'CREATE TABLE "WEATHER" (ORIGIN VARCHAR, EVENT_TIMESTAMP DATE, CREATED DATE, TEMP INT, READING INT, SKY VARCHAR)'
    )
    for origin, day in (("A", "2013-01-01"), ("B", "2013-01-02")):
        run("INSERT INTO \"WEATHER\" VALUES (%s, '2013-01-01', %s, 1, 1, NULL)", (origin, day))
    assert take(WEATHER, "weather").rows == 2
    for origin, day in (("C", "2013-01-02"), ("D", "2013-01-03")):
        run("INSERT INTO \"WEATHER\" VALUES (%s, '2013-01-01', %s, 1, 1, NULL)", (origin, day))

    assert take(WEATHER, "weather").rows == 2
    assert take(WEATHER, "weather").rows == 0
    assert [one["created"].day for one in stored(tmp_path)] == [1, 2, 2, 3]


@pytest.mark.parametrize(("kind", "value"), [("VARCHAR", "2013-01-01"), ("NUMBER(38,0)", 1_357_000_000)])
def test_a_column_that_is_no_time_tells_nothing(run: Any, take: Any, kind: str, value: Any) -> None:
    """The error names it and says what the source wants instead."""
    run(
        f'CREATE TABLE "WEATHER" (ORIGIN VARCHAR, EVENT_TIMESTAMP TIMESTAMP_NTZ, CREATED {kind}, TEMP FLOAT, READING INT, SKY VARCHAR)'
    )
    run("INSERT INTO \"WEATHER\" VALUES ('A', '2013-01-01', %s, 1, 1, NULL)", (value,))

    with pytest.raises(
        DataError, match=r"Column created of \"WEATHER\" holds \w+ values, .* give source weather a column"
    ):
        take(WEATHER, "weather")


def test_the_end_of_time(weather: Any, take: Any, tmp_path: Path) -> None:
    """The last microsecond that Snowflake knows, which some write for "for ever", is a time as any other."""
    weather(("A", "9999-12-31 23:59:59.999999", "9999-12-31 23:59:59.999999", 1.0, None), row("B", "12:00:00"))

    assert take(WEATHER, "weather").rows == 2
    assert take(WEATHER, "weather").rows == 0
    assert origins(tmp_path) == ["A", "B"]


class Nanoseconds:
    """A connection, and its cursor, whose result is what Snowflake sends for times of nine digits; the emulator knows six."""

    def __init__(self, times: Sequence[tuple[int, int]]) -> None:
        """`times` are (second since 1970, nanosecond)."""
        seconds, nanoseconds = zip(*times, strict=True)
        column = pa.StructArray.from_arrays(
            [pa.array(seconds, pa.int64()), pa.array(nanoseconds, pa.int32())], ["epoch", "fraction"]
        )
        described = {"logicalType": "TIMESTAMP_NTZ", "precision": "38", "scale": "9", "charLength": "0"}
        schema = pa.schema([pa.field("at", column.type, metadata=described)])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_table(pa.Table.from_arrays([column], schema=schema))
        self._sent = sink.getvalue().to_pybytes()

    def cursor(self) -> AbstractContextManager[Nanoseconds]:
        """Itself."""
        return nullcontext(self)

    def execute(self, sql: str, values: Sequence[Any]) -> None:
        """Any query has the one result."""

    def fetch_arrow_batches(self, **options: Any) -> Iterator[pa.Table]:
        """The result, as the connector's own code makes it of what was sent."""
        force = options["force_microsecond_precision"]
        context = ArrowConverterContext({"TIMEZONE": "UTC"})
        yield from PyArrowTableIterator(None, self._sent, context, False, False, True, False, force)


def test_nanoseconds_of_any_year(tmp_path: Path) -> None:
    """They are floored, in the year 1 and at the end of 9999, too, where they overflow 64 bits."""
    times = [(253_402_300_799, 999_999_999), (-62_135_596_800, 1), (-1, 1), (0, 999)]
    extraction = Extraction(
        Nanoseconds(times), WEATHER, plans.BATCH, str(tmp_path), None, None, lambda _source, _done, _total: None
    )
    (piece,) = extraction.slices("", (), [Field("at", "UnixTimestamp")])

    assert piece.column("at").cast(pa.int64()).to_pylist() == [s * 1_000_000 + ns // 1000 for s, ns in times]


def test_numbers_with_a_scale_become_the_nearest_float(run: Any, take: Any, tmp_path: Path) -> None:
    """As the same number in a message or a request would; one in eight was off by its last bit."""
    run(
        'CREATE TABLE "WEATHER" (ORIGIN VARCHAR, EVENT_TIMESTAMP TIMESTAMP_NTZ, CREATED TIMESTAMP_NTZ, TEMP NUMBER(12,2), '
        "READING NUMBER(12,2), SKY VARCHAR)"
    )
    run("INSERT INTO \"WEATHER\" VALUES ('A', '2013-01-01', '2013-01-01', 77401782.21, 7.00, NULL)")
    take(WEATHER, "weather")

    assert [(one["temp"].hex(), one["reading"]) for one in stored(tmp_path)] == [((77401782.21).hex(), 7)]


def test_names_with_a_percent_sign(run: Any, take: Any, tmp_path: Path) -> None:
    """They are no places for values, in a table's name as in a column's."""
    source = dataclasses.replace(plans.BATCH, table="RATES %s")
    view = latest_view("rates", source, [Field("origin", "String")], [Field("pct%", "Float64")])
    with_connection = (
        'DROP TABLE IF EXISTS "RATES %s"',
        'CREATE TABLE "RATES %s" (ORIGIN VARCHAR, EVENT_TIMESTAMP TIMESTAMP_NTZ, CREATED TIMESTAMP_NTZ, "PCT%" FLOAT)',
        "INSERT INTO \"RATES %s\" VALUES ('A', '2013-01-01', '2013-01-01', 1.5)",
    )
    for statement in with_connection:
        run(statement)
    plan = Plan("flights", (source,), (view,), (), ())

    assert (take(plan, "weather").rows, take(plan, "weather").rows) == (1, 0)
    assert [one["pct%"] for one in stored(tmp_path)] == [1.5]


def test_an_empty_warehouse_table(weather: Any, take: Any, tmp_path: Path) -> None:
    """The offline table is there, empty; rows that come later are taken."""
    assert (take(WEATHER, "weather").rows, origins(tmp_path)) == (0, [])
    weather(row("A", "12:00:00"))
    take(WEATHER, "weather")
    assert origins(tmp_path) == ["A"]


@pytest.mark.parametrize(
    ("declared", "complaint"),
    [
        ("ORIGIN VARCHAR", r"Table .*\"WEATHER\" has no column \w+, which source weather needs; it has ORIGIN"),
        (
            "ORIGIN VARCHAR, EVENT_TIMESTAMP TIMESTAMP_NTZ, CREATED TIMESTAMP_NTZ, TEMP VARCHAR, READING INT, SKY VARCHAR",
            r"Column temp of .*\"WEATHER\" holds string values that do not fit Float64",
        ),
        (
            "ORIGIN VARCHAR, EVENT_TIMESTAMP TIMESTAMP_NTZ, CREATED TIMESTAMP_NTZ, TEMP FLOAT, READING FLOAT, SKY VARCHAR",
            r"Column reading of .*\"WEATHER\" holds double values that do not fit Int64",
        ),
    ],
)
def test_columns_that_do_not_fit(run: Any, take: Any, tmp_path: Path, declared: str, complaint: str) -> None:
    """A missing column, a wrong type or a fraction for an integer is named with its table, and nothing is written."""
    run(f'CREATE TABLE "WEATHER" ({declared})')
    values = ["'x'", "'2013-01-01'", "'2013-01-01'", "1", "1.5", "'x'"][: declared.count(",") + 1]
    run(f'INSERT INTO "WEATHER" VALUES ({", ".join(values)})')

    with pytest.raises(DataError, match=complaint):
        take(WEATHER, "weather")
    assert delta.open_table(str(tmp_path), "weather") is None


def test_views_that_disagree_about_a_column() -> None:
    """One column cannot have two dtypes."""
    view = plans.weather_view()
    columns = tuple(Field("temp", "String") if f.name == "temp" else f for f in view.columns)
    other: View = dataclasses.replace(view, name="other", columns=columns)

    with pytest.raises(DataError, match="temp of WEATHER is Float64 in weather_now and String in other"):
        offline.source_fields(plans.plan_of(view, other), plans.BATCH)


@pytest.mark.usefixtures("run")
def test_a_missing_table(take: Any) -> None:
    """The error names it as it was asked for."""
    with pytest.raises(DataError, match=r"Snowflake has no table \"WEATHER\" that this role may read"):
        take(WEATHER, "weather")


def test_a_missing_table_holds_up_no_other(land: Any, services: Settings, tmp_path: Path) -> None:
    """The other sources are taken, and the error says which; of two errors none is lost."""
    both = plans.plan_of(plans.weather_view(), plans.latest_stream_view())
    arguments = services.snowflake_connect_args()
    land((0, 0, departure()))

    with pytest.raises(DataError, match='no table "WEATHER"') as raised:
        ingest(both, ["weather", "departures"], arguments, str(tmp_path))
    assert raised.value.__notes__ == ["Ingested all the same: departures."]
    assert offsets(tmp_path) == [(0, 0)]

    with closing(snowflake.connector.connect(**arguments)) as connection:
        connection.cursor().execute('DROP TABLE "FLIGHTS_DEPARTURES"')
    with pytest.raises(DataError, match='no table "WEATHER"') as raised:
        ingest(both, ["weather", "departures"], arguments, str(tmp_path))
    assert ["FLIGHTS_DEPARTURES" in note for note in raised.value.__notes__] == [True]


def test_a_store_of_no_known_kind(services: Settings) -> None:
    """Is said once, not for each table."""
    both = plans.plan_of(plans.weather_view(), plans.latest_stream_view())
    with pytest.raises(ArgumentError, match="TALLY_OFFLINE_URI is s4://bucket") as raised:
        ingest(both, None, services.snowflake_connect_args(), "s4://bucket")
    assert not hasattr(raised.value, "__notes__")


def test_a_table_with_an_address(weather: Any, services: Settings, take: Any, tmp_path: Path) -> None:
    """Database and schema of the source win over the connection's."""
    weather(row("A", "12:00:00"))
    source: Source = dataclasses.replace(
        plans.BATCH, database=services.snowflake_database, schema=services.snowflake_schema
    )
    take(Plan("flights", (source,), WEATHER.views, (), ()), "weather")

    assert origins(tmp_path) == ["A"]


def test_snowflake_is_away(services: Settings, tmp_path: Path) -> None:
    """The error names the account and the variable, and not the password."""
    arguments = services.snowflake_connect_args() | {"port": 1, "login_timeout": 1, "password": "secret"}

    with pytest.raises(UnavailableError, match="check SNOWFLAKE_ACCOUNT") as raised:
        ingest(WEATHER, None, arguments, str(tmp_path))
    assert "secret" not in str(raised.value)


def test_names_are_quoted() -> None:
    """A name is one identifier, whatever is in it."""
    assert quoted('a"; DROP TABLE b') == '"a""; DROP TABLE b"'
    for name in ("", "a\0", "a\nb"):
        with pytest.raises(DataError, match="cannot be the name"):
            quoted(name)
