"""What the commands print: results on stdout, progress and logs on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

OUT = Console()
ERR = Console(stderr=True)
_UNBOUNDED: Final = 1_000_000


class LogHandler(logging.Handler):
    """Log records as plain lines on stderr, above the progress bars if there are any."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        ERR.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class JsonHandler(logging.Handler):
    """Log records on stderr as one JSON object a line, for collectors: time (RFC 3339, UTC), level, logger, message."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["exception"] = logging.Formatter().formatException(record.exc_info)
        sys.stderr.write(json.dumps(document, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """A line of the result, as it is: names may hold square brackets, and lines are for `grep`."""
    OUT.print(text, markup=False, highlight=False, soft_wrap=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table of the result: as wide as the terminal, and elsewhere, where it may be for `grep`, as wide as it needs."""
    shown = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in head:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    out = OUT if OUT.is_terminal else Console(width=_UNBOUNDED)
    out.print(shown, markup=False, highlight=False)


@contextmanager
def bars(names: Iterable[str]) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar on stderr for each name, moved by calling with (name, done, total or None where it is unknown).

    Where stderr is not a terminal nothing is drawn.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=ERR, disable=not ERR.is_terminal) as progress:
        tasks = {name: progress.add_task(name, start=False, total=None) for name in names}

        def move(name: str, done: int, total: int | None) -> None:
            progress.start_task(tasks[name])
            progress.update(tasks[name], completed=done, total=total)

        yield move


def versions(of_tables: Mapping[str, int]) -> str:
    """Offline tables and the version of each: `weather version 3, flights version 1`."""
    return ", ".join(f"{name} version {number}" for name, number in of_tables.items())


def counts(refused: Mapping[str, int]) -> str:
    """Reasons and how often each: `3 x no key, 1 x not JSON`."""
    return ", ".join(f"{count:,} x {reason}" for reason, count in sorted(refused.items()))
