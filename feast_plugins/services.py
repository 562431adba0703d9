"""The services that a repository's commands talk to: the user's own, or embedded ones beside the repository."""

from __future__ import annotations

from pathlib import Path

import redis
from infra import local
from infra.settings import Settings
from ingestion.redis_store import connect


def settings_of(repo: Path, *parts: str) -> Settings:
    """Settings for a feature repository, with `parts` ("redis", ...) running: Feast changes into the repository's folder,
    so embedded services are looked for beside it, not below it."""
    return local.ensure(Settings.for_repo(repo), *parts) if parts else Settings.for_repo(repo)


def open_redis(repo: Path) -> redis.Redis:
    """A connection to the online store. Raises UnavailableError when it is not there."""
    return connect(settings_of(repo, "redis").redis_url)
