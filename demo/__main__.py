"""`make demo`: real flights through the whole system, and whether its two sides agree.

Everything runs on services that the demo starts for itself, below `.tally/demo`, and stops at the end; a Redis, Kafka or
Snowflake of yours is never touched.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka.admin import AdminClient, NewTopic
from rich.table import Table

from demo import flights
from demo.compare import ViewParity, compare
from demo.lookups import Served, serve
from demo.messages import ARRIVALS, DEPARTURES, arrival_messages, arrival_times, departure_messages
from demo.model import auc, matrix, numeric_features
from demo.replay import Sender, Streams, milliseconds
from demo.terminal import Steps, bar, command, console, environment
from infra.local import LocalServiceError, embedded
from infra.local.connector import land
from infra.local.snowflake_load import load_table
from infra.repository import load_plan
from infra.settings import Settings
from ingestion.snowflake import ingest
from tally.errors import TallyError
from tally.plan import Plan
from tally.time import from_datetime
from training import audit, build_training_set

log = logging.getLogger(__name__)

SERVICE = "arrival_delay"
REPO = Path("feature_repo")
HOME = Path(".tally/demo")
YEAR_BEGINS = datetime(2013, 1, 1, tzinfo=UTC)
LEARN_FROM = datetime(2013, 1, 9, tzinfo=UTC)  # the longest window looks back seven days
REPLAY_BEGINS = datetime(2013, 12, 1, tzinfo=UTC)
DEFAULT_DAYS = 13
PARTITIONS = 4
SEED = 2013
LANDING_TABLES = {DEPARTURES: "FLIGHTS_DEPARTURES", ARRIVALS: "FLIGHTS_ARRIVALS"}
AIRCRAFT_TABLE, WEATHER_TABLE = "AIRCRAFT", "WEATHER"


@dataclass(frozen=True)
class Stage:
    """What every step needs: the services, the environment that leads commands to them, and the stretch to replay."""

    settings: Settings
    variables: Mapping[str, str]
    ends: datetime

    def tally(self, *arguments: str) -> None:
        """Run a `tally` command on the example's repository."""
        command(["tally", *arguments, "--repo", str(REPO)], self.variables)

    def feast(self, *arguments: str) -> None:
        """Run a stock `feast` command on the example's repository."""
        command(["feast", "-c", str(REPO), *arguments], self.variables)

    def land(self, count: int) -> int:
        """Run the connector stand-in to the end of both topics."""
        with bar("messages to Snowflake", count) as done:
            return land(self.settings, LANDING_TABLES, progress=lambda read, _: done(read))

    @property
    def served(self) -> Path:
        """The log of served rows."""
        return self.settings.home / "served"

    @property
    def report(self) -> Path:
        """The audit's page."""
        return self.settings.home / "audit.html"


def run(days: int) -> int:
    """The whole demo; the exit code."""
    home = HOME.resolve()
    shutil.rmtree(home, ignore_errors=True)
    steps = Steps(11)
    os.environ["TALLY_REQUIRE_APACHE_KAFKA"] = "1"  # librdkafka's cluster forgets: it keeps 5 MiB of a partition
    with ExitStack() as services:
        with steps.step("start Redis, Kafka and a Snowflake emulator, for this demo alone"):
            settings = services.enter_context(embedded(home))
        settings = settings.model_copy(update={"tally_offline_uri": str(home / "offline")})
        variables = environment(settings)
        os.environ.update(variables)
        return play(Stage(settings, variables, REPLAY_BEGINS + timedelta(days=days)), days, steps)


