"""`tally dlq list` and `tally dlq replay`: messages that could not be used."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tally.plan import Plan
from tally.time import to_datetime
from tally_cli.errors import UsageError
from tally_cli.flags import Command, Group
from tally_cli.output import say, table
from tally_cli.repository import DEFAULT_REPO, Repo, chosen_views, open_plan, open_registry, settings_with

if TYPE_CHECKING:
    from infra.settings import Settings
    from ingestion.replay import DeadLetter, Judged

dlq = typer.Typer(
    cls=Group, no_args_is_help=True, help="Messages that could not be used: look at them, send them again."
)

Topic = Annotated[
    list[str] | None, typer.Option("--topic", metavar="TOPIC", help="A topic, repeatable; all by default.")
]
View = Annotated[
    list[str] | None, typer.Option("--view", metavar="VIEW", help="Only what this view refused, repeatable.")
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Only reasons that contain this text.")]


@dlq.command("list", cls=Command)
def list_letters(
    topic: Topic = None,
    view: View = None,
    reason: Reason = "",
    messages: Annotated[bool, typer.Option("--messages", help="Each message with its place, key and value.")] = False,
    repo: Repo = DEFAULT_REPO,
) -> None:
    """Show the dead letters that were not replayed, by topic, view and reason.

    tally dlq list
    tally dlq list --view origin_departures --reason "is null" --messages
    """
    plan = open_plan(repo)
    topics, views = _chosen(plan, topic, view)
    found = _judged(plan, settings_with(repo, "kafka"), topics, views, reason)
    if not found:
        say("No dead letters.")
        return
    if messages:
        rows = [
            (
                j.letter.place,
                j.letter.view or "all",
                j.letter.reason,
                _shown(j.letter.key),
                _shown(j.letter.value),
                j.state,
            )
            for j in found
        ]
        table(("message", "view", "reason", "key", "value", "state"), rows)
        return
    groups: dict[tuple[str, str, str, str], list[DeadLetter]] = {}
    for one in found:
        letter = one.letter
        groups.setdefault((letter.topic, letter.view or "all", letter.reason, one.state), []).append(letter)
    table(
        ("topic", "view", "reason", "state", "letters", "last"),
        [(*group, f"{len(of_group):,}", _moment(of_group)) for group, of_group in sorted(groups.items())],
    )


@dlq.command("replay", cls=Command)
def replay_letters(
    topic: Topic = None,
    view: View = None,
    reason: Reason = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    repo: Repo = DEFAULT_REPO,
) -> None:
    """Send dead letters to their topics again, each once, now that what was wrong is mended.

    What would be refused again stays. After a change of a definition nothing
    needs a replay: the new one reads the messages itself, from the topic or
    by tally bootstrap.

    tally dlq replay --dry-run
    tally dlq replay --topic flights.departures --reason "schema id"
    """
    from ingestion.replay import Replayer

    plan = open_plan(repo)
    topics, views = _chosen(plan, topic, view)
    settings = settings_with(repo, "kafka")
    replayer = None if dry_run else Replayer(settings.kafka_config(), plan.project)
    found = _judged(plan, settings, topics, views, reason)
    ready = [one.letter for one in found if one.state == "ready"]
    if replayer is None:
        say(f"{len(ready):,} would be sent again")
    else:
        say(f"{replayer.send(ready):,} sent again")
    for (state, why), count in sorted(Counter((one.state, one.why) for one in found if one.state != "ready").items()):
        say(f"{count:,} {state}: {why}")


def _chosen(plan: Plan, topics: Sequence[str] | None, views: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The topics and views to look at; no view: whatever refused. Raises UsageError."""
    known = sorted({source.topic for source in plan.sources if source.topic})
    if unknown := [name for name in topics or () if name not in known]:
        raise UsageError(f"Project {plan.project} has no topic {unknown[0]!r}. It has: {', '.join(known) or 'none'}.")
    streamed = [view for view in plan.views if view.stream]
    named = [view.name for view in chosen_views(streamed, views, plan, "stream view")] if views else []
    return list(topics or known), named


def _judged(plan: Plan, settings: Settings, topics: Sequence[str], views: Sequence[str], reason: str) -> list[Judged]:
    from ingestion.replay import judge, read_letters

    letters = [
        one
        for one in read_letters(settings.kafka_config(), topics, plan.project)
        if (not views or one.view in views) and reason in one.reason
    ]
    return judge(plan, letters, open_registry(settings), time.time_ns() // 1000)


def _shown(value: bytes | None) -> str:
    if value is None:
        return ""
    text = value.decode(errors="backslashreplace")
    return text if len(text) <= 60 else text[:57] + "..."


def _moment(letters: Sequence[DeadLetter]) -> str:
    return to_datetime(max(letter.written for letter in letters)).strftime("%Y-%m-%d %H:%M:%S")
