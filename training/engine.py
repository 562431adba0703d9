"""Features of a service for labels: reads each view's rows once, joins them as Dask tasks, runs the request functions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
from dask.callbacks import Callback
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from ingestion.offline import Rows, open_version, read_rows
from tally import functions
from tally.columns import Column, concatenate, nulls
from tally.errors import DataError
from tally.plan import Plan, RequestFunction, Service, View, ViewUse
from training.join import MODES, Ask, Mode, Seen, join, split_labels, split_rows
from training.timeline import Positions

Progress = Callable[[int, int], None]
Answers = list[dict[str, Column]]


@dataclass(frozen=True)
class Features:
    """`columns`: the service's outputs in order, one value per label.

    `versions`: the version of each source's Delta table that was read. `refused`: per view, how many of the rows read were
    left out, by reason.
    """

    columns: dict[str, Column]
    versions: dict[str, int]
    refused: dict[str, dict[str, int]]


def features(
    plan: Plan,
    service: Service,
    labels: Mapping[str, Column],
    as_of: NDArray[np.int64],
    offline_uri: str,
    *,
    visibility: Mode = "event_time",
    evidence: Sequence[str] | None = None,
    versions: Mapping[str, int] | None = None,
    client: Any = None,
    partitions: int | None = None,
    progress: Progress | None = None,
) -> Features:
    """The features of each label as of its instant, in the order of the labels.

    `labels` has every column of ``service.keys`` (without nulls) and ``service.request``; `as_of` is int64 µs. `evidence` is
    a JSON text per label (`tally.layout.EVIDENCE_COLUMN`) and decides what was visible, in place of arrival times, when
    `visibility` is "as_served". `versions` pins tables of sources by name, others are read as they are now. Work runs on
    `client`, on the active `distributed.Client` where there is one, else on local threads; keys are divided into
    `partitions` (None: one per thread of a cluster, one locally). The bits do not depend on any of these.
    `progress` is called with (done, total) tasks.

    Raises NotReadyError for a source that was never ingested, DataError for bad arguments or a sum that does not fit,
    DefinitionMismatchError for a function whose source is not the plan's.
    """
    if visibility not in MODES:
        raise DataError(f"visibility is {visibility!r}; choose one of {', '.join(MODES)}.")
    calls = [_Call.of(plan, service, use.function) for use in service.functions]
    pinned = _pinned(plan, service, offline_uri, versions or {})
    if len(as_of) == 0:
        return Features({f.name: nulls(f.dtype, 0) for f in service.outputs}, pinned, {})
    asks = _asks(plan, service, calls, labels, as_of, visibility, evidence)
    client = client if client is not None else _active_client()
    parts = partitions or (sum(client.nthreads().values()) if client is not None else 1) or 1
    found, refused = _joined(plan, service, asks, offline_uri, pinned, client, parts, progress)
    columns = _answered(service, calls, labels, found, len(as_of))
    return Features({f.name: columns[f.name] for f in service.outputs}, pinned, refused)


@dataclass(frozen=True, slots=True)
class _Call:
    """A request function, ready to run: where each parameter comes from (position of the use, or -1 for a request field)."""

    definition: RequestFunction
    function: functions.Transformation
    inputs: tuple[tuple[str, int, str], ...]

    @staticmethod
    def of(plan: Plan, service: Service, name: str) -> _Call:
        definition = plan.function(name)
        inputs = tuple((i.parameter, service.origin(i), i.feature) for i in definition.inputs)
        return _Call(definition, functions.load(definition.function), inputs)


def _pinned(plan: Plan, service: Service, offline_uri: str, versions: Mapping[str, int]) -> dict[str, int]:
    # All views of a source must see one version, though ingestion may commit between their reads.
    names = dict.fromkeys(plan.view(use.view).source for use in service.views)
    return {name: open_version(offline_uri, name, versions.get(name)).version() for name in names}


def _active_client() -> Any:
    if "distributed" not in sys.modules:
        return None
    from distributed import get_client  # noqa: PLC0415 - a second of import, for those who have a cluster

    try:
        return get_client()
    except ValueError:
        return None


def _asks(
    plan: Plan,
    service: Service,
    calls: Sequence[_Call],
    labels: Mapping[str, Column],
    as_of: NDArray[np.int64],
    mode: Mode,
    evidence: Sequence[str] | None,
) -> list[Ask]:
    parsed = None if evidence is None or mode == "event_time" else _parsed(evidence)
    asks = []
    for position, use in enumerate(service.views):
        read = [feature for call in calls for _, origin, feature in call.inputs if origin == position]
        wanted = tuple(dict.fromkeys([feature for feature, _ in use.features] + read))
        seen = None if parsed is None else _evidence_of(plan, use, parsed)
        asks.append(Ask([labels[name] for name in use.keys], as_of, wanted, mode, seen))
    return asks


def _parsed(evidence: Sequence[str]) -> list[Any]:
    entries = []
    for row, text in enumerate(evidence):
        try:
            entries.append(json.loads(text))
        except ValueError as error:
            raise DataError(
                f"The evidence of label row {row} is not JSON ({error}); keep it as it was served."
            ) from error
    return entries


def _evidence_of(plan: Plan, use: ViewUse, parsed: Sequence[Any]) -> list[Seen]:
    kind = "fences" if plan.view(use.view).kind == "window" else "version"
    seen: list[Seen] = []
    for row, entry in enumerate(parsed):
        known = isinstance(entry, dict) and use.name in entry
        one = entry[use.name] if known else None
        if not known or (one is not None and kind not in one):
            raise DataError(
                f"The evidence of label row {row} has no {kind} of {use.name}; it must come from this service's answers."
            )
        if one is not None and kind == "fences":
            one = {"fences": {int(partition): offset for partition, offset in one["fences"].items()}}
        seen.append(one)
    return seen


def _joined(
    plan: Plan,
    service: Service,
    asks: Sequence[Ask],
    offline_uri: str,
    versions: Mapping[str, int],
    client: Any,
    parts: int,
    progress: Progress | None,
) -> tuple[Answers, dict[str, dict[str, int]]]:
    document = plan.for_service(service.name).to_json()
    tasks: list[Delayed] = []
    uses_of: dict[str, list[int]] = {}
    for position, use in enumerate(service.views):
        uses_of.setdefault(use.view, []).append(position)
    back: list[Positions] = [np.zeros(0, np.int64)] * len(asks)
    for name, uses in uses_of.items():
        view = plan.view(name)
        read = delayed(_read, pure=False)(
            document, name, offline_uri, versions[view.source], *_bounds(view, asks[0].as_of), parts
        )
        split = []
        for position in uses:
            pieces, back[position] = split_labels(asks[position], parts)
            split.append(pieces)
        for part in range(parts):
            own = [_put(client, pieces[part]) for pieces in split]
            tasks.append(delayed(_join, pure=False)(document, name, read, part, *own))
    results = _run(tasks, client, progress)
    found: Answers = [{} for _ in asks]
    refused = {}
    for number, (name, uses) in enumerate(uses_of.items()):
        of_view = results[number * parts : (number + 1) * parts]
        refused[name] = of_view[0][1]
        for i, position in enumerate(uses):
            for feature in asks[position].features:
                values = [answers[i][feature] for answers, _ in of_view]
                found[position][feature] = values[0] if parts == 1 else concatenate(values).take(back[position])
    return found, refused


def _bounds(view: View, as_of: NDArray[np.int64]) -> tuple[int | None, int]:
    """The times of rows that can matter to any label: first (None: no bound) and last."""
    first, last = int(as_of.min()), int(as_of.max())
    if view.kind == "window":
        return min(int(a.window.lower(first)) for a in view.aggregations), last
    return first - view.ttl if view.ttl else None, last


def _read(
    document: str, name: str, offline_uri: str, version: int, start: int | None, end: int, parts: int
) -> list[Rows]:
    plan = Plan.from_json(document)
    view = plan.view(name)
    return split_rows(view, read_rows(plan, view, offline_uri, version=version, start=start, end=end), parts)


def _join(document: str, name: str, rows: list[Rows], part: int, *asks: Ask) -> tuple[Answers, dict[str, int]]:
    return join(Plan.from_json(document).view(name), rows[part], asks), rows[part].refused


def _put(client: Any, ask: Ask) -> Any:
    return ask if client is None else client.scatter(ask)


def _run(tasks: Sequence[Delayed], client: Any, progress: Progress | None) -> list[tuple[Answers, dict[str, int]]]:
    if client is not None:
        return _run_on_cluster(tasks, client, progress)
    waiting = {task.key for task in tasks}
    total = len(waiting)

    def finished(key: Any, *_: Any) -> None:
        if progress is not None and key in waiting:
            waiting.discard(key)
            progress(total - len(waiting), total)

    with Callback(posttask=finished):
        return list(dask.compute(*tasks, scheduler="threads"))


def _run_on_cluster(tasks: Sequence[Delayed], client: Any, progress: Progress | None) -> list[Any]:
    from distributed import as_completed  # noqa: PLC0415 - as above

    with client.as_current():
        futures = client.compute(list(tasks))
        if progress is not None:
            for done, _ in enumerate(as_completed(futures), start=1):
                progress(done, len(futures))
        return list(client.gather(futures))


def _answered(
    service: Service, calls: Sequence[_Call], labels: Mapping[str, Column], found: Answers, count: int
) -> dict[str, Column]:
    columns = {}
    for use, values in zip(service.views, found, strict=True):
        columns.update({name: values[feature] for feature, name in use.features})
    for used, call in zip(service.functions, calls, strict=True):
        inputs = {
            parameter: labels[feature] if origin < 0 else found[origin][feature]
            for parameter, origin, feature in call.inputs
        }
        outputs = functions.run(call.function, inputs, call.definition.outputs, count)
        columns.update({name: outputs[output] for output, name in used.features})
    return columns
