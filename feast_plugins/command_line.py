"""What Feast's commands show: our errors as one sentence, as Tally's own commands do, and no warnings of what is not used."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from types import TracebackType

import click

from infra.repository import make_importable
from tally.errors import TallyError


def errors_as_sentences() -> None:
    """In a `feast` command, let a TallyError end the process with its text alone, unless TALLY_DEBUG is set.

    Feast's commands catch nothing, so what we raise would be printed with the traceback of Feast's own calls. Programs
    that use Feast as a library keep theirs.
    """
    if not is_command() or os.environ.get("TALLY_DEBUG"):
        return
    before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, TallyError):
            sys.stderr.write(f"{error}\n")
        else:
            before(kind, error, trace)

    sys.excepthook = show


def without_alpha_warnings() -> None:
    """In a `feast` command, leave out that stream and on-demand views are experimental, which Feast says for each view.

    What it warns of is how Feast itself computes them; here the plan's paths do.
    """
    if is_command():
        for kind in ("Stream feature views are", "On demand feature view is an"):
            warnings.filterwarnings("ignore", f"{kind} experimental", RuntimeWarning)


def repository_importable() -> None:
    """In a `feast` command, let definitions import the functions beside them by the name of their folder.

    Feast itself finds ``definitions.py`` and not the package that it is in.
    """
    context = click.get_current_context(silent=True)
    if is_command() and context is not None and context.obj:
        make_importable(context.obj["CHDIR"])


def is_command(name: str = "") -> bool:
    """Whether this process is a `feast` command (that of this name), and no program that uses Feast as a library."""
    return Path(sys.argv[0]).stem == "feast" and (not name or name in sys.argv[1:])
