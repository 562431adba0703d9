"""Where reading begins: a table of what Redis, the group and the topic may say."""

from __future__ import annotations

import pytest

from ingestion.positions import Begin, begin
from tally.errors import NotReadyError

PLACE = ("events", 3)


@pytest.mark.parametrize(
    ("low", "high", "committed", "come", "emptied", "expected"),
    [
        (0, 9, -1, {"a": None}, True, Begin(0, 0, 0)),  # nobody ever read it
        (5, 9, -1, {"a": None}, True, Begin(5, 0, 0, ("a",))),  # nor what is gone
        (0, 9, 7, {"a": 7, "b": 7}, False, Begin(7, 0, 0)),
        (0, 9, 7, {"a": 7, "b": 4}, False, Begin(4, 0, 3)),  # b is behind
        (0, 9, 4, {"a": 7}, False, Begin(4, 0, 0)),  # the group was set back
        (0, 9, -1, {"a": 6}, False, Begin(6, 0, 0)),  # a bootstrap went before
        (0, 9, 7, {"a": 3}, False, Begin(3, 0, 4)),  # an older snapshot
        (0, 9, 7, {"a": None}, True, Begin(0, 0, 7)),  # Redis was emptied, and the topic has everything
        (5, 9, 7, {"a": None}, False, Begin(5, 0, 0, ("a",))),  # a new definition
        (5, 9, 7, {"a": None, "b": 8}, False, Begin(5, 0, 0, ("a",))),
    ],
)
def test_reading_begins_at_the_least(
    low: int, high: int, committed: int, come: dict[str, int | None], emptied: object, expected: Begin
) -> None:
    """Of what each view has and of what the group committed; a definition that never began starts where the topic does."""
    assert begin(PLACE, low, high, committed, come, emptied=bool(emptied)) == expected


@pytest.mark.parametrize(
    ("committed", "come", "emptied", "first"),
    [
        (3, {"a": 3}, False, 3),  # the worker was away too long
        (7, {"a": 3, "b": 7}, False, 3),  # Redis has an older state of one view
        (7, {"a": 0}, False, 0),  # a shard of the cluster lost everything
        (7, {"a": None}, True, 0),  # Redis was emptied
    ],
)
def test_events_that_nobody_has_any_more_are_not_passed_over(
    committed: int, come: dict[str, int | None], emptied: object, first: int
) -> None:
    """The error names them and the commands that bring them back; they are counted when they are given up."""
    with pytest.raises(
        NotReadyError, match=rf"events\[3\]: offsets {first} to 4 .*tally ingest and tally bootstrap a,"
    ):
        begin(PLACE, 5, 9, committed, come, emptied=bool(emptied))

    assert begin(PLACE, 5, 9, committed, come, emptied=bool(emptied), skip_expired=True).expired == 5 - first


def test_fences_beyond_the_topic_are_refused() -> None:
    """Every new message would be a duplicate."""
    with pytest.raises(NotReadyError, match="up to offset 499, the topic ends at 8"):
        begin(PLACE, 0, 9, -1, {"a": 500}, emptied=False)
