"""Functions of the conformance suite's repository: small, and each with something to go wrong in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def event(f64: Floats, divisor: Floats) -> dict[str, Floats]:
    """f64 over divisor where there is one: how an event gets a NaN, an infinity or a negative zero."""
    np.divide(f64, divisor, out=f64, where=~np.isnan(divisor))  # what a function is given is its own
    return {"f64": f64}


def timed(micros: Any) -> dict[str, Any]:
    """The time of a Protobuf message, whose own timestamps would lose their microseconds on the way to the warehouse."""
    return {"event_timestamp": micros.filled(0).astype("datetime64[us]")}


def combined(f64_sum_1h: Floats, temperature: Floats, weight: Floats) -> dict[str, Any]:
    """Features of a window and of a batch view with a field of the request."""
    return {"score": f64_sum_1h * weight + temperature, "is_heavy": weight > 1.0}


def next_reading(r_i64: Any) -> dict[str, Any]:
    """An integer that may be null, plus one; beyond 2^53 a detour through floats would show, and so would a shared array."""
    r_i64 += 1
    return {"next_reading": r_i64}


def greeting(label: NDArray[np.object_], r_s: NDArray[np.object_]) -> dict[str, Any]:
    """Texts, either of which may be null."""
    pairs = zip(label.tolist(), r_s.tolist(), strict=True)
    joined = [None if one is None or two is None else f"{one} {two}" for one, two in pairs]
    return {"greeting": np.array(joined, object)}
