"""A broker and a Redis that can be hurt, one of each per session, behind proxies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import redis_servers
from tests.faults.broker import Broker, broker
from tests.faults.proxy import Proxy, proxies
from tests.faults.stage import Stage, stage

_BYTES_PER_SECOND = 4_000_000.0
"""Of each connection to Redis. Slow enough that a batch takes a while, so that faults fall into it."""
_AOF = ("appendonly yes", "appendfsync always")


@dataclass(frozen=True)
class Servers:
    """What the stages of a session share."""

    broker: Broker
    redis: redis_servers.Server
    to_redis: Proxy


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A broker; a Redis that keeps every write it has acknowledged."""
    home = tmp_path_factory.mktemp("faults")
    with ExitStack() as stack:
        to_redis, to_kafka = stack.enter_context(proxies(_BYTES_PER_SECOND, None))
        redis = stack.enter_context(redis_servers.standalone(home / "redis", _AOF))
        to_redis.target = redis.port
        yield Servers(stack.enter_context(broker(home / "kafka", to_kafka)), redis, to_redis)


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """How often each fault is repeated."""
    number: int = request.config.getoption("--rounds")
    return number


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What all randomness comes from."""
    number: int = request.config.getoption("--seed")
    return number


@pytest.fixture
def on_stage(servers: Servers, tmp_path: Path, seed: int) -> Iterator[Stage]:
    """A topic, project and group of the test's own."""
    url = f"redis://127.0.0.1:{servers.to_redis.port}/0"
    with stage(tmp_path, servers.broker, servers.to_redis, url, servers.redis.url(), seed) as made:
        yield made
