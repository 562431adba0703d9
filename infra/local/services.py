"""Which embedded services run, and the commands on them: `up`, `down`, `status`, `ensure`."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from infra.local.errors import LocalServiceError
from infra.local.lock import locked
from infra.local.parts import PARTS, checked, is_set, raise_first, start_all
from infra.local.process import is_running, spawn_detached, stop
from infra.local.service import Service
from infra.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    """The embedded services that `up` found or started, by part. A part that the environment sets is not in it."""

    running: dict[str, Service]

    @property
    def pids(self) -> dict[str, int]:
        """The process of each part."""
        return {part: service.pid for part, service in self.running.items()}

    @property
    def implementations(self) -> dict[str, str]:
        """What each part really is, such as `Valkey 9.1.2` or `Apache Kafka 4.1.0`."""
        return {part: service.implementation for part, service in self.running.items()}


@dataclass(frozen=True)
class PartStatus:
    """One line of `status`. `external`: the environment leads to a service of your own."""

    part: str
    state: Literal["external", "running", "silent", "stopped"]
    service: Service | None = None


def ensure(settings: Settings, *parts: str) -> Settings:
    """Settings in which every one of `parts` (all, if none is named) has an address: yours, or an embedded one."""
    services = up(settings, only=parts)
    found: dict[str, object] = {}
    for part, service in services.running.items():
        found |= PARTS[part].addresses(settings, service)
    return settings.model_copy(update=found)


def up(settings: Settings, *, only: Sequence[str] = ()) -> Services:
    """Start every part whose variable is unset, or find it running. Returns when all of them answer.

    Raises LocalServiceError, with the end of the log, when a part does not come up; the others keep running.
    """
    wanted = [part for part in checked(only) if not is_set(settings, part)]
    if not wanted:
        return Services({})
    with _locked(settings):
        recorded = _read(settings)
        missing = []
        for part in wanted:
            known = recorded.get(part)
            if known is not None and is_running(known) and PARTS[part].answers(known):
                _tell_of(part, known)
                continue
            if known is not None:
                # Two servers on the same data would spoil it, so one that runs without answering goes first.
                stop(known)
            missing.append(part)
        started, failures = start_all(settings, missing, spawn_detached)
        for part, service in started.items():
            log.info(
                "%s is not set: started embedded %s at %s",
                PARTS[part].VARIABLE,
                service.implementation,
                service.address,
            )
        recorded |= started
        _write(settings, recorded)
        raise_first(failures)
        return Services({part: recorded[part] for part in wanted})


@cache
def _tell_of(part: str, service: Service) -> None:
    """Once in a process: a `feast` command opens its stores again for each view."""
    log.info("%s is not set: using embedded %s at %s", PARTS[part].VARIABLE, service.implementation, service.address)


def down(settings: Settings, *, wipe: bool = False) -> list[Service]:
    """Stop the services that `up` started for this home, and delete their data if `wipe`. Returns those stopped.

    A process that merely has a recorded pid, but another command line, is left alone.
    """
    if not settings.home.exists():
        return []
    with _locked(settings):
        recorded = list(_read(settings).values())
        with ThreadPoolExecutor(max_workers=len(PARTS)) as pool:
            ended = list(pool.map(stop, recorded))
        _write(settings, {})
        if wipe:
            for part in PARTS.values():
                for path in part.data_paths(settings):
                    if Path(path).exists():
                        shutil.rmtree(path)
    return [service for service, was_running in zip(recorded, ended, strict=True) if was_running]


def status(settings: Settings) -> list[PartStatus]:
    """The state of every part. `silent`: its process runs and does not answer."""
    recorded = _read(settings)
    return [_status(settings, part, recorded.get(part)) for part in PARTS]


def _status(settings: Settings, part: str, service: Service | None) -> PartStatus:
    if is_set(settings, part):
        return PartStatus(part, "external")
    if service is None or not is_running(service):
        return PartStatus(part, "stopped")
    return PartStatus(part, "running" if PARTS[part].answers(service) else "silent", service)


def _locked(settings: Settings) -> AbstractContextManager[None]:
    home = settings.home
    return locked(home / "services.lock", f"Embedded services cannot keep their state in {home}", "TALLY_HOME")


def _record(settings: Settings) -> Path:
    return settings.home / "services.json"


def _read(settings: Settings) -> dict[str, Service]:
    path = _record(settings)
    if not path.exists():
        return {}
    try:
        return {part: Service.from_json(known) for part, known in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, KeyError, AttributeError) as broken:
        raise LocalServiceError(
            f"{path} cannot be read ({broken}): end the services it may name by hand, and delete the file."
        ) from broken


def _write(settings: Settings, services: dict[str, Service]) -> None:
    scratch = _record(settings).with_suffix(".new")
    scratch.write_text(json.dumps({part: service.to_json() for part, service in services.items()}, indent=2) + "\n")
    scratch.replace(_record(settings))
