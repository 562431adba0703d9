"""The rules of time, windows and aggregates once more, with loops and fractions: what each answer must be."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from serving_client import Status
from tally.plan import View
from tally.tiles import Aggregation
from tests.serving_client import world
from tests.serving_client.world import Row


def bits(value: Any) -> Any:
    """A value that is equal to another's only where all bits are."""
    return value.hex() if isinstance(value, float) else (type(value).__name__, value)


def _same_entity(view: View, keys: Sequence[str], asked: Row, rows: Iterable[Row]) -> list[Row]:
    return [r for r in rows if all(r[k.name] == asked[name] for k, name in zip(view.keys, keys, strict=True))]


def latest(
    view: View, keys: Sequence[str], asked: Row, as_of: int, rows: Sequence[Row]
) -> tuple[dict[str, Any], Status]:
    """The fields of the row that is stored, and its status."""
    nothing = {f.name: None for f in view.fields}
    own = _same_entity(view, keys, asked, rows)
    if not own:
        return nothing, Status.MISSING
    newest = max(own, key=lambda r: (r["at"], r["a"]))
    if newest["at"] > as_of:
        return nothing, Status.AHEAD
    if view.ttl and as_of - newest["at"] > view.ttl:
        return nothing, Status.EXPIRED
    return {f.name: _clean(newest[f.name]) for f in view.fields}, Status.PRESENT


def windows(
    view: View, keys: Sequence[str], asked: Row, as_of: int, rows: Sequence[Row]
) -> tuple[dict[str, Any], Status]:
    """The windowed features. Where the store is ahead, the newest tile counts whole."""
    own = sorted(_same_entity(view, keys, asked, rows), key=lambda r: (r["at"], r["partition"], r["offset"]))
    status = Status.PRESENT if own else Status.MISSING
    if any(r["at"] > as_of for r in own):
        status = Status.AHEAD
    values = {}
    for a in view.aggregations:
        lower = math.floor(Fraction(as_of - a.window.length, a.window.hop)) * a.window.hop
        upper = as_of if status != Status.AHEAD else (math.floor(Fraction(as_of, a.window.hop)) + 1) * a.window.hop - 1
        seen = [_clean(r[a.column]) for r in own if lower <= r["at"] <= upper]
        values[a.feature] = aggregate(a, [v for v in seen if v is not None])
    return values, status


def _clean(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def aggregate(a: Aggregation, seen: list[Any]) -> Any:
    """One aggregation over the values of a window that are not null, in order."""
    if a.function == "count":
        return len(seen)
    if not seen:
        return None
    if a.function in ("first", "last"):
        return seen[0] if a.function == "first" else seen[-1]
    if a.function in ("min", "max"):
        return (min if a.function == "min" else max)(seen, key=_total_order)
    if a.function == "sum" and a.output == "Int64":
        return sum(seen)
    if a.function in ("sum", "mean"):
        total = math.fsum(seen) if a.dtype.startswith("Float") else float(sum(seen))
        return (total + 0.0) / len(seen) if a.function == "mean" else total + 0.0  # a sum of -0.0 is 0.0
    if len(seen) < 2:
        return None
    exactly = [Fraction(v) for v in seen]
    return float(statistics.variance(exactly)) if a.function == "var" else statistics.stdev(exactly)


def _total_order(value: Any) -> Any:
    return (value, math.copysign(1.0, value)) if isinstance(value, float) else value


def answer(asked: Row, as_of: int, stored: Mapping[str, Sequence[Row]]) -> tuple[dict[str, Any], dict[str, Status]]:
    """Every feature of the service `everything` for one row, and the status of each."""
    values: dict[str, Any] = {}
    statuses: dict[str, Status] = {}
    by_use: dict[str, tuple[dict[str, Any], Status]] = {}
    for use in world.ONE.services[0].views:
        view = world.ONE.view(use.view)
        rule = windows if view.kind == "window" else latest
        by_use[use.name] = rule(view, use.keys, asked, as_of, stored[view.name])
        found, status = by_use[use.name]
        for feature, name in use.features:
            values[name], statuses[name] = found[feature], status
    f64, i64 = values["v_Float64"], values["v_Int64"]
    total, weight = values["sum_Float64_long"], asked["weight"]
    score = None
    if None not in (f64, total, weight):
        score = float(np.float64(f64) * np.float64(weight) + np.float64(total))
        score = None if math.isnan(score) else score
    values["score"], values["next"] = score, None if i64 is None else i64 + 1
    values["is_heavy"] = weight is not None and weight > 1.5
    label = asked["label"]
    values["both"] = None if label is None else asked["place"] + label
    worst = max(by_use["planes"][1], by_use["delays"][1])
    statuses |= {"score": worst, "next": worst, "is_heavy": worst, "both": Status.PRESENT}
    return values, statuses
