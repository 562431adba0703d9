"""Logs of served rows as they lie in Parquet: the definitions that they have rows of, and these rows, some at a time."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tally.errors import DataError
from tally.served import DEFINITION_COLUMN, SERVICE_COLUMN

_WHOSE = (SERVICE_COLUMN, DEFINITION_COLUMN)


@dataclass(frozen=True)
class ServedRows:
    """The rows that were served under one definition: so many `rows`, in `files` by name, which is by time."""

    service: str
    definition: str
    files: tuple[Path, ...]
    rows: int

    def tables(self, rows: int) -> Iterator[pa.Table]:
        """The rows in their order, about so many at a time. Raises DataError for files of different columns."""
        waiting: list[pa.Table] = []
        for path in self.files:
            with _readable(path) as file:
                for batch in file.iter_batches(batch_size=rows):
                    table = pa.Table.from_batches([batch])
                    ours = pc.and_(
                        pc.equal(table[SERVICE_COLUMN], self.service),
                        pc.equal(table[DEFINITION_COLUMN], self.definition),
                    )
                    waiting.append(table.filter(ours))
                    if sum(one.num_rows for one in waiting) >= rows:
                        yield _together(waiting, path)
                        waiting = []
        if waiting:
            yield _together(waiting, self.files[-1])


def served_rows(log: Path) -> list[ServedRows]:
    """What a folder of logged Parquet (with all that is below it), or one file, has rows of, by service and definition.

    Raises DataError where there is no such file, or one that is no log of served rows.
    """
    if not log.exists():
        raise DataError(f"There is no log of served rows at {log}; give the folder that a ParquetSink writes to.")
    files = [log] if log.is_file() else sorted(log.rglob("[!._]*.parquet"))
    if not files:
        raise DataError(f"The folder {log} holds no Parquet file; give the folder that a ParquetSink writes to.")
    found: dict[tuple[str, str], dict[Path, int]] = {}
    for path in files:
        with _readable(path) as file:
            missing = [name for name in _WHOSE if name not in file.schema_arrow.names]
            if missing:
                raise DataError(
                    f"{path} has no column {missing[0]}, so it is not a log of served rows; "
                    "give the folder that a ParquetSink writes to."
                )
            whose = file.read(columns=list(_WHOSE)).group_by(list(_WHOSE)).aggregate([([], "count_all")])
        for row in whose.to_pylist():
            found.setdefault((row[SERVICE_COLUMN], row[DEFINITION_COLUMN]), {})[path] = row["count_all"]
    return [
        ServedRows(service, definition, tuple(counts), sum(counts.values()))
        for (service, definition), counts in sorted(found.items(), key=str)
    ]


def documents(table: pa.Table, name: str) -> list[dict[str, Any]]:
    """The JSON objects of a column of a log. Raises DataError where one is none."""
    found = []
    for text in table.column(name).to_pylist():
        try:
            document = json.loads(text)
        except (TypeError, ValueError):
            document = None
        if not isinstance(document, dict):
            raise DataError(
                f"Column {name} of the log holds {text!r}, which is no JSON object; give a log as it was written."
            )
        found.append(document)
    return found


def rows_with(statuses: Sequence[Mapping[str, str]], wanted: Collection[str]) -> dict[str, dict[str, list[int]]]:
    """By feature and status, of those `wanted`, the rows that have it; `statuses` are the documents of a column of them."""
    found: dict[str, dict[str, list[int]]] = {}
    for row, of_row in enumerate(statuses):
        for name, status in of_row.items():
            if status in wanted:
                found.setdefault(name, {}).setdefault(status, []).append(row)
    return found


def _readable(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not Parquet that can be read ({str(error).splitlines()[0].rstrip('.')})."
        ) from error


def _together(tables: list[pa.Table], path: Path) -> pa.Table:
    try:
        return pa.concat_tables(tables).combine_chunks()
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path} does not have the columns of the files before it, which were served under the same definition; "
            "give a log as it was written."
        ) from error
