"""The `feast` command, as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

_FEAST: Final = str(Path(sys.executable).with_name("feast"))
_SOURCES: Final = str(Path(__file__).resolve().parents[1])


def apply(repo: Path, redis_url: str) -> None:
    """`feast apply` of a repository whose online store is ours. Raises CalledProcessError, after Feast said why."""
    said = subprocess.DEVNULL
    subprocess.run([_FEAST, "-c", str(repo), "apply"], env=_environment(repo, redis_url), stdout=said, check=True)


def serve(repo: Path, redis_url: str, port: int) -> subprocess.Popen[bytes]:
    """`feast serve` of a repository, at that port of this machine; what it says goes to ``serve.log`` in `repo`."""
    command = [_FEAST, "-c", str(repo), "serve", "--host", "127.0.0.1", "--port", str(port), "--no-access-log"]
    command += ["--max-requests", "0"]  # else a server starts anew after 1,000, and closes the connection
    with (repo / "serve.log").open("wb") as log:
        return subprocess.Popen(command, env=_environment(repo, redis_url), stdout=log, stderr=subprocess.STDOUT)


def _environment(repo: Path, redis_url: str) -> dict[str, str]:
    return os.environ | {
        "REDIS_URL": redis_url,
        "TALLY_HOME": str(repo / ".tally"),
        "PYTHONPATH": _SOURCES,
        "FEAST_USAGE": "False",
        "PYTHONWARNINGS": "ignore",  # of features that are in development
    }
