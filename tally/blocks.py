"""Work on long arrays in blocks: what is between two steps stays in the processor's caches, and threads share the blocks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

BLOCK: Final = 1 << 15
_THREADS: Final = min(os.cpu_count() or 1, 4)
_FEWEST: Final = 8
"""Fewer blocks than this are done before a thread has started."""

Item = TypeVar("Item")


def over_blocks(work: Callable[[slice], object], count: int) -> None:
    """Call `work` with slices of at most `BLOCK` that cover ``0..count``; from several threads where there are many.

    NumPy works on several threads at once; each call must write to its own slice only. Raises what `work` raises.
    """
    blocks = [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    if len(blocks) < _FEWEST:
        for block in blocks:
            work(block)
    else:
        on_threads(work, blocks)


def on_threads(work: Callable[[Item], object], items: Iterable[Item]) -> None:
    """Call `work` with each item, on threads that are gone afterwards. Raises what `work` raises."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(work, items):
            pass
