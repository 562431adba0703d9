"""What becomes of partitions that a worker loses."""

from __future__ import annotations

from typing import Any

from ingestion.assignment import Assignment


class Consumer:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def commit(self, offsets: Any, *, asynchronous: bool) -> None:
        """Committed before another worker begins."""
        assert not asynchronous
        self.told.append(("commit", offsets))

    def unassign(self, places: Any) -> None:
        """Not read any more."""
        self.told.append(("unassign", places))


def assignment_of(consumer: Any) -> Assignment:
    """One that reads three partitions."""
    unused: Any = None
    made = Assignment(consumer, unused, unused, unused, unused, skip_expired=False)
    made.next = {("t", 0): 5, ("t", 1): 6, ("u", 0): 7}
    return made


def test_what_is_revoked_is_committed_and_forgotten() -> None:
    """Where each stood is committed at once, and never again: by then it belongs to another worker."""
    consumer = Consumer()
    assignment = assignment_of(consumer)
    places = [("t", 1), ("u", 0), ("u", 9)]
    assignment.on_revoke(places)
    assert consumer.told == [("commit", {("t", 1): 6, ("u", 0): 7}), ("unassign", places)]
    assert assignment.next == {("t", 0): 5}


def test_what_was_lost_is_forgotten() -> None:
    """Others read it already, so nothing is committed."""
    consumer = Consumer()
    assignment = assignment_of(consumer)
    assignment.on_lost([("t", 0)])
    assert consumer.told == [("unassign", [("t", 0)])]
    assert assignment.next == {("t", 1): 6, ("u", 0): 7}
