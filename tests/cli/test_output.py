"""What the commands print."""

from __future__ import annotations

import pytest
from rich.console import Console

from tally_cli import output


def test_a_table_that_is_piped_is_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Away from a terminal each row is one line however long its names are, so that `grep` finds them."""
    monkeypatch.setattr(output, "OUT", Console(width=40))
    name = "a_view_with_a_name_that_is_longer_than_forty_columns"
    output.table(("view", "messages"), [(name, "12"), ("short", "3")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]

    assert lines == [["view", "messages"], [name, "12"], ["short", "3"]]


def test_a_table_on_a_terminal_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal a long name goes on in the next line; no part of it is left out."""
    monkeypatch.setattr(output, "OUT", Console(width=30, force_terminal=True, color_system=None))
    name = "a_view_with_a_name_that_is_longer_than_thirty_columns"
    output.table(("view", "messages"), [(name, "12")])
    printed = capsys.readouterr().out

    assert all(len(line) <= 30 for line in printed.splitlines())
    assert "".join(line.split()[0] for line in printed.splitlines()[1:]) == name
