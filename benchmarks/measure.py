"""How things are measured: calls in turns, jobs in processes of their own, and what a result is."""

from __future__ import annotations

import importlib
import json
import logging
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tally.errors import TallyError

Call = Callable[[], object]
AsyncCall = Callable[[], Awaitable[object]]
Seconds = NDArray[np.float64]
Value = TypeVar("Value")

_BLOCK: Final = 50
_WARM_UP: Final = 100
_WATCH: Final = 0.2


class DifferentAnswersError(TallyError):
    """The two sides do not answer the same, and ours is not known to be the right one: there is nothing to time."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is promised: of the `ratio` ours / theirs, or of `ours` alone (in the result's unit)."""

    of: Literal["ratio", "ours"]
    relation: Literal["<=", ">="]
    bound: float

    def __str__(self) -> str:
        return f"{self.of} {self.relation} {self.bound:.4g}"

    def met_by(self, value: float) -> bool:
        """Whether a value keeps the promise."""
        return value <= self.bound if self.relation == "<=" else value >= self.bound


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table. `theirs` is None where nobody else does it, `target` where nothing was promised."""

    name: str
    ours: float
    theirs: float | None
    unit: str
    target: Target | None = None

    @property
    def ratio(self) -> float | None:
        """Ours divided by theirs: below 1 is less time or memory, above 1 a higher rate."""
        return None if self.theirs is None else self.ours / self.theirs

    @property
    def meets(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.target is None:
            return None
        value = self.ratio if self.target.of == "ratio" else self.ours
        return value is not None and bool(self.target.met_by(value))

    def to_json(self) -> dict[str, Any]:
        """As in `results.json`: four significant digits."""
        return {
            "name": self.name,
            "ours": _rounded(self.ours),
            "theirs": _rounded(self.theirs),
            "unit": self.unit,
            "ratio": _rounded(self.ratio),
            "target": None if self.target is None else str(self.target),
            "meets": self.meets,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What a subject found: its results, and what must be known to read them."""

    results: Sequence[Result]
    notes: Sequence[str]


def report_of(subject: str, options: Mapping[str, Any]) -> Report:
    """What the module of a subject reports."""
    logging.basicConfig(level=logging.WARNING)
    report: Report = importlib.import_module(f"benchmarks.{subject}").run(**options)
    return report


def in_turns(cases: Mapping[str, Call], samples: int) -> dict[str, Seconds]:
    """How long each of `samples` calls of every case took, in blocks by turns, so that drift hits all cases alike."""
    for call in cases.values():
        for _ in range(min(samples, _WARM_UP)):
            call()
    taken: dict[str, list[float]] = {name: [] for name in cases}
    clock = time.perf_counter
    for done in range(0, samples, _BLOCK):
        for name, call in cases.items():
            times = taken[name]
            for _ in range(min(_BLOCK, samples - done)):
                began = clock()
                call()
                times.append(clock() - began)
    return {name: np.array(times) for name, times in taken.items()}


async def in_turns_async(cases: Mapping[str, AsyncCall], samples: int) -> dict[str, Seconds]:
    """As `in_turns`, in one event loop, one call at a time."""
    for call in cases.values():
        for _ in range(min(samples, _WARM_UP)):
            await call()
    taken: dict[str, list[float]] = {name: [] for name in cases}
    clock = time.perf_counter
    for done in range(0, samples, _BLOCK):
        for name, call in cases.items():
            times = taken[name]
            for _ in range(min(_BLOCK, samples - done)):
                began = clock()
                await call()
                times.append(clock() - began)
    return {name: np.array(times) for name, times in taken.items()}


def seconds_of(call: Callable[[], Value]) -> tuple[float, Value]:
    """(how long one call took, what it returned)."""
    began = time.perf_counter()
    value = call()
    return time.perf_counter() - began, value


def alone(function: Callable[..., Value], *arguments: Any) -> tuple[Value, float]:
    """(what a module-level function returns, peak memory in GB) when it runs in a fresh process.

    The peak is the whole process's: interpreter, libraries, inputs and answer.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_with_peak, function, arguments).result()


def alone_within(
    seconds: float, gigabytes: float, function: Callable[..., Value], *arguments: Any
) -> tuple[Value, float] | str:
    """As `alone`, or why the process was ended: it took more seconds, or more memory, than it may."""
    context = get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sending, function, arguments))
    process.start()
    sending.close()
    until = time.monotonic() + seconds
    try:
        while not receiving.poll(_WATCH):
            if time.monotonic() > until:
                return f"over {seconds:.0f} s"
            if psutil.Process(process.pid).memory_info().rss > gigabytes * 1e9:
                return f"over {gigabytes:.0f} GB"
        found: tuple[Value, float] = receiving.recv()
        return found
    except EOFError:
        return "failed"
    finally:
        process.kill()
        process.join()


def _send(sending: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    sending.send(_with_peak(function, arguments))


def _with_peak(function: Callable[..., Value], arguments: Sequence[Any]) -> tuple[Value, float]:
    value = function(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return value, peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def said(results: list[Result]) -> list[Result]:
    """`results`, each printed at once on a line of its own: what is there when a long run is cut short."""
    for result in results:
        theirs = "" if result.theirs is None else f", theirs {_shown(result.theirs)}, ratio {_shown(result.ratio)}"
        sys.stdout.write(f"{result.name}: {_shown(result.ours)} {result.unit}{theirs}\n")
    sys.stdout.flush()
    return results


def show(console: Console, subject: str, report: Report) -> None:
    """Print a subject's table and notes."""
    table = Table(title=subject, title_justify="left")
    table.add_column("what", overflow="fold")
    for heading in ("ours", "theirs", "unit", "ratio", "target", "meets"):
        table.add_column(heading, justify="left" if heading in ("unit", "target") else "right", no_wrap=True)
    for result in report.results:
        verdict = {True: "[green]yes[/green]", False: "[bold red]NO[/bold red]", None: ""}[result.meets]
        table.add_row(
            result.name.removeprefix(f"{subject}: "),
            _shown(result.ours),
            _shown(result.theirs),
            result.unit,
            _shown(result.ratio),
            "" if result.target is None else str(result.target),
            verdict,
        )
    console.print(table)
    for note in report.notes:
        console.print(f"- {note}", highlight=False, markup=False)


def write(path: Path, subject: str, results: Iterable[Result]) -> None:
    """Put a subject's results into the file in place of its earlier ones; those of other subjects stay."""
    earlier = json.loads(path.read_text()) if path.exists() else []
    kept = [entry for entry in earlier if not entry["name"].startswith(f"{subject}: ")]
    entries = sorted([*kept, *(r.to_json() for r in results)], key=lambda entry: str(entry["name"]).split(": ")[0])
    path.write_text(json.dumps(entries, indent=2) + "\n")


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
