"""Entity keys as small integers: exact for every key dtype and for composite keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pandas.util import hash_array

from tally.columns import Column
from training.threads import over_blocks

Codes = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class KeyCodes:
    """`rows`: the code of each row, in ``0..count-1``. `labels`: for each set of labels their codes.

    A label whose key no row has, has the code -1, or one that no row has.
    """

    rows: Codes
    labels: list[Codes]
    count: int


def key_codes(rows: Sequence[Column], labels: Sequence[Sequence[Column]]) -> KeyCodes:
    """Codes of the rows' keys, and of the same keys in several sets of labels. Equal keys, and only they, have equal codes.

    Each key is a sequence of columns without nulls, one per part. Rows without any key part are all one entity.
    """
    if not rows:
        raise ValueError("a key has at least one column")
    codes, known, count = _encode(_array(rows[0]), [_array(key[0]) for key in labels])
    for part in range(1, len(rows)):
        more, more_known, width = _encode(_array(rows[part]), [_array(key[part]) for key in labels])
        joined = [
            np.where((k < 0) | (m < 0), -1, k.astype(np.int64) * width + m)
            for k, m in zip(known, more_known, strict=True)
        ]
        codes, known, count = _encode(codes.astype(np.int64) * width + more, joined)
    return KeyCodes(codes, known, count)


def partition_of(key: Sequence[Column], partitions: int) -> NDArray[np.int64]:
    """The part (0..partitions-1) of each key: the same on every machine, for labels and rows alike."""
    mixed = np.zeros(len(key[0]), np.uint64)
    for part in key:
        values = part.values if part.values.dtype == object else part.values.astype(np.int64)
        # Not `categorize`: it would cut texts at a NUL character before it compares them.
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + hash_array(values, categorize=False)
    return (mixed % np.uint64(partitions)).astype(np.int64)


def _array(part: Column) -> Any:
    if part.dtype == "String":
        return pa.array(part.values, pa.large_string())
    if part.dtype == "Bytes":
        return pa.array(part.values, pa.large_binary())
    return part.values.astype(np.int64, copy=False)


def _encode(rows: Any, labels: Sequence[Any]) -> tuple[Codes, list[Codes], int]:
    """Codes of values: of integers (NumPy) that lie close together by their distance from the least, else by a hash table."""
    if isinstance(rows, np.ndarray):
        least, greatest = (int(rows.min()), int(rows.max())) if len(rows) else (0, -1)
        if greatest - least < min(len(rows), 1 << 31):
            known = [_distances(label, least, greatest) for label in labels]
            return _distances(rows, least, greatest), known, greatest - least + 1
    encoded = pa.array(rows).dictionary_encode()
    known = []
    for label in labels:
        found = pc.index_in(pa.array(label), value_set=encoded.dictionary)
        known.append(pc.fill_null(found, -1).to_numpy(zero_copy_only=False))
    return encoded.indices.to_numpy(zero_copy_only=False), known, len(encoded.dictionary)


def _distances(values: NDArray[np.int64], least: int, greatest: int) -> Codes:
    """How far each value is above `least`; -1 where it is not within ``least..greatest``."""
    codes = np.empty(len(values), np.int32)

    def subtract(block: slice) -> None:
        some = values[block]
        codes[block] = np.where((some >= least) & (some <= greatest), some - least, -1)

    over_blocks(subtract, len(values))
    return codes
