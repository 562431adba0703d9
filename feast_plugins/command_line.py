"""What Feast's commands show: our errors as one sentence, as Tally's own commands do, and no warnings of what is not used."""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import click
import yaml

from infra.repository import make_importable
from tally.errors import TallyError

STORES: Final = {
    "registry": ("registry_store_type", "feast_plugins.registry_store.TallyRegistryStore"),
    "online_store": ("type", "feast_plugins.online_store.TallyOnlineStore"),
    "offline_store": ("type", "feast_plugins.offline_store.TallyOfflineStore"),
    "batch_engine": ("type", "feast_plugins.compute_engine.TallyComputeEngine"),
}
"""What a `feature_store.yaml` names."""


def errors_as_sentences() -> None:
    """In a `feast` command, show errors without the calls of Feast that led there, unless TALLY_DEBUG is set.

    Feast's commands catch nothing. A TallyError is its text alone; of what Feast refuses, or the repository's code fails with,
    its lines and the error are left. Anything else keeps its traceback, and so do programs that use Feast as a library.
    """
    if not is_command() or os.environ.get("TALLY_DEBUG"):
        return
    before = sys.excepthook
    repo = Path(_context().get("CHDIR", ".")).resolve()

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, TallyError):
            sys.stderr.write(f"{error}\n")
        elif isinstance(error, Exception) and (told := _without_feast(error, trace, repo)):
            sys.stderr.write(told)
        else:
            before(kind, error, trace)

    sys.excepthook = show


_FIELD: Final = re.compile(r"Field\(\s*name='([^']*)',\s*dtype=(?:<PrimitiveFeastType\.(\w+): \d+>|([^,]+)),[^()]*\)")
"""How Feast shows a field, in eight lines."""


def _without_feast(error: Exception, trace: TracebackType | None, repo: Path) -> str:
    """An error of the code in `repo`, or a sentence of Feast, with the lines of `repo` that led there; else empty."""
    frames = traceback.extract_tb(trace)
    places = [Path(frame.filename) for frame in frames]  # "<string>" and the like are no files
    theirs = [
        f
        for f, place in zip(frames, places, strict=True)
        if place.is_absolute() and place.resolve().is_relative_to(repo)
    ]
    is_theirs = frames[-1] in theirs
    is_of_feast = "feast" in places[-1].parts and bool(str(error))
    if not is_theirs and not is_of_feast:
        return ""
    shown = traceback.format_list(theirs)
    shown += [_FIELD.sub(r"\1 \2\3", text) for text in traceback.format_exception_only(error)]
    return "".join([*shown, "TALLY_DEBUG=1 shows the whole traceback.\n"])


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
    if is_command() and (repo := _context().get("CHDIR")):
        make_importable(repo)


def no_other_stores() -> None:
    """End a `feast` command whose `feature_store.yaml` names only some of our classes.

    Feast would take its own for those that are missing, and say nothing: without our registry nothing is compiled, and from
    another online store nobody gets an answer.
    """
    path: Path | None = _context().get("FS_YAML_FILE") if is_command() else None
    if path is None or not path.is_file():
        return
    config = yaml.safe_load(os.path.expandvars(path.read_text()))
    for part, (key, name) in STORES.items():
        section = config.get(part) if isinstance(config, dict) else None
        found = section.get(key) if isinstance(section, dict) else None
        if found != name:
            raise SystemExit(
                f"{path}: {part} has {f'{key} {found}' if found else f'no {key}'}, Tally needs all of its own; write "
                f"`{key}: {name}` below `{part}:`."
            )


def _context() -> dict[str, Any]:
    """What Feast's command line has parsed so far."""
    context = click.get_current_context(silent=True)
    return (context and context.obj) or {}


def is_command(name: str = "") -> bool:
    """Whether this process is a `feast` command (that of this name), and no program that uses Feast as a library."""
    return Path(sys.argv[0]).stem == "feast" and (not name or name in sys.argv[1:])
