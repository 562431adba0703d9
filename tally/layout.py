r"""What bytes are in Redis: entity keys, latest rows, tiles with their fences.

All integers are little-endian unless said otherwise; format numbers are the first byte of every value.

Key     ``<project>/<view>@<first 8 hex of the view's hash>/<entity>``; the entity is each join value as text, in the
        order of the view's join keys, separated by ``|``, with ``|`` and ``\`` escaped by ``\``.
Latest  ``u8 1, 8 bytes view hash, i64 event_timestamp, i64 a, i64 b``, where (a, b) breaks ties: (created, 0) for warehouse
        rows, (partition, offset) for stream rows; then one bit per field (1: there), the fixed-width fields, and the
        bytes of strings, whose fixed part is their u32 length.
Names   plans, services, views and progress: see `plan_key` and its neighbours below.
Tiles   ``u8 2, 8 bytes view hash, i64 newest event_timestamp, u16 n``, then n fences ``u32 partition, i64 offset`` by
        rising partition, then records of `tally.tiles` by rising (level, tile).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tally.columns import Column, canonical, nulls
from tally.dtypes import STORAGE, VARIABLE_WIDTH, Dtype
from tally.errors import DefinitionMismatchError, StoredBytesError

LATEST_FORMAT: Final = 1
TILES_FORMAT: Final = 2
HASH_BYTES: Final = 8
LATEST_HEADER: Final = struct.Struct("<B8sqqq")
TILES_HEADER: Final = struct.Struct("<B8sqH")
EVIDENCE_COLUMN: Final = "tally_evidence"
"""Column of a log of served rows: JSON of what each answer was read from (`serving_client`), for replays offline."""
FENCE: Final = np.dtype([("partition", "<u4"), ("offset", "<i8")])
_FENCE: Final = struct.Struct("<Iq")


def key_prefix(project: str, view: str, view_hash: str) -> bytes:
    """The part of a view's keys that comes before the entity."""
    return f"{project}/{view}@{view_hash[:8]}/".encode()


def plan_key(project: str, service: str) -> str:
    """A string: the JSON of `Plan.for_service(service)`."""
    return f"tally:{project}:plan:{service}"


def services_key(project: str) -> str:
    """A hash: service name -> service hash, of every published service."""
    return f"tally:{project}:services"


def views_key(project: str) -> str:
    """A hash: ``<view>@<view hash>`` -> JSON of how that definition's data came here. No entry: nothing was ever loaded."""
    return f"tally:{project}:views"


def progress_key(project: str) -> str:
    """A hash: ``<view>@<view hash>:<topic>:<partition>`` -> how far that definition has come.

    It is the offset after the last message whose effects on the view are all in Redis.
    """
    return f"tally:{project}:progress"


def escaped(text: bytes) -> bytes:
    """A text as part of a key."""
    if b"|" in text or b"\\" in text:
        return text.replace(b"\\", b"\\\\").replace(b"|", b"\\|")
    return text


def entity_texts(columns: Sequence[Column]) -> list[bytes]:
    """The entity part of each row's key, from the join columns (no nulls; the caller has refused them)."""
    parts = [_texts(column) for column in columns]
    if len(parts) == 1:
        return parts[0]
    return [b"|".join(row) for row in zip(*parts, strict=True)]


def _texts(column: Column) -> list[bytes]:
    if column.dtype == "String":
        return [escaped(text.encode()) for text in column.values.tolist()]
    if column.dtype == "Bytes":
        return [escaped(text) for text in column.values.tolist()]
    return [b"%d" % number for number in column.values.tolist()]


