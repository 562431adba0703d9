"""One view joined to labels. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from ingestion.reading import Rows
from tally.columns import Column
from tally.errors import TallyError
from tally.plan import View
from training.keys import key_codes
from training.point_in_time import latest_rows, window_features
from training.threads import over_blocks
from training.timeline import Instants, Positions, Timeline, timeline
from training.visibility import ByArrival, ByFences, ByVersion, LatestVisibility, Mask, WindowVisibility

Mode = Literal["event_time", "as_served"]
MODES: Final = ("event_time", "as_served")
Seen = Mapping[str, Any] | None


class TiedRowsError(TallyError):
    """Rows tie in time and tie breakers, and the columns that tell them apart were not read."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Labels of one use of a view: `keys` (columns in the order of the view's keys), `as_of` (µs), `features` wanted.

    `evidence` has for each label what it was served from: ``{"fences": {partition: offset}}`` for windows,
    ``{"version": (timestamp, a, b, check)}`` for latest rows, None for nothing. None as a whole: go by `mode` alone.
    """

    keys: Sequence[Column]
    as_of: Instants
    features: Sequence[str]
    mode: Mode
    evidence: Sequence[Seen] | None


def join(view: View, rows: Rows, asks: Sequence[Ask]) -> list[dict[str, Column]]:
    """For each ask its features by name, one value per label, in the order of the labels.

    Raises TiedRowsError when rows of a latest view are told apart only by columns that `rows` do not have.
    """
    codes = key_codes([rows.columns[key.name] for key in view.keys], [ask.keys for ask in asks])

    def packed(positions: Positions) -> list[bytes]:
        if any(field.name not in rows.columns for field in view.fields):
            raise TiedRowsError(f"Rows of {view.name} tie in all that was read of them; read all their columns.")
        fields = {field.name: rows.columns[field.name].take(positions) for field in view.fields}
        return view.row_layout.pack(rows.timestamp[positions], rows.a[positions], rows.b[positions], fields)

    line = timeline(
        codes.rows, codes.count, rows.timestamp, rows.a, rows.b, packed if view.kind == "latest" else None
    )  # fmt: skip
    answers = []
    for ask, own in zip(asks, codes.labels, strict=True):
        if view.kind == "window":
            wanted = [a for a in view.aggregations if a.feature in ask.features]
            seen = _window_visibility(rows, line, ask)
            answers.append(window_features(line, rows.columns, wanted, own, ask.as_of, seen))
        else:
            visibility = _latest_visibility(rows, line, ask, packed)
            positions, found = latest_rows(line, own, ask.as_of, view.ttl, visibility)
            answers.append(_taken({name: rows.columns[name] for name in ask.features}, positions, found))
    return answers


def _taken(columns: Mapping[str, Column], positions: Positions, found: Mask) -> dict[str, Column]:
    """Each column's values at `positions`; null where `found` is False."""
    count = len(positions)
    taken = {
        name: Column(column.dtype, np.empty(count, column.values.dtype), np.empty(count, np.bool_))
        for name, column in columns.items()
    }

    def take(block: slice) -> None:
        for name, column in columns.items():
            some = column.take(positions[block], found[block])
            taken[name].values[block], taken[name].valid[block] = some.values, some.valid

    over_blocks(take, count)
    return taken


def _window_visibility(rows: Rows, line: Timeline, ask: Ask) -> WindowVisibility | None:
    if ask.mode == "event_time":
        return None
    if ask.evidence is None:
        return ByArrival(line, rows.arrival, ask.as_of)
    return ByFences(line, rows.a, rows.b, [seen["fences"] if seen else {} for seen in ask.evidence])


def _latest_visibility(
    rows: Rows, line: Timeline, ask: Ask, packed: Callable[[Positions], list[bytes]]
) -> LatestVisibility | None:
    if ask.mode == "event_time":
        return None
    if ask.evidence is None:
        return ByArrival(line, rows.arrival, ask.as_of)
    return ByVersion(line, rows.a, rows.b, [seen["version"] if seen else None for seen in ask.evidence], packed)
