"""What a service asks of its views for labels, and its outputs from what they answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tally import functions
from tally.columns import Column
from tally.errors import DataError
from tally.plan import Plan, RequestFunction, Service, View, ViewUse
from training.join import MODES, Ask, Mode, Seen

Answers = list[dict[str, Column]]
"""For each use of a view, the features asked of it by name."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request function, ready to run: where each parameter comes from (position of the use, or -1 for a request field)."""

    definition: RequestFunction
    function: functions.Transformation
    inputs: tuple[tuple[str, int, str], ...]

    @staticmethod
    def of(plan: Plan, service: Service, name: str) -> Call:
        """Raises DefinitionMismatchError for a function whose source is not the plan's."""
        definition = plan.function(name)
        inputs = tuple((i.parameter, service.origin(i), i.feature) for i in definition.inputs)
        return Call(definition, functions.load(definition.function), inputs)


class Questions:
    """What a service asks of its views: `features` wanted of each use, and the request functions that run after."""

    def __init__(self, plan: Plan, service: Service, visibility: str) -> None:
        """Raises DataError for an unknown visibility."""
        modes: dict[str, Mode] = {mode: mode for mode in MODES}
        if visibility not in modes:
            raise DataError(f"visibility is {visibility!r}; choose one of {', '.join(MODES)}.")
        self.plan = plan
        self.service = service
        self.mode = modes[visibility]
        self._calls: list[Call] = []
        self.features = [self._wanted(position, use) for position, use in enumerate(service.views)]

    def load(self) -> None:
        """Import the request functions. Raises DefinitionMismatchError for one whose source is not the plan's."""
        self._calls = [Call.of(self.plan, self.service, use.function) for use in self.service.functions]

    def _wanted(self, position: int, use: ViewUse) -> tuple[str, ...]:
        inputs = [one for called in self.service.functions for one in self.plan.function(called.function).inputs]
        read = [one.feature for one in inputs if self.service.origin(one) == position]
        return tuple(dict.fromkeys([feature for feature, _ in use.features] + read))

    def uses_of(self, view: str) -> list[int]:
        """The positions of the uses of a view."""
        return [position for position, use in enumerate(self.service.views) if use.view == view]

    def view(self, name: str) -> View:
        """A view with only the columns that its rows must have to answer what is asked of it.

        Rows that tie in all else are told apart by their other columns: `training.join.TiedRowsError` says so.
        """
        view = self.plan.view(name)
        if view.kind == "window" or view.function is not None:
            return view
        wanted = {feature for position in self.uses_of(name) for feature in self.features[position]}
        wanted |= {field.name for field in view.keys} | {view.timestamp, view.created}
        return narrowed(view, wanted)

    def ask(
        self,
        position: int,
        keys: Sequence[Column],
        as_of: NDArray[np.int64],
        evidence: Sequence[str] | None,
        first: Iterable[int] | None = None,
    ) -> Ask:
        """What one use asks for labels. `first` are the labels' row numbers for errors (None: from 0).

        Raises DataError for evidence that is not of this service.
        """
        seen = None
        if evidence is not None and self.mode == "as_served":
            use = self.service.views[position]
            kind = evidence_kind(self.plan.view(use.view))
            numbers = range(len(evidence)) if first is None else first
            seen = [_seen(use, kind, text, row) for text, row in zip(evidence, numbers, strict=True)]
        return Ask(list(keys), as_of, self.features[position], self.mode, seen)

    def outputs(self, labels: Mapping[str, Column], found: Answers, count: int) -> dict[str, Column]:
        """The service's outputs, in their order, for `count` labels whose request fields are in `labels`; after `load`."""
        columns = {}
        for use, values in zip(self.service.views, found, strict=True):
            columns.update({name: values[feature] for feature, name in use.features})
        for used, call in zip(self.service.functions, self._calls, strict=True):
            inputs = {
                parameter: labels[feature] if origin < 0 else found[origin][feature]
                for parameter, origin, feature in call.inputs
            }
            outputs = functions.run(call.function, inputs, call.definition.outputs, count)
            columns.update({name: outputs[output] for output, name in used.features})
        return {field.name: columns[field.name] for field in self.service.outputs}


def evidence_kind(view: View) -> str:
    """Under which name evidence has what was read of a view (`tally.served.EVIDENCE_COLUMN`)."""
    return "fences" if view.kind == "window" else "version"


def _seen(use: ViewUse, kind: str, text: str, row: int) -> Seen:
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise DataError(f"The evidence of label row {row} is not JSON ({error}); keep it as it was served.") from error
    known = isinstance(entry, dict) and use.name in entry
    one: Any = entry[use.name] if known else None
    if not known or (one is not None and kind not in one):
        raise DataError(
            f"The evidence of label row {row} has no {kind} of {use.name}; it must come from this service's answers."
        )
    if one is not None and kind == "fences":
        return {"fences": {int(partition): offset for partition, offset in one["fences"].items()}}
    return one


def narrowed(view: View, names: Collection[str]) -> View:
    """A view with only these of its columns."""
    return dataclasses.replace(view, columns=tuple(field for field in view.columns if field.name in names))


def bounds(view: View, first: int, last: int) -> tuple[int | None, int]:
    """The times of rows that can matter to labels between two instants: first (None: no bound) and last."""
    if view.kind == "window":
        return min(int(a.window.lower(first)) for a in view.aggregations), last
    return first - view.ttl if view.ttl else None, last
