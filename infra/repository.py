"""A feature repository on disk: the plan that `feast apply` left there, and the way to its transformations."""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Final

from tally.errors import NotReadyError
from tally.plan import Plan

PLAN_FILE: Final = "data/plan.json"
"""Where `feast apply` writes the plan, in the folder of a feature repository."""


def plan_path(repo: Path) -> Path:
    """Where `feast apply` writes the plan of the feature repository in folder `repo`."""
    return repo / PLAN_FILE


def make_importable(repo: Path) -> None:
    """Let ``import feature_repo`` find `repo`, whatever its name, unless that name is imported already.

    A plan names transformations by module, such as ``feature_repo.transformations``. The folder that holds `repo` goes on
    `sys.path` for what else they import, and goes last: a project may have folders that are called like our rooms. So
    something else may come before it under the name of `repo`; the package itself is therefore taken from its folder.
    """
    folder = repo.resolve()
    parent, name = str(folder.parent), folder.name
    if parent not in sys.path:
        sys.path.append(parent)
    if name in sys.modules:
        return
    spec = PathFinder.find_spec(name, [parent])
    if spec is not None:
        package = sys.modules[name] = module_from_spec(spec)
        if spec.loader is not None:
            spec.loader.exec_module(package)


def load_plan(repo: Path) -> Plan:
    """The plan of a feature repository; its transformations can be imported from now on, see `make_importable`.

    Raises NotReadyError, naming the file, when nothing was applied yet or the file is not a plan.
    """
    path = plan_path(repo)
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise NotReadyError(f"There is no plan at {path}; run: feast -c {repo} apply") from error
    make_importable(repo)
    try:
        return _parsed(text)
    except NotReadyError as error:
        raise NotReadyError(f"{path}: {error}") from error


@lru_cache(maxsize=8)
def _parsed(text: bytes) -> Plan:
    return Plan.from_json(text)
