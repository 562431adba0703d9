"""What must be done for one view, and how rows and labels of some of its keys, kept as Arrow tables, are joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ingestion.arrow import TYPES, from_column, to_column
from ingestion.delta import open_version
from ingestion.reading import Reading, Rows
from ingestion.scan import Piece, once, pieces_of
from tally.columns import Column
from tally.dtypes import Dtype
from tally.plan import View
from training.asks import Questions, bounds
from training.join import join
from training.memory import FIXED, label_cost, row_cost

POSITION: Final = "position"
AS_OF: Final = "as_of"
EVIDENCE: Final = "evidence"
_ORDER: Final = ("a", "b", "arrival")


@dataclass(frozen=True, slots=True)
class Answered:
    """What a use answers to the labels at `positions` (among all labels, rising): its features by name."""

    positions: NDArray[np.int64]
    columns: Mapping[str, Column]


@dataclass(frozen=True)
class ViewWork:
    """What must be done for one view: `view` has the columns that are read, `pieces` the row groups that can matter."""

    questions: Questions
    view: View
    reading: Reading
    pieces: list[Piece]

    @staticmethod
    def of(questions: Questions, view: View, offline_uri: str, version: int, first: int, last: int) -> ViewWork:
        """For labels between two instants (µs)."""
        table = open_version(offline_uri, view.source, version)
        reading = Reading.of(questions.plan, view, table, *bounds(view, first, last))
        return ViewWork(questions, view, reading, pieces_of(reading))

    @property
    def rows(self) -> int:
        """How many rows the row groups have."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def uses(self) -> list[int]:
        """The positions of the view's uses in the service."""
        return self.questions.uses_of(self.view.name)

    def dtypes(self, position: int) -> dict[str, Dtype]:
        """The features that are asked of a use, with their dtypes."""
        dtypes: dict[str, Dtype] = {field.name: field.dtype for field in self.view.fields}
        dtypes.update({a.feature: a.output for a in self.view.aggregations})
        return {name: dtypes[name] for name in self.questions.features[position]}

    def row_cost(self) -> int:
        """Bytes that a join takes for a row."""
        return row_cost(self.view, [field.name for field in self.view.columns])

    def cost(self, rows: int, labels: Sequence[int]) -> int:
        """Bytes that it takes to join rows with labels, so many for each use."""
        keys = [key.dtype for key in self.view.keys]
        total = rows * self.row_cost()
        for position, count in zip(self.uses, labels, strict=True):
            total += count * label_cost(self.view, self.questions.features[position], keys)
        return total

    def whole(self) -> ViewWork:
        """The same with every column of the view."""
        view = self.questions.plan.view(self.view.name)
        known = self.reading
        reading = Reading.of(self.questions.plan, view, known.table, known.start, known.end)
        return ViewWork(self.questions, view, reading, self.pieces)


def survey(
    questions: Questions, offline_uri: str, versions: Mapping[str, int], first: int, last: int
) -> list[ViewWork]:
    """What must be read to answer labels between two instants (µs), view by view."""
    names = dict.fromkeys(use.view for use in questions.service.views)
    views = [questions.view(name) for name in names]
    return [ViewWork.of(questions, view, offline_uri, versions[view.source], first, last) for view in views]


def peak(work: Sequence[ViewWork], labels: int) -> int:
    """Bytes that it takes to answer so many labels all at once."""
    return FIXED + sum(one.cost(one.rows, [labels] * len(one.uses)) for one in work)


def rows_table(view: View, rows: Rows) -> pa.Table:
    """Rows as a table: the view's columns by their numbers, and what orders the rows."""
    columns = {str(number): from_column(rows.columns[field.name]) for number, field in enumerate(view.columns)}
    columns.update({name: pa.array(getattr(rows, name)) for name in _ORDER})
    return pa.table(columns)


def table_rows(view: View, table: pa.Table | None) -> Rows:
    """The rows that `rows_table` made a table of; none of None."""
    if table is None:
        schema = [(str(number), TYPES[field.dtype]) for number, field in enumerate(view.columns)]
        table = pa.schema([*schema, *((name, pa.int64()) for name in _ORDER)]).empty_table()
    columns = {
        field.name: to_column(field.dtype, table.column(str(number))) for number, field in enumerate(view.columns)
    }
    a, b, arrival = (table.column(name).to_numpy() for name in _ORDER)
    return Rows(columns, columns[view.timestamp].values, a, b, arrival, {}, 0)


def key_of_rows(view: View, table: pa.Table) -> list[Column]:
    """The entity key of each row of `rows_table`."""
    names = [field.name for field in view.columns]
    return [to_column(key.dtype, table.column(str(names.index(key.name)))) for key in view.keys]


def key_of_labels(view: View, table: pa.Table) -> list[Column]:
    """The entity key of each label of a table with the parts of the key by their numbers."""
    return [to_column(key.dtype, table.column(str(number))) for number, key in enumerate(view.keys)]


def join_part(questions: Questions, view: View, rows: pa.Table | None, labels: Sequence[pa.Table]) -> list[Answered]:
    """What each use of `view` answers, from all rows and all labels of some keys. Raises as `training.join.join`."""
    of_part = table_rows(view, rows)
    if questions.plan.source(view.source).topic:
        of_part = once(of_part)
    asks, positions = [], []
    for position, table in zip(questions.uses_of(view.name), labels, strict=True):
        places = table.column(POSITION).to_numpy()
        texts: Any = table.column(EVIDENCE).to_pylist() if EVIDENCE in table.column_names else None
        as_of = table.column(AS_OF).to_numpy()
        asks.append(questions.ask(position, key_of_labels(view, table), as_of, texts, places.tolist()))
        positions.append(places)
    found = join(questions.plan.view(view.name), of_part, asks)
    return [Answered(places, answer) for places, answer in zip(positions, found, strict=True)]
