"""`tally sizes`: how much memory the views take in Redis."""

from __future__ import annotations

from tally_cli.output import say, table
from tally_cli.repository import DEFAULT_REPO, Repo, open_plan, open_redis, settings_with


def sizes(repo: Repo = DEFAULT_REPO) -> None:
    """Show how many bytes an entity of each view takes in Redis, beside what Feast's layout would take.

    Redis measures a sample of the keys of each view. For Feast, the values
    of the same entities, windows as of now, are written once more as its
    Redis store lays them out, measured, and deleted again. Feast keeps no
    tiles: in its layout a window's value would stay as it is until somebody
    computes it anew.

    tally sizes
    """
    plan = open_plan(repo)
    redis = open_redis(settings_with(repo, "redis"))

    from ingestion.sizes import sizes as measured

    found = measured(redis, plan)
    if not found:
        say(f"Redis holds no entity of project {plan.project} under its current definitions.")
        return
    kinds = {view.name: view.kind for view in plan.views}
    rows = [
        (
            size.view,
            {"window": "windows", "latest": "latest row"}[kinds[size.view]],
            f"{'about ' if size.estimated else ''}{size.entities:,}",
            f"{size.ours:,.0f}",
            "" if size.feast is None else f"{size.feast:,.0f}",
            "" if size.feast is None else f"{size.ours / size.feast:.2f}",
        )
        for size in found
    ]
    table(("view", "holds", "entities", "bytes per entity", "in Feast's layout", "ratio"), rows)
    total = sum(size.ours * size.entities for size in found)
    say(f"Together about {total / 1e6:,.1f} MB.")
