"""Reading piece by piece: only what can matter is read, and the pieces together are the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from deltalake import WriterProperties

from ingestion.delta import open_version
from ingestion.reading import Reading, Rows, read_rows
from ingestion.scan import batches, once, pieces_of, refused_once
from tests.ingestion import plans, stored
from tests.ingestion.stored import message

VIEW = plans.window_view()
PLAN = plans.plan_of(VIEW)
HOUR = 3_600_000_000
MIDNIGHT = 1_356_998_400_000_000


def _put_hours(uri: str, hours: range) -> None:
    """One commit, so one file, an hour; the first event of each was delivered with the hour before as well."""
    for hour in hours:
        stored.put_messages(PLAN, plans.LANDING, uri, [
            message(0, offset, event_timestamp=f"2013-01-01T{hour:02}:{offset % 60:02}:00Z", carrier="UA", dep_delay=1.0)
            for offset in range(hour * 60, hour * 60 + 61)
        ])  # fmt: skip


def _reading(uri: str, start: int | None, end: int | None) -> Reading:
    return Reading.of(PLAN, VIEW, open_version(uri, "departures", None), start, end)


def test_files_and_row_groups_out_of_the_range_are_not_read(tmp_path: Path) -> None:
    """Delta's statistics leave files out, Parquet's leave row groups out; rows that cannot matter are not decoded."""
    uri = str(tmp_path)
    _put_hours(uri, range(6))
    assert len(pieces_of(_reading(uri, None, None))) == 6
    within = pieces_of(_reading(uri, MIDNIGHT + 2 * HOUR + 1, MIDNIGHT + 4 * HOUR - 1))
    assert [piece.rows for piece in within] == [61, 61]

    table = open_version(uri, "departures", None)
    small = WriterProperties(max_row_group_size=10)
    table.optimize.z_order(["event_timestamp"], writer_properties=small)
    minute = pieces_of(_reading(uri, MIDNIGHT + 2 * HOUR, MIDNIGHT + 2 * HOUR + 60_000_000))
    assert sum(piece.rows for piece in minute) <= 30


def test_only_the_columns_of_the_view_are_read(tmp_path: Path) -> None:
    """Who the event is, when it came, and the columns that the view's windows need."""
    uri = str(tmp_path)
    _put_hours(uri, range(1))
    assert _reading(uri, None, None).columns == (
        "_partition",
        "_offset",
        "_create_time",
        *(field.name for field in plans.LANDING.message if field.name in {f.name for f in VIEW.columns}),
    )


def test_the_pieces_are_the_whole(tmp_path: Path) -> None:
    """Batches of a few rows, put together, are what one reading gives; duplicates and refusals count once."""
    uri = str(tmp_path)
    _put_hours(uri, range(4))
    bad = [message(0, 900 + i, carrier="UA") for i in range(3)]
    for _ in range(2):
        stored.put_messages(PLAN, plans.LANDING, uri, bad)
    whole = read_rows(PLAN, VIEW, uri)
    reading = _reading(uri, None, None)
    found = list(batches(reading, pieces_of(reading), 50))
    assert len(found) > 2
    together = once(_concatenated([rows for rows, _ in found]))
    assert sorted(together.b.tolist()) == sorted(whole.b.tolist())
    assert refused_once([refused for _, refused in found], events=True) == whole.refused
    assert sum(whole.refused.values()) == 3


def _concatenated(rows: list[Rows]) -> Rows:
    return Rows(
        {},
        np.concatenate([one.timestamp for one in rows]),
        np.concatenate([one.a for one in rows]),
        np.concatenate([one.b for one in rows]),
        np.concatenate([one.arrival for one in rows]),
        {},
        rows[0].version,
    )
