"""Answers that did not come from Redis just now: their statuses say so. Pure: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving_client.few_rows import FewRequest
from serving_client.lookup import Request
from serving_client.rows import FeatureRows
from serving_client.status import Status
from tally.columns import Column, canonical, column
from tally.errors import DataError
from tally.plan import Plan, Service

Marks = NDArray[np.uint8]


@dataclass(frozen=True)
class Fallback:
    """What to serve when Redis does not answer within the time of a request; without one, the error is raised.

    `stale_seconds`: what the client's cache read up to so long ago, with Status.STALE. `defaults`: for what the cache does
    not have, a value for each feature named and null for the others, with Status.DEFAULT; None: the error is raised.
    """

    stale_seconds: float = 0.0
    defaults: Mapping[str, Any] | None = field(default=None)


def default_columns(service: Service, defaults: Mapping[str, Any]) -> dict[str, Column]:
    """A column of one value for each of `defaults`. Raises DataError for an unknown feature or a value of another type."""
    dtypes = {output.name: output.dtype for output in service.outputs}
    unknown = [name for name in defaults if name not in dtypes]
    if unknown:
        raise DataError(f"There is a default for {unknown[0]!r}; service {service.name} has {', '.join(dtypes)}.")
    return {name: column(dtypes[name], [value], f"The default of {name}") for name, value in defaults.items()}


def marks_of_uses(service: Service, request: Request | FewRequest, marks: Marks) -> list[Marks]:
    """For each use of a view, the mark of each row's key, from the marks of `request.keys`."""
    if isinstance(request, FewRequest):
        return [marks[slots] for slots in request.slots]
    views = list(dict.fromkeys(use.view for use in service.views))
    found = []
    for use, positions in zip(service.views, request.positions, strict=True):
        own = marks[request.blocks[views.index(use.view)]]
        found.append(own if positions is None else own[positions])
    return found


def sources(plan: Plan) -> dict[str, tuple[int, ...]]:
    """For each output of the one service of `plan`, the uses of views that it is made from, by position."""
    service = plan.services[0]
    found = {name: (i,) for i, use in enumerate(service.views) for _, name in use.features}
    made: dict[str, tuple[int, ...]] = dict(found)
    for use in service.functions:
        origins = {service.origin(one) for one in plan.function(use.function).inputs} - {-1}
        made |= {name: tuple(sorted(origins)) for _, name in use.features}
    return made


def marked(plan: Plan, rows: FeatureRows, uses: Sequence[Marks], defaults: Mapping[str, Column]) -> FeatureRows:
    """`rows` with the marks of the uses in their statuses, and `defaults` (columns of one) where they are DEFAULT.

    CACHED shows where a value would be PRESENT; STALE and DEFAULT show everywhere.
    """
    service = plan.services[0]
    columns, status = dict(rows.columns), dict(rows.status)
    nothing = np.zeros(len(rows), np.uint8)
    for name, origins in sources(plan).items():
        mark = np.maximum.reduce([uses[i] for i in origins]) if origins else nothing
        shown = (mark >= Status.STALE) | ((mark == Status.CACHED) & (status[name] == Status.PRESENT))
        status[name] = np.where(shown, mark, status[name])
        replaced = mark == Status.DEFAULT
        if replaced.any():
            columns[name] = _replaced(columns[name], replaced, defaults.get(name))
    answer = FeatureRows(service, columns, {name: status[name] for name in columns}, rows.as_of, rows.reads)
    answer.superseded = rows.superseded
    return answer


def _replaced(values: Column, rows: NDArray[np.bool_], default: Column | None) -> Column:
    if default is None:
        return canonical(values.dtype, values.values, values.valid & ~rows)
    items, valid = values.values.copy(), values.valid.copy()
    items[rows], valid[rows] = default.values[0], default.valid[0]
    return canonical(values.dtype, items, valid)
