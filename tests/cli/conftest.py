"""A repository to which a small plan was applied, and the command run inside this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tally.plan import Field, Plan, Service, Source, ViewUse, hashed_service
from tally.time import HOUR
from tally.windows import window
from tally_cli.app import run
from tests.views import aggregation, latest_view, window_view

CLEARED = (
    "REDIS_URL",
    "KAFKA_BOOTSTRAP_SERVERS",
    "SNOWFLAKE_ACCOUNT",
    "TALLY_OFFLINE_URI",
    "TALLY_HOME",
    "TALLY_DEBUG",
)


@dataclass(frozen=True)
class Ended:
    """A finished command."""

    code: int
    out: str
    err: str


Tally = Callable[..., Ended]


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Tally]:
    """`tally(arguments...)` as typed in a shell where none of our variables are set, on a wide terminal."""
    for name in CLEARED:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    handlers = list(logging.getLogger().handlers)

    def command(*arguments: object) -> Ended:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err)

    yield command
    logging.getLogger().handlers[:] = handlers


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A feature repository after `feast apply`: stream view `rides_by_city`, batch view `weather`, service `fare`."""
    folder = tmp_path / "feature_repo"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "plan.json").write_text(small_plan().to_json())
    return folder


def small_plan() -> Plan:
    """Two sources, a view on each, one service."""
    city, at = Field("city", "String"), Field("event_timestamp", "UnixTimestamp")
    fare, temp = Field("fare", "Float64"), Field("temp", "Float64")
    rides = Source("rides", "RIDES", "", "", "event_timestamp", "", "rides", (city, at, fare))
    weather = Source("weather", "HOURLY_WEATHER", "", "", "event_timestamp", "", "", ())
    total = aggregation("fare_sum_1h", fare, "sum", window(HOUR, HOUR))
    by_city = window_view("rides_by_city", rides, [city], [total])
    hourly = latest_view("weather", weather, [city], [temp], ttl=3 * HOUR)
    plan = Plan("taxi", (rides, weather), (by_city, hourly), (), ())
    uses = (
        ViewUse("rides_by_city", "rides_by_city", ("city",), (("fare_sum_1h", "fare_sum_1h"),)),
        ViewUse("weather", "weather", ("city",), (("temp", "temp"),)),
    )
    outputs = (Field("fare_sum_1h", "Float64"), temp)
    service = hashed_service(Service("fare", uses, (), (city,), (), outputs), plan)
    return Plan("taxi", plan.sources, plan.views, (), (service,))
