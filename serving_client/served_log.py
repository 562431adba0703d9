"""The log of served rows: what was asked, what was answered, and the evidence to replay it. Never on a request's way.

A row of the log has the service's keys and request fields under their own names, the instant of the answer, the values
that were answered, and the columns of `tally.served`.

So a folder of logged rows is a table of labels: `training.build_training_set(..., visibility="as_served")` makes the same
values again, beside those that were served.
"""

from __future__ import annotations

import atexit
import json
import logging
import random
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np

from serving_client.few_rows import FewRequest, column_of
from serving_client.forks import renew_after_fork
from serving_client.lookup import Request
from serving_client.rows import FeatureRows
from serving_client.status import Status
from tally.columns import Column, column, concatenate
from tally.plan import Service
from tally.served import (
    DEFINITION_COLUMN,
    EVIDENCE_COLUMN,
    SERVED,
    SERVICE_COLUMN,
    STATUS_COLUMN,
    instant_column,
)

_log = logging.getLogger(__name__)
_NAMES: Final = {int(status): status.name.lower() for status in Status}


@dataclass(frozen=True)
class Served:
    """Logged rows of one definition: `columns` by name, in the order of this module's docstring."""

    service: str
    definition: str
    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(self.columns[EVIDENCE_COLUMN])


class Sink(Protocol):
    """Where logged rows go. Called by one thread, which may wait as long as it likes."""

    def write(self, served: Served) -> int:
        """Keep these rows. How many rows were lost since the last call."""

    def close(self) -> int:
        """Finish what was begun. How many rows were lost since the last call."""

    def after_fork(self) -> None:
        """Called in a forked child: whatever is shared with the parent must be left alone."""


@dataclass(frozen=True, slots=True)
class _Offered:
    service: Service
    asked: dict[str, Column]
    rows: FeatureRows

    def __len__(self) -> int:
        return len(self.rows)


class ServedLog:
    """Hands a sample of what is served to a sink, in a thread of its own. Safe between threads, and after a fork.

    `sample` is the share of requests that are logged; `capacity` how many rows may wait. What comes when as many wait is
    dropped and counted: a request never waits for the log. A row that waits holds its request, its values and the bytes that
    were read for it (the evidence is made of them later), so `capacity` bounds memory by what `tally sizes` says of a key of each
    view: 100,000 rows of 3 kB hold 300 MB where a sink hangs. The sink gets its rows every `seconds`, or when half of
    `capacity` waits. `offered`, `dropped` and `lost` (by the sink) count rows since the process began. A sink that hangs
    keeps no process from ending: `close`, which runs at exit too, gives up after `patience` seconds.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        sample: float = 1.0,
        capacity: int = 100_000,
        seconds: float = 5.0,
        patience: float = 30.0,
    ) -> None:
        self.sample = sample
        self.capacity = capacity
        self.seconds = seconds
        self.patience = patience
        self.offered = self.dropped = self.lost = 0
        self._sink = sink
        self._closed = self._given_up = False
        self._begin()
        renew_after_fork(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._waiting: list[_Offered] = []
        self._count = 0
        self._thread: threading.Thread | None = None
        self._random = random.Random()  # noqa: S311 chooses rows, guards nothing

    def after_fork(self) -> None:
        """See `serving_client.forks`: what waited is the parent's to write."""
        self._begin()
        self._sink.after_fork()

    def offer(self, service: Service, request: Request | FewRequest, rows: FeatureRows) -> None:
        """Log an answer, if it is in the sample and there is room."""
        if self.sample < 1.0 and self._random.random() >= self.sample:
            return
        with self._lock:
            self.offered += len(rows)
            if self._closed or self._count + len(rows) > self.capacity:
                self.dropped += len(rows)
                return
            self._waiting.append(_Offered(service, _asked(service, request), rows))
            self._count += len(rows)
            if self._thread is None:
                self._start()
            if self._count * 2 >= self.capacity:
                self._wake.set()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="tally-served-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(self.seconds)
            self._wake.clear()
            self._drain()
        self._drain()
        self._counting(self._sink.close, 0)

    def _drain(self) -> None:
        with self._lock:
            offered, self._waiting = self._waiting, []
            count = self._count
        for answers in _by_definition(offered):
            self._counting(lambda answers=answers: self._sink.write(_batch(answers)), sum(map(len, answers)))
        with self._lock:
            self._count -= count  # only now: rows that the sink is busy with take room, too

    def _counting(self, call: Any, rows: int) -> None:
        try:
            lost = call()
        except Exception:  # noqa: BLE001 whatever a sink raises must not end the log: it is counted and said
            lost = rows
            _log.exception("The log of served rows lost %d rows.", rows)
        with self._lock:
            if not self._given_up:
                self.lost += lost

    def close(self) -> None:
        """Write what waits, and end; after `patience` seconds, count what still waits as lost. Later offers are dropped."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
        self._wake.set()
        if thread is None:
            self._counting(self._sink.close, 0)
            return
        thread.join(self.patience)
        atexit.unregister(self.close)
        if thread.is_alive():
            with self._lock:
                self._given_up = True
                self.lost += self._count
            _log.error(
                "The log of served rows gives up its sink, which was still busy after %g s: %d rows are lost.",
                self.patience,
                self._count,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _asked(service: Service, request: Request | FewRequest) -> dict[str, Column]:
    """The request's columns. Arrays that the caller may change later are copied."""
    fields = (*service.keys, *service.request)
    if isinstance(request, FewRequest):
        together = zip(fields, zip(*request.values, strict=True), strict=True)
        return {f.name: column_of(f.dtype, items) for f, items in together}
    found = {f.name: request.columns[f.name] for f in fields}
    return {name: Column(c.dtype, c.values.copy(), c.valid.copy()) for name, c in found.items()}


def _by_definition(offered: Iterable[_Offered]) -> list[list[_Offered]]:
    """The answers of each definition, in the order in which they were served."""
    found: dict[tuple[str, str], list[_Offered]] = {}
    for answer in offered:
        if len(answer):
            found.setdefault((answer.service.name, answer.service.hash), []).append(answer)
    return list(found.values())


def _batch(answers: Sequence[_Offered]) -> Served:
    columns = [_logged(answer) for answer in answers]
    together = {name: concatenate([one[name] for one in columns]) for name in columns[0]}
    return Served(answers[0].service.name, answers[0].service.hash, together)


def _logged(answer: _Offered) -> dict[str, Column]:
    rows, count = answer.rows, len(answer.rows)
    moments = Column("UnixTimestamp", rows.as_of, np.ones(count, np.bool_))
    return {
        **answer.asked,
        instant_column(answer.service): moments,
        **{SERVED + name: values for name, values in rows.columns.items()},
        EVIDENCE_COLUMN: column("String", rows.evidence_json()),
        STATUS_COLUMN: column("String", _statuses(rows)),
        SERVICE_COLUMN: column("String", [answer.service.name] * count),
        DEFINITION_COLUMN: column("String", [answer.service.hash] * count),
    }


def _statuses(rows: FeatureRows) -> Sequence[str]:
    unusual: list[dict[str, str]] = [{} for _ in range(len(rows))]
    for name, status in rows.status.items():
        for row in np.flatnonzero(status).tolist():
            unusual[row][name] = _NAMES[int(status[row])]
    return [json.dumps(one, separators=(",", ":")) for one in unusual]
