"""Real flights, brought the whole way by the commands that a user types: what they printed, and what was stored when."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from feast import FeatureStore
from redis import Redis

from demo import flights
from demo.messages import ARRIVALS, DEPARTURES, arrival_messages, arrival_times, departure_messages
from demo.replay import Sender, Streams
from demo.terminal import environment
from infra.local.connector import land
from infra.local.snowflake_load import load_table
from infra.repository import load_plan, plan_path
from infra.settings import Settings
from tally.plan import Plan
from tally.time import from_datetime

PROJECT: Final = "flights"
SERVICE: Final = "arrival_delay"
PARTITIONS: Final = 4
LANDING_TABLES: Final = {DEPARTURES: "FLIGHTS_DEPARTURES", ARRIVALS: "FLIGHTS_ARRIVALS"}
NOBODY: Final = "127.0.0.1:1"
"""An address at which nothing answers."""

BEGINS: Final = datetime(2013, 11, 18, 14, tzinfo=UTC)
STREAMED_FROM: Final = datetime(2013, 11, 27, 14, tzinfo=UTC)
"""The busy, stormy day before Thanksgiving."""
ENDS: Final = datetime(2013, 11, 28, 14, tzinfo=UTC)
LATE_REPORT: Final = ("EWR", datetime(2013, 11, 27, 13, 51, tzinfo=UTC))
"""The newest weather of one airport when the first materialization ran, which reached the warehouse after it."""

BAD_MESSAGES: Final = {
    b"plain text": b"the flight has left",
    b"no origin": b'{"event_timestamp":"2013-11-28T12:00:00Z","carrier":"UA","dep_delay":5.0}',
}
"""By Kafka key: one that is not JSON, and one without the entity key of view origin_departures."""

_BINARIES = Path(sys.executable).parent
_SOURCES = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """A finished command."""

    code: int
    out: str
    err: str


@dataclass
class World:
    """The services with everything loaded, and what happened on the way there.

    `printed` has what commands said, `stored` the project's keys and values at some moments, `applied` the plan's bytes
    before anything was materialized, by names that the functions below give them. `server` is where `feast serve` answers.
    """

    settings: Settings
    folder: Path
    variables: dict[str, str]
    every_flight: pd.DataFrame
    printed: dict[str, Ended] = field(default_factory=dict)
    stored: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    started: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    server: str = ""
    applied: bytes = b""

    @property
    def repo(self) -> Path:
        """A copy of the example's repository, to which `feast apply` and the other commands were applied."""
        return self.folder / "feature_repo"

    @property
    def labels_path(self) -> Path:
        """`labels` as a Parquet file."""
        return self.folder / "labels.parquet"

    @property
    def labels(self) -> pd.DataFrame:
        """A day's flights, each an hour before its scheduled departure."""
        return flights.labels(self.every_flight, STREAMED_FROM, ENDS)

    @property
    def plan(self) -> Plan:
        """What was applied."""
        return load_plan(self.repo)

    def redis(self) -> Redis:
        """A client of the online store."""
        return Redis.from_url(self.settings.redis_url)

    def stored_bytes(self) -> dict[bytes, bytes]:
        """Every key of the project's features, and its value."""
        with self.redis() as redis:
            keys = sorted(redis.scan_iter(match=f"{PROJECT}/*", count=10_000))
            return dict(zip(keys, redis.mget(keys), strict=True)) if keys else {}

    @contextmanager
    def environment(self) -> Iterator[None]:
        """The environment of a shell in which the variables of this world are set, for code in this process."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.variables.items():
                patch.setenv(name, value)
            yield

    def start(self, *arguments: str, repo: Path | None = None, **variables: str) -> subprocess.Popen[str]:
        """A command on its way: `tally`, `feast` or `python` as a user types it, with these variables changed."""
        chosen = repo or self.repo
        program, *rest = arguments
        if program == "feast":
            rest = ["-c", str(chosen), *rest]
        elif program == "tally":
            rest = [*rest, "--repo", str(chosen)]
        return subprocess.Popen(
            [str(_BINARIES / program), *rest],
            env={**self.variables, "PYTHONPATH": f"{chosen.parent}:{_SOURCES}", **variables},
            cwd=chosen.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, repo: Path | None = None, **variables: str) -> Ended:
        """A command that has ended, whatever its exit code."""
        return ended(self.start(*arguments, repo=repo, **variables))

    def begin(self, name: str, *arguments: str, repo: Path | None = None, **variables: str) -> None:
        """Start a command; `finish` or `outcome` waits for it."""
        self.started[name] = self.start(*arguments, repo=repo, **variables)

    def outcome(self, name: str) -> Ended:
        """How a command that was begun, or done, has ended."""
        if name not in self.printed:
            self.printed[name] = ended(self.started[name])
        return self.printed[name]

    def finish(self, name: str) -> None:
        """Wait for a command that must succeed."""
        done = self.outcome(name)
        assert done.code == 0, f"{name}\n{done.out}{done.err}"

    @contextmanager
    def feast(self) -> Iterator[FeatureStore]:
        """Stock Feast on the repository, in this process."""
        with self.environment():
            yield FeatureStore(repo_path=str(self.repo))

    def do(self, name: str, *arguments: str) -> None:
        """Run a command that must succeed, and keep what it printed under `name`."""
        done = self.run(*arguments)
        assert done.code == 0, f"{' '.join(arguments)}\n{done.out}{done.err}"
        self.printed[name] = done


def ended(process: subprocess.Popen[str]) -> Ended:
    """What a command printed, once it has ended."""
    out, err = process.communicate(timeout=600)
    return Ended(process.returncode, out, err)


def broken_repo(folder: Path, sound: str, broken: str) -> Path:
    """A copy of the example's repository below `folder`, of a project of its own, with one spot of its definitions changed."""
    repo = copied_repo(folder)
    config = repo / "feature_store.yaml"
    config.write_text(config.read_text().replace(f"project: {PROJECT}", "project: broken"))
    definitions = repo / "definitions.py"
    text = definitions.read_text()
    assert text.count(sound) == 1
    definitions.write_text(text.replace(sound, broken))
    return repo


