"""What a worker takes from Kafka ahead of its turn."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion.intake import Intake, is_behind

counts = st.integers(0, 10**9)


@pytest.mark.parametrize(
    ("lag", "in_hand", "expected"),
    [
        (0, 0, False),  # nothing to do
        (1_000, 1_000, False),  # all that there is, is in hand
        (1_500, 1_000, False),
        (1_501, 1_000, True),
        (400_000, 200_000, True),
        (900, 1_000, False),  # fetches have brought more than they have told of
    ],
)
def test_a_worker_reads_ahead_only_while_it_is_behind(lag: int, in_hand: int, expected: object) -> None:
    """Decision 052: only if more than half as many messages again as are in hand wait in Kafka."""
    assert is_behind(lag, in_hand) is expected


@given(counts, counts, counts)
def test_more_lag_never_ends_reading_ahead(lag: int, in_hand: int, more: int) -> None:
    """Nor does it begin with fewer messages in Kafka, or more in hand."""
    assert is_behind(lag, in_hand) <= is_behind(lag + more, in_hand)
    assert is_behind(lag, in_hand + more) <= is_behind(lag, in_hand)


class Consumer:
    """Fetches `ahead` while others work; what it waits for is ``"later"``."""

    def __init__(self, ahead: Any) -> None:
        self.ahead = ahead
        self.fetches = 0

    def fetched(self) -> Any:
        """All that is there."""
        self.fetches += 1
        return self.ahead

    def received(self) -> Any:
        """Waits."""
        return "later"


def intake_of(consumer: Any, *, stop: bool = False, behind: bool = True) -> Intake:
    """The intake of a worker with one topic."""
    event, patience = threading.Event(), None
    if stop:
        event.set()
    made = Intake(consumer, {"t": ()}, {}, event, patience)  # type: ignore[arg-type]
    made.is_behind = behind
    return made


@pytest.mark.parametrize("ahead", [({"t": []}, ()), ({}, ["end"]), ({"t": []}, ["end"])])
def test_what_is_read_ahead_is_received_once(ahead: Any) -> None:
    """Messages alone, what came beside them alone, or both: none is dropped for a later one, none comes twice."""
    consumer = Consumer(ahead)
    intake = intake_of(consumer)
    intake.read_ahead()
    intake.read_ahead()
    assert consumer.fetches == 1
    assert intake.received() is ahead
    assert intake.received() == "later"
    intake.read_ahead()
    intake.drop()
    assert intake.received() == "later"


@pytest.mark.parametrize(("stop", "behind"), [(True, True), (False, False)])
def test_nothing_is_read_ahead(*, stop: bool, behind: bool) -> None:
    """By a worker that keeps up, or is to stop."""
    consumer = Consumer(({"t": []}, ()))
    intake = intake_of(consumer, stop=stop, behind=behind)
    intake.read_ahead()
    assert consumer.fetches == 0
    assert intake.received() == "later"
