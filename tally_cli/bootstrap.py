"""`tally bootstrap`: windows into Redis, from the offline store."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from tally_cli.output import bars, counts, say
from tally_cli.repository import DEFAULT_REPO, Repo, chosen_views, open_plan, open_redis, settings_with


def bootstrap(
    views: Annotated[list[str] | None, typer.Argument(metavar="VIEW", help="Stream views; all by default.")] = None,
    repo: Repo = DEFAULT_REPO,
) -> None:
    """Fill Redis with the windows of stream views, from the offline store.

    Run it after tally ingest and before tally stream, which goes on behind
    the last event that was ingested. Running it again is safe: what Redis
    already has beyond the offline store is kept.

    tally bootstrap
    tally bootstrap origin_departures carrier_departures
    """
    plan = open_plan(repo)
    chosen = chosen_views([v for v in plan.views if v.stream and v.online], views or [], plan, "online stream view")
    settings = settings_with(repo, "redis")
    redis = open_redis(settings)

    from ingestion.materialize import bootstrap_view

    with bars([view.name for view in chosen]) as progress:
        for view in chosen:
            report = partial(progress, view.name)
            written = bootstrap_view(plan, view, settings.offline_uri(), redis, progress=report)
            kept = f", of which Redis had {written.kept:,} already, or newer" if written.kept else ""
            refused = f"; left out {counts(written.refused)}" if written.refused else ""
            say(f"{view.name}: {written.keys:,} keys{kept}{refused}")
