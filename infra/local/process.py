"""Child processes: start detached, wait until they answer, recognise, stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import psutil

from infra.local.errors import ChildDiedError, LocalServiceError
from infra.local.service import Service

log = logging.getLogger(__name__)

START_SECONDS: Final = 300.0
"""As long as a service may take to answer. A machine that others keep busy needs minutes, an idle one seconds."""
_POLL_S = 0.02
_LOG_TAIL_LINES = 20
_START_ATTEMPTS = 5
_GRACE_S = 15.0
_SOURCE_ROOT = Path(__file__).resolve().parents[2]

# Services outlive their handles on purpose. A handle that is collected while its child runs makes Python warn.
_started: list[subprocess.Popen[bytes]] = []


def spawn_detached(command: Sequence[str], log_file: Path) -> subprocess.Popen[bytes]:
    """Start `command` in its own session, so that it survives this process and its terminal's Ctrl-C."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    search_path = [str(_SOURCE_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(search_path)
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    _started.append(process)
    return process


def python_module(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module of this repository in a new interpreter."""
    return (sys.executable, "-m", module, *arguments)


def free_ports(count: int) -> list[int]:
    """So many different TCP ports of 127.0.0.1 that nobody listens on at this moment."""
    with ExitStack() as held:  # all at once, or the second might be the first again
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def free_port() -> int:
    """One of `free_ports`."""
    return free_ports(1)[0]


def is_taken(port: int) -> bool:
    """Whether 127.0.0.1:port cannot be bound now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def accepts(port: int) -> bool:
    """Whether something accepts TCP connections on 127.0.0.1:port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def start_on_free_ports(start: Callable[[list[int]], Service], count: int) -> Service:
    """Call `start` with `count` free ports; again with others when a stranger took one of them in between."""
    for attempt in range(_START_ATTEMPTS):
        ports = free_ports(count)
        try:
            return start(ports)
        except ChildDiedError:
            taken = [port for port in ports if is_taken(port)]
            if not taken or attempt == _START_ATTEMPTS - 1:
                raise
            log.info("port %s was taken while a service started on it: trying another", taken[0])
    raise AssertionError("unreachable")


def wait_until_ready(what: str, process: subprocess.Popen[bytes], answers: Callable[[], bool], log_file: Path) -> None:
    """Return as soon as `answers()` is true. Raise, with the end of its log, when the child dies or is late."""
    give_up = time.monotonic() + START_SECONDS
    while True:
        code = process.poll()
        if code is not None:
            raise ChildDiedError(f"{what} ended with exit code {code} before it answered; {_last_words(log_file)}")
        if answers():
            return
        if time.monotonic() > give_up:
            kill(process)
            raise LocalServiceError(
                f"{what} did not answer within {START_SECONDS:.0f} s and was stopped; {_last_words(log_file)}"
            )
        time.sleep(_POLL_S)


def _last_words(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:] if log_file.exists() else []
    return f"see its log {log_file}, which ends:\n" + "\n".join(lines or ["(empty)"])


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a child of this interpreter at once and wait until it is gone."""
    if process.poll() is None:
        process.kill()
        process.wait()


def is_running(service: Service) -> bool:
    """Whether the recorded process still runs. A stranger that got its pid has another command line."""
    try:
        process = psutil.Process(service.pid)
        return process.status() != psutil.STATUS_ZOMBIE and tuple(process.cmdline()) == service.command
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def stop(service: Service) -> bool:
    """Stop the recorded process and wait until it is gone: SIGTERM, then SIGKILL. False: it did not run."""
    if not is_running(service):
        return False
    try:
        # psutil compares start times before it signals, so the pid cannot be recycled from here on.
        process = psutil.Process(service.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_GRACE_S)
        except psutil.TimeoutExpired:
            log.warning("%s (pid %d) did not end within %.0f s: killing it", service.part, service.pid, _GRACE_S)
            process.kill()
            process.wait()
    except psutil.NoSuchProcess:
        return True
    return True
