"""What the demo shows: numbered steps, progress bars, and the commands that it types."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infra.settings import Settings
from tally.errors import TallyError

console = Console(highlight=False, soft_wrap=True)
_BINARIES = Path(sys.executable).parent


class Steps:
    """Numbered steps, each with what it does, how it went, and how long it took."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._number = 0
        self._began = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        """Run a block as the next step; call what it yields with each line of the result."""
        self._number += 1
        console.print(f"[bold]{self._number:2}/{self._count} {title}[/bold]")
        began = time.monotonic()
        yield lambda result: console.print(f"      {result}")
        console.print(f"      [dim]{time.monotonic() - began:.1f} s[/dim]")

    @property
    def elapsed(self) -> float:
        """Seconds since the first step."""
        return time.monotonic() - self._began


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; call what it yields with how much is done by now."""
    columns = (TextColumn("      {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


def environment(settings: Settings) -> dict[str, str]:
    """The environment that leads Tally's and Feast's commands to the services of `settings`."""
    variables = dict(os.environ)
    for name in Settings.model_fields:
        value = getattr(settings, name)
        text = value.get_secret_value() if isinstance(value, SecretStr) else "" if value is None else str(value)
        variables.pop(name.upper(), None)
        if text:
            variables[name.upper()] = text
    variables["PYTHONWARNINGS"] = "ignore"
    return variables


def command(arguments: Sequence[str], variables: Mapping[str, str]) -> None:
    """Run a command as a user would type it, and show it. Raises TallyError with its output when it fails."""
    console.print(f"      [dim]$ {' '.join(arguments)}[/dim]")
    done = subprocess.run(
        [str(_BINARIES / arguments[0]), *arguments[1:]],
        env=dict(variables),
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise TallyError(f"`{' '.join(arguments)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}".rstrip())


class StreamWorker:
    """`tally stream` in a process of its own, which ends with the block."""

    def __init__(self, repo: Path, variables: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(_BINARIES / "tally"), "stream", "--repo", str(repo)],
                env=dict(variables),
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def check(self) -> None:
        """Raise TallyError, with the end of its log, when it has ended by itself."""
        if self._process.poll() is not None:
            lines = self._log.read_text().splitlines()[-15:]
            raise TallyError(f"`tally stream` ended with {self._process.returncode}:\n" + "\n".join(lines))

    def kill(self) -> None:
        """As `kill -9` does."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to finish its batch and leave; insist after half a minute."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.kill()
