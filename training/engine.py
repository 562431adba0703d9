"""Features of a service for labels, in memory: reads each view's rows once, joins them, runs the request functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ingestion.delta import open_version
from ingestion.reading import read_rows
from tally.columns import Column, nulls
from tally.plan import Plan, Service, View
from training.asks import Answers, Questions, bounds
from training.join import Ask, TiedRowsError, join

Progress = Callable[[int, int], None]
Joined = tuple[Answers, dict[str, int]]
"""What each use of a view answers, and how many of the rows read were left out, by reason."""


@dataclass(frozen=True)
class Features:
    """`columns`: the service's outputs in order, one value per label.

    `refused`: per view, how many of the rows read were left out, by reason.
    """

    columns: dict[str, Column]
    refused: dict[str, dict[str, int]]


def features(
    questions: Questions,
    labels: Mapping[str, Column],
    as_of: NDArray[np.int64],
    offline_uri: str,
    versions: Mapping[str, int],
    *,
    evidence: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Features:
    """The features of each label as of its instant, in the order of the labels.

    `labels` has every column of the service's keys (without nulls) and request; `as_of` is int64 µs. `evidence` is a JSON
    text per label (`tally.served.EVIDENCE_COLUMN`) and decides what was visible, in place of arrival times, in the mode
    "as_served". `versions` are those of the sources' tables. Views are joined on local threads; `progress` is called with
    (done, total) views.

    Raises NotReadyError for a source that was never ingested, DataError for bad evidence or a sum that does not fit,
    DefinitionMismatchError for a function whose source is not the plan's.
    """
    plan, service = questions.plan, questions.service
    if len(as_of) == 0:
        return Features({f.name: nulls(f.dtype, 0) for f in service.outputs}, {})
    first, last = int(as_of.min()), int(as_of.max())
    tasks = []
    names = list(dict.fromkeys(use.view for use in service.views))
    for name in names:
        asks = [
            questions.ask(position, [labels[key] for key in service.views[position].keys], as_of, evidence)
            for position in questions.uses_of(name)
        ]
        version = versions[plan.view(name).source]
        tasks.append(partial(_joined, questions, name, offline_uri, version, first, last, asks))
    found: Answers = [{} for _ in service.views]
    refused = {}
    for name, (answers, of_view) in zip(names, _run(tasks, progress), strict=True):
        refused[name] = of_view
        for position, one in zip(questions.uses_of(name), answers, strict=True):
            found[position] = one
    return Features(questions.outputs(labels, found, len(as_of)), refused)


def pinned_versions(plan: Plan, service: Service, offline_uri: str, versions: Mapping[str, int]) -> dict[str, int]:
    """The version to read of each source. All its views must see one, though ingestion may commit between their reads."""
    names = dict.fromkeys(plan.view(use.view).source for use in service.views)
    return {name: open_version(offline_uri, name, versions.get(name)).version() for name in names}


def _joined(
    questions: Questions, name: str, offline_uri: str, version: int, first: int, last: int, asks: list[Ask]
) -> Joined:
    narrow, whole = questions.view(name), questions.plan.view(name)
    try:
        return _read_and_joined(questions.plan, narrow, whole, offline_uri, version, first, last, asks)
    except TiedRowsError:
        return _read_and_joined(questions.plan, whole, whole, offline_uri, version, first, last, asks)


def _read_and_joined(
    plan: Plan, read: View, whole: View, offline_uri: str, version: int, first: int, last: int, asks: list[Ask]
) -> Joined:
    start, end = bounds(whole, first, last)
    rows = read_rows(plan, read, offline_uri, version=version, start=start, end=end)
    return join(whole, rows, asks), rows.refused


def _run(tasks: Sequence[Callable[[], Joined]], progress: Progress | None) -> list[Joined]:
    """What each task returns. Raises what the first one to fail raises."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = [pool.submit(task) for task in tasks]
        for done, task in enumerate(as_completed(running), 1):
            if task.exception() is not None:
                pool.shutdown(cancel_futures=True)
                task.result()
            if progress is not None:
                progress(done, len(tasks))
        return [task.result() for task in running]
