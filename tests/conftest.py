"""What all tests share: how many random examples property tests try, and real services, started once for the session."""

from __future__ import annotations

import faulthandler
import os
import re
import shutil
from collections.abc import Iterator

import prometheus_client  # noqa: F401 - before Feast, which has all metrics of a process share their values
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from infra.local import embedded
from infra.settings import Settings
from tests import redis_servers

# No deadlines: these machines are shared, and a slow example is not a wrong one.
hypothesis_settings.register_profile(
    "fast", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.register_profile(
    "long",
    hypothesis_settings.get_profile("fast"),
    max_examples=int(os.environ.get("EXAMPLES", "2000")),
    print_blob=True,
)
# Where a failure stops a landing, the examples are the same each time; `make test` and `make test-long` look for new ones.
hypothesis_settings.register_profile("ci", hypothesis_settings.get_profile("fast"), derandomize=True, database=None)
hypothesis_settings.load_profile("ci" if os.environ.get("CI") else "fast")
EXAMPLES_OF: dict[str, int] = {}
"""How many random examples passed in each property test that ran."""


def pytest_runtest_makereport(item: pytest.Item) -> None:
    """Counts the examples that Hypothesis says it ran, the replayed and shrunk ones too."""
    said = getattr(item, "hypothesis_statistics", "")
    if said:
        EXAMPLES_OF[item.nodeid] = sum(map(int, re.findall(r"(\d+) passing", said)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many examples stand behind the result."""
    if EXAMPLES_OF:
        total = sum(EXAMPLES_OF.values())
        terminalreporter.write_line(f"{total:,} random examples in {len(EXAMPLES_OF)} property tests")


def pytest_unconfigure() -> None:
    """Says where the process hangs when it should long have ended: no test's time-out watches that."""
    faulthandler.dump_traceback_later(120)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the tests of faults go on, and what their randomness comes from."""
    parser.addoption("--rounds", type=int, default=2, help="rounds of each fault in tests/faults (default 2)")
    parser.addoption("--seed", type=int, default=1, help="seed of the tests in tests/faults (default 1)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of what only Apache Kafka does are skipped, with the reason, where it cannot run and is not required."""
    if Settings().tally_require_apache_kafka or (shutil.which("java") and shutil.which("mvn")):
        return
    reason = "needs Apache Kafka itself, and there is no java or no mvn on PATH: librdkafka's cluster cannot do this"
    for item in items:
        if item.get_closest_marker("apache_kafka"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Redis, Kafka and the Snowflake emulator, whatever the environment names."""
    with embedded(tmp_path_factory.mktemp("services")) as settings:
        yield settings


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_servers.ClusterServers]:
    """A Redis Cluster; whoever breaks it mends it (`settle`)."""
    with redis_servers.cluster(tmp_path_factory.mktemp("redis-cluster")) as servers:
        yield servers


@pytest.fixture(scope="session")
def redis_sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_servers.SentinelServers]:
    """A master, replicas and Sentinels; whoever breaks them mends them (`settle`)."""
    with redis_servers.sentinels(tmp_path_factory.mktemp("redis-sentinels")) as servers:
        yield servers


@pytest.fixture(scope="session")
def redis_secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_servers.SecureServer]:
    """A server behind TLS, with users."""
    with redis_servers.secure(tmp_path_factory.mktemp("redis-secure")) as server:
        yield server
