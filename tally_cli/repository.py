"""The feature repository that a command works on: its plan, its settings, and the way to its transformations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.repository import load_plan
from tally.plan import Plan, Source, View
from tally_cli.errors import UsageError

if TYPE_CHECKING:
    from connections import Client
    from infra.settings import Settings
    from ingestion.avro import WriterSchema

Repo = Annotated[
    Path,
    typer.Option("--repo", metavar="DIR", help="The feature repository, where feature_store.yaml is."),
]
DEFAULT_REPO = Path("feature_repo")
OfflineVersion = Annotated[
    str | None,
    typer.Option(
        "--offline-version",
        metavar="N|TIME",
        help="Read the offline tables as of this version, or as they were at this time (2013-12-01T10:00:00Z).",
    ),
]


def version_of(text: str | None) -> int | str | None:
    """An `OfflineVersion` as `training.build_training_set` takes it."""
    return int(text) if text is not None and text.isdecimal() else text


def open_plan(repo: Path) -> Plan:
    """The plan that `feast apply` left in `repo`; its transformations can be imported from now on.

    Raises UsageError when there is no such folder, NotReadyError when nothing was applied yet.
    """
    require_folder(repo)
    return load_plan(repo)


def require_folder(repo: Path) -> None:
    """Raise UsageError where there is no folder `repo`."""
    if not repo.is_dir():
        raise UsageError(f"There is no feature repository at {repo}; name its folder with --repo DIR.")


def require_place(path: Path, what: str, option: str) -> None:
    """Raise UsageError where the folder of `path`, at which `what` is to be written, is not there."""
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent} for {what}; make it, or choose another {option}.")


def settings_with(repo: Path, *parts: str) -> Settings:
    """The environment's settings, with an address for each of `parts` ("redis", "kafka", "snowflake")."""
    from infra import local
    from infra.settings import Settings

    settings = Settings.for_repo(repo)
    return local.ensure(settings, *parts) if parts else settings


def open_redis(settings: Settings) -> Client:
    """A client of the online store that has answered. Raises UnavailableError, naming the address but no password."""
    from connections import open_client, reaching

    redis = open_client(settings.redis_url)
    with reaching(redis):
        redis.ping()
    return redis


def open_registry(settings: Settings) -> WriterSchema | None:
    """What asks the schema registry for the schemas of Avro messages; None when no registry is configured."""
    config = settings.schema_registry_config()
    if config is None:
        return None
    from ingestion.schema_registry import SchemaRegistry

    return SchemaRegistry(config).avro


def chosen_sources(plan: Plan, names: Sequence[str]) -> list[Source]:
    """The sources called `names`, or whose tables are; all of them if none is named. Raises UsageError."""
    if not names:
        return list(plan.sources)
    by_name = {source.table.lower(): source for source in plan.sources}
    by_name |= {source.name.lower(): source for source in plan.sources}
    unknown = [name for name in names if name.lower() not in by_name]
    if unknown:
        existing = ", ".join(f"{source.name} ({source.table})" for source in plan.sources)
        raise UsageError(f"Project {plan.project} has no table {unknown[0]!r}. It has: {existing}.")
    return list(dict.fromkeys(by_name[name.lower()] for name in names))


def chosen_views(candidates: Sequence[View], names: Sequence[str], plan: Plan, what: str) -> list[View]:
    """Those of `candidates` called `names`; all of them if none is named. Raises UsageError, `what` being their kind."""
    if not names:
        return list(candidates)
    by_name = {view.name: view for view in candidates}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        existing = ", ".join(by_name) or "none"
        raise UsageError(f"Project {plan.project} has no {what} {unknown[0]!r}. It has: {existing}.")
    return list(dict.fromkeys(by_name[name] for name in names))
