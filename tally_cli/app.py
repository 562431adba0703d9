"""The commands, their common options, and how a run ends: one sentence on stderr and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from tally_cli import errors
from tally_cli.audit import audit
from tally_cli.bootstrap import bootstrap
from tally_cli.dlq import dlq
from tally_cli.export import export
from tally_cli.flags import Command, Group
from tally_cli.ingest import ingest
from tally_cli.output import JsonHandler, LogHandler
from tally_cli.services import down, status, up
from tally_cli.sizes import sizes
from tally_cli.stream import stream

ROOMS = ("tally", "connections", "ingestion", "training", "serving_client", "infra", "tally_cli")
"""Loggers that are heard; what libraries have to say is shown from warnings on."""


class LogFormat(StrEnum):
    """How log records are written."""

    TEXT = "text"
    JSON = "json"


app = typer.Typer(
    name="tally",
    cls=Group,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Data in": (ingest, bootstrap, stream),
    "Data out": (export, audit, sizes),
    "Embedded services": (up, down, status),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(cls=Command, rich_help_panel=panel)(command)
app.add_typer(dlq, name="dlq", rich_help_panel="Data in")


def _print_version(asked: bool) -> None:
    if asked:
        try:
            typer.echo(f"tally {version('tally-feature-store')}")
        except PackageNotFoundError:
            typer.echo("tally (not installed as a package)")
        raise typer.Exit


@app.callback()
def tally(
    debug: Annotated[
        bool, typer.Option("--debug", envvar=errors.DEBUG_VARIABLE, help="Show tracebacks and debug logs.")
    ] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option("--log-format", envvar="TALLY_LOG_FORMAT", help="Lines for people, or JSON for machines."),
    ] = LogFormat.TEXT,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A feature store whose online and offline answers are equal, bit for bit.

    A new repository goes through these commands in this order:

    feast -c feature_repo apply     compile the definitions into a plan
    tally ingest                    Snowflake -> offline store
    tally bootstrap                 windows: offline store -> Redis
    feast -c feature_repo materialize-incremental 2013-12-01T00:00:00
    tally stream                    Kafka -> Redis, until stopped
    tally export SERVICE ...        a training set, as of each label's time
    tally audit SERVED              what was served, replayed and compared

    REDIS_URL, KAFKA_BOOTSTRAP_SERVERS and SNOWFLAKE_ACCOUNT lead to services
    of your own; for those that are not set embedded ones are started.

    Exit codes: 0 good, 1 failed work, or a difference that was found,
    2 wrong usage, 130 Ctrl-C, 143 SIGTERM.
    """
    os.environ[errors.DEBUG_VARIABLE] = "1" if debug else ""
    logging.basicConfig(
        level=logging.WARNING, handlers=[JsonHandler() if log_format is LogFormat.JSON else LogHandler()]
    )
    for room in ROOMS:
        logging.getLogger(room).setLevel(logging.DEBUG if debug else logging.INFO)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors meant for the user are printed as one sentence on stderr."""
    try:
        app(args=list(arguments), prog_name="tally")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except KeyboardInterrupt:
        return errors.INTERRUPTED
    except Exception as error:
        sentence = errors.sentence(error)
        if sentence is None or os.environ.get(errors.DEBUG_VARIABLE):
            raise
        sys.stderr.write(f"{sentence}\n")
        return errors.exit_code(error)
    return errors.GOOD
