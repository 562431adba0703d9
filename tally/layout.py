r"""What bytes are in Redis: entity keys, latest rows, tiles with their fences.

All integers are little-endian unless said otherwise; format numbers are the first byte of every value.

Key     ``<project>/<view>@<first 8 hex of the view's hash>/<entity>``; the entity is each join value as text, in the
        order of the view's join keys, separated by ``|``, with ``|`` and ``\`` escaped by ``\``.
Latest  ``u8 1, 8 bytes view hash, i64 event_timestamp, i64 a, i64 b``, where (a, b) breaks ties: (created, 0) for warehouse
        rows, (partition, offset) for stream rows; then one bit per field (1: there), the fixed-width fields, and the
        bytes of strings, whose fixed part is their u32 length.
Names   plans, services, views and progress: see `plan_key` and its neighbours below.
Tiles   ``u8 2, 8 bytes view hash, i64 newest event_timestamp, u16 n``, then n fences ``u32 partition, i64 offset`` by
        rising partition, then records of `tally.tiles` by rising (level, tile), as `TileLayout.pack` stores them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tally.columns import Column, canonical, nulls
from tally.dtypes import FLOATS, STORAGE, VARIABLE_WIDTH, Dtype
from tally.errors import DefinitionMismatchError, StoredBytesError
from tally.tiles import TileLayout

LATEST_FORMAT: Final = 1
TILES_FORMAT: Final = 2
HASH_BYTES: Final = 8
LATEST_HEADER: Final = struct.Struct("<B8sqqq")
TILES_HEADER: Final = struct.Struct("<B8sqH")
FENCE: Final = np.dtype([("partition", "<u4"), ("offset", "<i8")])
_FENCE: Final = struct.Struct("<Iq")
_HEAD: Final = np.dtype([("head", f"V{1 + HASH_BYTES}"), ("newest", "<i8"), ("fences", "<u2")])
_HEAD_PARTS: Final = np.dtype([("format", "u1"), ("tag", f"V{HASH_BYTES}"), ("newest", "<i8"), ("fences", "<u2")])


def key_prefix(project: str, view: str, view_hash: str) -> bytes:
    """The part of a view's keys that comes before the entity."""
    return f"{project}/{view}@{view_hash[:8]}/".encode()


def plan_key(project: str, service: str) -> str:
    """A string: the JSON of `Plan.for_service(service)`."""
    return f"tally:{project}:plan:{service}"


def version_key(project: str, service: str) -> str:
    """A string: the service's hash. Written after `plan_key`, so whoever sees a new one finds the plan that it names."""
    return f"tally:{project}:version:{service}"


def services_key(project: str) -> str:
    """A hash: service name -> service hash, of every published service."""
    return f"tally:{project}:services"


def views_key(project: str) -> str:
    """A hash: ``<view>@<view hash>`` -> JSON of how that definition's data came here. No entry: nothing was ever loaded."""
    return f"tally:{project}:views"


def topics_key(project: str) -> str:
    """A hash: ``<view>@<view hash>:<topic>`` -> the id that Kafka had given the topic from which that definition was filled."""
    return f"tally:{project}:topics"


