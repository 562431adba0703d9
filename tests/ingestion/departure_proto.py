"""A Protobuf type as protoc would generate it, made without protoc."""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from google.protobuf.message import Message

_F = descriptor_pb2.FieldDescriptorProto
_FIELDS = [
    ("at", _F.TYPE_MESSAGE, ".google.protobuf.Timestamp"),
    ("who", _F.TYPE_STRING, ""),
    ("f64", _F.TYPE_DOUBLE, ""),
    ("f32", _F.TYPE_FLOAT, ""),
    ("i64", _F.TYPE_INT64, ""),
    ("i32", _F.TYPE_SINT32, ""),
    ("u32", _F.TYPE_UINT32, ""),
    ("b", _F.TYPE_BOOL, ""),
    ("y", _F.TYPE_BYTES, ""),
    ("colour", _F.TYPE_ENUM, ".tally.tests.Colour"),
    ("nested", _F.TYPE_MESSAGE, ".tally.tests.Everything"),
    ("u64", _F.TYPE_UINT64, ""),
]


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="tally_tests.proto", package="tally.tests", syntax="proto3", dependency=["google/protobuf/timestamp.proto"]
    )
    colour = file.enum_type.add(name="Colour")
    for number, name in enumerate(("UNKNOWN", "RED", "GREEN")):
        colour.value.add(name=name, number=number)
    file.message_type.add(name="Other")
    message = file.message_type.add(name="Everything")
    for number, (name, kind, type_name) in enumerate(_FIELDS, 1):
        message.field.add(name=name, number=number, type=kind, label=_F.LABEL_OPTIONAL, type_name=type_name or None)
    for name, kind in (("o64", _F.TYPE_DOUBLE), ("oi", _F.TYPE_INT64), ("os", _F.TYPE_STRING)):
        message.field.add(
            name=name,
            number=len(message.field) + 1,
            type=kind,
            label=_F.LABEL_OPTIONAL,
            proto3_optional=True,
            oneof_index=len(message.oneof_decl),
        )
        message.oneof_decl.add(name=f"_{name}")
    message.field.add(name="many", number=len(message.field) + 1, type=_F.TYPE_INT64, label=_F.LABEL_REPEATED)
    return file


descriptor_pool.Default().FindFileByName(timestamp_pb2.DESCRIPTOR.name)
descriptor_pool.Default().Add(_file())
Everything: type[Message] = message_factory.GetMessageClass(
    descriptor_pool.Default().FindMessageTypeByName("tally.tests.Everything")
)
