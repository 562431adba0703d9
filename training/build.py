"""Building training sets: from labels and a feature repository, from a plan, or again from a manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.progress import Progress as ProgressBar

import tally
from infra.repository import load_plan
from infra.settings import Settings
from ingestion.delta import table_identity, version_at
from tally.errors import ArgumentError, DataError
from tally.plan import Plan, Service
from tally.time import from_datetime
from training.arrivals import check_landed, sentences, unknown_of
from training.asks import Questions
from training.cluster import Cluster, active_client
from training.dataset import TrainingSet
from training.engine import Progress, features, pinned_versions
from training.join import Mode
from training.labels import LabelReader, label_tables, labels_of, together
from training.manifest import Manifest
from training.memory import memory_limit
from training.partitioned import Local, Partitioned
from training.work import ViewWork, peak, survey

OfflineVersion = int | str | datetime | Mapping[str, int] | None
_LABELS_SHARE: Final = 0.1
"""Labels that take more than this of the memory are kept on disk."""
_ROWS_AT_ONCE: Final = 1 << 23
"""More rows than this are joined part by part even where they fit: that is faster, by the processor's caches."""
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
    memory: str | int | None = None,
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
    `memory` ("4GB", or bytes) bounds what this process holds; None: a part of what is free. What does not fit is divided by
    entity key and goes through files in a temporary folder (`TMPDIR`), until the training set is gone.
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
        memory=memory,
        client=client,
        progress=progress,
    )


def rebuild_training_set(
    manifest: str | os.PathLike[str] | Mapping[str, Any],
    labels: Any = None,
    *,
    repo: str | os.PathLike[str] = "feature_repo",
    offline_uri: str | None = None,
    memory: str | int | None = None,
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
    questions = Questions(plan, plan.service(known["service"]), known["visibility"])
    limit = memory_limit(memory)
    reader, rows = _gathered(given, questions, known["timestamp"], limit)
    known.check_labels(reader.digest, reader.rows, reader.path)
    known.check_tables({name: table_identity(uri, name) for name in _sources(plan, questions.service)})
    built = _built(
        questions,
        reader,
        rows,
        offline_uri=uri,
        versions=known["offline_versions"],
        limit=limit,
        client=client,
        progress=progress,
    )
    if "rows_digest" in known.export:
        known.check_rows(built.rows_digest(), built.manifest["packages"])
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
    memory: str | int | None = None,
    client: Any = None,
    progress: bool | Progress | None = None,
) -> TrainingSet:
    """As `build_training_set`, from a plan whose transformations can be imported and an offline store."""
    questions = Questions(plan, plan.service(service), visibility)
    limit = memory_limit(memory)
    reader, rows = _gathered(labels, questions, timestamp, limit)
    return _built(
        questions,
        reader,
        rows,
        offline_uri=offline_uri,
        versions=offline_versions(plan, questions.service, offline_uri, offline_version),
        limit=limit,
        client=client,
        progress=progress,
    )


def _gathered(
    source: Any, questions: Questions, timestamp: str, limit: int
) -> tuple[LabelReader, pa.Table | Partitioned]:
    """The labels' reader, and the labels: in memory, or on disk when they are more than their share of `limit` bytes."""
    reader = LabelReader(source, questions.service, timestamp)
    coming = label_tables(source)
    tables: list[pa.Table] = []
    size = 0
    for table in coming:
        tables.append(table)
        size += table.nbytes
        if size > limit * _LABELS_SHARE:
            break
    else:
        return reader, reader.conform(together(tables))
    stored = Partitioned(questions, timestamp)
    for table in chain(tables, coming):
        stored.labels.add(reader.conform(table))
    return reader, stored


def _built(
    questions: Questions,
    reader: LabelReader,
    labels: pa.Table | Partitioned,
    *,
    offline_uri: str,
    versions: Mapping[str, int],
    limit: int,
    client: Any,
    progress: bool | Progress | None,
) -> TrainingSet:
    questions.load()
    client = client if client is not None else active_client()
    pinned = pinned_versions(questions.plan, questions.service, offline_uri, versions)
    tables = {name: table_identity(offline_uri, name) for name in pinned}

    if reader.evidence and questions.mode == "as_served":
        check_landed(questions, labels, offline_uri, pinned)
    unknown = unknown_of(questions, reader, offline_uri, pinned)
    notes = (*reader.notes, *sentences(unknown))

    def manifest(rows: int, refused: Mapping[str, Any]) -> dict[str, Any]:
        return _manifest(questions, reader, rows, pinned, tables, refused, unknown)

    with _reporting(progress=progress) as report:
        if isinstance(labels, pa.Table):
            few = labels_of(labels, reader)
            work = _survey(questions, offline_uri, pinned, few.as_of)
            needed = peak(work, len(few.as_of)) + 3 * labels.nbytes
            few_rows = sum(one.rows for one in work) <= _ROWS_AT_ONCE
            if not work or (client is None and few_rows and needed <= limit):
                found = features(
                    questions, few.columns, few.as_of, offline_uri, pinned, evidence=few.evidence, progress=report
                )
                made = manifest(len(few.as_of), found.refused)
                return TrainingSet(labels, found.columns, made, notes=notes, labels_path=reader.path)
            stored = Partitioned(questions, reader.timestamp)
            stored.labels.add(labels)
        else:
            stored = labels
            work = survey(questions, offline_uri, pinned, stored.labels.first, stored.labels.last)
            needed = limit
        stored.join(work, Local(limit) if client is None else Cluster(client, limit), report)
    made = manifest(stored.labels.rows, stored.refused)
    if needed < limit:
        whole = stored.in_memory()
        stored.close()
        return TrainingSet(*whole, made, notes=notes, labels_path=reader.path)
    return TrainingSet.stored(stored, made, notes=notes, labels_path=reader.path)


def _survey(
    questions: Questions, offline_uri: str, versions: Mapping[str, int], as_of: NDArray[np.int64]
) -> list[ViewWork]:
    return survey(questions, offline_uri, versions, int(as_of.min()), int(as_of.max())) if len(as_of) else []


def _sources(plan: Plan, service: Service) -> list[str]:
    return list(dict.fromkeys(plan.view(use.view).source for use in service.views))


def offline_versions(plan: Plan, service: Service, offline_uri: str, wanted: OfflineVersion) -> dict[str, int]:
    """The version of each source that `wanted` names (see `build_training_set`); a source without one is read as it is."""
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
            raise ArgumentError(
                f"offline_version {wanted!r} is neither a version number nor an instant such as 2013-12-01T10:00:00Z."
            ) from error
    moment = from_datetime(wanted)
    return {name: version_at(offline_uri, name, moment) for name in sources}


def _manifest(
    questions: Questions,
    reader: LabelReader,
    rows: int,
    versions: Mapping[str, int],
    tables: Mapping[str, str],
    refused: Mapping[str, Any],
    unknown: Mapping[str, Any],
) -> dict[str, Any]:
    plan, service = questions.plan, questions.service
    return {
        "service": service.name,
        "service_hash": service.hash,
        "plan_hash": plan.for_service(service.name).hash,
        "view_hashes": {use.view: plan.view(use.view).hash for use in service.views},
        "visibility": questions.mode,
        "evidence": reader.evidence and questions.mode == "as_served",
        "timestamp": reader.timestamp,
        "offline_versions": dict(versions),
        "offline_tables": dict(tables),
        "label_digest": reader.digest,
        "label_rows": reader.rows,
        "rows": rows,
        "refused": dict(refused),
        "unknown": dict(unknown),
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
