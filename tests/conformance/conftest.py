from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest

from infra.settings import Settings
from tests.conformance.expected import Answer, answer
from tests.conformance.paths import PATHS, Answered
from tests.conformance.world import World, loaded

Ask = Callable[[str], Answered]


@pytest.fixture(scope="session")
def world(services: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Every case, loaded through Kafka, Snowflake, the offline store and Redis."""
    with loaded(services, tmp_path_factory.mktemp("conformance")) as made:
        yield made


@pytest.fixture(scope="session")
def ask(world: World) -> Ask:
    """What a path, by name, answers for all queries; each path is asked once, when it is first needed."""
    by_name = {path.name: path for path in PATHS}
    return cache(lambda name: by_name[name].ask(world))


@pytest.fixture(scope="session")
def truth(world: World) -> list[Answer]:
    """What all queries must be answered."""
    return [answer(world.truth, query) for _, query in world.queries]
