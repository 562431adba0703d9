"""Avro messages: the columns of a schema, and their values.

A message is decoded with the schema that it was written with, as Kafka Connect does, and then read by column names:
`ingestion.wires` says what a field is that the writer did not know. A schema registry's frame (a zero byte and the four
bytes of the schema's id) names the writer's schema. Without a registry the definition's schema is the writer's too, with
or without a frame; bytes that can be read both ways are refused.

Records, arrays, maps and unions of several types are decoded but are no columns. Schemas in which a few bytes could stand
for endless work are refused: records that contain themselves, and arrays of items that take no bytes.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from operator import itemgetter
from typing import Any, Final, cast

import fastavro
import numpy as np

from ingestion.messages import TOMBSTONE
from ingestion.wires import ISO, UNITS, Messages, Wire, table
from tally.dtypes import FLOATS, Dtype
from tally.errors import DefinitionError
from tally.plan import Field

WriterSchema = Callable[[int], tuple[str, ...] | None]
"""The Avro schema with a registry's id, after the schemas that it refers to; None when the registry has no such id."""

_SCHEMA_ERRORS: Final = (fastavro.schema.SchemaParseException, fastavro.schema.UnknownType)
_NOT_AVRO: Final = (
    EOFError, ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, struct.error,
)  # fmt: skip
"""What fastavro raises for bytes that are no record."""
_GUARD_BYTES: Final = 16
_TOGETHER: Final = 32
"""From so many messages on they are decoded at once; fewer are looked at one by one, as are those among which one is bad."""
FRAME: Final = struct.Struct(">BI")
_TYPES: Final[dict[str, Dtype]] = {
    "boolean": "Bool",
    "int": "Int32",
    "long": "Int64",
    "float": "Float32",
    "double": "Float64",
    "string": "String",
    "enum": "String",
    "bytes": "Bytes",
    "fixed": "Bytes",
}
_TIMESTAMPS: Final = {f"{local}timestamp-{unit}": unit for local in ("", "local-") for unit in UNITS}
_WIDER: Final[dict[Dtype, tuple[Dtype, ...]]] = {
    "Int64": ("Int32",),
    "Float32": ("Int32", "Int64"),
    "Float64": ("Int32", "Int64", "Float32"),
}
"""What a writer may have had where the definition has a wider type, as Avro's rules of resolution allow."""


@dataclass(frozen=True, slots=True)
class _Schema:
    """A schema that can be decoded with: fastavro's form of it, and its columns."""

    parsed: Any
    together: Any
    """Of an array of records with a guard behind each (`_decoded_together`)."""
    guard: str
    """The guard's name."""
    wires: dict[str, Wire]
    units: dict[str, str]
    """Names of timestamp columns, and what their integers count."""
    names: frozenset[str]
    """Names of all fields."""


def wires_of(schema_json: str) -> tuple[Wire, ...]:
    """The columns of a schema, in its order. Raises DefinitionError for a schema that Tally cannot read."""
    return tuple(_compiled((schema_json,)).wires.values())


