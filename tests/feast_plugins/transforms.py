"""Transformations for the tests of definitions."""

from __future__ import annotations

from typing import Any

import numpy as np


def doubled(x: Any) -> dict[str, Any]:
    """A new column."""
    return {"twice": x * 2}


def asking(nowhere: Any) -> dict[str, Any]:
    """An input that no source has."""
    return {"twice": nowhere}


def failing(x: Any) -> dict[str, Any]:
    """Cannot be run on nothing."""
    return {"twice": x[0] / 0}


def breaking(x: Any) -> dict[str, Any]:
    """Cannot be run on a null."""
    raise RuntimeError(f"no {len(x)}")


def durations(x: Any) -> dict[str, Any]:
    """Returns what is no feature."""
    return {"twice": np.zeros(len(x), "m8[s]")}


def rekeyed(x: Any) -> dict[str, Any]:
    """Replaces the entity key by a number."""
    return {"place": x}


def retimed(x: Any) -> dict[str, Any]:
    """Replaces the event timestamp by a number."""
    return {"at": x}


def texts(x: Any) -> dict[str, Any]:
    """Promises a number, returns text."""
    return {"twice": np.full(len(x), "a")}


def starred(*x: Any) -> dict[str, Any]:
    """Inputs without names."""
    return {"twice": x[0]}
