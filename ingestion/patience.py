"""Waiting for a Redis that is away: with a growing pause, and saying so once when it goes and once when it is back."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from ingestion.report import State
from tally.errors import UnavailableError

log = logging.getLogger(__name__)

SHORTEST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0


class StoppedWhileAwayError(Exception):
    """We were asked to stop while Redis could not be reached; the batch is left for whoever comes next."""


class Patience:
    """Returns when it is time to try again, after half as long as Redis has been away already. Several threads share one.

    Raises StoppedWhileAwayError as soon as `stop` is set.
    """

    def __init__(self, stop: threading.Event, state: State) -> None:
        self._stop, self._state = stop, state
        self._lock = threading.Lock()
        self._since = 0.0
        self._said: type[Exception] | None = None

    def __call__(self, error: UnavailableError) -> None:
        """Wait."""
        now = time.monotonic()
        with self._lock:
            self._state.redis_errors[type(error).__name__] += 1
            self._state.redis_away = str(error)
            self._state.ticked = now
            self._since = self._since or now
            if self._said is not type(error):
                self._said = type(error)
                log.warning("%s Trying again until it takes writes; nothing is committed meanwhile.", error)
            else:
                log.debug("still away: %s", error)
            pause = min(max((now - self._since) / 2, SHORTEST_PAUSE), LONGEST_PAUSE)
        if self._stop.wait(pause):
            raise StoppedWhileAwayError from error

    def answered(self) -> None:
        """Redis did what it was asked."""
        if self._said is None:
            return
        with self._lock:
            log.warning("Redis takes writes again, after %.1f s.", time.monotonic() - self._since)
            self._since, self._said, self._state.redis_away = 0.0, None, ""
