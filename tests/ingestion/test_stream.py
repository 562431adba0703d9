"""A micro-batch as deltas and rows, and what becomes of every event. No service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion import stream
from ingestion.redis_store import APPLIED, BEHIND, EXTENT, Delta, Reply
from ingestion.stream import Counts
from tally.columns import column
from tally.errors import DataError
from tally.functions import describe
from tally.time import SECOND
from tests.ingestion import plans, streams
from tests.ingestion.streams import Message

VIEW = streams.view_with_every_cell(texts=True)


def fails(dep_delay: Any) -> dict[str, Any]:
    """An event function with a mistake."""
    return {"dep_delay": dep_delay / {}}


def departures(*rows: tuple[int, str | None, int | None]) -> dict[str, Any]:
    """Columns of messages (second, carrier, flight)."""
    return {
        "event_timestamp": column("UnixTimestamp", [row[0] * 10**6 for row in rows]),
        "carrier": column("String", [row[1] for row in rows]),
        "flight": column("Int64", [row[2] for row in rows]),
        "dep_delay": column("Float64", [0.5] * len(rows)),
    }


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=30))
def test_stretches_rise_and_are_as_long_as_can_be(messages: list[tuple[int, int]]) -> None:
    """The stretches are the whole sequence, cut before each message that does not lie beyond its partition's last."""
    cuts, last = [], dict[int, int]()
    for row, (partition, offset) in enumerate(messages):
        if last.get(partition, -1) >= offset:
            cuts.append(row)
            last = {}
        last[partition] = offset
    begins = [0, *cuts]
    partitions = np.array([m[0] for m in messages], np.int64)
    offsets = np.array([m[1] for m in messages], np.int64)

    found = stream.rising(partitions, offsets)

    assert [(s.start, s.stop) for s in found] == list(zip(begins, [*cuts, len(messages)], strict=True))


@given(st.data())
def test_every_message_is_in_one_delta_and_each_extent_is_its_events(data: st.DataObject) -> None:
    """Extents run from the first to the last offset of the entity in the partition; records count every event."""
    topic = data.draw(streams.topics())
    messages = [m for partition in topic for m in partition]
    if not messages:
        return
    deltas = stream.deltas_of(streams.events_of(VIEW, messages))

    for delta in deltas.packed:
        own = [m for m in messages if m.fields["who"] == delta.entity.decode()]
        extents = [
            (p, min(offsets), max(offsets))
            for p in sorted({m.partition for m in own})
            if (offsets := [m.offset for m in own if m.partition == p])
        ]
        assert np.frombuffer(delta.extents, EXTENT).tolist() == extents
        assert int.from_bytes(delta.newest, "little", signed=True) == max(m.fields["at"] for m in own)
    levels = deltas.records["level"]
    assert all(deltas.rows_in_record[levels == level].sum() == len(messages) for level in range(3))


@given(st.data())
def test_whatever_redis_answers_each_event_ends_once(data: st.DataObject) -> None:
    """Applied, duplicate and too late are all events sent, and events at or behind a fence are never sent again."""
    topic = data.draw(streams.topics())
    messages = [m for partition in topic for m in partition]
    fences: dict[tuple[bytes, int], int] = {}

    def send(deltas: Sequence[Delta]) -> list[Reply]:
        replies: list[Reply] = []
        for delta in deltas:
            extents = np.frombuffer(delta.extents, EXTENT).tolist()
            known = [fences.get((delta.entity, partition), -1) for partition, _, _ in extents]
            if any(fence >= first for fence, (_, first, _) in zip(known, extents, strict=True)):
                replies.append([BEHIND, *known])
            elif data.draw(st.booleans()):  # another worker was here first
                partition, first, last = data.draw(st.sampled_from(extents))
                fences[delta.entity, partition] = fence = data.draw(st.integers(first, last + 1))
                known = [fence if extent[0] == partition else old for old, extent in zip(known, extents, strict=True)]
                replies.append([BEHIND, *known])
            else:
                replies.append(APPLIED)
        return replies

    counts = stream.merge(streams.events_of(VIEW, messages), send)

    assert counts.applied + counts.duplicate == len(messages)
    behind = [m for m in messages if m.offset <= fences.get((m.fields["who"].encode(), m.partition), -1)]
    assert counts.duplicate == len(behind)


def test_events_are_too_late_when_the_farthest_level_dropped_them() -> None:
    """Records dropped at a nearer level alone do not make an event late."""
    nothing = dict.fromkeys(("f", "i", "wide", "text", "raw"))
    messages = [Message(0, n, {"at": n, "who": "a", **nothing}) for n in range(3)]
    deltas = stream.deltas_of(streams.events_of(VIEW, messages))
    assert deltas.records["level"].tolist() == [0, 1, 2]

    assert deltas.settle([[APPLIED, 0, 1]]) == (Counts(applied=3), None)
    assert deltas.settle([[APPLIED, 0, 1, 2]]) == (Counts(too_late=3), None)


