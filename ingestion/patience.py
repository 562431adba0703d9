"""Waiting for a server that is away: with a growing pause, and saying so once when it goes and once when it is back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from ingestion.report import REDIS, State
from tally.errors import UnavailableError

log = logging.getLogger(__name__)

T = TypeVar("T")

SHORTEST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0


class StoppedWhileAwayError(Exception):
    """We were asked to stop while a server could not be reached; the batch is left for whoever comes next."""


class Patience:
    """Returns when it is time to try again, after half as long as the server has been away already. Threads share one.

    `server` is what it is called in the worker's state and log. Raises StoppedWhileAwayError as soon as `stop` is set.
    """

    def __init__(self, stop: threading.Event, state: State, server: str = REDIS) -> None:
        self._stop, self._state, self._server = stop, state, server
        self._lock = threading.Lock()
        self._since = 0.0
        self._said: type[Exception] | None = None

    def __call__(self, error: UnavailableError) -> None:
        """Wait."""
        now = time.monotonic()
        with self._lock:
            if self._server == REDIS:  # librdkafka tells of Kafka's errors itself
                self._state.redis_errors[type(error).__name__] += 1
            self._state.away[self._server] = str(error)
            self._state.ticked = now
            self._since = self._since or now
            if self._said is not type(error):
                self._said = type(error)
                log.warning("%s Trying again until that works; nothing is committed meanwhile.", error)
            else:
                log.debug("still away: %s", error)
            pause = min(max((now - self._since) / 2, SHORTEST_PAUSE), LONGEST_PAUSE)
        if self._stop.wait(pause):
            raise StoppedWhileAwayError from error

    def answered(self) -> None:
        """The server did what it was asked."""
        if self._said is None:
            return
        with self._lock:
            log.warning("%s is back, after %.1f s.", self._server, time.monotonic() - self._since)
            self._since, self._said = 0.0, None
            self._state.away.pop(self._server, None)

    def outlast(self, ask: Callable[[], T], unless: tuple[type[UnavailableError], ...] = ()) -> T:
        """What `ask` returns, as soon as the server answers it. Errors of the kinds `unless` are raised at once."""
        while True:
            try:
                return ask()
            except UnavailableError as error:
                if isinstance(error, unless):
                    raise
                self(error)
