"""`tally stream`: Kafka into Redis."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from tally_cli.output import ERR, counts, say, table
from tally_cli.repository import DEFAULT_REPO, Repo, chosen_views, open_plan, open_redis, open_registry, settings_with

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from ingestion.report import Progress, State, Summary


def stream(
    view: Annotated[
        list[str] | None, typer.Option("--view", metavar="VIEW", help="A stream view, repeatable; all by default.")
    ] = None,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop at the offsets that were last when the command began.")
    ] = False,
    skip_expired: Annotated[
        bool, typer.Option("--skip-expired", help="Go on without events that Kafka deleted before they were read.")
    ] = False,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            metavar="NAME",
            help="The consumer group; tally-PROJECT by default, with --view the views' names too. Another lets two plans run side by side.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            metavar="PORT",
            min=0,
            max=65535,
            help="Serve /metrics, /health and /ready there; 0: a free one.",
        ),
    ] = None,
    repo: Repo = DEFAULT_REPO,
) -> None:
    """Apply events from Kafka to the windows and latest rows in Redis, each once, until stopped.

    Start as many as there are partitions: they share the work. Ctrl-C and
    SIGTERM finish the batch at hand and leave, with exit code 0.
    While Redis or Kafka is away it waits and says so; with --until-end it
    does not begin without them.
    Messages that cannot be used go to TOPIC.dlq with their reason: tally dlq.

    tally stream
    tally stream --until-end                     catch up, then exit
    tally stream --view origin_departures
    """
    plan = open_plan(repo)
    chosen = chosen_views([v for v in plan.views if v.stream and v.online], view or [], plan, "online stream view")
    settings = settings_with(repo, "redis", "kafka")

    from connections import RefusedError
    from ingestion.garbage import seldom_collected
    from ingestion.patience import Patience, StoppedWhileAwayError
    from ingestion.report import State
    from ingestion.worker import run

    state = State()
    with (
        ExitStack() as stack,
        stopped_by_signals() as stop,
        observed(state, metrics_port) as observe,
        ERR.status("waiting for Redis and Kafka") as line,
        seldom_collected(),
    ):
        patience = Patience(stop, state)
        try:
            opened = partial(open_redis, settings)
            redis = stack.enter_context(opened() if until_end else patience.outlast(opened, (RefusedError,)))
        except StoppedWhileAwayError:
            log.warning("stopped while Redis was away")
            return
        patience.answered()

        def show(progress: Progress) -> None:
            observe(progress)
            line.update(f"{progress.consumed:,} messages read, {progress.lag:,} to go")

        summary = run(
            plan,
            [one.name for one in chosen],
            settings.kafka_worker_config(),
            redis,
            until_end=until_end,
            skip_expired=skip_expired,
            group=group,
            stop=stop,
            on_batch=show,
            writer_schema=open_registry(settings),
            state=state,
        )
    report(summary)


@contextmanager
def observed(state: State, port: int | None) -> Iterator[Callable[[Progress], None]]:
    """What is to be called after each batch while metrics and health are served at `port`; None: they are not."""
    if port is None:
        yield lambda _: None
        return
    from ingestion.health import serving
    from ingestion.metrics import Metrics

    metrics = Metrics(state)
    with serving(state, metrics, port) as opened:
        log.info("metrics and health at port %d", opened)
        yield metrics.on_batch


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set. The second one ends the process as if nobody had asked for the first."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def asked(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, asked)
    try:
        yield stop
    finally:
        restore()


def report(summary: Summary) -> None:
    """Print what became of every message."""
    rows = []
    for name, count in summary.views.items():
        numbers = (count.consumed, count.applied, count.duplicate, count.too_late, count.refused.total())
        rows.append((name, *(f"{number:,}" for number in numbers)))
    table(("view", "messages", "applied", "duplicates", "too late", "refused"), rows)
    for name, count in summary.views.items():
        if count.refused:
            say(f"{name} refused {counts(count.refused)}")
    for topic, read in summary.topics.items():
        if read.dead_lettered:
            say(f"{topic}: {read.dead_lettered:,} to {topic}.dlq")
        if read.expired:
            say(
                f"{topic}: {read.expired:,} were deleted by Kafka before they were read; run tally ingest and bootstrap"
            )
    rate = summary.consumed / summary.seconds if summary.seconds else 0.0
    say(f"{summary.consumed:,} messages in {summary.seconds:.1f} s, {rate:,.0f} a second")
