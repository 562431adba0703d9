"""Columns as pyarrow tables and pandas frames. Loaded when asked for; pandas only for its own frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tally.columns import Column
from tally.dtypes import Dtype

if TYPE_CHECKING:
    import pandas as pd

_ARROW: dict[Dtype, Any] = {
    "Float64": pa.float64(),
    "Float32": pa.float32(),
    "Int64": pa.int64(),
    "Int32": pa.int32(),
    "Bool": pa.bool_(),
    "String": pa.string(),
    "Bytes": pa.binary(),
    "UnixTimestamp": pa.timestamp("us", tz="UTC"),
}


def to_arrow(columns: Mapping[str, Column]) -> pa.Table:
    """A table with one column for each of `columns`."""
    return pa.table({name: pa.array(c.values, _ARROW[c.dtype], mask=~c.valid) for name, c in columns.items()})


def to_pandas(columns: Mapping[str, Column]) -> pd.DataFrame:
    """A frame with one column for each of `columns`."""
    import pandas as pd

    return pd.DataFrame({name: _series(c) for name, c in columns.items()})


def _series(column: Column) -> Any:
    import pandas as pd

    if column.dtype in ("Int64", "Int32"):
        return pd.arrays.IntegerArray(column.values.copy(), ~column.valid)
    if column.dtype == "Bool":
        return pd.arrays.BooleanArray(column.values.copy(), ~column.valid)
    if column.dtype == "UnixTimestamp":
        return pd.DatetimeIndex(column.to_user()).tz_localize("UTC")
    if column.dtype == "String":
        return pd.array(column.values, dtype="string")
    return column.to_user()
