"""Long arrays in blocks: what lies between two steps of work on a block stays in the processor's caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

BLOCK: Final = 1 << 15

Each = Callable[[Callable[[slice], object], Sequence[slice]], None]
"""Calls a function with each slice, in any order or at the same time; the function writes to its own slice only."""


def blocks_of(count: int) -> list[slice]:
    """Slices of at most `BLOCK` that cover ``0..count``, in order."""
    return [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def one_by_one(work: Callable[[slice], object], slices: Sequence[slice]) -> None:
    """The plain `Each`."""
    for one in slices:
        work(one)
