"""A real Redis server for these tests, one per session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.local import embedded


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that lives as long as the session."""
    with embedded(tmp_path_factory.mktemp("redis"), ("redis",)) as settings:
        yield settings.redis_url
