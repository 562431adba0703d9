from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.settings import Settings
from tests.end_to_end.world import World, loaded


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The topics of this folder are created with settings of their own, which librdkafka's cluster cannot do."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.apache_kafka)


@pytest.fixture(scope="session")
def world(services: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Real flights of twelve days, loaded by the commands that a user types."""
    with loaded(services, tmp_path_factory.mktemp("end_to_end")) as built:
        yield built