@dataclass(frozen=True)
class AvroDecoder:
    """Decodes messages written under one schema or its older and newer versions. `writer` is None without a registry."""

    schema_json: str
    writer: WriterSchema | None

    @cached_property
    def _own(self) -> _Schema:
        return _compiled((self.schema_json,))

    @cached_property
    def _written(self) -> dict[int, _Schema | str]:
        """Schemas of the registry, by id, or why they cannot be used: an id means the same schema for ever."""
        return {}

    def __call__(self, values: Sequence[bytes | None]) -> Messages:
        """The messages as a table. Raises UnavailableError when the registry cannot be asked."""
        bad: dict[int, str] = {}
        records: dict[int, tuple[_Schema, list[int], list[dict[str, Any]]]] = {}
        unknown: set[int] = set()
        pending = [(0, len(values))]
        while pending:
            start, stop = pending.pop()
            alike = self._alike(values[start:stop]) if stop - start >= _TOGETHER else None
            if alike is not None:
                number, schema, bodies = alike
                found = _decoded_together(schema, bodies)
                if found is None:  # one of them is bad: find it
                    middle = (start + stop) // 2
                    pending += [(middle, stop), (start, middle)]
                    continue
                _, rows, of_schema = records.setdefault(number, (schema, [], []))
                rows += range(start, stop)
                of_schema += found
                continue
            for row in range(start, stop):
                value = values[row]
                if value is None:
                    bad[row] = TOMBSTONE
                    continue
                number, written, record = self._record(value, unknown)
                if isinstance(record, str):
                    bad[row] = record
                else:
                    _, rows, of_schema = records.setdefault(number, (cast(_Schema, written), [], []))
                    rows.append(row)
                    of_schema.append(record)
        rows_in_all: list[int] = []
        columns: dict[str, list[Any]] = {name: [] for name in self._own.wires}
        for schema, rows, of_schema in records.values():
            rows_in_all += rows
            for name, column in columns.items():
                column += _column(self._own, schema, name, of_schema)
        if len(records) > 1:
            order = sorted(range(len(rows_in_all)), key=rows_in_all.__getitem__)
            rows_in_all = [rows_in_all[i] for i in order]
            columns = {name: [column[i] for i in order] for name, column in columns.items()}
        return table(tuple(self._own.wires.values()), columns, np.array(rows_in_all, np.int64), bad)

    def _alike(self, values: Sequence[bytes | None]) -> tuple[int, _Schema, Sequence[bytes]] | None:
        """(number of the schema, the schema, what stands behind the frames) where all values have the same schema."""
        if None in values:
            return None
        whole = cast(Sequence[bytes], values)
        if self.writer is None:
            return None if any(value[:1] == b"\0" for value in whole) else (0, self._own, whole)
        head = whole[0][: FRAME.size]
        if len(head) < FRAME.size or head[0] != 0 or not all(value.startswith(head) for value in whole):
            return None
        number = FRAME.unpack(head)[1]
        schema = self._writer_schema(number)
        return None if isinstance(schema, str) else (number, schema, [value[FRAME.size :] for value in whole])

    def _record(self, value: bytes, unknown: set[int]) -> tuple[int, _Schema | None, dict[str, Any] | str]:
        """(number of the schema, the schema, the record or why there is none)."""
        framed = len(value) >= FRAME.size and value[0] == 0
        if self.writer is None:
            bare = _decoded(self._own, value)
            if not framed:
                return 0, self._own, bare
            inside = _decoded(self._own, value[FRAME.size :])
            if isinstance(inside, str):
                return 0, self._own, bare
            if isinstance(bare, str):
                return 0, self._own, inside
            return 0, None, "can be read with and without a schema registry's frame; set SCHEMA_REGISTRY_URL"
        if not framed:
            return 0, None, "not framed: it does not begin with a zero byte and a schema id"
        number = FRAME.unpack_from(value)[1]
        schema = "" if number in unknown else self._writer_schema(number)
        if schema == "":
            unknown.add(number)
            return number, None, f"schema id {number} is not in the schema registry"
        if isinstance(schema, str):
            return number, None, f"schema id {number}: {schema}"
        return number, schema, _decoded(schema, value[FRAME.size :])

    def _writer_schema(self, number: int) -> _Schema | str:
        if number not in self._written:
            assert self.writer is not None
            texts = self.writer(number)
            if texts is None:
                return ""
            try:
                schema = _compiled(texts)
                self._written[number] = _difference(self._own, schema) or schema
            except DefinitionError as error:
                self._written[number] = str(error)
        return self._written[number]


