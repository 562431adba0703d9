"""The `tally` command: parses arguments, calls the rooms, prints."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command with the process' arguments, and exit."""
    try:
        from tally_cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(f"The tally command needs {error.name}; run: pip install 'tally-feature-store[ingestion]'")
    sys.exit(run(sys.argv[1:]))
