"""Building training sets: from labels and a feature repository, from a plan, or again from a manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.progress import Progress as ProgressBar

import tally
from infra.repository import load_plan
from infra.settings import Settings
from ingestion.offline import table_identity, version_at
from tally.errors import DataError
from tally.plan import Plan, Service
from tally.time import from_datetime
from training.dataset import TrainingSet
from training.digests import table_digest
from training.engine import Features, Progress, features
from training.join import MODES, Mode
from training.labels import Labels, read_labels
from training.manifest import Manifest

OfflineVersion = int | str | datetime | Mapping[str, int] | None
_PACKAGES: Final = ("dask", "deltalake", "numpy", "pandas", "pyarrow")


def build_training_set(
    labels: Any,
    *,
    service: str,
    repo: str | os.PathLike[str] = "feature_repo",
    visibility: Mode = "event_time",
    offline_version: OfflineVersion = None,
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
    `offline_version` reads the offline tables as they were: at an instant (a datetime or ISO text; naive is UTC), or as of
    a version: one number for all, or one by source as in a manifest.
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


def rebuild_training_set(
    manifest: str | os.PathLike[str] | Mapping[str, Any],
    labels: Any = None,
    *,
    repo: str | os.PathLike[str] = "feature_repo",
    offline_uri: str | None = None,
    client: Any = None,
    progress: bool | Progress | None = None,
) -> TrainingSet:
    """The training set that `manifest` (the file beside an export, or `TrainingSet.manifest`) was written for, once more.

    `labels` are the very labels of then, read where the manifest says when they are not given. Other arguments are those
    of `build_training_set`. Raises DefinitionMismatchError when the service is defined otherwise now, DataError when the
    labels are others, a table or version is gone, or the rows come out otherwise; each says which.
    """
    known = Manifest.read(manifest)
    folder = Path(repo)
    uri = offline_uri or Settings.for_repo(folder).offline_uri()
    plan = load_plan(folder)
    known.check_definition(plan)
    given = known.export.get("labels") if labels is None else labels
    if given is None:
        raise DataError(f"{known.where} does not say where its labels are: they came from memory; give them as well.")
    service = plan.service(known["service"])
    rows = read_labels(given, service, known["timestamp"])
    known.check_labels(rows.digest, rows.table.num_rows, rows.path)
    known.check_tables({name: table_identity(uri, name) for name in _sources(plan, service)})
    built = _built(
        plan,
        service,
        rows,
        timestamp=known["timestamp"],
        offline_uri=uri,
        visibility=known["visibility"],
        versions=known["offline_versions"],
        client=client,
        progress=progress,
    )
    if "rows_digest" in known.export:
        known.check_rows(table_digest(built.to_arrow()), built.manifest["packages"])
    return built


def training_set(
    plan: Plan,
    labels: Any,
    *,
    service: str,
    offline_uri: str,
    visibility: Mode = "event_time",
    offline_version: OfflineVersion = None,
    timestamp: str = "event_timestamp",
    client: Any = None,
    progress: bool | Progress | None = None,
) -> TrainingSet:
    """As `build_training_set`, from a plan whose transformations can be imported and an offline store."""
    if visibility not in MODES:
        raise DataError(f"visibility is {visibility!r}; choose one of {', '.join(MODES)}.")
    definition = plan.service(service)
    rows = read_labels(labels, definition, timestamp)
    versions = _versions(plan, definition, offline_uri, offline_version)
    return _built(
        plan,
        definition,
        rows,
        timestamp=timestamp,
        offline_uri=offline_uri,
        visibility=visibility,
        versions=versions,
        client=client,
        progress=progress,
    )


def _built(
    plan: Plan,
    service: Service,
    labels: Labels,
    *,
    timestamp: str,
    offline_uri: str,
    visibility: Mode,
    versions: Mapping[str, int],
    client: Any,
    progress: bool | Progress | None,
) -> TrainingSet:
    with _reporting(progress=progress) as report:
        found = features(
            plan,
            service,
            labels.columns,
            labels.as_of,
            offline_uri,
            visibility=visibility,
            evidence=labels.evidence,
            versions=versions,
            client=client,
            progress=report,
        )
    tables = {name: table_identity(offline_uri, name) for name in found.versions}
    manifest = _manifest(plan, service, visibility, timestamp, labels, found, tables)
    return TrainingSet(labels.table, found.columns, manifest, notes=labels.notes, labels_path=labels.path)


def _sources(plan: Plan, service: Service) -> list[str]:
    return list(dict.fromkeys(plan.view(use.view).source for use in service.views))


def _versions(plan: Plan, service: Service, offline_uri: str, wanted: OfflineVersion) -> dict[str, int]:
    sources = _sources(plan, service)
    if wanted is None:
        return {}
    if isinstance(wanted, int):
        return dict.fromkeys(sources, wanted)
    if isinstance(wanted, Mapping):
        unknown = [name for name in wanted if name not in sources]
        if unknown:
            raise DataError(f"offline_version names {unknown[0]!r}; service {service.name} reads {', '.join(sources)}.")
        return dict(wanted)
    if isinstance(wanted, str):
        try:
            wanted = datetime.fromisoformat(wanted)
        except ValueError as error:
            raise DataError(
                f"offline_version {wanted!r} is neither a version number nor an instant such as 2013-12-01T10:00:00Z."
            ) from error
    moment = from_datetime(wanted)
    return {name: version_at(offline_uri, name, moment) for name in sources}


def _manifest(
    plan: Plan,
    service: Service,
    visibility: Mode,
    timestamp: str,
    labels: Labels,
    found: Features,
    tables: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "service": service.name,
        "service_hash": service.hash,
        "plan_hash": plan.for_service(service.name).hash,
        "view_hashes": {use.view: plan.view(use.view).hash for use in service.views},
        "visibility": visibility,
        "evidence": labels.evidence is not None and visibility == "as_served",
        "timestamp": timestamp,
        "offline_versions": found.versions,
        "offline_tables": dict(tables),
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
