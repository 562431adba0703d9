"""Stored bytes of small, hot views, kept in the process for a moment. Off unless a client is given one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving_client.commands import Values
from serving_client.forks import renew_after_fork
from serving_client.status import Status


@dataclass(frozen=True, slots=True)
class Looked:
    """`values` with what was found; `missing` are the positions of the keys that must be read; `marks` uint8 per key."""

    values: Values
    missing: list[int]
    marks: NDArray[np.uint8]


class Cache:
    """What Redis said of the keys of `views`, up to `seconds` ago, for at most `entries` keys. Safe between threads.

    It holds stored bytes, not answers: time to live, windows and evidence are those of the bytes that were read. Only
    lookups as of now use it: a replay reads the store. One cache may serve several clients of one Redis.
    """

    def __init__(self, *, views: Sequence[str], entries: int, seconds: float) -> None:
        self.views = tuple(views)
        self.entries = entries
        self.seconds = seconds
        self.hits = 0
        self.misses = 0
        self._stored: dict[bytes, tuple[bytes | None, float]] = {}
        self._lock = threading.Lock()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """See `serving_client.forks`."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._stored)

    def prefixes(self, project: str) -> tuple[bytes, ...]:
        """What the keys of its views begin with, under any definition."""
        return tuple(f"{project}/{view}@".encode() for view in self.views)

    def look(self, keys: Sequence[bytes], prefixes: tuple[bytes, ...], seconds: float, mark: Status) -> Looked:
        """What was read of `keys` up to `seconds` ago. `mark` is how a value that is found is marked, 0 the others."""
        oldest = monotonic() - seconds
        values: Values = [None] * len(keys)
        missing: list[int] = []
        marks = np.zeros(len(keys), np.uint8)
        asked = 0
        for position, key in enumerate(keys):
            if key.startswith(prefixes):
                asked += 1
                found = self._stored.get(key)
                if found is not None and found[1] >= oldest:
                    values[position] = found[0]
                    marks[position] = mark
                    continue
            missing.append(position)
        with self._lock:
            self.hits += len(keys) - len(missing)
            self.misses += asked - (len(keys) - len(missing))
        return Looked(values, missing, marks)

    def keep(self, keys: Sequence[bytes], values: Sequence[bytes | None], prefixes: tuple[bytes, ...]) -> None:
        """Remember what Redis has just said; what was read longest ago makes room."""
        now = monotonic()
        with self._lock:
            for key, value in zip(keys, values, strict=True):
                if key.startswith(prefixes):
                    self._stored.pop(key, None)
                    self._stored[key] = value, now
            for key in list(islice(self._stored, max(0, len(self._stored) - self.entries))):
                del self._stored[key]


def fresh(found: Looked, read: Sequence[bytes | None]) -> Values:
    """All values, with those that were `read` of the missing keys in their places."""
    values: Any = found.values
    for position, value in zip(found.missing, read, strict=True):
        values[position] = value
    return found.values