def test_only_the_records_that_were_dropped_are_too_late() -> None:
    """Of the second delta's records the first and the third: their events, and no other's."""
    view = replace(VIEW, aggregations=VIEW.aggregations[:1])
    nothing = dict.fromkeys(("f", "i", "wide", "text", "raw"))
    times = [("a", 0), *[("b", 100 * SECOND * tile) for tile in (0, 1, 1, 1, 1, 2, 2)]]
    messages = [Message(0, n, {"at": at, "who": who, **nothing}) for n, (who, at) in enumerate(times)]
    deltas = stream.deltas_of(streams.events_of(view, messages))

    assert deltas.settle([1, [APPLIED, 0, 2]]) == (Counts(applied=5, too_late=3), None)


def test_refused_rows_leave_the_others() -> None:
    """A null key refuses its row with the view's name and a reason."""
    view = plans.window_view()
    columns = departures((1, "UA", 1), (2, None, 2), (3, "AA", 3))

    events, reasons = stream.events_of(view, None, columns, np.zeros(3, np.int64), np.arange(3))

    assert reasons == {1: "departure_windows: entity key carrier is null"}
    assert sorted(events.entities) == [b"AA", b"UA"]
    assert [events.entities[i] for i in events.entity] == [b"UA", b"AA"]
    assert events.order.offset.tolist() == [0, 2]


def test_entities_of_several_keys_are_told_apart() -> None:
    """Texts with separators, and numbers, make different entities where any key differs."""
    keys = [
        column("String", ["a|", "a", "a", "a|"]),
        column("Int64", [1, 1, -1, 1]),
        column("String", ["b", "|b", "b", "b"]),
    ]

    entities, number = stream._number_entities(keys)

    assert [entities[i] for i in number] == [rb"a\||1|b", rb"a|1|\|b", b"a|-1|b", rb"a\||1|b"]
    assert len(entities) == 3


def test_the_greatest_row_of_each_entity_is_kept() -> None:
    """By (event timestamp, partition, offset), packed with (partition, offset) as its tie-break."""
    view = plans.latest_stream_view()
    columns = departures((5, "UA", 1), (5, "UA", 2), (4, "UA", 3), (1, "AA", None), (5, "UA", 5))
    events, _ = stream.events_of(view, None, columns, np.array([1, 2, 2, 0, 1]), np.array([7, 3, 9, 0, 8]))

    entities, values = stream.latest_rows(events)

    rows = view.row_layout.unpack(values, entities)
    found = dict(zip(entities, rows.columns["flight"].to_list(), strict=True))
    assert found == {b"UA": 2, b"AA": None}
    winner = entities.index(b"UA")
    assert (rows.timestamp[winner], rows.a[winner], rows.b[winner]) == (5_000_000, 2, 3)


def test_no_events_make_no_writes() -> None:
    """A batch of which every message is refused sends nothing."""
    view = plans.window_view()
    events, reasons = stream.events_of(
        view, None, departures((1, None, 1)), np.zeros(1, np.int64), np.zeros(1, np.int64)
    )

    def send(deltas: object) -> list[Reply]:
        raise AssertionError(deltas)

    assert len(reasons) == 1
    assert stream.merge(events, send) == Counts()
    assert stream.latest_rows(events) == ([], [])


def test_a_failing_function_names_itself_and_the_messages() -> None:
    """The worker stops with what to correct; nothing of the batch was applied."""
    view = plans.latest_stream_view(describe(fails))

    with pytest.raises(DataError, match=r"last_departure: .*test_stream:fails failed \(TypeError.*offsets 4 to 4"):
        stream.events_of(view, fails, departures((1, "UA", 1)), np.zeros(1, np.int64), np.array([4]))


def test_counts_add_up() -> None:
    """Consumed is the sum of the four ways an event can end."""
    counts = Counts(1, 2, 3, Counter(a=4))
    counts.add(Counts(10, 20, 30, Counter(a=1, b=2)))

    assert counts == Counts(11, 22, 33, Counter(a=5, b=2))
    assert counts.consumed == 73


@given(st.lists(st.integers(-5, 5) | st.sampled_from([-(2**63), 2**63 - 1, 2**60 + 1]), max_size=30))
def test_codes_are_those_of_sorted_distinct_values(values: list[int]) -> None:
    """Close together or as far apart as int64 goes, numbered without or with sorting."""
    codes, known = stream._codes(np.array(values, np.int64))
    distinct = sorted(set(values))
    assert codes.tolist() == [distinct.index(value) for value in values]
    assert known.tolist() == distinct
