"""The files for container engines: they cannot run here, so what they name must at least exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from infra.settings import Settings
from tally_cli.app import app

INFRA = Path(__file__).parents[2] / "infra"
FILES = [INFRA / "compose.yaml", *sorted((INFRA / "kubernetes").glob("*.yaml"))]


def tally_commands(node: Any) -> Iterator[list[str]]:
    """The arguments given to the image, whose entry point is `tally`, wherever they stand in a document."""
    if isinstance(node, dict):
        ours = str(node.get("image", "")).startswith("tally") or ("build" in node and "entrypoint" not in node)
        arguments = node.get("args", node.get("command"))
        if ours and arguments:
            yield arguments
        for child in node.values():
            yield from tally_commands(child)
    elif isinstance(node, list):
        for child in node:
            yield from tally_commands(child)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_exist(path: Path) -> None:
    """Every `tally` command in a manifest is one that the command line has."""
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    commands = list(tally_commands(yaml.safe_load(path.read_text())))

    assert commands
    assert {arguments[0] for arguments in commands} <= known


def test_variables_exist() -> None:
    """Every variable that the compose file sets for our jobs is one that the settings read."""
    document = yaml.safe_load((INFRA / "compose.yaml").read_text())
    names = {name.lower() for name in document["x-tally"]["environment"]}

    assert names <= set(Settings.model_fields)