def copied_repo(folder: Path) -> Path:
    """A copy of the example's repository below `folder`, to which nothing was applied."""
    repo = folder / "feature_repo"
    shutil.copytree(_SOURCES / "feature_repo", repo, ignore=shutil.ignore_patterns("data", "__pycache__"))
    return repo


@contextmanager
def loaded(services: Settings, folder: Path) -> Iterator[World]:
    """The world, built; programs that it started end with the block."""
    copied_repo(folder)
    settings = services.model_copy(update={"tally_offline_uri": str(folder / "offline")})
    world = World(settings, folder, environment(settings) | {"COLUMNS": "200"}, flights.flights())
    try:
        world.begin("apply", "feast", "apply")
        pq.write_table(pa.Table.from_pandas(world.labels, preserve_index=False), world.labels_path)
        weather = flights.weather()
        sender = _history(world, weather)
        world.finish("apply")
        _serve(world)
        _break(world)
        _before_the_stream(world)
        _stream(world, sender, weather)
        yield world
    finally:
        for process in world.started.values():
            process.terminate()
            process.communicate(timeout=120)


def _history(world: World, weather: pa.Table) -> Sender:
    """What happened before the stream, in Kafka and in Snowflake, except one report of the weather."""
    admin = AdminClient(world.settings.kafka_config())
    topics = [NewTopic(name, PARTITIONS, 1, config={"retention.ms": "-1"}) for name in LANDING_TABLES]
    for created in admin.create_topics(topics).values():
        created.result(30)
    sender = Sender(world.settings.kafka_config())
    for topic, messages in _messages(world.every_flight, BEGINS, STREAMED_FROM).items():
        moments = (messages["event_time_us"].to_numpy() // 1000).tolist()
        for key, value, moment in zip(messages["key"].to_pylist(), messages["value"].to_pylist(), moments, strict=True):
            sender.send(topic, key, value, moment)
    sender.flush()
    land(world.settings, LANDING_TABLES)
    load_table(world.settings, "AIRCRAFT", flights.aircraft())
    reported = _between(weather, BEGINS, STREAMED_FROM)
    load_table(world.settings, "WEATHER", reported.filter(pc.invert(_is_late_report(reported))))
    return sender


def _before_the_stream(world: World) -> None:
    """Everything that `_history` left, in Redis, twice; then the late report."""
    world.do("ingest", "tally", "ingest")
    world.do("bootstrap", "tally", "bootstrap")
    world.applied = plan_path(world.repo).read_bytes()
    world.do("materialize", "feast", "materialize", BEGINS.isoformat(), STREAMED_FROM.isoformat())
    world.stored["materialized"] = world.stored_bytes()
    with world.feast() as store:
        store.materialize(BEGINS, STREAMED_FROM)
    world.stored["materialized again"] = world.stored_bytes()

    late = flights.weather()
    late = late.filter(_is_late_report(late))
    loaded_at = pa.array([STREAMED_FROM + timedelta(minutes=30)], late.schema.field("loaded_at").type)
    late = late.set_column(late.column_names.index("loaded_at"), "loaded_at", loaded_at)
    load_table(world.settings, "WEATHER", late)
    world.do("ingest late", "tally", "ingest", "weather")
    world.do("incremental", "feast", "materialize-incremental", (STREAMED_FROM + timedelta(minutes=40)).isoformat())
    world.stored["incremental"] = world.stored_bytes()


def _stream(world: World, sender: Sender, weather: pa.Table) -> None:
    """A day of messages, some late, some twice, two unusable, through Kafka to Redis and to the offline store."""
    messages = _messages(world.every_flight, STREAMED_FROM, ENDS)
    streams = Streams.merge(
        sender, {topic: arrival_times(table, seed) for seed, (topic, table) in enumerate(messages.items())}
    )
    streams.send_until(from_datetime(ENDS + timedelta(minutes=11)))
    for key, value in BAD_MESSAGES.items():
        sender.send(DEPARTURES, key, value, int(ENDS.timestamp() * 1000))
    sender.flush()
    world.begin("stream", "tally", "stream", "--until-end")
    load_table(world.settings, "WEATHER", _between(weather, STREAMED_FROM, ENDS))
    land(world.settings, LANDING_TABLES)
    world.do("ingest streamed", "tally", "ingest")
    world.finish("stream")
    with world.feast() as store:
        store.materialize_incremental(ENDS, feature_views=["origin_weather"])


def _serve(world: World) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world.server = f"http://127.0.0.1:{port}"
    world.begin("serve", "feast", "serve", "--host", "127.0.0.1", "--port", str(port), "--no-access-log")


def _break(world: World) -> None:
    """Commands that must fail, begun early because they take seconds to do so."""
    sound = 'column="delay", function="last"'
    aggregation = broken_repo(world.folder / "aggregation", sound, sound.replace("last", "median"))
    world.begin("bad aggregation", "feast", "apply", repo=aggregation)
    world.begin("no Kafka", "tally", "stream", "--until-end", KAFKA_BOOTSTRAP_SERVERS=NOBODY)


def _messages(every_flight: pd.DataFrame, start: datetime, end: datetime) -> dict[str, pa.Table]:
    """By topic, the messages of what happened at or after `start` and before `end`."""

    def happened(instant: str) -> pd.DataFrame:
        return every_flight[(every_flight[instant] >= start) & (every_flight[instant] < end)]

    return {
        DEPARTURES: departure_messages(happened("departure")),
        ARRIVALS: arrival_messages(happened("arrival")),
    }


def _between(weather: pa.Table, start: datetime, end: datetime) -> pa.Table:
    moments = weather["event_timestamp"]
    first, last = (pa.scalar(moment, moments.type) for moment in (start, end))
    return weather.filter(pc.and_(pc.greater_equal(moments, first), pc.less(moments, last)))


def _is_late_report(weather: pa.Table) -> Any:
    airport, moment = LATE_REPORT
    stamps = weather["event_timestamp"]
    return pc.and_(pc.equal(weather["origin"], airport), pc.equal(stamps, pa.scalar(moment, stamps.type)))
