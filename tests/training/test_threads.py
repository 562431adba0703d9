"""Blocks cover an array once, on one thread or several."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tally.blocks import BLOCK
from training.threads import on_threads, over_blocks


@pytest.mark.parametrize("count", [0, 1, BLOCK, BLOCK + 1, 20 * BLOCK + 3])
def test_every_place_is_worked_on_once(count: int) -> None:
    """Whatever the length, each place lies in one block, and no thread is left."""
    times = np.zeros(count, np.int64)
    before = threading.active_count()

    def mark(block: slice) -> None:
        assert 0 < block.stop - block.start <= BLOCK
        times[block] += 1

    over_blocks(mark, count)
    assert (times == 1).all()
    assert threading.active_count() == before


@pytest.mark.parametrize("blocks", [2, 40])
def test_what_fails_in_a_block_is_raised(blocks: int) -> None:
    """An error in one block is the caller's, on threads as well."""

    def fail(block: slice) -> None:
        if block.start:
            raise ValueError(f"at {block.start}")

    with pytest.raises(ValueError, match=f"at {BLOCK}"):
        over_blocks(fail, blocks * BLOCK)


def test_items_are_worked_on_by_other_threads() -> None:
    """Work is done beside the caller, who waits for all of it."""
    workers: list[int] = []
    on_threads(lambda _: workers.append(threading.get_ident()), [slice(0)] * 9)
    assert len(workers) == 9
    assert threading.get_ident() not in workers
