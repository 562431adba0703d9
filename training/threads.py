"""Work on long arrays by several threads: NumPy works outside of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tally.blocks import BLOCK, blocks_of, one_by_one

MANY: Final = 8 * BLOCK
"""Fewer entries than this are done before a thread has started."""
_THREADS: Final = min(os.cpu_count() or 1, 4)


def on_threads(work: Callable[[slice], object], slices: Sequence[slice]) -> None:
    """Call `work` with each slice, on threads that are gone afterwards (`tally.blocks.Each`). Raises what `work` raises."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(work, slices):
            pass


def over_blocks(work: Callable[[slice], object], count: int) -> None:
    """Call `work` with slices that cover ``0..count``; on threads where there are many. Each call writes to its own slice."""
    each = one_by_one if count < MANY else on_threads
    each(work, blocks_of(count))