def _decoded_together(schema: _Schema, bodies: Sequence[bytes]) -> list[dict[str, Any]] | None:
    """The records of many messages, in a fifth of the calls; None when one of them is not exactly a record.

    Behind each message comes a guard, bytes that no sender knows. As many records are read as there are guards, and each must
    end in one, so none can begin or end anywhere but where its message does.
    """
    guard = os.urandom(_GUARD_BYTES)
    buffer = BytesIO(b"".join((_zigzag(len(bodies)), guard.join(bodies), guard, b"\0")))
    try:
        records = cast(list[dict[str, Any]], fastavro.schemaless_reader(buffer, schema.together, None))
    except _NOT_AVRO:
        return None
    return records if set(map(itemgetter(schema.guard), records)) == {guard} else None


def _zigzag(number: int) -> bytes:
    """Avro's long, of a number that is not negative."""
    number, groups = number << 1, []
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*groups, number))


def _decoded(schema: _Schema, body: bytes) -> dict[str, Any] | str:
    buffer = BytesIO(body)
    try:
        record = fastavro.schemaless_reader(buffer, schema.parsed, None)
    except EOFError:  # its own text names the buffer by an address, which is another one each time
        return "not Avro of this schema: it ends before the record does"
    except _NOT_AVRO as error:
        return f"not Avro of this schema: {type(error).__name__}: {error}"[:200]
    left = len(body) - buffer.tell()
    if left:
        return f"not Avro of this schema: {left} bytes are left over"
    return cast(dict[str, Any], record)


def _column(own: _Schema, written: _Schema, name: str, records: Sequence[dict[str, Any]]) -> list[Any]:
    """The values of a column, as `wires.table` takes them."""
    wire = written.wires.get(name)
    if wire is None:
        return [None] * len(records)
    values = list(map(itemgetter(name), records))
    if name in own.units:
        per_tick, per_micro = UNITS[own.units[name]]
        if (per_tick, per_micro) != (1, 1):
            values = [None if value is None else value * per_tick // per_micro for value in values]
    elif own.wires[name].field.dtype == "Float64" and wire.field.dtype == "Float32":
        # Kafka Connect writes a float with as few digits as tell it apart, and a warehouse reads these as a double.
        values = [None if value is None else float(str(np.float32(value))) for value in values]
    elif wire.field.dtype in ("Int32", "Int64") and own.wires[name].field.dtype in ("Float32", "Float64"):
        values = [None if value is None else float(value) for value in values]
    return values


def _difference(own: _Schema, written: _Schema) -> str:
    """What in a writer's schema cannot be read as the definition's; empty where everything can."""
    for name, wire in own.wires.items():
        if name not in written.names:
            continue
        there = written.wires.get(name)
        if there is None:
            return f"field {name} is no column there, it is {wire.field.dtype} here"
        if there.field.dtype not in (wire.field.dtype, *_WIDER.get(wire.field.dtype, ())):
            return f"field {name} is {there.field.dtype} there, and {wire.field.dtype} here"
        if written.units.get(name) != own.units.get(name):
            return f"field {name} counts {written.units.get(name)} there, and {own.units.get(name)} here"
    return ""


# Schemas


def _compiled(texts: Sequence[str]) -> _Schema:
    """A schema, the last of `texts`; the others define what it refers to. Raises DefinitionError."""
    named: dict[str, Any] = {}
    plain_named: dict[str, Any] = {}
    parsed: Any = None
    plain: Any = None
    others: dict[str, Any] = {}
    for text in texts:
        try:
            parsed = fastavro.parse_schema(json.loads(text), named_schemas=named)
            others = dict(plain_named)
            plain = fastavro.parse_schema(_without_logical_types(parsed), named_schemas=plain_named)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, *_SCHEMA_ERRORS) as error:
            raise DefinitionError(f"its Avro schema is not one ({type(error).__name__}: {error})") from error
    if not isinstance(parsed, dict) or parsed.get("type") != "record":
        raise DefinitionError("its Avro schema must be a record, whose fields are the columns")
    _least_bytes(parsed, named, ())
    wires: dict[str, Wire] = {}
    units: dict[str, str] = {}
    for field in parsed["fields"]:
        found = _wire(field, named)
        if found is not None:
            wires[field["name"]], unit = found
            if unit:
                units[field["name"]] = unit
    names = frozenset(field["name"] for field in parsed["fields"])
    guard = max(names, key=len, default="") + "_"
    guarded = _without_logical_types(parsed)
    kind = {"type": "fixed", "name": f"{guard}_bytes", "size": _GUARD_BYTES}
    guarded["fields"].append({"name": guard, "type": kind})
    together = fastavro.parse_schema({"type": "array", "items": guarded}, named_schemas=others)
    return _Schema(plain, together, guard, wires, units, names)


