"""The online store's clients: one connection pool for all of them, and never another event loop's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis

from feast_plugins import online_store
from feast_plugins.online_store import TallyOnlineStore
from infra.local.ephemeral import embedded
from infra.repository import plan_path
from tally.errors import NotReadyError
from tests.serving_client import world


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for this file."""
    with embedded(tmp_path_factory.mktemp("redis"), ["redis"]) as settings:
        yield str(settings.redis_url)


@pytest.fixture
def config(redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """What the store asks its configuration for."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    return SimpleNamespace(repo_path=tmp_path)


def test_loops_that_come_and_go(config: Any) -> None:
    """Each of many short-lived event loops, whose `id`s repeat, gets clients of its own; those of loops that ended go."""
    store = TallyOnlineStore()

    async def ask() -> None:
        client = store._async_client(config, world.PLAN, world.PLAN.service("small"))
        assert client is store._async_client(config, world.PLAN, world.PLAN.service("small"))
        answer = await client.get([{"code": 1, "who": "x"}] * 2, 0)
        assert answer.to_dict()["level"] == [None, None]
        await client.close()

    for _ in range(5):
        asyncio.run(ask())
    assert len(store._of_loops) <= 1


def test_lists_of_references_share_connections(config: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many services are asked for, the store has one client of Redis, and a bounded number of ours."""
    monkeypatch.setattr(online_store, "MOST_CLIENTS", 2)
    store = TallyOnlineStore()
    clients = [store._client(config, world.PLAN, service) for service in world.PLAN.services]
    assert len({id(client._redis) for client in clients}) == 1
    assert len(store._clients) <= 2
    with Redis.from_url(redis_url) as redis:
        before = redis.info("clients")["connected_clients"]
        for client in clients[1:]:
            for _ in range(3):
                client.get([{"code": 1, "who": "x", "moment": 0}], 0)
        assert redis.info("clients")["connected_clients"] - before <= len(clients)


def test_another_plan_is_noticed(config: Any) -> None:
    """The store answers by the plan that is applied now; without one it says what to do."""
    store = TallyOnlineStore()
    with pytest.raises(NotReadyError, match="feast -c"):
        store._plan(config)
    path = plan_path(config.repo_path)
    path.parent.mkdir()
    path.write_text(world.PLAN.to_json())
    assert store._plan(config) is store._plan(config)
    aside = path.with_suffix(".aside")
    aside.write_text(world.ONE.to_json())
    aside.replace(path)
    assert store._plan(config).hash == world.ONE.hash
