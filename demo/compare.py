"""Are the served rows and the training set equal, bit for bit?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tally.columns import Column, differing
from tally.plan import Service


@dataclass(frozen=True, slots=True)
class ViewParity:
    """How many values of one view were compared, and how many of them differ."""

    view: str
    rows: int
    values: int
    differ: int


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