def progress_key(project: str, shard: str = "") -> str:
    """A hash: ``<view>@<view hash>:<topic>:<partition>`` -> how far that definition has come.

    It is the offset after the last message whose effects on the view are all in Redis. A cluster has one hash for each
    primary, named by a hash tag.
    """
    return f"tally:{project}:progress" + (f":{{{shard}}}" if shard else "")


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
        texts = column.values.tolist()
        try:
            joined = "\n".join(texts).encode()
        except UnicodeEncodeError:
            joined = b"|"  # below, the text that is wrong is named
        if b"|" not in joined and b"\\" not in joined and joined.count(b"\n") == len(texts) - 1:
            return joined.split(b"\n")
        return [escaped(text.encode()) for text in texts]
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
        present, rows, found = _present(values)
        size = self.fixed.itemsize
        lengths = list(map(len, present))
        if lengths and min(lengths) < size:
            short = next(i for i, length in enumerate(lengths) if length < size)
            raise StoredBytesError(
                f"{keys[rows[short]]!r} holds {lengths[short]} bytes, a row of this view has at least {size}; "
                "the value was not written by Tally or is damaged: delete the key and materialize the view again."
            )
        exact = not lengths or max(lengths) == size
        raw = b"".join(present if exact else [value[:size] for value in present])
        rest, runs = self._runs
        packed = np.frombuffer(raw, rest)
        if packed["head"].tobytes() != self._head * len(present):
            heads = np.frombuffer(raw, self.fixed)
            _check_heads(heads, LATEST_FORMAT, self.tag, "a latest row", "materialize", rows, keys)
        arrays, has_nan = _arrays(packed, runs)
        complete = packed["bits"].tobytes() == self._full * len(present)
        there = np.ones(len(values), np.bool_) if found is None else found
        valid = None if complete and found is None else self._validity(packed["bits"])
        ends = [size] * len(present)
        columns: dict[str, Column] = {}
        for position, (name, dtype) in enumerate(self.fields):
            stored = arrays[position]
            if dtype in VARIABLE_WIDTH:
                starts, ends = ends, [a + b for a, b in zip(ends, stored.tolist(), strict=True)]
                filled = there if valid is None else valid[position]
                stored = _slices(present, starts, ends, filled, dtype, rows, keys)
            if valid is None:
                nan = has_nan and dtype in FLOATS
                columns[name] = canonical(dtype, stored, there) if nan else Column(dtype, stored, there)
            elif found is None:
                columns[name] = canonical(dtype, stored, valid[position])
            else:
                columns[name] = _scattered(dtype, stored, valid[position], found)
        if ends != lengths:
            wrong = next(i for i, (length, end) in enumerate(zip(lengths, ends, strict=True)) if length != end)
            raise StoredBytesError(f"{keys[rows[wrong]]!r} holds {lengths[wrong]} bytes where {ends[wrong]} were expected; delete the key and materialize the view again.")  # fmt: skip
        stamps = np.array(packed["stamps"].T, np.int64, order="C")
        if found is not None:
            stamps, those = np.zeros((3, len(values)), np.int64), stamps
            stamps[:, found] = those
        return LatestRows(there, stamps[0], stamps[1], stamps[2], columns, values)

    def _validity(self, bits: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which fields of which rows are there, shape (fields, rows)."""
        unpacked = np.unpackbits(bits, axis=1, count=len(self.fields), bitorder="little")
        return np.array(unpacked.T, order="C").view(np.bool_)

    @cached_property
    def _full(self) -> bytes:
        return ((1 << len(self.fields)) - 1).to_bytes(-(-len(self.fields) // 8), "little")

    @cached_property
    def _head(self) -> bytes:
        return bytes([LATEST_FORMAT]) + self.tag

    @cached_property
    def _runs(self) -> tuple[np.dtype[np.void], tuple[_Run, ...]]:
        """`fixed` once more, with neighbouring fields of one width as one field of several numbers."""
        bits = -(-len(self.fields) // 8)
        fields: list[Any] = [("head", f"V{1 + HASH_BYTES}"), ("stamps", "<i8", (3,)), ("bits", "u1", (bits,))]
        runs: list[_Run] = []
        for width, some in groupby(
            self.fields, lambda field: _LENGTH if field[1] in VARIABLE_WIDTH else _width(field[1])
        ):
            dtypes = tuple(dtype for _, dtype in some)
            runs.append(_Run(f"run{len(runs)}", dtypes, [i for i, dtype in enumerate(dtypes) if dtype in FLOATS]))
            fields.append((runs[-1].name, width, (len(dtypes),)))
        return np.dtype(fields), tuple(runs)


_LENGTH: Final = "<u4"


def _width(dtype: Dtype) -> str:
    """What a run holds fields of `dtype` as: integers of 64 bits stand for floats, too."""
    storage = STORAGE[dtype]
    return "<i8" if storage.itemsize == 8 else storage.str


@dataclass(frozen=True, slots=True)
class _Run:
    """A field of several numbers: the dtype of each, and which of them are floats."""

    name: str
    dtypes: tuple[Dtype, ...]
    floats: list[int]


def _arrays(packed: NDArray[np.void], runs: Sequence[_Run]) -> tuple[list[NDArray[Any]], bool]:
    """(a contiguous array for each field, in order; whether any float is NaN). Texts are their lengths."""
    arrays: list[NDArray[Any]] = []
    has_nan = False
    for run in runs:
        block = np.array(packed[run.name].T, order="C")
        floats = block.view(np.float64) if run.floats and block.dtype.kind == "i" else block
        arrays += [(floats if dtype == "Float64" else block)[position] for position, dtype in enumerate(run.dtypes)]
        if run.floats:
            has_nan = has_nan or b"\1" in np.isnan(floats[run.floats]).tobytes()
    return arrays, has_nan


def _present(values: Sequence[bytes | None]) -> tuple[list[bytes], Sequence[int], NDArray[np.bool_] | None]:
    """(values that are there, the row of each, which rows those are: None for all)."""
    present = [value for value in values if value is not None]
    if len(present) == len(values):
        return present, range(len(values)), None
    found = np.fromiter((value is not None for value in values), np.bool_, len(values))
    return present, np.flatnonzero(found).tolist(), found


def _scattered(dtype: Dtype, stored: NDArray[Any], valid: NDArray[np.bool_], found: NDArray[np.bool_]) -> Column:
    """The column with `stored` in the rows that were `found`, null elsewhere."""
    column = nulls(dtype, len(found))
    packed = canonical(dtype, stored, valid)
    column.values[found] = packed.values
    column.valid[found] = packed.valid
    return column


def _check_heads(
    heads: NDArray[np.void],
    expected: int,
    tag: bytes,
    what: str,
    verb: str,
    rows: Sequence[int],
    keys: Sequence[bytes],
) -> None:
    wrong = heads["format"] != expected
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise StoredBytesError(
            f"{keys[rows[first]]!r} does not hold {what} (format {heads['format'][first]}); "
            f"delete the key and {verb} the view again."
        )
    if heads["tag"].tobytes() != tag * len(heads):
        tags = heads["tag"].tolist()
        other = next(i for i, stored in enumerate(tags) if stored != tag)
        raise _mismatch(keys[rows[other]], tags[other], tag)


def _mismatch(key: bytes, stored: bytes, expected: bytes) -> DefinitionMismatchError:
    return DefinitionMismatchError(
        f"{key!r} was written under definition {stored.hex()}, this plan has {expected.hex()}; "
        "load the plan again, or materialize the view under the new definition."
    )


def _slices(
    values: Sequence[bytes],
    starts: Sequence[int],
    ends: Sequence[int],
    valid: NDArray[np.bool_],
    dtype: Dtype,
    rows: Sequence[int],
    keys: Sequence[bytes],
) -> NDArray[Any]:
    out = np.empty(len(values), object)
    for i, (value, start, end, ok) in enumerate(zip(values, starts, ends, valid.tolist(), strict=True)):
        if ok:
            piece = value[start:end]
            try:
                out[i] = piece.decode() if dtype == "String" else piece
            except UnicodeDecodeError as error:
                raise StoredBytesError(
                    f"{keys[rows[i]]!r} holds text that is not UTF-8 ({error}); "
                    "delete the key and materialize the view again."
                ) from error
    return out


@dataclass(frozen=True, slots=True)
class LatestRows:
    """Decoded latest rows: `found`, `timestamp`, `a`, `b` of shape (n,), the fields, and the bytes that they came from."""

    found: NDArray[np.bool_]
    timestamp: NDArray[np.int64]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    columns: dict[str, Column]
    values: Sequence[bytes | None]


@dataclass(frozen=True, slots=True)
class TileRows:
    """Decoded tiles of n rows: `found` and `newest` of shape (n,), `fences` per row, records and how many each row has."""

    found: NDArray[np.bool_]
    newest: NDArray[np.int64]
    records: NDArray[np.void]
    sizes: NDArray[np.int64]
    values: Sequence[bytes | None]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each record."""
        return np.repeat(np.arange(len(self.found)), self.sizes)

    @property
    def fences(self) -> list[dict[int, int]]:
        """Partition -> last offset applied, for each row; empty where nothing is stored."""
        return [{} if value is None else fences_of(value) for value in self.values]


def row_check(value: bytes) -> int:
    """32 bits that tell a stored latest row from others of the same event timestamp, a and b, as evidence of what was read."""
    return zlib.crc32(value)


def pack_tiles(tag: bytes, newest: int, fences: Mapping[int, int], records: bytes) -> bytes:
    """A tiles value from its parts; `records` are sorted by (level, tile), and packed by `TileLayout.pack`."""
    table = np.array(sorted(fences.items()), FENCE)
    return TILES_HEADER.pack(TILES_FORMAT, tag, newest, len(table)) + table.tobytes() + records


def fences_of(value: bytes) -> dict[int, int]:
    """Partition -> last offset applied, of a tiles value that `unpack_tiles` accepts."""
    *_, partitions = TILES_HEADER.unpack_from(value)
    return dict(_FENCE.iter_unpack(value[TILES_HEADER.size :][: partitions * _FENCE.size]))


def unpack_tiles(layout: TileLayout, tag: bytes, values: Sequence[bytes | None], keys: Sequence[bytes]) -> TileRows:
    """The tiles of `values`, None being an entity without any. Raises as `RowLayout.unpack`."""
    present, rows, found = _present(values)
    raw = b"".join([value[: TILES_HEADER.size] for value in present])
    if len(raw) != len(present) * TILES_HEADER.size:
        key = keys[rows[next(i for i, value in enumerate(present) if len(value) < TILES_HEADER.size)]]
        raise StoredBytesError(f"{key!r} does not hold tiles; delete the key and bootstrap the view again.")
    heads = np.frombuffer(raw, _HEAD)
    if heads["head"].tobytes() != (bytes([TILES_FORMAT]) + tag) * len(heads):
        _check_heads(np.frombuffer(raw, _HEAD_PARTS), TILES_FORMAT, tag, "tiles", "bootstrap", rows, keys)
    starts = [TILES_HEADER.size + count * FENCE.itemsize for count in heads["fences"].tolist()]
    blocks = [value[start:] for value, start in zip(present, starts, strict=True)]
    records, sizes, damaged = layout.unpack(blocks)
    if b"" in blocks or damaged.any():
        wrong = [i for i, value in enumerate(present) if damaged[i] or len(value) < starts[i]]
        if wrong:
            raise StoredBytesError(
                f"{keys[rows[wrong[0]]]!r} holds {len(present[wrong[0]])} bytes, which is not a whole number of tiles; "
                "delete the key and bootstrap the view again."
            )
    if found is None:
        return TileRows(np.ones(len(values), np.bool_), heads["newest"].astype(np.int64), records, sizes, values)
    newest, all_sizes = np.zeros((2, len(values)), np.int64)
    newest[found], all_sizes[found] = heads["newest"], sizes
    return TileRows(found, newest, records, all_sizes, values)
