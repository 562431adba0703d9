"""From Kafka and Arrow into Snowflake tables: every event once, every digit kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from itertools import count
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from infra.local import LocalServiceError
from infra.local.connector import land
from infra.local.snowflake_load import connected, load_table
from infra.settings import Settings

pytestmark = pytest.mark.apache_kafka  # topics are created, transactions aborted, offsets looked at

_names = (f"topic_{number}" for number in count())


@pytest.fixture
def topic(services: Settings) -> str:
    """A new topic with three partitions; its landing table gets the same name."""
    name = next(_names)
    admin = AdminClient(services.kafka_config())
    admin.create_topics([NewTopic(name, 3)])[name].result(30)
    return name


@pytest.fixture
def cursor(services: Settings) -> Iterator[Any]:
    """A cursor of the real Snowflake connector."""
    with connected(services) as connection:
        yield connection.cursor()


def _produce(settings: Settings, topic: str, *values: tuple[int, bytes | None]) -> None:
    producer = Producer(settings.kafka_config() | {"linger.ms": 5, "enable.idempotence": True})
    for partition, value in values:
        producer.produce(topic, value, key=b"k", partition=partition, timestamp=1_357_000_000_000)
    assert producer.flush(30) == 0


def _positions(cursor: Any, table: str) -> list[tuple[int, int]]:
    cursor.execute(f"SELECT RECORD_METADATA:partition::INT, RECORD_METADATA:offset::INT FROM {table} ORDER BY 1, 2")
    return [(int(partition), int(offset)) for partition, offset in cursor.fetchall()]


def test_two_runs_land_each_event_once(services: Settings, topic: str, cursor: Any) -> None:
    """Bad JSON and tombstones are rows too; numbers keep their digits."""
    exact = b'{"small": 10.357019999999999, "big": 1152921504606846977, "none": null, "text": "\xc3\xa9"}'
    _produce(services, topic, (0, exact), (0, None), (0, b"{oops"), (2, b"[1]"))
    assert land(services, {topic: topic}) == 4
    assert land(services, {topic: topic}) == 0
    _produce(services, topic, (0, b'"s"'), (1, b"2"))
    told: list[tuple[int, int]] = []
    assert land(services, {topic: topic}, progress=lambda done, total: told.append((done, total))) == 2
    assert told[-1] == (2, 2)
    assert _positions(cursor, topic) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0)]

    cursor.execute(
        "SELECT TO_JSON(RECORD_CONTENT), RECORD_METADATA:CreateTime::INT, RECORD_METADATA:error::STRING, "
        "RECORD_CONTENT:big::INT, RECORD_CONTENT:small::FLOAT, RECORD_METADATA:key::STRING "
        f"FROM {topic} WHERE RECORD_METADATA:partition::INT = 0 ORDER BY RECORD_METADATA:offset::INT"
    )
    first, tombstone, bad, _ = cursor.fetchall()
    assert "10.357019999999999" in first[0]
    assert json.loads(first[0]) == json.loads(exact)
    assert first[1:] == (1_357_000_000_000, None, 2**60 + 1, 10.357019999999999, "k")
    assert tombstone[0] is None
    assert (json.loads(bad[0]), bad[2][:21]) == ("{oops", "The value is not JSON")


def test_a_crash_between_batches_loses_and_doubles_nothing(
    services: Settings, topic: str, cursor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The position is what the table holds, so the next run goes on exactly there."""
    _produce(services, topic, *[(number % 3, b"%d" % number) for number in range(3_000)])
    monkeypatch.setattr("infra.local.connector._BATCH", 500)

    def crash(done: int, _: int) -> None:
        if done >= 500:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        land(services, {topic: topic}, progress=crash)
    before = len(_positions(cursor, topic))
    assert before >= 500
    assert land(services, {topic: topic}) == 3_000 - before
    assert _positions(cursor, topic) == [(partition, offset) for partition in range(3) for offset in range(1_000)]


