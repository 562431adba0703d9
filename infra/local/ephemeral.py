"""Services for one test session: fresh, in a home of their own, gone at the end even if the parent is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from infra.local.parts import PARTS, checked, raise_first, start_all
from infra.local.process import kill, spawn_detached
from infra.local.service import Spawn
from infra.settings import Settings

_GUARDIAN = Path(__file__).with_name("guardian.py")


@contextmanager
def embedded(home: Path, parts: Sequence[str] = (), *, kafka_lib: Path | None = None) -> Iterator[Settings]:
    """Settings that lead to services started for this block alone, whatever the environment says.

    `parts` names them (all by default). `home` holds their data and logs; nothing is recorded in it, so `up` and `down` do not know of them. Kafka's jars
    come from `kafka_lib`, by default where TALLY_HOME or TALLY_KAFKA_LIB put them, so that they are fetched once.
    """
    outside = Settings()
    wanted = checked(parts)
    changes: dict[str, object] = {"tally_home": home, "tally_kafka_lib": kafka_lib or outside.kafka_lib}
    settings = outside.model_copy(update=changes)
    with watched() as spawn:
        services, failures = start_all(settings, wanted, spawn)
        raise_first(failures)
        found: dict[str, object] = {}
        for part, service in services.items():
            found |= PARTS[part].addresses(settings, service)
        yield settings.model_copy(update=found)


@contextmanager
def watched() -> Iterator[Spawn]:
    """A way to start processes that end with this block, or with this process however it ends."""
    guardian = subprocess.Popen(
        [sys.executable, "-I", str(_GUARDIAN)], stdin=subprocess.PIPE, text=True, start_new_session=True
    )
    assert guardian.stdin is not None
    pipe, lock = guardian.stdin, threading.Lock()
    started: list[subprocess.Popen[bytes]] = []

    def tell(message: object) -> None:
        with lock:
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()

    def spawn(command: Sequence[str], log_file: Path) -> subprocess.Popen[bytes]:
        process = spawn_detached(command, log_file)
        started.append(process)
        tell([process.pid, list(command)])
        return process

    try:
        yield spawn
    finally:
        for process in started:
            kill(process)
        tell("done")
        pipe.close()
        guardian.wait()
