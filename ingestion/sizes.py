"""How much memory each view takes in Redis for an entity, and what Feast's layout would take for the same values.

Measured, with MEMORY USAGE: of a sample of our keys, and of short-lived keys that hold the sample's values as Feast's Redis
store keeps them (a hash for each entity: ``_ts:<view>``, and a protobuf value under the murmur hash of ``<view>:<feature>``).
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Final, cast

from connections import Client, reaching
from tally.dtypes import VARIABLE_WIDTH, Dtype
from tally.plan import Plan, View
from tally.single import RowReader, WindowReader

SCANNED: Final = 200_000
"""How many keys are looked at; beyond them the number of entities is an estimate."""
MEASURED: Final = 200
"""How many keys of each view are measured."""
_PAGE: Final = 1_000
_TEMPORARY_SECONDS: Final = 60
_UNESCAPED: Final = re.compile(rb"(?<!\\)(?:\\\\)*\|")
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of memory for one entity of a view, ours and in Feast's layout (None where no value could be read).

    `entities` is exact unless `estimated`.
    """

    view: str
    entities: int
    estimated: bool
    ours: float
    feast: float | None


@dataclass(slots=True)
class _Seen:
    count: int = 0
    keys: list[bytes] = field(default_factory=list)


def sizes(redis: Client, plan: Plan) -> list[Size]:
    """The size of every online view that has entities in Redis, by name. Raises UnavailableError."""
    views = {view.prefix(plan.project): view for view in plan.views if view.online}
    with reaching(redis):
        seen, scanned, whole = _scan(redis, list(views))
        share = 1.0 if whole else redis.dbsize() / scanned
        found = [
            Size(
                view.name,
                round(seen[prefix].count * share),
                not whole,
                _mean(_usage(redis, seen[prefix].keys)),
                _in_feasts_layout(redis, plan, view, seen[prefix].keys),
            )
            for prefix, view in views.items()
            if seen[prefix].count
        ]
    return sorted(found, key=lambda size: size.view)


def _scan(redis: Client, prefixes: Sequence[bytes]) -> tuple[dict[bytes, _Seen], int, bool]:
    """(what was seen of each prefix, how many keys were looked at, whether these were all)."""
    seen = {prefix: _Seen() for prefix in prefixes}
    scanned = 0
    for key in cast(Iterator[bytes], redis.scan_iter(count=_PAGE)):
        if scanned == SCANNED:
            return seen, scanned, False
        scanned += 1
        one = seen.get(key[: key.find(b"/", key.find(b"@")) + 1])
        if one is not None:
            one.count += 1
            if len(one.keys) < MEASURED:
                one.keys.append(key)
    return seen, scanned, True


def _usage(redis: Client, keys: Sequence[bytes]) -> list[int]:
    """Bytes of the keys that are still there."""
    with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.memory_usage(key, samples=0)
        return [size for size in pipe.execute() if size is not None]


def _mean(sizes: Sequence[int]) -> float:
    return sum(sizes) / max(1, len(sizes))


def _in_feasts_layout(redis: Client, plan: Plan, view: View, keys: Sequence[bytes]) -> float | None:
    now = time.time_ns() // 1000
    run = token_hex(4).encode()
    temporary = []
    with redis.pipeline(transaction=False) as pipe:
        for number, value in enumerate(_values(redis, keys)):
            read = _read(view, value, now)
            if read is None:
                continue
            name = b"tally:sizes:%b:%d:" % (run, number)
            name = name.ljust(feast_key_length(plan.project, view, keys[number]), b".")
            pipe.hset(name, mapping=cast(Any, feast_hash(view, *read)))
            pipe.expire(name, _TEMPORARY_SECONDS)
            temporary.append(name)
        pipe.execute()
    if not temporary:
        return None
    measured = _mean(_usage(redis, temporary))
    with redis.pipeline(transaction=False) as pipe:
        for name in temporary:
            pipe.unlink(name)
        pipe.execute()
    return measured


def _values(redis: Client, keys: Sequence[bytes]) -> list[bytes | None]:
    with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.get(key)
        return cast(list[bytes | None], pipe.execute())


def _read(view: View, value: bytes | None, now: int) -> tuple[int, list[Any]] | None:
    """(event timestamp, a value for each field) of a stored value; windows as of now."""
    if value is None:
        return None
    if view.kind == "window":
        return WindowReader(view.tile_layout, view.tag).read(value, now)
    row = RowReader(view.row_layout).read(value)
    return None if row is None else (row[0], row[3])


# Feast's layout


def feast_key_length(project: str, view: View, key: bytes) -> int:
    """How long Feast's key is for the entity of our `key`: names, types, lengths and values of the join keys, the project."""
    entity = key[len(view.prefix(project)) :]
    length = 4 + len(project.encode())
    for one, text in zip(view.keys, _UNESCAPED.split(entity), strict=True):
        integer = 4 if one.dtype == "Int32" else 8
        held = len(_ESCAPED.sub(rb"\1", text)) if one.dtype in VARIABLE_WIDTH else integer
        length += 8 + len(one.name.encode()) + 8 + held
    return length


def feast_hash(view: View, timestamp: int, values: Sequence[Any]) -> Mapping[bytes, bytes]:
    """The fields of Feast's hash for one entity of a view (names in the place of murmur hashes, which are as long)."""
    names = [a.feature for a in view.aggregations] or [f.name for f in view.fields]
    dtypes: list[Dtype] = [a.output for a in view.aggregations] or [f.dtype for f in view.fields]
    fields = {f"_ts:{view.name}".encode(): protobuf_timestamp(timestamp)}
    for number, (_, dtype, value) in enumerate(zip(names, dtypes, values, strict=True)):
        fields[struct.pack(">I", 0x9E3779B9 * (number + 1) & 0xFFFFFFFF)] = protobuf_value(dtype, value)
    return fields


def protobuf_timestamp(micros: int) -> bytes:
    """A google.protobuf.Timestamp."""
    seconds, rest = divmod(micros, 1_000_000)
    return (b"\x08" + _varint(seconds) if seconds else b"") + (b"\x10" + _varint(rest * 1000) if rest else b"")


def protobuf_value(dtype: Dtype, value: Any) -> bytes:
    """A value of Feast's Value message; nothing for a null."""
    if value is None:
        return b""
    if dtype == "Float64":
        return b"\x29" + struct.pack("<d", value)
    if dtype == "Float32":
        return b"\x35" + struct.pack("<f", value)
    if dtype in ("String", "Bytes"):
        held = value.encode() if isinstance(value, str) else value
        return (b"\x12" if dtype == "String" else b"\x0a") + _varint(len(held)) + held
    number = value // 1_000_000 if dtype == "UnixTimestamp" else int(value)
    return {"Int32": b"\x18", "Int64": b"\x20", "Bool": b"\x38", "UnixTimestamp": b"\x40"}[dtype] + _varint(number)


def _varint(number: int) -> bytes:
    rest = number & (1 << 64) - 1
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)
