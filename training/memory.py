"""How much memory a training set may take, and how much a join takes: rough sums, on the safe side."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import psutil
from dask.utils import parse_bytes

from tally.aggregates import cells_of, limb_count
from tally.dtypes import STORAGE, VARIABLE_WIDTH, Dtype
from tally.errors import ArgumentError
from tally.plan import View

FIXED: Final = 450_000_000
"""Bytes that interpreter, libraries and what is being read take, whatever the size of the data."""
LEAST: Final = 800_000_000
"""With less an export of millions of labels does not keep to it: pieces that are being read take 200 MB of their own."""
_SHARE: Final = 0.6
_TEXT: Final = 100
"""Bytes of a text in a column: the object, a pointer, and its copy in Arrow."""
_CGROUPS: Final = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def memory_limit(wanted: str | int | None) -> int:
    """Bytes that the process may hold: `wanted` ("4GB", "512MiB", a number), or a part of what is free now.

    Raises ArgumentError for a text that is no size, and below `LEAST`, with which nothing can be done.
    """
    if wanted is None:
        return max(LEAST, int(_available() * _SHARE))
    try:
        limit = int(parse_bytes(wanted))
    except ValueError as error:
        raise ArgumentError(f"memory is {wanted!r}; give a size such as 4GB or 512MiB.") from error
    if limit < LEAST:
        raise ArgumentError(
            f"memory is {wanted!r}; Python and its libraries alone need some: give at least {LEAST:,} bytes."
        )
    return limit


def _available() -> int:
    free = psutil.virtual_memory().available
    for limit, used in _CGROUPS:  # a container may have less than its machine
        try:
            free = min(free, max(0, int(limit.read_text()) - int(used.read_text())))
        except (OSError, ValueError):  # there is no such group, or it has no limit
            continue
    return free


def room_for_data(memory: int) -> int:
    """Of `memory` bytes those that are left for data."""
    return max(memory - FIXED, memory // 8)


def row_cost(view: View, columns: Collection[str]) -> int:
    """Bytes that a join takes for each row of a view, of which `columns` are read."""
    dtypes = {field.name: field.dtype for field in view.columns if field.name in columns}
    kept = sum(_width(dtype) for dtype in dtypes.values())
    # Times, tie breakers and arrival as read; codes, sort keys, order and sorted times of the timeline.
    total = 2 * kept + 9 * 8
    for name, dtype in dtypes.items():
        limbs = 0
        cells = cells_of(a.function for a in view.aggregations if a.column == name)
        for cell in cells:
            limbs += 2 * limb_count(cell, dtype) if cell in ("sum", "squares") else 4
        total += limbs * 8 + (3 * 8 if cells else 0)
    return total


def label_cost(view: View, features: Collection[str], keys: Collection[Dtype]) -> int:
    """Bytes that a join takes for each label of a use of a view."""
    total = sum(_width(dtype) for dtype in keys) + 8 * 8
    for aggregation in view.aggregations:
        if aggregation.feature in features:
            limbs = sum(
                limb_count(c, aggregation.dtype) for c in cells_of([aggregation.function]) if c in ("sum", "squares")
            )
            total += 3 * 8 * (limbs + 2)
    return total + sum(2 * _width(f.dtype) for f in view.fields if f.name in features)


def _width(dtype: Dtype) -> int:
    return _TEXT if dtype in VARIABLE_WIDTH else STORAGE[dtype].itemsize + 1
