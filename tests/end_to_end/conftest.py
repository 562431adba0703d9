from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.settings import Settings
from tests.end_to_end.world import World, loaded


@pytest.fixture(scope="session")
def world(services: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Real flights of twelve days, loaded by the commands that a user types."""
    with loaded(services, tmp_path_factory.mktemp("end_to_end")) as built:
        yield built
