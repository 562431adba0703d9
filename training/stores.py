"""Labels, and what is answered to them, on disk in chunks that follow each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ingestion.arrow import TYPES, from_column, to_column
from tally.columns import Column, canonical
from tally.dtypes import STORAGE, VARIABLE_WIDTH, Dtype
from tally.plan import Field, Service
from training.spill import Spill

CHUNK_ROWS: Final = 1 << 18
"""Labels that are put in order, transformed and written at a time."""
_POSITION: Final = pa.field("position", pa.int64())


class LabelStore:
    """Labels on disk, in their order, in chunks of `CHUNK_ROWS`; `first` and `last` are the bounds of their instants (µs)."""

    def __init__(self, folder: Path, service: Service, timestamp: str) -> None:
        self.rows = 0
        self.first = self.last = 0
        self._folder = folder
        self._timestamp = Field(timestamp, "UnixTimestamp")
        self._fields = {field.name: field for field in (*service.keys, *service.request)}
        self._spill: Spill | None = None

    def add(self, table: pa.Table) -> None:
        """The next labels, as `training.labels.Labels.table` has them."""
        if self._spill is None:
            self._spill = Spill(self._folder, table.schema)
        if table.num_rows:
            at = self.column(table, self._timestamp).values
            first, last = int(at.min()), int(at.max())
            self.first, self.last = (min(self.first, first), max(self.last, last)) if self.rows else (first, last)
        self._spill.add(table, np.arange(self.rows, self.rows + table.num_rows) // CHUNK_ROWS)
        self.rows += table.num_rows

    def tables(self) -> Iterator[pa.Table]:
        """The chunks."""
        if self._spill is not None:
            for chunk in range(-(-self.rows // CHUNK_ROWS)):
                yield self._spill.read(chunk).combine_chunks()

    def columns(self, table: pa.Table, names: Iterable[str]) -> dict[str, Column]:
        """Columns of a chunk that the service reads."""
        return {name: self.column(table, self._fields[name]) for name in names}

    def as_of(self, table: pa.Table) -> NDArray[np.int64]:
        """The instants of a chunk."""
        return self.column(table, self._timestamp).values

    @staticmethod
    def column(table: pa.Table, field: Field) -> Column:
        """A column of a chunk."""
        return to_column(field.dtype, table.column(field.name))


class AnswerStore:
    """What one use of a view answers: `features` by name, for labels in any order, read by chunk in the labels' order."""

    def __init__(self, folder: Path, features: Mapping[str, Dtype]) -> None:
        self._features = dict(features)
        fields = [(str(number), TYPES[dtype]) for number, dtype in enumerate(self._features.values())]
        self._spill = Spill(folder, pa.schema([_POSITION, *fields]))

    def add(self, positions: NDArray[np.int64], answer: Mapping[str, Column]) -> None:
        """The answers for the labels at `positions`, which rise."""
        arrays = [pa.array(positions), *(from_column(answer[name]) for name in self._features)]
        table = pa.table(arrays, names=[_POSITION.name, *map(str, range(len(self._features)))])
        self._spill.add(table, positions // CHUNK_ROWS)

    def chunk(self, number: int, count: int) -> dict[str, Column]:
        """The answers for the `count` labels of a chunk."""
        table = self._spill.read(number)
        at = table.column(_POSITION.name).to_numpy() - number * CHUNK_ROWS
        columns = {}
        for position, (name, dtype) in enumerate(self._features.items()):
            found = to_column(dtype, table.column(str(position)))
            values = np.full(count, None, object) if dtype in VARIABLE_WIDTH else np.zeros(count, STORAGE[dtype])
            valid = np.zeros(count, np.bool_)
            values[at], valid[at] = found.values, found.valid
            columns[name] = canonical(dtype, values, valid)
        return columns
