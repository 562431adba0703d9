"""The rules once more, so slowly and plainly that they are obviously right: loops, fractions and sorted lists.

Whatever answers a feature (the training engine, a lookup, Feast) must give these values, to the bit. Nothing here uses
NumPy, nor any rule of `tally/`: only the definitions of a plan are read.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tally.plan import View
from tally.tiles import Aggregation

TRUNCATED_BELOW = Fraction(1, 2**96)
"""Floats that are summed are cut (toward zero) to multiples of this, one by one, on entry."""


@dataclass(frozen=True)
class Event:
    """A row of a view. `values` has its columns by name, None where null; the times are µs.

    (a, b) break ties: (partition, offset) of a message, (created, 0) of a warehouse row. `arrival` is when it could first
    be seen online.
    """

    timestamp: int
    a: int
    b: int
    arrival: int
    values: Mapping[str, Any]


SUM_BOUND = 2.0**64
LONGEST_TEXT = 1024
Sees = Callable[[Event], bool]


def counts(view: View, event: Event) -> bool:
    """Whether a view counts an event: it has a key, and nothing that a sum or a tile of the view cannot hold."""
    if any(event.values[key.name] is None for key in view.keys):
        return False
    for a in view.aggregations:
        value = event.values[a.column]
        if isinstance(value, float) and a.function in ("sum", "mean", "std", "var") and abs(value) >= SUM_BOUND:
            return False
        if isinstance(value, str | bytes) and a.function != "count" and _size(value) > LONGEST_TEXT:
            return False
    return True


def _size(text: str | bytes) -> int:
    return len(text.encode() if isinstance(text, str) else text)


def everything(event: Event) -> bool:
    """Visibility by event time alone."""
    del event
    return True


def arrived_by(as_of: int) -> Sees:
    """Only what had arrived by `as_of`."""
    return lambda event: event.arrival <= as_of


def behind_fences(fences: Mapping[int, int]) -> Sees:
    """Only messages at or before the fence of their partition; none of a partition without a fence."""
    return lambda event: event.a in fences and event.b <= fences[event.a]


def up_to_version(version: Sequence[int] | None) -> Sees:
    """Only rows at or before the one that was served; none where nothing was."""
    return lambda event: version is not None and (event.timestamp, event.a, event.b) <= tuple(version)


def features(
    view: View, key: Sequence[Any], as_of: int, events: Sequence[Event], sees: Sees = everything
) -> dict[str, Any]:
    """Every feature of `view` for one entity as of one instant."""
    own = [e for e in events if [e.values[k.name] for k in view.keys] == list(key) and sees(e) and e.timestamp <= as_of]
    if view.kind == "latest":
        return _latest(view, as_of, own)
    own.sort(key=lambda e: (e.timestamp, e.a, e.b))
    return {a.feature: _window(a, as_of, own) for a in view.aggregations}


def _latest(view: View, as_of: int, own: Sequence[Event]) -> dict[str, Any]:
    row = None
    for event in own:
        if row is None or (event.timestamp, event.a, event.b) > (row.timestamp, row.a, row.b):
            row = event
    if row is None or (view.ttl > 0 and as_of - row.timestamp > view.ttl):
        return {f.name: None for f in view.fields}
    return {f.name: _without_nan(row.values[f.name]) for f in view.fields}


def _window(a: Aggregation, as_of: int, own: Sequence[Event]) -> Any:
    lower = math.floor(Fraction(as_of - a.window.length, a.window.hop)) * a.window.hop
    seen = [_without_nan(e.values[a.column]) for e in own if lower <= e.timestamp <= as_of]
    return aggregate(a.function, a.dtype, [value for value in seen if value is not None])


def aggregate(function: str, dtype: str, values: Sequence[Any]) -> Any:
    """An aggregation of the values of a window, in order, without nulls."""
    if function == "count":
        return len(values)
    if not values:
        return None
    if function == "first":
        return values[0]
    if function == "last":
        return values[-1]
    if function == "min":
        return min(values, key=_total_order)
    if function == "max":
        return max(values, key=_total_order)
    numbers = [_cut(value) if isinstance(value, float) else Fraction(value) for value in values]
    if function == "sum":
        return float(sum(numbers)) if dtype.startswith("Float") else int(sum(numbers))
    if function == "mean":
        return float(sum(numbers)) / len(numbers)
    if len(numbers) < 2:
        return None
    return float(statistics.variance(numbers)) if function == "var" else statistics.stdev(numbers)


def same(one: Any, other: Any) -> bool:
    """Equal to the bit: type, sign of zero and all."""
    if isinstance(one, float) and isinstance(other, float):
        return one.hex() == other.hex()
    return type(one) is type(other) and bool(one == other)


def _cut(value: float) -> Fraction:
    units = Fraction(value) / TRUNCATED_BELOW
    return math.trunc(units) * TRUNCATED_BELOW


def _without_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _total_order(value: Any) -> Any:
    return (value, math.copysign(1.0, value)) if isinstance(value, float) else value
