"""`feast materialize` and `materialize-incremental`: the offline store's rows into Redis."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from feast.infra.common.materialization_job import MaterializationJob, MaterializationJobStatus, MaterializationTask
from feast.infra.common.retrieval_task import HistoricalRetrievalTask
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.registry.base_registry import BaseRegistry

from feast_plugins.services import open_redis, settings_of
from infra.repository import load_plan
from ingestion.materialize import materialize_view
from tally.time import from_datetime


class TallyMaterializationJob(MaterializationJob):
    """A finished materialization: `TallyComputeEngine` works before it returns."""

    def __init__(self, task: MaterializationTask, error: BaseException | None = None) -> None:
        super().__init__()
        self.task = task
        self._error = error
        self._id = str(uuid.uuid4())

    def status(self) -> MaterializationJobStatus:
        """Succeeded, or error."""
        return MaterializationJobStatus.ERROR if self._error else MaterializationJobStatus.SUCCEEDED

    def error(self) -> BaseException | None:
        """What went wrong, if anything."""
        return self._error

    def should_be_retried(self) -> bool:
        """Never by Feast: running the command again is safe, and says more."""
        return False

    def job_id(self) -> str:
        """A random identifier."""
        return self._id

    def url(self) -> str | None:
        """There is no page to look at."""
        return None


class TallyComputeEngine(ComputeEngine):
    """Writes the latest row of each entity, or, for a view of windows, its tiles.

    The end of the interval counts, its beginning does not: rows that came late are written too, and writing a row
    twice changes nothing.
    """

    def update(
        self, project: str, views_to_delete: Any, views_to_keep: Any, entities_to_delete: Any, entities_to_keep: Any
    ) -> None:
        """Nothing to prepare."""

    def teardown_infra(self, project: str, fvs: Any, entities: Any) -> None:
        """Nothing to take down: the online store's keys are its own."""

    def _materialize_one(self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any) -> MaterializationJob:
        repo = Path(self.repo_config.repo_path or ".")
        plan = load_plan(repo)
        view = plan.view(task.feature_view.name)
        with open_redis(repo) as redis:
            end = from_datetime(task.end_time)
            written = materialize_view(plan, view, settings_of(repo).offline_uri(), redis, end=end)
        click.echo(f"{view.name}: {written}")
        return TallyMaterializationJob(task)

    def get_historical_features(self, registry: BaseRegistry, task: HistoricalRetrievalTask | Sequence[Any]) -> Any:
        """Never asked by Feast 0.67, which goes to the offline store."""
        raise NotImplementedError("Use FeatureStore.get_historical_features, which asks TallyOfflineStore.")
