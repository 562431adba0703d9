"""A training set: the labels with their features, and what it was made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ingestion.arrow import from_column
from tally.columns import Column
from tally.errors import DataError, UnavailableError
from training.digests import TableDigest
from training.files import replacing
from training.manifest import EXPORT, manifest_path
from training.partitioned import Partitioned
from training.stores import CHUNK_ROWS

_NULLABLE: dict[Any, Any] = {
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
    pa.string(): pd.StringDtype(),
    pa.large_string(): pd.StringDtype(),
}


class TrainingSet:
    """One row for each label, in the order of the labels: all label columns, then the features.

    `labels` is the table of label columns; `columns` maps the features to columns, in the order of the service's outputs.
    `manifest` says what the rows were made from; it is JSON, goes with every file, and is enough to make them again.
    `notes` are sentences on what was taken for granted; `labels_path` is where the labels were read, if they were.
    """

    def __init__(
        self,
        labels: pa.Table,
        columns: Mapping[str, Column],
        manifest: Mapping[str, Any],
        *,
        notes: Sequence[str] = (),
        labels_path: Path | None = None,
    ) -> None:
        self._labels: pa.Table | None = labels
        self._columns: dict[str, Column] | None = dict(columns)
        self._stored: Partitioned | None = None
        self.manifest = dict(manifest)
        self.notes = tuple(notes)
        self.labels_path = labels_path

    @classmethod
    def stored(
        cls,
        rows: Partitioned,
        manifest: Mapping[str, Any],
        *,
        notes: Sequence[str] = (),
        labels_path: Path | None = None,
    ) -> TrainingSet:
        """A training set that is on disk: `tables` and `to_parquet` hold little of it at a time, all else reads it whole.

        Its files go with the object.
        """
        dataset = cls(pa.table({}), {}, manifest, notes=notes, labels_path=labels_path)
        dataset._labels = dataset._columns = None
        dataset._stored = rows
        return dataset

    @property
    def labels(self) -> pa.Table:
        """The label columns."""
        return self._whole()[0]

    @property
    def columns(self) -> dict[str, Column]:
        """The features by name."""
        return self._whole()[1]

    def _whole(self) -> tuple[pa.Table, dict[str, Column]]:
        if self._labels is None or self._columns is None:
            assert self._stored is not None, "rows are in memory or on disk"
            self._labels, self._columns = self._stored.in_memory()
            self._stored.close()
            self._stored = None
        return self._labels, self._columns

    def __len__(self) -> int:
        return self._stored.labels.rows if self._stored is not None else int(self.labels.num_rows)

    def __repr__(self) -> str:
        return f"<TrainingSet: {len(self)} rows, definition {self.definition[:8]}>"

    @property
    def definition(self) -> str:
        """The hash of the service's definition."""
        return str(self.manifest["service_hash"])

    def tables(self) -> Iterator[pa.Table]:
        """The rows, `training.stores.CHUNK_ROWS` at a time; at least one table."""
        return (self._table(labels, columns) for labels, columns in self._chunks())

    def _chunks(self) -> Iterator[tuple[pa.Table, dict[str, Column]]]:
        if self._stored is not None:
            yield from self._stored.tables()
            return
        labels, columns = self._whole()
        for start in range(0, max(labels.num_rows, 1), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            yield (
                labels.slice(start, CHUNK_ROWS),
                {name: Column(c.dtype, c.values[rows], c.valid[rows]) for name, c in columns.items()},
            )

    def _table(self, labels: pa.Table, columns: Mapping[str, Column]) -> pa.Table:
        for name, column in columns.items():
            labels = labels.append_column(name, from_column(column))
        return labels.replace_schema_metadata({"tally": json.dumps(self.manifest, sort_keys=True)})

    def to_arrow(self) -> pa.Table:
        """A table; its schema's metadata holds the manifest under ``tally``."""
        return self._table(*self._whole())

    def to_pandas(self) -> pd.DataFrame:
        """A frame whose dtypes do not depend on nulls: Int64, boolean, string, float64, datetime64[us, UTC]."""
        return self.frame(self.to_arrow())

    @staticmethod
    def frame(table: pa.Table) -> pd.DataFrame:
        """Any Arrow table as pandas with nullable integers, booleans and strings."""
        frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas(types_mapper=_NULLABLE.get)
        return frame

    def rows_digest(self) -> str:
        """The digest of the rows (`training.digests`)."""
        digest = TableDigest()
        for table in self.tables():
            digest.add(table)
        return digest.hexdigest()

    def to_parquet(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Write the rows to `path`, and the manifest with the file's own digests to ``<path>.manifest.json``.

        Both are written aside and take their places together at the end. When something fails (a full disk), neither is
        there, and files of an earlier export are as they were. The same training set is always the same bytes. Returns
        what the manifest says of the file. Raises UnavailableError where `path` cannot be written, DataError for a label
        column of a type that Parquet does not have.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise UnavailableError(f"There is no folder {target.parent} for the training set; make it first.")
        # The rows take their place first: a manifest never speaks of a file that is not there yet.
        with replacing(manifest_path(target)) as beside, replacing(target) as aside:
            try:
                rows_digest, nulls = self._write(aside)
            except pa.ArrowNotImplementedError as error:
                raise DataError(
                    f"A label column has no form in Parquet ({error}), so nothing was written to {target}; "
                    "convert it to another type, or drop it from the labels."
                ) from error
            with aside.open("rb") as written:
                file_digest = hashlib.file_digest(written, "sha256").hexdigest()
            export: dict[str, Any] = {
                "labels": None if self.labels_path is None else str(self.labels_path),
                "notes": list(self.notes),
                "nulls": nulls,
                "rows_digest": rows_digest,
                "sha256": file_digest,
                "bytes": aside.stat().st_size,
            }
            beside.write_text(json.dumps({**self.manifest, EXPORT: export}, indent=2, sort_keys=True) + "\n")
        return export

    def _write(self, path: Path) -> tuple[str, dict[str, int]]:
        """Write the rows; their digest, and how many of each feature are null."""
        digest = TableDigest()
        nulls: Counter[str] = Counter()
        with ExitStack() as stack:
            writer = None
            for labels, columns in self._chunks():
                table = self._table(labels, columns)
                if writer is None:
                    writer = stack.enter_context(pq.ParquetWriter(path, table.schema))
                # One chunk of rows is one row group, in memory or not, so that the bytes are the same.
                writer.write_table(table, row_group_size=CHUNK_ROWS)
                digest.add(table)
                nulls.update({name: table.column(name).null_count for name in columns})
        return digest.hexdigest(), dict(nulls)
