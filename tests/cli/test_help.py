from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.conftest import Tally

COMMANDS = ("ingest", "bootstrap", "stream", "dlq", "export", "audit", "sizes", "up", "down", "status")
RUN = (*(name for name in COMMANDS if name != "dlq"), "dlq list", "dlq replay")


def test_help_lists_every_command(tally: Tally) -> None:
    """`tally --help` names all commands, the exit codes, and the order in which a new repository uses them."""
    ended = tally("--help")

    assert ended.code == 0
    assert all(f"\n│ {name} " in ended.out for name in COMMANDS)
    assert "0 good, 1 failed work, or a difference that was found" in ended.out
    assert ended.out.index("tally ingest") < ended.out.index("tally bootstrap") < ended.out.index("tally stream")


@pytest.mark.parametrize("name", RUN)
def test_help_of_a_command_teaches_with_an_example(tally: Tally, name: str) -> None:
    """Each command's help shows how to type it, and that it takes --repo."""
    ended = tally(*name.split(), "--help")

    assert ended.code == 0
    assert f"\n tally {name}" in ended.out
    assert "--repo" in ended.out


@pytest.mark.parametrize("name", ["", "dlq", *RUN])
def test_help_shows_what_is_typed(tally: Tally, name: str) -> None:
    """No flag looks as if it took a value, no argument stands in two pairs of brackets, no control character is printed."""
    ended = tally(*name.split(), "--help")

    assert ended.code == 0
    assert not [wrong for wrong in ("<bool>", "[[", "\b", "\x1b") if wrong in ended.out]


def test_nothing_typed_is_help_and_wrong_usage(tally: Tally) -> None:
    """`tally` alone shows the help, with exit code 2."""
    ended = tally()

    assert ended.code == 2
    assert "Usage: tally" in ended.out + ended.err


def test_version(tally: Tally) -> None:
    """`tally --version` is one line."""
    ended = tally("--version")

    assert ended.code == 0
    assert ended.out.startswith("tally ")
    assert ended.out.count("\n") == 1


def test_help_imports_nothing_heavy() -> None:
    """Help answers at once: no store, broker, frame or settings library is imported for it."""
    heavy = ("confluent_kafka", "dask", "deltalake", "feast", "pandas", "pyarrow", "pydantic", "redis", "snowflake")
    program = (
        "import sys; from tally_cli.app import run; code = run(['--help']);"
        f"print('loaded', [m for m in {heavy!r} if m in sys.modules], code)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert ended.stdout.splitlines()[-1] == "loaded [] 0"


def test_module_is_the_command() -> None:
    """`python -m tally_cli` ends with the command's exit code."""
    ended = subprocess.run(
        [sys.executable, "-m", "tally_cli", "ingest", "--repo", "/nowhere"], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 2
    assert ended.stderr == "There is no feature repository at /nowhere; name its folder with --repo DIR.\n"
