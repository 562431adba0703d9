"""What `feast` commands print."""

from __future__ import annotations

import subprocess
import sys

import pytest

WARNS = """
import sys, warnings
sys.argv[0] = {name!r}
from feast_plugins.command_line import without_alpha_warnings
without_alpha_warnings()
for text in ("Stream feature views are experimental features in alpha development.", "Something else."):
    warnings.warn(text, RuntimeWarning)
"""


@pytest.mark.parametrize(("name", "told"), [("/bin/feast", 1), ("/bin/program", 2)])
def test_feast_s_alpha_warnings_are_left_out_of_its_commands(name: str, told: int) -> None:
    """Every other warning is shown, and programs that use Feast as a library see all of them."""
    ended = subprocess.run([sys.executable, "-c", WARNS.format(name=name)], capture_output=True, text=True, check=True)

    assert ended.stderr.count("RuntimeWarning") == told
    assert "Something else." in ended.stderr
