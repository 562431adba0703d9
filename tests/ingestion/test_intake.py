"""What a worker takes from Kafka ahead of its turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion.intake import is_behind

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