def play(stage: Stage, days: int, steps: Steps) -> int:
    """All steps once the services are there; the exit code."""
    create_topics(stage.settings)
    with steps.step("read every 2013 flight out of New York; make messages of departures and landings") as say:
        every_flight = flights.flights()
        weather = flights.weather()
        messages = {DEPARTURES: departure_messages(every_flight), ARRIVALS: arrival_messages(every_flight)}
        say(f"{len(every_flight):,} flights, {sum(m.num_rows for m in messages.values()):,} messages")
    with steps.step("history, January to November: to Kafka, and from there to Snowflake's landing tables") as say:
        sender = Sender(stage.settings.kafka_config())
        landed = send_history(stage, sender, messages)
        load_table(stage.settings, AIRCRAFT_TABLE, flights.aircraft())
        load_table(stage.settings, WEATHER_TABLE, happened(weather, YEAR_BEGINS, REPLAY_BEGINS))
        say(f"{landed:,} messages landed; the aircraft registry and hourly weather beside them")
    with steps.step("apply the definitions in feature_repo/") as say:
        stage.feast("apply")
        plan = load_plan(REPO)
        say(f"service {SERVICE}: {len(plan.service(SERVICE).outputs)} features")
    with steps.step("Snowflake to the offline store"):
        stage.tally("ingest")
    with steps.step("offline store to Redis: windows with their fences, and the latest rows"):
        stage.tally("bootstrap")
        tables = [argument for view in plan.views if not view.stream for argument in ("--views", view.name)]
        stage.feast("materialize", *tables, YEAR_BEGINS.isoformat(), REPLAY_BEGINS.isoformat())
    with steps.step(f"replay {days} days of December, looking every flight up an hour before it leaves") as say:
        labels = flights.labels(every_flight, REPLAY_BEGINS, stage.ends)
        streams = merge_arrivals(stage, sender, messages)
        served = replay(stage, plan, labels, streams, happened(weather, REPLAY_BEGINS, stage.ends))
        say(f"{len(streams):,} messages: 5 % sent twice, 5 % up to ten minutes late; one worker killed with -9")
        say(f"{len(labels):,} lookups")
    with steps.step("those days to Snowflake too, and on to the offline store"):
        stage.land(len(streams))
        stage.tally("ingest")
    with steps.step("the training set for the same flights and times, compared bit for bit"):
        offline = build_training_set(labels, service=SERVICE, repo=REPO, visibility="as_served")
        lines = compare(plan.service(SERVICE), served.columns, offline.columns)
    with steps.step("the log of served rows, replayed from the evidence of each") as say:
        audited = audit(stage.served, repo=REPO)
        stage.report.write_text(audited.to_html())
        say(f"{audited.differ:,} of {audited.values:,} values differ; {stage.report.relative_to(Path.cwd())} has more")
        say(f"had late messages been seen before they arrived, {audited.later:,} values would differ")
    with steps.step("a model learns from January to November, and is scored on the served rows") as say:
        scores, learned = learn(plan, every_flight, labels, served)
        say(f"learned from {learned:,} flights")
    report(lines, served, scores)
    values, differ = sum(line.values for line in lines), sum(line.differ for line in lines)
    good = audited.agrees and audited.values == values and not (differ or served.ahead)
    if served.ahead:
        console.print(f"[red]{served.ahead:,} answers were flagged: the store was ahead of what was asked for[/red]")
    console.print(f"[bold {'green' if good else 'red'}]parity: {values} values compared, {differ} differ[/]")
    console.print(f"[dim]the whole demo took {steps.elapsed:.0f} s[/dim]")
    return 0 if good else 1


def create_topics(settings: Settings) -> None:
    """The two topics, which keep messages of any age."""
    admin = AdminClient(settings.kafka_config(), logger=log)
    topics = [NewTopic(name, PARTITIONS, 1, config={"retention.ms": "-1"}) for name in LANDING_TABLES]
    for created in admin.create_topics(topics).values():
        created.result()


def happened(table: pa.Table, start: datetime, end: datetime) -> pa.Table:
    """Rows with ``start <= event_timestamp < end``."""
    moments = table["event_timestamp"]
    first, last = (pa.scalar(moment, moments.type) for moment in (start, end))
    return table.filter(pc.and_(pc.greater_equal(moments, first), pc.less(moments, last)))


def messages_between(table: pa.Table, start: datetime, end: datetime) -> pa.Table:
    """Messages of events with ``start <= event time < end``."""
    moments = table["event_time_us"]
    return table.filter(pc.and_(pc.greater_equal(moments, from_datetime(start)), pc.less(moments, from_datetime(end))))


