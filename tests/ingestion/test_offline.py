"""Rows of a view from the offline store: which, with what order, from which version."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from ingestion.delta import open_table, rows_table, write_table
from ingestion.offline import high_watermarks
from ingestion.reading import first_of_each, read_rows
from tally.errors import DataError, NotReadyError, UnavailableError
from tally.functions import describe
from tests.ingestion import plans, stored
from tests.ingestion.stored import message

NOON = "2013-01-01T12:00:00Z"
NOON_US = 1_357_041_600_000_000


def halve_delays(dep_delay: Any) -> dict[str, Any]:
    """An event function that changes a column."""
    return {"dep_delay": dep_delay / 2}


def an_hour_later(event_timestamp: Any) -> dict[str, Any]:
    """An event function that moves the time."""
    return {"event_timestamp": event_timestamp + np.timedelta64(1, "h")}


ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import pyarrow as pa
from ingestion.delta import write_table
schema = pa.schema([("a", pa.int64())])
batch = pa.record_batch([[1]], schema)
def batches():
    yield batch
    write_table(sys.argv[1], "inner", None, schema, [batch], overwrite=False, metadata={})
write_table(sys.argv[1], "outer", None, schema, batches(), overwrite=False, metadata={})
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot confine a process to a core")
def test_what_makes_the_batches_may_write_a_table(tmp_path: Path) -> None:
    """As an extraction does with what it rejects; also where there is one core, on which that once never ended."""
    subprocess.run([sys.executable, "-c", ON_ONE_CORE, str(tmp_path)], check=True, timeout=300)
    assert open_table(str(tmp_path), "inner") is not None
    assert open_table(str(tmp_path), "outer") is not None


def test_a_source_that_was_never_ingested(tmp_path: Path) -> None:
    """The error says what to run."""
    view = plans.latest_stream_view()

    with pytest.raises(
        NotReadyError, match=r"Source departures has no offline table at .*; run: tally ingest departures"
    ):
        read_rows(plans.plan_of(view), view, str(tmp_path))


def test_rows_of_a_stream_view(tmp_path: Path) -> None:
    """Columns, order, arrival and version of rows that were messages."""
    view = plans.latest_stream_view()
    plan = plans.plan_of(view)
    stored.put_messages(plan, plans.LANDING, str(tmp_path), [
        message(1, 7, event_timestamp=NOON, carrier="UA", flight=2**60 + 1),
        message(0, 9, event_timestamp=NOON, carrier="AA", dep_delay=1.5),
    ])  # fmt: skip
    rows = read_rows(plan, view, str(tmp_path))

    assert {"event_timestamp", "carrier", "flight", "dep_delay"} == set(rows.columns)
    assert rows.columns["flight"].to_list() == [2**60 + 1, None]
    assert rows.timestamp.tolist() == [NOON_US, NOON_US]
    assert (rows.a.tolist(), rows.b.tolist()) == ([1, 0], [7, 9])
    assert rows.arrival.tolist() == [7_000_000, 9_000_000]
    assert (rows.refused, rows.version) == ({}, 0)


def test_an_event_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    """(topic, partition, offset) is the event, also across commits."""
    view = plans.latest_stream_view()
    plan = plans.plan_of(view)
    for _ in range(2):
        stored.put_messages(plan, plans.LANDING, str(tmp_path), [
            message(0, 5, event_timestamp=NOON, carrier="UA"), message(0, 6, event_timestamp=NOON, carrier="UA"),
        ])  # fmt: skip
    rows = read_rows(plan, view, str(tmp_path))

    assert sorted(rows.b.tolist()) == [5, 6]


def test_refused_rows_are_counted(tmp_path: Path) -> None:
    """Rows without key, without time, or that cannot be summed are left out, and why is known."""
    view = plans.window_view()
    plan = plans.plan_of(view)
    stored.put_messages(plan, plans.LANDING, str(tmp_path), [
        message(0, 1, event_timestamp=NOON, carrier="UA", dep_delay=2.0**64),
        message(0, 2, event_timestamp=NOON),
        message(0, 3, carrier="UA"),
        message(0, 4, carrier="UA"),
        message(0, 5, event_timestamp=NOON, carrier="UA"),
    ])  # fmt: skip
    rows = read_rows(plan, view, str(tmp_path))

    assert rows.b.tolist() == [5]
    assert sorted(rows.refused.values()) == [1, 1, 2]


def test_versions_and_watermarks(tmp_path: Path) -> None:
    """A table can be read as of each of its versions, with the watermark it had then; other versions are refused."""
    view = plans.latest_stream_view()
    plan, uri = plans.plan_of(view), str(tmp_path)
    for offset in range(3):
        stored.put_messages(plan, plans.LANDING, uri, [message(2, offset, event_timestamp=NOON, carrier="UA")])

    for version in range(3):
        assert len(read_rows(plan, view, uri, version=version).timestamp) == version + 1
        assert high_watermarks(plan, plans.LANDING, uri, version) == {2: version}
    assert high_watermarks(plan, plans.LANDING, uri) == {2: 2}
    for version in (3, -1):
        with pytest.raises(DataError, match=f"departures has versions 0 to 2, not {version}"):
            read_rows(plan, view, uri, version=version)


def test_a_version_whose_files_were_vacuumed(tmp_path: Path) -> None:
    """The error names table and version, in one line, and says what to do; the newest version is there."""
    view = plans.latest_stream_view()
    plan, uri = plans.plan_of(view), str(tmp_path)
    for offset in range(2):
        stored.put_messages(plan, plans.LANDING, uri, [message(0, offset, event_timestamp=NOON, carrier="UA")])
    table = DeltaTable(f"{uri}/departures")
    table.optimize.compact()
    table.vacuum(0, enforce_retention_duration=False, dry_run=False)

    assert len(read_rows(plan, view, uri).timestamp) == 2
    with pytest.raises(
        UnavailableError, match=r"departures/ \(version 1\) cannot be read .* read a later version"
    ) as raised:
        read_rows(plan, view, uri, version=1)
    assert str(raised.value).isprintable()


def test_damaged_files(tmp_path: Path) -> None:
    """Of the data or of the log: the error names the table and says how to go on, without a library's traceback."""
    view = plans.latest_stream_view()
    plan, uri = plans.plan_of(view), str(tmp_path)
    stored.put_messages(plan, plans.LANDING, uri, [message(0, 0, event_timestamp=NOON, carrier="UA")])
    (data,) = tmp_path.glob("departures/*.parquet")
    (commit,) = tmp_path.glob("departures/_delta_log/*.json")

    for file in (data, commit):
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(UnavailableError, match=r"departures.* cannot be read .* move its folder away") as raised:
            read_rows(plan, view, uri)
        assert str(raised.value).isprintable()