def _without_logical_types(schema: Any) -> Any:
    """The schema of the bytes alone: fastavro would make datetimes and decimals of what we want as integers."""
    if isinstance(schema, list):
        return [_without_logical_types(branch) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: item for name, item in schema.items() if name != "logicalType" and not name.startswith("__")}
    for name in ("type", "items", "values"):
        if name in kept:
            kept[name] = _without_logical_types(kept[name])
    if "fields" in kept:
        kept["fields"] = [{**field, "type": _without_logical_types(field["type"])} for field in kept["fields"]]
    return kept


def _least_bytes(schema: Any, named: Mapping[str, Any], inside: tuple[str, ...]) -> int:
    """The least number of bytes that a value of a schema takes. Raises DefinitionError for what could be endless."""
    if isinstance(schema, list):
        for branch in schema:
            _least_bytes(branch, named, inside)
        return 1
    if isinstance(schema, str):
        return _least_bytes(named[schema], named, inside) if schema in named else int(schema != "null")
    kind = schema["type"]
    if kind in ("record", "error"):
        if schema["name"] in inside:
            raise DefinitionError(
                f"its Avro record {schema['name']} contains itself, so that a message has no depth limit"
            )
        return sum(_least_bytes(field["type"], named, (*inside, schema["name"])) for field in schema["fields"])
    if kind == "fixed":
        return int(schema["size"])
    if kind == "map":
        _least_bytes(schema["values"], named, inside)
        return 1
    if kind == "array":
        if _least_bytes(schema["items"], named, inside) == 0:
            raise DefinitionError(
                "its Avro schema has an array of items that take no bytes, so that it has no size limit"
            )
        return 1
    return 1 if kind == "enum" else _least_bytes(kind, named, inside)


def _wire(field: Mapping[str, Any], named: Mapping[str, Any]) -> tuple[Wire, str] | None:
    """(a field as a column, the unit of its integers if it is an instant); None for what is no column."""
    schema: Any = field["type"]
    branches = schema if isinstance(schema, list) else [schema]
    kinds = [branch for branch in branches if branch != "null"]
    if len(kinds) != 1:
        return None
    kind = kinds[0]
    kind = named.get(kind, kind) if isinstance(kind, str) else kind
    kind = {"type": kind} if isinstance(kind, str) else kind
    name, logical = kind["type"], kind.get("logicalType", "")
    if not isinstance(name, str) or name not in _TYPES:
        return None
    dtype, unit, landed_as = _TYPES[name], "", ""
    if logical in _TIMESTAMPS and name == "long":
        dtype, unit = "UnixTimestamp", _TIMESTAMPS[logical]
        landed_as = ISO if logical == "timestamp-millis" else unit
    elif logical and logical != "uuid":
        return None
    symbols = frozenset(kind["symbols"]) if name == "enum" else frozenset[str]()
    default = _default(field.get("default"), dtype, unit)
    wire = Wire(Field(field["name"], dtype), "null" not in branches, default, symbols, landed_as)
    return wire, unit


def _default(value: Any, dtype: Dtype, unit: str) -> Any:
    """The default of a field, which a schema's JSON has in the form of its bytes."""
    if value is None:
        return None
    if dtype == "Bytes":
        return value.encode("latin-1")
    if unit:
        per_tick, per_micro = UNITS[unit]
        return value * per_tick // per_micro
    return float(value) if dtype in FLOATS else value
