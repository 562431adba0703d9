"""A feature repository on disk: the plan that `feast apply` left there, and the way to its transformations."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Final

from tally.errors import NotReadyError
from tally.plan import Plan

PLAN_FILE: Final = "data/plan.json"
"""Where `feast apply` writes the plan, in the folder of a feature repository."""


def plan_path(repo: Path) -> Path:
    """Where `feast apply` writes the plan of the feature repository in folder `repo`."""
    return repo / PLAN_FILE


def load_plan(repo: Path) -> Plan:
    """The plan of a feature repository; its transformations can be imported from now on.

    The folder that holds `repo` goes on `sys.path`, because a plan names transformations by module, such as
    ``feature_repo.transformations``. Raises NotReadyError, naming the file, when nothing was applied yet or the file is not a plan.
    """
    path = plan_path(repo)
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise NotReadyError(f"There is no plan at {path}; run: feast -c {repo} apply") from error
    parent = str(repo.resolve().parent)
    if parent not in sys.path:
        sys.path.insert(0, parent)
    try:
        return _parsed(text)
    except NotReadyError as error:
        raise NotReadyError(f"{path}: {error}") from error


@lru_cache(maxsize=8)
def _parsed(text: bytes) -> Plan:
    return Plan.from_json(text)
