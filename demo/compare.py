"""Are the served rows and the training set equal, bit for bit?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tally.columns import Column
from tally.dtypes import VARIABLE_WIDTH
from tally.plan import Service


@dataclass(frozen=True, slots=True)
class ViewParity:
    """How many values of one view were compared, and how many of them differ."""

    view: str
    rows: int
    values: int
    differ: int


def differing(one: Column, other: Column) -> NDArray[np.bool_]:
    """Which rows of two columns differ: in being null, or in any bit of the value. Shape (n,).

    Raises ValueError when dtypes or lengths differ, because then nothing was compared.
    """
    if one.dtype != other.dtype or len(one) != len(other):
        raise ValueError(f"cannot compare {len(one)} {one.dtype} values with {len(other)} {other.dtype} values")
    if one.dtype in VARIABLE_WIDTH:
        unequal = one.values != other.values
    else:
        width = one.values.dtype.itemsize
        bits = np.dtype(f"u{width}")
        unequal = np.ascontiguousarray(one.values).view(bits) != np.ascontiguousarray(other.values).view(bits)
    both = one.valid & other.valid
    return np.asarray((one.valid != other.valid) | (both & unequal), np.bool_)


def compare(service: Service, served: Mapping[str, Column], offline: Mapping[str, Column]) -> list[ViewParity]:
    """One line for each view and on-demand view of a service."""
    lines = []
    for name, features in [(u.name, u.features) for u in service.views] + [
        (u.function, u.features) for u in service.functions
    ]:
        if not features:
            continue
        answered = [answer for _, answer in features]
        rows = len(served[answered[0]])
        differ = sum(int(differing(served[feature], offline[feature]).sum()) for feature in answered)
        lines.append(ViewParity(name, rows, rows * len(answered), differ))
    return lines
