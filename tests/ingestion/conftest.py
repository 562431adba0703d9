"""A real Redis server for these tests, one per session, emptied before each test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from infra.local import embedded


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that lives as long as the session."""
    with embedded(tmp_path_factory.mktemp("redis"), ("redis",)) as settings:
        yield settings.redis_url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of the session's server, which is empty."""
    with Redis.from_url(redis_url) as client:
        client.flushall()
        yield client
