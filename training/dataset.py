"""A training set: the labels with their features, and what it was made from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ingestion.arrow import from_column
from tally.columns import Column

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
    """

    def __init__(self, labels: pa.Table, columns: Mapping[str, Column], manifest: Mapping[str, Any]) -> None:
        self.labels = labels
        self.columns = dict(columns)
        self.manifest = dict(manifest)

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
        return table.replace_schema_metadata({"tally": json.dumps(self.manifest)})

    def to_pandas(self) -> pd.DataFrame:
        """A frame whose dtypes do not depend on nulls: Int64, boolean, string, float64, datetime64[us, UTC]."""
        return self.frame(self.to_arrow())

    @staticmethod
    def frame(table: pa.Table) -> pd.DataFrame:
        """Any Arrow table as pandas with nullable integers, booleans and strings."""
        frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas(types_mapper=_NULLABLE.get)
        return frame

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the rows to `path` and the manifest to ``<path>.manifest.json``. Either is replaced as a whole."""
        target = Path(path)
        manifest = json.dumps(self.manifest, indent=2, sort_keys=True) + "\n"
        _write_aside(target.with_name(f"{target.name}.manifest.json"), lambda aside: aside.write_text(manifest))
        _write_aside(target, lambda aside: pq.write_table(self.to_arrow(), aside))


def _write_aside(path: Path, write: Callable[[Path], Any]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
