"""A training set: the labels with their features, and what it was made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ingestion.arrow import from_column
from tally.columns import Column
from tally.errors import UnavailableError
from training.digests import table_digest
from training.files import replacing
from training.manifest import EXPORT, manifest_path

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
        self.labels = labels
        self.columns = dict(columns)
        self.manifest = dict(manifest)
        self.notes = tuple(notes)
        self.labels_path = labels_path

    def __len__(self) -> int:
        return int(self.labels.num_rows)

    def __repr__(self) -> str:
        return f"<TrainingSet: {len(self)} rows x {len(self.columns)} features, definition {self.definition[:8]}>"

    @property
    def definition(self) -> str:
        """The hash of the service's definition."""
        return str(self.manifest["service_hash"])

    def to_arrow(self) -> pa.Table:
        """A table; its schema's metadata holds the manifest under ``tally``."""
        table = self.labels
        for name, column in self.columns.items():
            table = table.append_column(name, from_column(column))
        return table.replace_schema_metadata({"tally": json.dumps(self.manifest, sort_keys=True)})

    def to_pandas(self) -> pd.DataFrame:
        """A frame whose dtypes do not depend on nulls: Int64, boolean, string, float64, datetime64[us, UTC]."""
        return self.frame(self.to_arrow())

    @staticmethod
    def frame(table: pa.Table) -> pd.DataFrame:
        """Any Arrow table as pandas with nullable integers, booleans and strings."""
        frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas(types_mapper=_NULLABLE.get)
        return frame

    def to_parquet(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Write the rows to `path`, and the manifest with the file's own digests to ``<path>.manifest.json``.

        Both are written aside and take their places together at the end. When something fails (a full disk), neither is
        there, and files of an earlier export are as they were. The same training set is always the same bytes. Returns
        what the manifest says of the file. Raises UnavailableError where `path` cannot be written.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise UnavailableError(f"There is no folder {target.parent} for the training set; make it first.")
        table = self.to_arrow()
        # The rows take their place first: a manifest never speaks of a file that is not there yet.
        with replacing(manifest_path(target)) as beside, replacing(target) as aside:
            pq.write_table(table, aside)
            with aside.open("rb") as written:
                file_digest = hashlib.file_digest(written, "sha256").hexdigest()
            export: dict[str, Any] = {
                "labels": None if self.labels_path is None else str(self.labels_path),
                "notes": list(self.notes),
                "rows_digest": table_digest(table),
                "sha256": file_digest,
                "bytes": aside.stat().st_size,
            }
            beside.write_text(json.dumps({**self.manifest, EXPORT: export}, indent=2, sort_keys=True) + "\n")
        return export
