"""The registry as a file, and the plan that is compiled from it and published whenever it is written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto
from feast.repo_config import RegistryConfig

from feast_plugins.command_line import is_command
from feast_plugins.compiler import compile_plan, read_definitions
from feast_plugins.services import open_redis
from infra.repository import make_importable, plan_path
from ingestion.redis_store import publish_plan
from tally.errors import TallyError
from tally.plan import Plan
from tally.size import bytes_per_key


class TallyRegistryStore(FileRegistryStore):
    """Feast's own file registry, plus the plan: ``data/plan.json`` beside it, and a copy in Redis for each service.

    A definition that cannot be compiled, or a plan that cannot be published, refuses the whole `feast apply`: nothing
    is written then.
    """

    def __init__(self, registry_config: RegistryConfig, repo_path: Path) -> None:
        super().__init__(registry_config, repo_path)
        self._repo = Path(repo_path)
        make_importable(self._repo)
        self._shown: list[str] = []

    def update_registry_proto(self, registry_proto: RegistryProto) -> None:
        """Compile, publish, then write the registry. Raises TallyError subclasses."""
        projects = sorted({project.spec.name for project in registry_proto.projects})
        plans = [compile_plan(read_definitions(registry_proto, name, self._repo)) for name in projects]
        self._publish([plan for plan in plans if plan.views or plan.functions])
        super().update_registry_proto(registry_proto)
        if is_command("apply"):
            self._show_sizes(plans)

    def _show_sizes(self, plans: Sequence[Plan]) -> None:
        """What keys of each view take in Redis, once in a command."""
        lines = [f"{view.name}: {bytes_per_key(view)}" for plan in plans for view in plan.views if view.online]
        if lines and lines != self._shown:
            self._shown = lines
            sys.stdout.write("\n".join(["In Redis:", *lines, ""]))

    def _publish(self, plans: Sequence[Plan]) -> None:
        if len(plans) > 1:
            names = [plan.project for plan in plans]
            raise TallyError(
                f"{self._filepath} holds the projects {names}, and a repository has one plan; use one registry for each."
            )
        for plan in plans:
            with open_redis(self._repo) as redis:
                publish_plan(redis, plan)
            _write_aside(plan_path(self._repo), plan.to_json())


def _write_aside(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".json.tmp")
    aside.write_text(text)
    aside.replace(path)
