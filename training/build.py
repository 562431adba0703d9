"""Building training sets: from labels and a feature repository, or from a plan."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.progress import Progress as ProgressBar

import tally
from infra.repository import load_plan
from infra.settings import Settings
from tally.errors import DataError
from tally.plan import Plan, Service
from training.dataset import TrainingSet
from training.engine import Features, Progress, features
from training.join import Mode
from training.labels import Labels, read_labels

_PACKAGES: Final = ("dask", "deltalake", "numpy", "pandas", "pyarrow")


def build_training_set(
    labels: Any,
    *,
    service: str,
    repo: str | os.PathLike[str] = "feature_repo",
    visibility: Mode = "event_time",
    offline_version: int | Mapping[str, int] | None = None,
    timestamp: str = "event_timestamp",
    offline_uri: str | None = None,
    client: Any = None,
    progress: bool | Progress | None = None,
) -> TrainingSet:
    """The features of `service` for each label, as they were at its time.

    `labels` (pandas, pyarrow, Dask, or the path of Parquet) have the service's keys and request fields and the column
    `timestamp`; other columns come along. `repo` is the feature repository, where `feast apply` left its plan.

    `visibility` "event_time" sees all rows up to the label's time; "as_served" only those that had arrived by then or,
    where the labels have the column ``tally_evidence``, exactly those that a served row was made from.
    `offline_version` reads the offline tables as of a version: one number, or one by source as in a manifest.
    `client` is a `distributed.Client`; the active one is used where there is one, else local threads.
    `progress`: True for a progress bar, or a function that is called with (done, total).

    Raises NotReadyError before `feast apply` or `tally ingest`, UnknownServiceError, and DataError for bad labels.
    """
    folder = Path(repo)
    return training_set(
        load_plan(folder),
        labels,
        service=service,
        offline_uri=offline_uri or Settings.for_repo(folder).offline_uri(),
        visibility=visibility,
        offline_version=offline_version,
        timestamp=timestamp,
        client=client,
        progress=progress,
    )


def training_set(
    plan: Plan,
    labels: Any,
    *,
    service: str,
    offline_uri: str,
    visibility: Mode = "event_time",
    offline_version: int | Mapping[str, int] | None = None,
    timestamp: str = "event_timestamp",
    client: Any = None,
    progress: bool | Progress | None = None,
) -> TrainingSet:
    """As `build_training_set`, from a plan whose transformations can be imported and an offline store."""
    definition = plan.service(service)
    rows = read_labels(labels, definition, timestamp)
    with _reporting(progress=progress) as report:
        found = features(
            plan,
            definition,
            rows.columns,
            rows.as_of,
            offline_uri,
            visibility=visibility,
            evidence=rows.evidence,
            versions=_versions(plan, definition, offline_version),
            client=client,
            progress=report,
        )
    return TrainingSet(rows.table, found.columns, _manifest(plan, definition, visibility, rows, found))


def _versions(plan: Plan, service: Service, wanted: int | Mapping[str, int] | None) -> dict[str, int]:
    sources = dict.fromkeys(plan.view(use.view).source for use in service.views)
    if wanted is None:
        return {}
    if isinstance(wanted, int):
        return dict.fromkeys(sources, wanted)
    unknown = [name for name in wanted if name not in sources]
    if unknown:
        raise DataError(f"offline_version names {unknown[0]!r}; service {service.name} reads {', '.join(sources)}.")
    return dict(wanted)


def _manifest(plan: Plan, service: Service, visibility: Mode, labels: Labels, found: Features) -> dict[str, Any]:
    return {
        "service": service.name,
        "service_hash": service.hash,
        "plan_hash": plan.hash,
        "view_hashes": {use.view: plan.view(use.view).hash for use in service.views},
        "visibility": visibility,
        "evidence": labels.evidence is not None and visibility == "as_served",
        "offline_versions": found.versions,
        "label_digest": labels.digest,
        "label_rows": labels.table.num_rows,
        "rows": len(next(iter(found.columns.values()), labels.as_of)),
        "refused": found.refused,
        "packages": {name: version(name) for name in _PACKAGES},
        "tally_version": tally.__version__,
    }


@contextmanager
def _reporting(*, progress: bool | Progress | None) -> Iterator[Progress | None]:
    if progress is False or progress is None:
        yield None
    elif progress is not True:
        yield progress
    else:
        with ProgressBar() as bar:
            task = bar.add_task("training set", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
