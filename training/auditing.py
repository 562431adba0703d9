"""Audits: what was served beside what the offline store says was to be served, bit for bit, and why where they differ."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.repository import load_plan
from infra.settings import Settings
from ingestion.arrow import conform, to_column
from tally.columns import Column, differing
from tally.errors import DataError
from tally.plan import Field, Plan, Service
from tally.served import EVIDENCE_COLUMN, SERVED, STATUS_COLUMN
from tally.time import HOUR
from training.audit_results import FLAGGED, KEPT, Audit, Difference, FeatureAudit, ServiceAudit
from training.build import OfflineVersion
from training.engine import Progress
from training.replay import Replay
from training.served_rows import ServedRows, documents, rows_with, served_rows
from training.visibility import Mask

_VALUES_AT_ONCE: Final = 1 << 23


def audit(
    log: str | os.PathLike[str],
    *,
    repo: str | os.PathLike[str] = "feature_repo",
    offline_version: OfflineVersion = None,
    offline_uri: str | None = None,
    memory: str | int | None = None,
    client: Any = None,
    progress: Progress | None = None,
) -> Audit:
    """Replay the served rows of `log` (a folder of a `ParquetSink`, or one file) from their evidence, and compare by bits.

    Each row is built from the offline store as `visibility="as_served"` does, under the definition it was served with. Rows
    of another definition than the plan's, and those that had read what the offline store does not have yet, are left out
    and counted. `progress` is called with (rows done, rows in all); other arguments are those of `build_training_set`.

    Raises NotReadyError before `feast apply` or `tally ingest`, DataError for what is no log of served rows.
    """
    folder = Path(repo)
    return audit_log(
        load_plan(folder),
        log,
        offline_uri=offline_uri or Settings.for_repo(folder).offline_uri(),
        offline_version=offline_version,
        memory=memory,
        client=client,
        progress=progress,
    )


def audit_log(
    plan: Plan,
    log: str | os.PathLike[str],
    *,
    offline_uri: str,
    offline_version: OfflineVersion = None,
    memory: str | int | None = None,
    client: Any = None,
    progress: Progress | None = None,
) -> Audit:
    """As `audit`, from a plan whose transformations can be imported and an offline store."""
    found = served_rows(Path(log))
    total = sum(served.rows for served in found)
    parts: list[ServiceAudit] = []
    for served in found:
        defined = next((one for one in plan.services if one.name == served.service), None)
        part = ServiceAudit(served.service, served.definition, served.rows)
        parts.append(part)
        if defined is None:
            part.left_out[f"the plan has no service {served.service}"] = served.rows
        elif defined.hash != served.definition:
            part.left_out[f"served under another definition than the plan's, {defined.hash[:8]}"] = served.rows
        else:
            replay = Replay(plan, defined, offline_uri, offline_version, memory, client)
            part.features = [FeatureAudit(output.name, output.dtype) for output in defined.outputs]
            part.versions = replay.versions
            _audit(part, served, replay, progress, sum(one.rows for one in parts[:-1]), total)
        if progress is not None:
            progress(sum(one.rows for one in parts), total)
    return Audit(Path(log), parts)


def _audit(
    part: ServiceAudit, served: ServedRows, replay: Replay, progress: Progress | None, done: int, total: int
) -> None:
    for table in served.tables(max(_VALUES_AT_ONCE // max(len(part.features), 1), 1)):
        _audit_rows(part, table, replay)
        done += table.num_rows
        if progress is not None:
            progress(done, total)


def _audit_rows(part: ServiceAudit, table: pa.Table, replay: Replay) -> None:
    service, outputs = replay.service, replay.service.outputs
    names = [f.name for f in replay.asked] + [replay.timestamp, EVIDENCE_COLUMN]
    _check_columns(table, [*names, STATUS_COLUMN, *(SERVED + f.name for f in outputs)], service)
    evidence = documents(table, EVIDENCE_COLUMN)
    reasons = replay.left_out(evidence)
    part.left_out.update(filter(None, reasons))
    kept = np.flatnonzero([not reason for reason in reasons])
    if not len(kept):
        return
    table = table.take(kept)
    evidence = [evidence[row] for row in kept.tolist()]
    labels = table.select(names)
    replayed, by_event = replay.features(labels, "as_served"), replay.features(labels, "event_time")
    as_of = _column(Field(replay.timestamp, "UnixTimestamp"), table, replay.timestamp).values
    flags = rows_with(documents(table, STATUS_COLUMN), FLAGGED)
    compared, differs, later = {}, {}, {}
    answers = {}
    for output, of_feature in zip(outputs, part.features, strict=True):
        name = output.name
        answers[name] = _column(output, table, SERVED + name)
        certified = np.ones(len(kept), np.bool_)
        for status, rows in flags.get(name, {}).items():
            certified[rows] = False
            of_feature.flagged[status] += len(rows)
        compared[name] = certified
        differs[name] = certified & differing(answers[name], replayed[name])
        later[name] = certified & ~differs[name] & differing(answers[name], by_event[name])
        of_feature.values += int(certified.sum())
        of_feature.differ += int(differs[name].sum())
        of_feature.later += int(later[name].sum())
    _count_hours(part, as_of, compared, differs, later)
    wrong = np.flatnonzero(np.logical_or.reduce(list(differs.values())))
    if len(wrong):
        asked = {f.name: _column(f, table, f.name).take(wrong) for f in replay.asked}
        why = replay.why(
            {name: mask[wrong] for name, mask in differs.items()}, asked, [evidence[row] for row in wrong.tolist()]
        )
        _keep(part, wrong, asked, as_of, differs, answers, replayed, why)
    part.first = int(as_of.min()) if not part.audited else min(part.first, int(as_of.min()))
    part.last = max(part.last, int(as_of.max())) if part.audited else int(as_of.max())
    part.audited += len(kept)


def _keep(
    part: ServiceAudit,
    wrong: NDArray[np.int64],
    asked: Mapping[str, Column],
    as_of: NDArray[np.int64],
    differs: Mapping[str, Mask],
    answers: Mapping[str, Column],
    replayed: Mapping[str, Column],
    why: Mapping[str, Sequence[str]],
) -> None:
    """Count the differences of the rows `wrong` by reason, and keep the first of them."""
    keys = {name: column.to_list() for name, column in asked.items()}
    for place, row in enumerate(wrong.tolist()):
        for name, mask in differs.items():
            if not mask[row]:
                continue
            reason = why[name][place]
            part.why[reason] += 1
            if len(part.differences) < KEPT:
                one = np.array([row])
                key = {key: items[place] for key, items in keys.items()}
                values = [columns[name].take(one).to_list()[0] for columns in (answers, replayed)]
                part.differences.append(
                    Difference(part.audited + row, key, int(as_of[row]), name, values[0], values[1], reason)
                )


def _count_hours(part: ServiceAudit, as_of: NDArray[np.int64], *masks: Mapping[str, Mask]) -> None:
    hours, position = np.unique(as_of // HOUR, return_inverse=True)
    counts = []
    for of_features in masks:
        weights = np.sum([mask.astype(np.int64) for mask in of_features.values()], axis=0)
        counts.append(np.bincount(position, weights, len(hours)).astype(np.int64).tolist())
    for hour, *some in zip(hours.tolist(), *counts, strict=True):
        known = part.hours.get(hour, (0, 0, 0))
        part.hours[hour] = (known[0] + some[0], known[1] + some[1], known[2] + some[2])


def _column(as_declared: Field, table: pa.Table, name: str) -> Column:
    return to_column(
        as_declared.dtype, conform(as_declared.dtype, table.column(name).combine_chunks(), f"Column {name} of the log")
    )


def _check_columns(table: pa.Table, names: Sequence[str], service: Service) -> None:
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise DataError(
            f"The log has no column {missing[0]}, which rows served by {service.name} have; give a log as it was written."
        )
