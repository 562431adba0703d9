"""The parts that can be embedded, and starting several of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from infra.local import kafka, redis, snowflake
from infra.local.errors import LocalServiceError
from infra.local.service import Service, Spawn
from infra.settings import Settings


class Part(Protocol):
    """What each of the modules `redis`, `kafka` and `snowflake` provides."""

    PART: str
    VARIABLE: str

    def start(self, settings: Settings, spawn: Spawn) -> Service:
        """Start it and wait until it answers. Raises LocalServiceError."""

    def answers(self, service: Service) -> bool:
        """Whether this very process, and no stranger at its address, answers."""

    def addresses(self, settings: Settings, service: Service) -> dict[str, object]:
        """The fields of Settings that lead to it."""

    def data_paths(self, settings: Settings) -> list[str]:
        """What `down(wipe=True)` deletes."""


PARTS: dict[str, Part] = {module.PART: module for module in (redis, kafka, snowflake)}


def checked(parts: Sequence[str]) -> tuple[str, ...]:
    """`parts` without doubles, all of them if empty. Raises LocalServiceError on an unknown name."""
    for part in parts:
        if part not in PARTS:
            raise LocalServiceError(f"There is no embedded service {part!r}: choose from {', '.join(PARTS)}.")
    return tuple(dict.fromkeys(parts)) or tuple(PARTS)


def is_set(settings: Settings, part: str) -> bool:
    """Whether the environment already leads to a service of this part."""
    return bool(getattr(settings, PARTS[part].VARIABLE.lower()))


def start_all(settings: Settings, parts: Sequence[str], spawn: Spawn) -> tuple[dict[str, Service], list[Exception]]:
    """Start `parts` side by side and wait for all of them: what came up, and why the others did not."""
    started: dict[str, Service] = {}
    failures: list[Exception] = []
    with ThreadPoolExecutor(max_workers=len(PARTS)) as pool:
        futures = {part: pool.submit(PARTS[part].start, settings, spawn) for part in parts}
    for part, future in futures.items():
        failure = future.exception()
        if failure is None:
            started[part] = future.result()
        elif isinstance(failure, Exception):
            failures.append(failure)
        else:
            raise failure
    return started, failures


def raise_first(failures: Sequence[Exception]) -> None:
    """Raise the first failure, with what else failed as notes."""
    if failures:
        for other in failures[1:]:
            failures[0].add_note(f"Besides: {other}")
        raise failures[0]
