"""Real services, started once for all tests of this folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from infra.local import embedded
from infra.settings import Settings

DEADLINE_S = 120.0


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Redis, Kafka and the Snowflake emulator, whatever the environment names."""
    with embedded(tmp_path_factory.mktemp("services")) as settings:
        yield settings


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until a condition holds; fail if it never does."""

    def wait(condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < give_up, "the condition never came true"
            time.sleep(0.02)

    return wait
