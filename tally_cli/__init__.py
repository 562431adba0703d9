"""The `tally` command: parses arguments, calls the rooms, prints."""

from __future__ import annotations

import signal
import sys
from types import FrameType

TERMINATED = 128 + signal.SIGTERM
"""The exit code that shells expect of a program that SIGTERM ended."""


def main() -> None:
    """Run the command with the process' arguments, and exit. SIGTERM leaves as Ctrl-C does: nothing half-written stays."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        from tally_cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(f"The tally command needs {error.name}; run: pip install 'tally-feature-store[ingestion]'")
    sys.exit(run(sys.argv[1:]))


def _terminate(_number: int, _frame: FrameType | None) -> None:
    sys.exit(TERMINATED)
