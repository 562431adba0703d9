"""The services that a repository's commands talk to: the user's own, or embedded ones beside the repository."""

from __future__ import annotations

from pathlib import Path

from redis import Redis

from infra import local
from infra.settings import Settings
from tally.errors import UnavailableError


def settings_of(repo: Path, *parts: str) -> Settings:
    """Settings for a feature repository, with `parts` ("redis", ...) running, the user's own or embedded ones."""
    return local.ensure(Settings.for_repo(repo), *parts) if parts else Settings.for_repo(repo)


def open_redis(repo: Path) -> Redis:
    """A client of the online store; it connects with its first command."""
    try:
        return Redis.from_url(settings_of(repo, "redis").redis_url)
    except ValueError as error:
        raise UnavailableError(
            f"REDIS_URL is not a Redis address ({error}); it looks like redis://HOST:6379."
        ) from error
