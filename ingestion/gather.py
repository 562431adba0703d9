"""Record batches as one table whose numbers lie in one piece, copied once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray


def gathered(schema: pa.Schema, batches: Iterable[pa.RecordBatch], at_most: int) -> pa.Table:
    """The table of all rows of `batches`, which have this schema and no more than `at_most` rows together.

    A batch is copied and let go before the next is taken, so that memory holds each number once: a table of the batches
    that is made one piece later (`combine_chunks`) would hold them twice. Texts and truths stay in pieces.
    """
    widths = {number: width for number, field in enumerate(schema) if (width := _width(field.type))}
    values = {number: np.empty(at_most, f"V{width}") for number, width in widths.items()}
    nulls: dict[int, list[NDArray[np.int64]]] = {number: [] for number in widths}
    others: dict[int, list[pa.Array]] = {number: [] for number in range(len(schema)) if number not in widths}
    count = 0
    for batch in batches:
        rows = batch.num_rows
        if not rows:
            continue
        for number, array in enumerate(batch.columns):
            if number in others:
                others[number].append(array)
                continue
            width = widths[number]
            values[number][count : count + rows] = np.frombuffer(
                array.buffers()[1], f"V{width}", rows, array.offset * width
            )
            if array.null_count:
                nulls[number].append(count + np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)))
        count += rows
    columns: list[Any] = [
        _array(field.type, values[number][:count], nulls[number])
        if number in widths
        else pa.chunked_array(others[number], field.type)
        for number, field in enumerate(schema)
    ]
    return pa.table(columns, schema=schema)


def _width(kind: pa.DataType) -> int:
    """Bytes of a value of a type that Arrow keeps as plain numbers, else 0."""
    return int(kind.bit_width) // 8 if pa.types.is_primitive(kind) else 0


def _array(kind: pa.DataType, values: NDArray[Any], nulls: list[NDArray[np.int64]]) -> pa.Array:
    validity = None
    if nulls:
        valid = np.ones(len(values), np.bool_)
        valid[np.concatenate(nulls)] = False
        validity = pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [validity, pa.py_buffer(values)])