def test_a_table_of_another_message_is_refused(tmp_path: Path) -> None:
    """What was decoded under other fields must be extracted again, and the error says how."""
    view = plans.latest_stream_view()
    plan = plans.plan_of(view)
    row = message(0, 1, event_timestamp=NOON, carrier="UA")
    stored.put_messages(plan, plans.LANDING, str(tmp_path), [row], schema_hash="other")

    with pytest.raises(NotReadyError, match="run: tally ingest --full departures"):
        read_rows(plan, view, str(tmp_path))


def test_a_range_of_time_counts_both_ends(tmp_path: Path) -> None:
    """Start and end are inclusive, whether the range is cut before an event function or after it."""
    moved = plans.latest_stream_view(describe(an_hour_later))
    plain = plans.latest_stream_view(describe(halve_delays))
    messages = [message(0, s, event_timestamp=f"2013-01-01T12:00:0{s}Z", carrier="UA", dep_delay=1.0) for s in range(5)]
    for view, shift in ((plans.latest_stream_view(), 0), (plain, 0), (moved, 3_600_000_000)):
        plan, uri = plans.plan_of(view), str(tmp_path / str(shift) / view.hash)
        stored.put_messages(plan, plans.LANDING, uri, messages)
        start, end = NOON_US + 1_000_000 + shift, NOON_US + 3_000_000 + shift

        assert sorted(read_rows(plan, view, uri, start=start, end=end).b.tolist()) == [1, 2, 3]
        assert sorted(read_rows(plan, view, uri, start=start + 1, end=end - 1).b.tolist()) == [2]


def test_the_event_function_runs(tmp_path: Path) -> None:
    """What it returns replaces the message's column."""
    view = plans.latest_stream_view(describe(halve_delays))
    plan = plans.plan_of(view)
    row = message(0, 1, event_timestamp=NOON, carrier="UA", dep_delay=3.0)
    stored.put_messages(plan, plans.LANDING, str(tmp_path), [row])

    assert read_rows(plan, view, str(tmp_path)).columns["dep_delay"].to_list() == [1.5]


