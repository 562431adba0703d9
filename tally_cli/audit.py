"""`tally audit`: were served rows what the offline store says, bit for bit, and if not, why?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tally_cli.errors import FAILED
from tally_cli.output import bars, say, table, versions
from tally_cli.repository import DEFAULT_REPO, OfflineVersion, Repo, open_plan, require_place, version_of

if TYPE_CHECKING:
    from training.audit_results import ServiceAudit

_SHOWN = 5


def audit(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="SERVED",
            help="The log of served rows: the folder that a ParquetSink writes to, or one Parquet file.",
            show_default=False,
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="REPORT.html", dir_okay=False, help="Write a report for people, too."),
    ] = None,
    offline_version: OfflineVersion = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="4GB", help="What a replay may hold in memory. [dim](a part of what is free)[/]"),
    ] = None,
    repo: Repo = DEFAULT_REPO,
) -> None:
    """Replay served rows from their evidence, and compare every value with the one that was served, bit for bit.

    Exits with 1 if any value differs, or if nothing could be compared.
    Rows of another definition, and those that had read what the offline
    store does not have yet, are left out, counted and explained.

    tally ingest && tally audit served/
    # with all differences, by feature and over time
    tally audit served/ --html audit.html
    """
    open_plan(repo)
    if html is not None:
        require_place(html, "the report", "--html")

    from training import audit as audited

    began = time.monotonic()
    with bars(["rows"]) as progress:
        found = audited(
            log,
            repo=repo,
            offline_version=version_of(offline_version),
            memory=memory,
            progress=partial(progress, "rows"),
        )
    if html is not None:
        html.write_text(found.to_html())
    for part in found.parts:
        for line in _lines(part):
            say(line)
        if part.why:
            _differences(part)
    if html is not None:
        say(f"report: {html}")
    verdict = f"{found.values:,} values compared, {found.differ:,} differ" if found.values else "nothing was compared"
    say(f"audit: {verdict} ({time.monotonic() - began:.1f} s)")
    if not found.agrees:
        raise typer.Exit(FAILED)


def _lines(part: ServiceAudit) -> Iterator[str]:
    from training.audit_page import instant, share

    yield f"{part.service} {part.definition[:8]}: {part.audited:,} of {part.rows:,} rows compared"
    if part.audited:
        yield f"  served      as of {instant(part.first)} to {instant(part.last)} UTC"
    if part.versions:
        yield f"  read        {versions(part.versions)}"
    for why, rows in part.left_out.items():
        yield f"  left out    {rows:,} of {part.rows:,} rows: {why}"
    answered = part.values + part.flagged.total()
    for status, values in part.flagged.items():
        yield f"  flagged     {values:,} of {answered:,} values, which are not compared: {status}"
    if part.later:
        yield (
            f"  late        {part.later:,} of {part.values:,} values ({share(part.later, part.values)}) would be others in a "
            "training set by event time: build it as_served"
        )
    for why, values in part.why.most_common():
        yield f"  differ      {values:,} of {part.values:,} values: {why}"


def _differences(part: ServiceAudit) -> None:
    """The first differences; the report has more."""
    from training.audit_page import instant, shown

    rows = []
    for one in part.differences[:_SHOWN]:
        asked = ", ".join(f"{name}={item}" for name, item in one.key.items())
        rows.append((asked, instant(one.as_of), one.feature, shown(one.served), shown(one.replayed)))
    table(("asked", "as of", "feature", "served", "replayed"), rows)
    if part.differ > len(rows):
        say(f"and {part.differ - len(rows):,} more")
