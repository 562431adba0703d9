"""How often a worker's process looks for garbage that counting references does not find."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_ALLOCATED: Final = 100_000


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Collect after 100,000 new objects instead of 700, and never look through what is there already. For a process of its own.

    A batch is that many messages and deltas, all of which live until it is applied: looking through them again and again took a
    sixth of a worker's time, and each full collection stopped it for 70 ms, once a second.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_ALLOCATED, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