def test_two_runs_at_once_land_each_event_once(services: Settings, topic: str, cursor: Any) -> None:
    """The second waits for the first, then finds nothing to do."""
    _produce(services, topic, *[(0, b"%d" % number) for number in range(2_000)])
    landed: list[int] = []
    threads = [threading.Thread(target=lambda: landed.append(land(services, {topic: topic}))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(landed) == [0, 2_000]
    assert len(_positions(cursor, topic)) == 2_000


def test_it_follows_a_topic_until_it_is_stopped(
    services: Settings, topic: str, cursor: Any, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """With `until_end=False` events land as they come."""
    stop = threading.Event()
    thread = threading.Thread(target=land, args=(services, {topic: topic}), kwargs={"until_end": False, "stop": stop})
    cursor.execute(f"CREATE TABLE {topic} (RECORD_METADATA VARIANT, RECORD_CONTENT VARIANT)")
    thread.start()
    try:
        _produce(services, topic, (0, b"1"))
        eventually(lambda: len(_positions(cursor, topic)) == 1)
        _produce(services, topic, (0, b"2"))
        eventually(lambda: len(_positions(cursor, topic)) == 2)
    finally:
        stop.set()
        thread.join()


def test_aborted_transactions_do_not_land(services: Settings, topic: str, cursor: Any) -> None:
    """And the markers that they leave at the end of the topic do not hold a run up."""
    producer = Producer(services.kafka_config() | {"transactional.id": topic})
    producer.init_transactions(30)
    for value, end in ((b"1", producer.abort_transaction), (b"2", producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(topic, value, partition=0)
        producer.flush(30)
        end(30)
    assert land(services, {topic: topic}) == 1
    assert land(services, {topic: topic}) == 0
    cursor.execute(f"SELECT TO_JSON(RECORD_CONTENT) FROM {topic}")
    assert cursor.fetchall() == [("2",)]


def test_a_topic_made_anew_is_refused(services: Settings, topic: str, cursor: Any) -> None:
    """Its offsets would seem to have landed already: all its events would be lost."""
    cursor.execute(f"CREATE TABLE {topic} (RECORD_METADATA VARIANT, RECORD_CONTENT VARIANT)")
    cursor.execute(
        f"INSERT INTO {topic} SELECT PARSE_JSON(%s), NULL", (json.dumps({"topic": topic, "partition": 1, "offset": 9}),)
    )
    with pytest.raises(LocalServiceError, match="up to offset 9, but the topic ends at -1: the topic was made anew"):
        land(services, {topic: topic})


def test_a_missing_topic_is_named(services: Settings) -> None:
    """A misspelt topic is an error, not zero rows."""
    with pytest.raises(LocalServiceError, match="Kafka has no topic 'nowhere'"):
        land(services, {"nowhere": "nowhere_landing"})


@pytest.mark.parametrize("table", ["a b", 'a"; DROP TABLE x; --', "1a", "a.b.c.d", ""])
def test_a_name_that_is_no_identifier_is_refused(services: Settings, table: str) -> None:
    """Names go into SQL text, so nothing but identifiers may."""
    with pytest.raises(LocalServiceError, match="is no Snowflake identifier"):
        load_table(services, table, pa.table({"a": [1]}))


def test_a_table_is_loaded_with_its_types_and_nulls(services: Settings, cursor: Any) -> None:
    """Typed columns, UTC, floored to microseconds; a second load appends; other columns are refused."""
    moment = datetime(2013, 1, 1, 5, 0, 0, 123456, tzinfo=UTC)
    rows = pa.table(
        {
            "origin": pa.array(["JFK", None]).dictionary_encode(),
            "time_hour": pa.array([moment, None], pa.timestamp("us", "America/New_York")),
            "early_ns": pa.array([-1, None], pa.timestamp("ns")),
            "big": pa.array([2**60 + 1, None]),
            "wind": pa.array([10.357019999999999, None]),
            "wet": pa.array([True, None]),
            "day": pa.array([date(2013, 1, 1), None]),
        }
    )
    assert load_table(services, "weather", rows) == 2
    assert load_table(services, "weather", rows) == 2
    cursor.execute("SELECT * FROM WEATHER ORDER BY BIG")
    first, again, *empty = cursor.fetchall()
    floored = datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC).replace(tzinfo=None)
    assert first == ("JFK", moment.replace(tzinfo=None), floored, 2**60 + 1, 10.357019999999999, True, date(2013, 1, 1))
    assert again == first
    assert empty == [(None,) * 7] * 2
    with pytest.raises(LocalServiceError, match=r"other columns than the rows to load \(only there: \['BIG', 'DAY'"):
        load_table(services, "weather", rows.select(["origin"]))


def test_an_unloadable_column_is_named(services: Settings) -> None:
    """A type without a counterpart is refused before anything is created."""
    with pytest.raises(LocalServiceError, match="Column 'a' for table t is of Arrow type list"):
        load_table(services, "t", pa.table({"a": [[1]]}))


@pytest.mark.parametrize("fetch", ["rows", "arrow"])
def test_null_timestamps_come_back_as_null(cursor: Any, fetch: str) -> None:
    """The emulator by itself gives 1970-01-01 for them."""
    cursor.execute(
        "SELECT * FROM VALUES ('2013-01-01 00:00:00.5'::TIMESTAMP_NTZ), (NULL), ('1969-12-31 23:59:59.25'::TIMESTAMP_NTZ)"
    )
    later, earlier = (1_356_998_400_500_000, -750_000)
    expected = pa.array([later, None, earlier], pa.timestamp("us")).to_pylist()
    if fetch == "rows":
        assert [row[0] for row in cursor.fetchall()] == expected
    else:
        column = cursor.fetch_arrow_all().column(0)
        assert column.cast(pa.timestamp("us")).to_pylist() == expected


def test_a_column_of_only_null_timestamps(cursor: Any) -> None:
    """No valid value is needed to encode the column."""
    cursor.execute("SELECT NULL::TIMESTAMP_NTZ AS A FROM (SELECT 1 UNION ALL SELECT 2)")
    assert cursor.fetchall() == [(None,), (None,)]


def test_a_statement_that_the_emulator_cannot_run_fails_at_once(cursor: Any) -> None:
    """The connector would retry an internal error of the server for minutes."""
    with pytest.raises(Exception, match="The Snowflake emulator cannot run this statement"):
        cursor.execute('SELECT PARSE_JSON(\'{"a": "\\\\ud800"}\')')


def test_reading_a_landing_table_beyond_a_watermark(services: Settings, topic: str, cursor: Any) -> None:
    """The query that reads a landing table incrementally."""
    _produce(services, topic, *[(number % 3, b'{"n": %d}' % number) for number in range(9)])
    land(services, {topic: topic})
    cursor.execute(
        'SELECT RECORD_METADATA:partition::INT AS "partition", RECORD_METADATA:offset::INT AS "offset", '
        'RECORD_METADATA:CreateTime::INT AS "create_time", TO_JSON(RECORD_CONTENT) AS "content" '
        f"FROM {topic} WHERE RECORD_METADATA:topic::STRING = %s AND RECORD_METADATA:offset::INT > "
        "CASE RECORD_METADATA:partition::INT WHEN %s THEN %s WHEN %s THEN %s ELSE -1 END",
        (topic, 0, 1, 1, 2),
    )
    rows = [row for batch in cursor.fetch_arrow_batches() for row in batch.to_pylist()]
    assert sorted((row["partition"], row["offset"]) for row in rows) == [(0, 2), (2, 0), (2, 1), (2, 2)]
