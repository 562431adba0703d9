"""The services that a repository's commands talk to: the user's own, or embedded ones beside the repository."""

from __future__ import annotations

from pathlib import Path

from connections import Client, open_client
from infra import local
from infra.settings import Settings


def settings_of(repo: Path, *parts: str) -> Settings:
    """Settings for a feature repository, with `parts` ("redis", ...) running, the user's own or embedded ones."""
    return local.ensure(Settings.for_repo(repo), *parts) if parts else Settings.for_repo(repo)


def redis_url(repo: Path) -> str:
    """The address of the online store."""
    return settings_of(repo, "redis").redis_url


def open_redis(repo: Path) -> Client:
    """A client of the online store, see `connections.open_client`."""
    return open_client(redis_url(repo))