def send_history(stage: Stage, sender: Sender, messages: Mapping[str, pa.Table]) -> int:
    """Produce what happened before the replay, each message arriving when it happened, and land it; how many landed."""
    past = {topic: messages_between(table, YEAR_BEGINS, REPLAY_BEGINS) for topic, table in messages.items()}
    count = sum(table.num_rows for table in past.values())
    sent = 0
    with bar("messages to Kafka", count) as done:
        for topic, table in past.items():
            moments = milliseconds(table["event_time_us"].to_numpy()).tolist()
            for key, value, moment in zip(table["key"].to_pylist(), table["value"].to_pylist(), moments, strict=True):
                sender.send(topic, key, value, moment)
                sent += 1
                if sent % 10_000 == 0:
                    done(sent)
        sender.flush()
    return stage.land(count)


def merge_arrivals(stage: Stage, sender: Sender, messages: Mapping[str, pa.Table]) -> Streams:
    """The replay's messages in the order of their arrival, some late, some twice."""
    return Streams.merge(
        sender,
        {
            topic: arrival_times(messages_between(table, REPLAY_BEGINS, stage.ends), SEED + number)
            for number, (topic, table) in enumerate(messages.items())
        },
    )


def replay(stage: Stage, plan: Plan, labels: pd.DataFrame, streams: Streams, weather: pa.Table) -> Served:
    """Land the stretch's weather, then serve; each report is materialized when its time has come."""
    load_table(stage.settings, WEATHER_TABLE, weather)
    ingest(plan, ["weather"], stage.settings.snowflake_connect_args(), stage.settings.offline_uri())
    with bar("flights looked up", len(labels)) as done:
        return serve(labels, streams, weather, plan, SERVICE, REPO, stage.settings, stage.variables, stage.served, done)


def learn(plan: Plan, every_flight: pd.DataFrame, labels: pd.DataFrame, served: Served) -> tuple[list[float], int]:
    """AUC on the served rows with the warehouse's features and with all, and how many flights were learned from."""
    past = flights.labels(every_flight, LEARN_FROM, REPLAY_BEGINS)
    past = past[past["late"].notna()].reset_index(drop=True)
    learned = build_training_set(past, service=SERVICE, repo=REPO).columns
    known = labels["late"].notna().to_numpy()
    late, past_late = labels["late"][known].to_numpy(bool), past["late"].to_numpy(bool)
    scores = [
        auc(matrix(learned, names), past_late, matrix(served.columns, names)[known], late)
        for names in numeric_features(plan, plan.service(SERVICE))
    ]
    return scores, len(past)


def report(lines: Sequence[ViewParity], served: Served, scores: Sequence[float]) -> None:
    """The closing table."""
    table = Table(title="online against offline", title_justify="left")
    table.add_column("view")
    for heading in ("rows", "values compared", "values that differ"):
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(line.view, f"{line.rows:,}", f"{line.values:,}", f"{line.differ:,}")
    console.print()
    console.print(table)
    p50, p99 = np.percentile(np.array(served.seconds) * 1000, [50, 99])
    console.print(f"lookup of one flight: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    console.print(
        f"late or not, AUC: {scores[0]:.3f} from the warehouse alone, {scores[1]:.3f} with the streams beside it"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; what is meant for the user comes as one sentence."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument(
        "--days",
        type=int,
        default=DEFAULT_DAYS,
        choices=range(1, 31),
        metavar="1..30",
        help=f"days of December to replay (default {DEFAULT_DAYS}: more than 10,000 flights)",
    )
    days: int = parser.parse_args(arguments).days
    try:
        return run(days)
    except (TallyError, LocalServiceError) as error:
        console.print(f"[red]{error}[/red]")
        return 1
    except KeyboardInterrupt:
        console.print("stopped, with everything that the demo had started")
        return 130


if __name__ == "__main__":
    sys.exit(main())