def test_rows_of_a_warehouse_view(tmp_path: Path) -> None:
    """Ties go by created, arrival is created, and what has no created time arrived when it happened."""
    view = plans.weather_view()
    plan = plans.plan_of(view)
    created = datetime(2013, 1, 1, 13, tzinfo=UTC)
    noon = datetime(2013, 1, 1, 12, tzinfo=UTC)
    stored.put_rows(plan, plans.BATCH, str(tmp_path), [
        {"origin": "JFK", "event_timestamp": noon, "created": created, "reading": 2**60 + 1},
        {"origin": "LGA", "event_timestamp": noon, "temp": float("nan")},
    ])  # fmt: skip
    rows = read_rows(plan, view, str(tmp_path))
    hour = 3_600_000_000

    assert rows.a.tolist() == [NOON_US + hour, 0]
    assert rows.arrival.tolist() == [NOON_US + hour, NOON_US]
    assert rows.columns["reading"].to_list() == [2**60 + 1, None]
    assert rows.columns["temp"].to_list() == [None, None]


def test_a_batch_table_without_a_column(tmp_path: Path) -> None:
    """A view that was defined after the last extraction is told to extract again."""
    view = plans.weather_view()
    plan = plans.plan_of(view)
    table = pa.table({"origin": ["JFK"]})
    write_table(str(tmp_path), "weather", None, table.schema, table.to_batches(), overwrite=False, metadata={})

    with pytest.raises(NotReadyError, match=r"has no column temp of dtype Float64.*tally ingest --full weather"):
        read_rows(plan, view, str(tmp_path))


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    """An error while batches are made is raised as it is, and no commit is made."""
    uri = str(tmp_path)
    table = pa.table({"x": [1]})
    write_table(uri, "t", None, table.schema, table.to_batches(), overwrite=False, metadata={})

    def broken() -> Any:
        yield from table.to_batches()
        raise DataError("in the middle")

    with pytest.raises(DataError, match="in the middle"):
        write_table(uri, "t", open_table(uri, "t"), table.schema, broken(), overwrite=False, metadata={})
    after = open_table(uri, "t")

    assert after is not None
    assert (after.version(), after.to_pyarrow_table().num_rows) == (0, 1)


def test_two_writers_at_once(tmp_path: Path) -> None:
    """The second of two extractions that began at the same version changes nothing."""
    uri = str(tmp_path)
    table = pa.table({"x": [1]})

    def write(opened: Any) -> int:
        return write_table(uri, "t", opened, table.schema, table.to_batches(), overwrite=False, metadata={})

    write(None)
    one, other = open_table(uri, "t"), open_table(uri, "t")

    assert write(one) == 1
    with pytest.raises(UnavailableError, match=r"by another extraction, .* at the same time"):
        write(other)


def test_another_writer_meanwhile(tmp_path: Path) -> None:
    """Of two that make one table one fails, and so does one that replaces rows which an OPTIMIZE moves: nothing is there twice."""
    uri = str(tmp_path)
    table = pa.table({"x": [1]})

    def write(opened: Any, batches: Any, *, overwrite: bool = False) -> int:
        return write_table(uri, "t", opened, table.schema, batches, overwrite=overwrite, metadata={})

    def while_another(works: Callable[[], Any]) -> Iterator[Any]:
        yield from table.to_batches()
        works()

    with pytest.raises(UnavailableError, match="at the same time"):
        write(None, while_another(lambda: write(None, table.to_batches())))
    write(open_table(uri, "t"), table.to_batches())
    with pytest.raises(UnavailableError, match="at the same time"):
        write(open_table(uri, "t"), while_another(DeltaTable(f"{uri}/t").optimize.compact), overwrite=True)
    assert DeltaTable(f"{uri}/t").to_pyarrow_table().num_rows == 2


def test_raw_rows_between_two_instants(tmp_path: Path) -> None:
    """rows_table takes both ends, and only the columns that were asked for."""
    plan, uri = plans.plan_of(plans.weather_view()), str(tmp_path)
    moments = [datetime(2013, 1, 1, hour, tzinfo=UTC) for hour in range(4)]
    rows = [{"origin": "JFK", "event_timestamp": moment} for moment in moments]
    stored.put_rows(plan, plans.BATCH, uri, rows)
    table = rows_table(f"{uri}/weather", ["event_timestamp"], "event_timestamp", moments[1], moments[2])

    assert table.column_names == ["event_timestamp"]
    assert sorted(table.column(0).to_pylist()) == moments[1:3]


def test_first_of_each_event() -> None:
    """One position for each pair, the first one; None when nothing repeats."""
    partition, offset = np.array([1, 0, 1, 1]), np.array([5, 5, 5, 6])

    assert first_of_each(partition[:2], offset[:2]) is None
    kept = first_of_each(partition, offset)
    assert kept is not None
    assert kept.tolist() == [0, 1, 3]
