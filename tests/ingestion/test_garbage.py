"""How often a worker's process collects garbage, and that it is as before afterwards."""

from __future__ import annotations

import gc

import pytest

from ingestion.garbage import seldom_collected


def fail_within() -> None:
    """A worker that fails."""
    with seldom_collected():
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] > 700
        raise RuntimeError


def test_the_process_is_as_before_afterwards() -> None:
    """Also where the worker fails: nothing stays frozen, and the thresholds are the old ones."""
    before = gc.get_threshold()

    with pytest.raises(RuntimeError):
        fail_within()

    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == before