@dataclass(frozen=True)
class RowLayout:
    """The packed form of a latest row: `fields` as (name, dtype), for a view with hash `view_hash` (hex)."""

    fields: tuple[tuple[str, Dtype], ...]
    view_hash: str

    @cached_property
    def tag(self) -> bytes:
        """The first bytes of the view's hash, as stored."""
        return bytes.fromhex(self.view_hash)[:HASH_BYTES]

    @cached_property
    def fixed(self) -> np.dtype[np.void]:
        """Header, null bits and fixed-width part as one packed dtype."""
        bits = -(-len(self.fields) // 8)
        fields: list[Any] = [
            ("format", "u1"),
            ("tag", f"V{HASH_BYTES}"),
            ("timestamp", "<i8"),
            ("a", "<i8"),
            ("b", "<i8"),
        ]
        fields.append(("bits", "u1", (bits,)))
        for position, (_, dtype) in enumerate(self.fields):
            fields.append((f"f{position}", "<u4" if dtype in VARIABLE_WIDTH else STORAGE[dtype]))
        return np.dtype(fields)

    @cached_property
    def variable(self) -> tuple[int, ...]:
        """Positions of the fields of variable width."""
        return tuple(i for i, (_, dtype) in enumerate(self.fields) if dtype in VARIABLE_WIDTH)

    def pack(
        self,
        timestamps: NDArray[np.int64],
        a: NDArray[np.int64],
        b: NDArray[np.int64],
        columns: Mapping[str, Column],
    ) -> list[bytes]:
        """One value per row."""
        count = len(timestamps)
        fixed = np.zeros(count, self.fixed)
        fixed["format"] = LATEST_FORMAT
        fixed["tag"] = np.void(self.tag)
        fixed["timestamp"], fixed["a"], fixed["b"] = timestamps, a, b
        validity = np.zeros((count, len(self.fields)), np.bool_)
        tails: list[list[bytes]] = []
        for position, (name, dtype) in enumerate(self.fields):
            source = columns[name]
            validity[:, position] = source.valid
            if dtype in VARIABLE_WIDTH:
                encoded = [
                    b"" if text is None else text.encode() if dtype == "String" else text
                    for text in source.values.tolist()
                ]
                fixed[f"f{position}"] = [len(text) for text in encoded]
                tails.append(encoded)
            else:
                fixed[f"f{position}"] = source.values
        fixed["bits"] = np.packbits(validity, axis=1, bitorder="little")
        raw, size = fixed.tobytes(), self.fixed.itemsize
        heads = [raw[start : start + size] for start in range(0, len(raw), size)]
        if not tails:
            return heads
        return [b"".join(pieces) for pieces in zip(heads, *tails, strict=True)]

    def unpack(self, values: Sequence[bytes | None], keys: Sequence[bytes]) -> LatestRows:
        """The rows of `values`, None being a row that is not there. `keys` name them in errors.

        Raises StoredBytesError for bytes of the wrong length or format, DefinitionMismatchError for another definition's.
        """
        size = self.fixed.itemsize
        found = np.fromiter((value is not None for value in values), np.bool_, len(values))
        present = [value for value in values if value is not None]
        short = next((i for i, value in enumerate(values) if value is not None and len(value) < size), None)
        if short is not None:
            raise StoredBytesError(
                f"{keys[short]!r} holds {len(values[short] or b'')} bytes, a row of this view has at least {size}; "
                "the value was not written by Tally or is damaged: delete the key and materialize the view again."
            )
        fixed = np.frombuffer(b"".join([value[:size] for value in present]), self.fixed)
        self._check(fixed, np.flatnonzero(found), keys)
        bits = np.unpackbits(fixed["bits"], axis=1, count=len(self.fields), bitorder="little").astype(np.bool_)
        where = np.cumsum(found) - 1
        positions = np.maximum(where, 0)
        columns: dict[str, Column] = {}
        ends = np.full(len(present), size, np.int64)
        for position, (name, dtype) in enumerate(self.fields):
            if dtype in VARIABLE_WIDTH:
                lengths = fixed[f"f{position}"].astype(np.int64)
                stored = _slices(present, ends, lengths, bits[:, position], dtype, keys)
                ends += lengths
            else:
                stored = fixed[f"f{position}"].astype(STORAGE[dtype])
            if len(present) == 0:
                columns[name] = nulls(dtype, len(values))
            elif found.all():
                columns[name] = canonical(dtype, stored, bits[:, position])
            else:
                columns[name] = canonical(dtype, stored[positions], bits[positions, position] & found)
        wrong = next(
            (i for i, (value, end) in enumerate(zip(present, ends.tolist(), strict=True)) if len(value) != end), None
        )
        if wrong is not None:
            key = keys[int(np.flatnonzero(found)[wrong])]
            raise StoredBytesError(f"{key!r} holds {len(present[wrong])} bytes where {ends[wrong]} were expected; delete the key and materialize the view again.")  # fmt: skip
        stamps = np.zeros((3, len(values)), np.int64)
        for row, name in enumerate(("timestamp", "a", "b")):
            stamps[row, found] = fixed[name]
        return LatestRows(found, stamps[0], stamps[1], stamps[2], columns)

    def _check(self, fixed: NDArray[np.void], rows: NDArray[np.int64], keys: Sequence[bytes]) -> None:
        wrong = np.flatnonzero(fixed["format"] != LATEST_FORMAT)
        if len(wrong):
            raise StoredBytesError(f"{keys[int(rows[wrong[0]])]!r} does not hold a latest row (format {fixed['format'][wrong[0]]}); delete the key and materialize the view again.")  # fmt: skip
        other = [i for i, tag in enumerate(fixed["tag"].tolist()) if tag != self.tag]
        if other:
            raise _mismatch(keys[int(rows[other[0]])], fixed["tag"][other[0]].tobytes(), self.tag)


def _mismatch(key: bytes, stored: bytes, expected: bytes) -> DefinitionMismatchError:
    return DefinitionMismatchError(
        f"{key!r} was written under definition {stored.hex()}, this plan has {expected.hex()}; "
        "load the plan again, or materialize the view under the new definition."
    )


def _slices(
    values: Sequence[bytes],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    valid: NDArray[np.bool_],
    dtype: Dtype,
    keys: Sequence[bytes],
) -> NDArray[Any]:
    out = np.empty(len(values), object)
    for i, (value, start, length, ok) in enumerate(
        zip(values, starts.tolist(), lengths.tolist(), valid.tolist(), strict=True)
    ):
        if ok:
            piece = value[start : start + length]
            try:
                out[i] = piece.decode() if dtype == "String" else piece
            except UnicodeDecodeError as error:
                raise StoredBytesError(
                    f"A stored row holds text that is not UTF-8 ({error}); near key {keys[0]!r}."
                ) from error
    return out


@dataclass(frozen=True, slots=True)
class LatestRows:
    """Decoded latest rows: `found`, `timestamp`, `a`, `b` of shape (n,), and the fields."""

    found: NDArray[np.bool_]
    timestamp: NDArray[np.int64]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    columns: dict[str, Column]


@dataclass(frozen=True, slots=True)
class TileRows:
    """Decoded tiles of n rows: `found` and `newest` of shape (n,), `fences` per row, records and the row of each."""

    found: NDArray[np.bool_]
    newest: NDArray[np.int64]
    fences: list[dict[int, int]]
    records: NDArray[np.void]
    rows: NDArray[np.int64]


def pack_tiles(tag: bytes, newest: int, fences: Mapping[int, int], records: bytes) -> bytes:
    """A tiles value from its parts; `records` are sorted by (level, tile)."""
    table = np.array(sorted(fences.items()), FENCE)
    return TILES_HEADER.pack(TILES_FORMAT, tag, newest, len(table)) + table.tobytes() + records


def fences_of(value: bytes) -> dict[int, int]:
    """Partition -> last offset applied, of a tiles value that `unpack_tiles` accepts."""
    *_, partitions = TILES_HEADER.unpack_from(value)
    return dict(_FENCE.iter_unpack(value[TILES_HEADER.size :][: partitions * _FENCE.size]))


def unpack_tiles(
    record: np.dtype[np.void], tag: bytes, values: Sequence[bytes | None], keys: Sequence[bytes]
) -> TileRows:
    """The tiles of `values`, None being an entity without any. Raises as `RowLayout.unpack`."""
    count = len(values)
    found = np.zeros(count, np.bool_)
    newest = np.zeros(count, np.int64)
    fences: list[dict[int, int]] = [{}] * count
    pieces: list[bytes] = []
    sizes = np.zeros(count, np.int64)
    head = TILES_HEADER.size
    for i, value in enumerate(values):
        if value is None:
            continue
        if len(value) < head or value[0] != TILES_FORMAT:
            raise StoredBytesError(f"{keys[i]!r} does not hold tiles; delete the key and bootstrap the view again.")
        _, stored, newest[i], partitions = TILES_HEADER.unpack_from(value)
        if stored != tag:
            raise _mismatch(keys[i], stored, tag)
        start = head + partitions * FENCE.itemsize
        if start > len(value) or (len(value) - start) % record.itemsize:
            raise StoredBytesError(f"{keys[i]!r} holds {len(value)} bytes, which is not a whole number of tiles; delete the key and bootstrap the view again.")  # fmt: skip
        found[i] = True
        fences[i] = dict(np.frombuffer(value, FENCE, partitions, head).tolist())
        pieces.append(value[start:])
        sizes[i] = (len(value) - start) // record.itemsize
    return TileRows(found, newest, fences, np.frombuffer(b"".join(pieces), record), np.repeat(np.arange(count), sizes))
