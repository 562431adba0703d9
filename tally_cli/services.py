"""`tally up`, `tally down` and `tally status`: the embedded services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tally_cli.errors import FAILED
from tally_cli.output import say, table
from tally_cli.repository import DEFAULT_REPO, Repo, require_folder

if TYPE_CHECKING:
    from infra.settings import Settings


def up(repo: Repo = DEFAULT_REPO) -> None:
    """Start embedded services for every variable that is not set, or find them running.

    Their data lives in .tally/ beside the repository (TALLY_HOME names another place).

    tally up
    REDIS_URL=redis://cache:6379 tally up     starts Kafka and the Snowflake emulator only
    """
    from infra import local

    settings = _settings(repo)
    running = local.up(settings).running
    _show(settings)
    if not running:
        say("Nothing to start: the environment names a service of your own for every part.")


def down(
    repo: Repo = DEFAULT_REPO,
    wipe: Annotated[bool, typer.Option("--wipe", help="Delete their data too.")] = False,
) -> None:
    """Stop the services that were started for this repository.

    tally down           their data stays, and is there after the next tally up
    tally down --wipe    a clean start, .tally/offline included
    """
    from infra import local

    stopped = local.down(_settings(repo), wipe=wipe)
    for service in stopped:
        say(f"stopped {service.implementation} at {service.address}")
    if not stopped:
        say("No embedded service was running.")
    if wipe:
        say("Deleted the embedded services' data.")


def status(repo: Repo = DEFAULT_REPO) -> None:
    """Show where Redis, Kafka and Snowflake are. Exit code 1 if one runs and does not answer.

    tally status
    """
    if not _show(_settings(repo)):
        raise typer.Exit(FAILED)


def _settings(repo: Repo) -> Settings:
    from infra.settings import Settings

    if repo != DEFAULT_REPO:  # services may be there before the repository; but a name that was typed must be right
        require_folder(repo)
    return Settings.for_repo(repo)


def _show(settings: Settings) -> bool:
    """Print the table of services; False if one of them is silent."""
    from infra import local
    from infra.local.parts import PARTS

    parts = local.status(settings)
    rows = []
    for part in parts:
        if part.service is None:
            known = (f"{PARTS[part.part].VARIABLE} is set" if part.state == "external" else "", "", "")
        else:
            known = (part.service.implementation, part.service.address, str(part.service.pid))
        rows.append((part.part, part.state, *known))
    table(("service", "state", "what", "address", "pid"), rows)
    return all(part.state != "silent" for part in parts)
