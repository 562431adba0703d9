"""What Kafka Connect's converters and Snowflake's connector make of Avro and Protobuf messages: JSON text.

Written for the connector stand-in from the connector's own rules, and apart from what the stream decodes with, so that a
test which compares the two sides compares two pieces of code. As in Kafka Connect: Avro is read with the writer's schema;
timestamp-millis and google.protobuf.Timestamp have milliseconds, other Avro timestamps stay integers; bytes are base64;
floats have as few digits as tell them apart; NaN and infinities are text; a null with a default is the default.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import fastavro
import numpy as np
from google.protobuf.message import DecodeError, Message

Converter = Callable[[bytes], bytes]
"""A message's value as JSON text. Raises ValueError for one that cannot be converted."""


def avro(schema_of: Callable[[int], str] | str) -> Converter:
    """Converts Avro: framed with a schema id that `schema_of` knows, or bare under the one schema."""

    def convert(value: bytes) -> bytes:
        if isinstance(schema_of, str):
            text, body = schema_of, value
        elif len(value) >= 5 and value[0] == 0:
            text, body = schema_of(int.from_bytes(value[1:5], "big")), value[5:]
        else:
            raise ValueError("no frame")
        schema = json.loads(text)
        buffer = io.BytesIO(body)
        try:
            record: Any = fastavro.schemaless_reader(buffer, fastavro.parse_schema(_raw(schema)), None)
        except (EOFError, IndexError, KeyError, OverflowError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if buffer.tell() != len(body):
            raise ValueError("bytes are left over")
        return json.dumps({field["name"]: _avro(field, record[field["name"]]) for field in schema["fields"]}).encode()

    return convert


def _raw(schema: Any) -> Any:
    """The schema without logical types."""
    if isinstance(schema, dict):
        return {name: _raw(item) for name, item in schema.items() if name != "logicalType"}
    return [_raw(item) for item in schema] if isinstance(schema, list) else schema


def _avro(field: dict[str, Any], value: Any) -> Any:
    branches = field["type"] if isinstance(field["type"], list) else [field["type"]]
    kind = next((branch for branch in branches if branch != "null"), "null")
    if value is None:
        default = field.get("default")
        if default is None:
            return None
        value = default.encode("latin-1") if kind == "bytes" else default
    name = kind["type"] if isinstance(kind, dict) else kind
    if isinstance(kind, dict) and kind.get("logicalType") == "timestamp-millis":
        return _iso(value)
    return _json(np.float32(value) if name == "float" else value)


def protobuf(message: type[Message]) -> Converter:
    """Converts Protobuf of one type, framed or not."""

    def convert(value: bytes) -> bytes:
        try:
            found = message.FromString(_unframed(value))
        except (DecodeError, IndexError) as error:
            raise ValueError(str(error)) from error
        return json.dumps({field.name: _protobuf(found, field) for field in found.DESCRIPTOR.fields}).encode()

    return convert


def _unframed(value: bytes) -> bytes:
    if value[:1] != b"\0":
        return value
    at, count = _varint(value, 5)
    for _ in range(count >> 1):
        at, _step = _varint(value, at)
    return value[at:]


def _varint(value: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        number |= (value[at + shift // 7] & 0x7F) << shift
        if value[at + shift // 7] < 0x80:
            return at + shift // 7 + 1, number
    raise ValueError("no varint")


def _protobuf(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_json(one) for one in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    if field.enum_type is not None:
        known = field.enum_type.values_by_number
        return known[value].name if value in known else f"UNKNOWN_ENUM_VALUE_{field.enum_type.name}_{value}"
    if field.message_type is None:
        return _json(np.float32(value) if field.type == field.TYPE_FLOAT else value)
    if field.message_type.full_name != "google.protobuf.Timestamp":
        return {inner.name: _protobuf(value, inner) for inner in value.DESCRIPTOR.fields}
    if not 0 <= value.nanos < 10**9:
        raise ValueError("no timestamp")
    return _iso(value.seconds * 1000 + value.nanos // 10**6)


def _iso(millis: int) -> str:
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=millis)
    except OverflowError:
        return "+10000-01-01T00:00:00Z"  # what Java prints for any later year begins like this
    return moment.strftime("%Y-%m-%dT%H:%M:%S.").zfill(20) + f"{moment.microsecond // 1000:03d}Z"


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return "NaN"
        if math.isinf(value):
            return "Inf" if value > 0 else "-Inf"
        return float(str(value)) if isinstance(value, np.float32) else value
    if isinstance(value, dict):
        return {name: _json(item) for name, item in value.items()}
    return [_json(item) for item in value] if isinstance(value, list) else value
