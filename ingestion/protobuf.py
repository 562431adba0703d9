"""Protobuf messages: the columns of a message type, and their values.

The definition carries the type itself (a FileDescriptorSet), so a worker needs no generated code. A message may stand
behind a schema registry's frame: a zero byte, the four bytes of the schema's id, and the path of the type in its file. The
schema is not asked for, since fields are known by their numbers; no message without a frame begins with a zero byte.

Fields with presence (`optional`) are null when they are not set, others have their type's default, as Kafka Connect has
it. Enums are their names, google.protobuf.Timestamp is an instant floored to milliseconds, which is all that Kafka Connect
keeps of it. Other messages, repeated fields, members of a oneof and unsigned 64-bit integers are no columns.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, Final, cast

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from ingestion.messages import TOMBSTONE
from ingestion.wires import ISO, Messages, Wire, table
from tally.dtypes import Dtype
from tally.errors import DefinitionError
from tally.plan import Field

_HEAD: Final = 5
_TYPES: Final[dict[int, Dtype]] = {
    FieldDescriptor.TYPE_INT32: "Int32",
    FieldDescriptor.TYPE_SINT32: "Int32",
    FieldDescriptor.TYPE_SFIXED32: "Int32",
    FieldDescriptor.TYPE_UINT32: "Int64",
    FieldDescriptor.TYPE_FIXED32: "Int64",
    FieldDescriptor.TYPE_INT64: "Int64",
    FieldDescriptor.TYPE_SINT64: "Int64",
    FieldDescriptor.TYPE_SFIXED64: "Int64",
    FieldDescriptor.TYPE_FLOAT: "Float32",
    FieldDescriptor.TYPE_DOUBLE: "Float64",
    FieldDescriptor.TYPE_BOOL: "Bool",
    FieldDescriptor.TYPE_STRING: "String",
    FieldDescriptor.TYPE_ENUM: "String",
    FieldDescriptor.TYPE_BYTES: "Bytes",
}
_TIMESTAMP: Final = "google.protobuf.Timestamp"
_OUTSIDE: Final = 2**62


def describe(message: type[Message]) -> str:
    """A message type as a text that `ProtobufDecoder` and `wires_of` understand."""
    descriptor: Any = message.DESCRIPTOR
    files: dict[str, Any] = {}

    def add(file: Any) -> None:
        for needed in file.dependencies:
            add(needed)
        files.setdefault(file.name, file)

    add(descriptor.file)
    together = descriptor_pb2.FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(together.file.add())
    encoded = base64.b64encode(together.SerializeToString(deterministic=True)).decode()
    return json.dumps({"files": encoded, "message": descriptor.full_name}, sort_keys=True)


def wires_of(schema: str) -> tuple[Wire, ...]:
    """The columns of a message type, in its order."""
    return tuple(wire for field in _message_class(schema).DESCRIPTOR.fields if (wire := _wire(field)) is not None)


def _message_class(schema: str) -> type[Message]:
    try:
        document = json.loads(schema)
        together = descriptor_pb2.FileDescriptorSet.FromString(base64.b64decode(document["files"]))
        pool = descriptor_pool.DescriptorPool()
        for file in together.file:
            pool.Add(file)
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(document["message"]))
    except (ValueError, KeyError, TypeError, DecodeError) as error:
        raise DefinitionError(
            f"The plan's Protobuf schema is damaged ({type(error).__name__}: {error}); run feast apply."
        ) from error


def _wire(field: Any) -> Wire | None:
    oneof = field.containing_oneof
    is_in_oneof = oneof is not None and not (len(oneof.fields) == 1 and oneof.name == f"_{field.name}")
    if field.is_repeated or is_in_oneof:
        return None
    if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.full_name == _TIMESTAMP:
        return Wire(Field(field.name, "UnixTimestamp"), landed_as=ISO)
    if field.type not in _TYPES:
        return None
    symbols = frozenset(_names(field).values()) if field.enum_type is not None else frozenset[str]()
    default = None
    if not field.has_presence:
        default = field.enum_type.values[0].name if field.enum_type is not None else field.default_value
    return Wire(Field(field.name, _TYPES[field.type]), field.is_required, default, symbols)


def _names(field: Any) -> dict[int, str]:
    """The first name of each number of an enum."""
    names: dict[int, str] = {}
    for value in field.enum_type.values:
        names.setdefault(value.number, value.name)
    return names


@dataclass(frozen=True)
class ProtobufDecoder:
    """Decodes messages of the type that `schema` describes."""

    schema: str

    @cached_property
    def _class(self) -> type[Message]:
        return _message_class(self.schema)

    @cached_property
    def _wires(self) -> tuple[Wire, ...]:
        return wires_of(self.schema)

    @cached_property
    def _readers(self) -> dict[str, Callable[[Sequence[Message]], list[Any]]]:
        return {
            wire.field.name: _reader(self._class.DESCRIPTOR.fields_by_name[wire.field.name]) for wire in self._wires
        }

    @cached_property
    def _path(self) -> tuple[int, ...]:
        """Which message of its file the type is: positions, from the outermost message that holds it."""
        descriptor: Any = self._class.DESCRIPTOR
        path: list[int] = []
        while descriptor is not None:
            outer = descriptor.containing_type
            siblings = outer.nested_types if outer is not None else descriptor.file.message_types_by_name.values()
            path.insert(0, [one.full_name for one in siblings].index(descriptor.full_name))
            descriptor = outer
        return tuple(path)

    def __call__(self, values: Sequence[bytes | None]) -> Messages:
        """The messages as a table."""
        bad: dict[int, str] = {}
        try:
            messages = list(map(self._class.FromString, self._bodies(values)))
            rows = np.arange(len(values))
        except (DecodeError, ValueError):
            messages, kept = [], []
            for row, value in enumerate(values):
                message = self._message(value)
                if isinstance(message, str):
                    bad[row] = message
                else:
                    messages.append(message)
                    kept.append(row)
            rows = np.array(kept, np.int64)
        columns = {name: read(messages) for name, read in self._readers.items()}
        return table(self._wires, columns, rows, bad)

    def _bodies(self, values: Sequence[bytes | None]) -> list[bytes]:
        if None in values:
            raise ValueError(TOMBSTONE)
        whole = cast(Sequence[bytes], values)
        if whole and whole[0][:1] == b"\0":  # mostly all have the same frame
            head = whole[0].removesuffix(self._body(whole[0]))
            if all(value.startswith(head) for value in whole):
                return [value[len(head) :] for value in whole]
        return [self._body(value) if value[:1] == b"\0" else value for value in whole]

    def _message(self, value: bytes | None) -> Message | str:
        if value is None:
            return TOMBSTONE
        try:
            return self._class.FromString(self._body(value) if value[:1] == b"\0" else value)
        except DecodeError as error:
            return f"not Protobuf of this type: {error}"[:200]
        except ValueError as error:
            return str(error)

    def _body(self, value: bytes) -> bytes:
        """What stands behind a frame. Raises ValueError for a frame that is cut short or names another type."""
        count, at = _zigzag(value, _HEAD)
        if not 0 <= count <= len(value):
            raise ValueError("its frame is damaged")
        path = []
        for _ in range(count):
            step, at = _zigzag(value, at)
            path.append(step)
        if tuple(path or [0]) != self._path:
            raise ValueError(
                f"its frame names message {path or [0]} of the schema, the definition's is {list(self._path)}"
            )
        return value[at:]


def _zigzag(value: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(value) or shift > 28:
            raise ValueError("its frame is damaged")
        byte = value[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at


def _reader(field: Any) -> Callable[[Sequence[Message]], list[Any]]:
    """Reads one field of many messages, as `wires.table` takes it."""
    get, name = attrgetter(field.name), field.name
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return lambda messages: [_millis(get(one)) if one.HasField(name) else None for one in messages]
    if field.enum_type is not None:
        known = _names(field)
        symbol: Callable[[int], str] = lambda number: known.get(number, str(number))  # noqa: E731
        if field.has_presence:
            return lambda messages: [symbol(get(one)) if one.HasField(name) else None for one in messages]
        return lambda messages: list(map(symbol, map(get, messages)))
    if field.has_presence:
        return lambda messages: [get(one) if one.HasField(name) else None for one in messages]
    return lambda messages: list(map(get, messages))


def _millis(timestamp: Any) -> int:
    """Microseconds, floored to a millisecond; out of every range where the message is not a valid timestamp."""
    nanos: int = timestamp.nanos
    if not 0 <= nanos < 1_000_000_000:
        return _OUTSIDE
    seconds: int = timestamp.seconds
    return seconds * 1_000_000 + nanos // 1_000_000 * 1000
