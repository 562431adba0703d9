"""Logical dtypes, by Feast's own names, and how each is stored in NumPy."""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np

Dtype = Literal["Float64", "Float32", "Int64", "Int32", "Bool", "String", "Bytes", "UnixTimestamp"]

DTYPES: Final[tuple[Dtype, ...]] = get_args(Dtype)

STORAGE: Final[dict[Dtype, np.dtype[np.generic]]] = {
    "Float64": np.dtype("<f8"),
    "Float32": np.dtype("<f4"),
    "Int64": np.dtype("<i8"),
    "Int32": np.dtype("<i4"),
    "Bool": np.dtype("?"),
    "String": np.dtype(object),
    "Bytes": np.dtype(object),
    "UnixTimestamp": np.dtype("<i8"),
}
"""NumPy dtype of `Column.values`. Timestamps are int64 microseconds UTC; strings are `str` objects."""

FLOATS: Final = frozenset({"Float64", "Float32"})
INTEGERS: Final = frozenset({"Int64", "Int32", "Bool"})
VARIABLE_WIDTH: Final = frozenset({"String", "Bytes"})
KEY_DTYPES: Final = frozenset({"Int64", "Int32", "Bool", "String", "Bytes", "UnixTimestamp"})
"""Dtypes that an entity key may have: those whose equality is plain (a float's is not)."""
