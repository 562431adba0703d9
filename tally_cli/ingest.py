"""`tally ingest`: Snowflake into the offline store."""

from __future__ import annotations

from typing import Annotated

import typer

from tally_cli.output import bars, say, table
from tally_cli.repository import DEFAULT_REPO, Repo, chosen_sources, open_plan, settings_with


def ingest(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="TABLE", help="Sources or their tables; all by default.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read the tables from the beginning, not from where the last run stopped.")
    ] = False,
    repo: Repo = DEFAULT_REPO,
) -> None:
    """Copy new rows of Snowflake tables into the offline store.

    Each table is one transaction with its watermark: a run that is
    interrupted leaves nothing half done, and no row is taken twice.

    tally ingest
    tally ingest flights_departures WEATHER
    tally ingest --full weather              after its definition has changed
    """
    plan = open_plan(repo)
    names = [source.name for source in chosen_sources(plan, tables or [])]
    settings = settings_with(repo, "snowflake")

    from ingestion.snowflake import ingest as run

    with bars(names) as progress:
        done = run(plan, names, settings.snowflake_connect_args(), settings.offline_uri(), full=full, progress=progress)
    rows = [(one.source, f"{one.rows:,}", f"{one.duplicates:,}", f"{one.rejected:,}", str(one.version)) for one in done]
    table(("source", "new rows", "duplicates", "rejected", "version"), rows)
    for one in done:
        if one.rejected:
            say(f"{one.source}: the rejected messages are in {one.source}__rejected, with their reasons")
