"""What is known about one running embedded service, and what starting one needs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Spawn = Callable[[Sequence[str], Path], "subprocess.Popen[bytes]"]
"""Starts a command in a session of its own; its output goes to the given log file."""


@dataclass(frozen=True)
class Service:
    """A running service. `command` together with `pid` tells it from a stranger that got the same pid later."""

    part: str
    implementation: str
    address: str
    pid: int
    command: tuple[str, ...]
    log: str

    def to_json(self) -> dict[str, Any]:
        """A document for `services.json`."""
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> Service:
        """The service that `to_json` wrote. Raises KeyError or TypeError on any other document."""
        return Service(**{**document, "command": tuple(document["command"])})
