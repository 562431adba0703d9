"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infra.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EMULATOR_ONLY = {"snowflake_password", "snowflake_host", "snowflake_port", "snowflake_protocol"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Each link to a file of the repository leads to one."""
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    inside = [target for target in targets if "://" not in target]

    assert [target for target in inside if not (page.parent / target).exists()] == []


def test_decisions_are_all_listed_in_order() -> None:
    """The index has a line for each decision, by number."""
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^\| \[\d+\]\((.+?)\)", (folder / "README.md").read_text(), re.MULTILINE)

    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md"))


def test_every_variable_is_in_the_readme() -> None:
    """What the environment may set is in the README's table, save what leads to the emulator."""
    text = (ROOT / "README.md").read_text()

    assert [name for name in Settings.model_fields if name not in EMULATOR_ONLY and name.upper() not in text] == []


def test_make_commands_of_the_readme_are_there() -> None:
    """Each `make` command that the README names is one of the Makefile's."""
    known = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)

    assert named
    assert set(named) <= set(known)
