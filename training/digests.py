"""Digests of tables: what two machines compare to know that they hold the same rows, bit for bit."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class TableDigest:
    """SHA-256 over the names, types and values of columns, in order; how the rows are cut into tables does not matter."""

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}
        self._rows = 0

    def add(self, table: pa.Table) -> None:
        """The next rows; every table has the same columns. What lies below a null does not count."""
        self._rows += table.num_rows
        for position, field in enumerate(table.schema):
            name = f"{position}:{field.name}:{field.type}"
            self._state(name)
            for chunk in table.column(position).chunks:
                self._add(name, chunk)

    def hexdigest(self) -> str:
        """Of all that was added, as 64 hex digits."""
        whole = hashlib.sha256(f"{self._rows}".encode())
        for name, state in sorted(self._states.items()):
            whole.update(f"\0{name}\0".encode() + state.digest())
        return whole.hexdigest()

    def _state(self, name: str) -> Any:
        return self._states.setdefault(name, hashlib.sha256())

    def _add(self, name: str, array: Any) -> None:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        kind = array.type
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        self._state(f"{name}/valid").update(valid.view(np.uint8))
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            self._add_texts(name, pc.fill_null(array, "").cast(pa.large_string()))
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
            self._add_texts(name, pc.fill_null(array, b"").cast(pa.large_binary()))
        elif pa.types.is_boolean(kind):
            self._state(name).update(pc.fill_null(array, False).to_numpy(zero_copy_only=False).view(np.uint8))
        elif pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind):
            self._state(name).update(_bytes_of(array, valid))
        else:  # lists, structs and the like: columns that only come along
            for item in array.to_pylist():
                self._state(name).update(repr(item).encode() + b"\0")

    def _add_texts(self, name: str, array: Any) -> None:
        _, offsets, data = array.buffers()
        ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1] if len(array) else None
        if ends is not None:
            self._state(f"{name}/length").update(np.diff(ends))
            if data is not None:
                self._state(name).update(memoryview(data)[int(ends[0]) : int(ends[-1])])


def table_digest(table: pa.Table) -> str:
    """The digest of a whole table; see `TableDigest`."""
    digest = TableDigest()
    digest.add(table)
    return digest.hexdigest()


def _bytes_of(array: Any, valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The values of an array of fixed width, nulls as zeros."""
    width = array.type.bit_width // 8
    content = np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width : (array.offset + len(array)) * width]
    return content if valid.all() else np.where(np.repeat(valid, width), content, np.uint8(0))
