"""Rows divided into parts, on disk: Arrow streams, one file a part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tally.errors import UnavailableError


class Spill:
    """Tables of one schema, row by row in numbered parts; a part keeps the order in which its rows came.

    Raises UnavailableError when the disk does not take them.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        """`folder` is made; who makes a spill deletes it."""
        self.rows: dict[int, int] = {}
        self._folder = folder
        self.schema = schema
        folder.mkdir()

    def add(self, table: pa.Table, part: NDArray[np.int64]) -> None:
        """Each row of `table` to its part, below 2^16."""
        if not len(part):
            return
        if not (np.diff(part) >= 0).all():
            order = np.argsort(part.astype(np.uint16), kind="stable")  # by radix
            table, part = table.take(order), part[order]
        starts = np.flatnonzero(np.append(True, part[1:] != part[:-1]))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(part)], strict=True):
            self._write(int(part[start]), table.slice(start, stop - start))

    def tables(self, part: int) -> Iterator[pa.Table]:
        """The rows of a part in pieces, as they came."""
        path = self._path(part)
        if part not in self.rows:
            return
        with pa.OSFile(str(path)) as file:
            while file.tell() < file.size():
                with pa.ipc.open_stream(file) as reader:
                    yield reader.read_all()

    def read(self, part: int) -> pa.Table:
        """All rows of a part."""
        return pa.concat_tables([self.schema.empty_table(), *self.tables(part)])

    def drop(self, part: int) -> None:
        """Free the disk of a part that is not needed any more."""
        self._path(part).unlink(missing_ok=True)
        self.rows.pop(part, None)

    def _path(self, part: int) -> Path:
        return self._folder / f"{part}.arrow"

    def _write(self, part: int, rows: pa.Table) -> None:
        # A stream of its own each time: files that stay open would be too many.
        try:
            with pa.OSFile(str(self._path(part)), "ab") as file, pa.ipc.new_stream(file, self.schema) as stream:
                stream.write_table(rows)
        except OSError as error:
            raise UnavailableError(
                f"What does not fit into memory cannot be written to {self._folder.parent} ({error}); make room there, set "
                "TMPDIR to a folder that has it, or give more memory."
            ) from error
        self.rows[part] = self.rows.get(part, 0) + rows.num_rows
