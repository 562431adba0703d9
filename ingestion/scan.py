"""Reading a view's rows piece by piece: which row groups can matter, and rows of bounded number from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from ingestion.delta import UNREADABLE, unreadable
from ingestion.reading import Reading, Refused, Rows, first_of_each

BATCH_ROWS: Final = 1 << 17
"""How many rows Parquet is asked for at a time."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A row group of one file of a table, and how many rows it has."""

    path: str
    row_group: int
    rows: int


def pieces_of(reading: Reading) -> list[Piece]:
    """The row groups that can hold rows for which the condition holds, by the statistics of Delta and Parquet.

    Raises UnavailableError when the table cannot be read.
    """
    try:
        pieces: list[Piece] = []
        dataset = reading.table.to_pyarrow_dataset()
        for fragment in dataset.get_fragments(filter=reading.condition):
            # The table's schema, not the file's: files that delta-rs has rewritten have texts of another kind.
            kept = fragment if reading.condition is None else fragment.subset(reading.condition, schema=dataset.schema)
            pieces += [Piece(fragment.path, group.id, group.num_rows) for group in kept.row_groups]
        return pieces
    except UNREADABLE as error:
        raise unreadable(f"{reading.table.table_uri} (version {reading.table.version()})", error) from error


def batches(reading: Reading, pieces: Sequence[Piece], at_least: int) -> Iterator[tuple[Rows, Refused]]:
    """The rows of `pieces` and those left out, some more than `at_least` read rows at a time (the last has fewer).

    An event that was delivered more than once comes more than once. Raises UnavailableError when the table cannot be read.
    """
    tables = _tables(reading, pieces, at_least)
    while True:
        try:
            data = next(tables, None)
        except UNREADABLE as error:
            raise unreadable(f"{reading.table.table_uri} (version {reading.table.version()})", error) from error
        if data is None:
            return
        yield reading.decode(data)


def _tables(reading: Reading, pieces: Sequence[Piece], at_least: int) -> Iterator[pa.Table]:
    dataset = reading.table.to_pyarrow_dataset()
    fragments = {fragment.path: fragment for fragment in dataset.get_fragments()}
    waiting: list[Any] = []
    count = 0
    for path, of_file in groupby(pieces, key=lambda piece: piece.path):
        # Little is read ahead, so that memory does not grow with the size of a row group's neighbours.
        scanner = ds.Scanner.from_fragment(
            fragments[path].subset(row_group_ids=[piece.row_group for piece in of_file]),
            schema=dataset.schema,
            columns=list(reading.columns),
            filter=reading.condition,
            batch_size=BATCH_ROWS,
            batch_readahead=2,
            fragment_readahead=1,
        )
        for batch in scanner.to_batches():
            waiting.append(batch)
            count += batch.num_rows
            if count >= at_least:
                yield pa.Table.from_batches(waiting)
                waiting, count = [], 0
    if count:
        yield pa.Table.from_batches(waiting)


def once(rows: Rows) -> Rows:
    """One of the rows of each event (a, b)."""
    chosen = first_of_each(rows.a, rows.b)
    return rows if chosen is None else rows.take(chosen)


def refused_once(refused: Sequence[Refused], *, events: bool) -> dict[str, int]:
    """How many rows were left out of all pieces together, by reason."""
    if not refused:
        return {}
    whole = Refused(
        np.concatenate([one.a for one in refused]),
        np.concatenate([one.b for one in refused]),
        np.concatenate([one.reasons for one in refused]),
    )
    chosen = first_of_each(whole.a, whole.b) if events else None
    if chosen is not None:
        whole = Refused(whole.a[chosen], whole.b[chosen], whole.reasons[chosen])
    return whole.counts()
