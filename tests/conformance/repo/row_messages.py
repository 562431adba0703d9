"""The message types of the topics that are not JSON: an Avro schema, and a Protobuf class as protoc would generate it."""

import json

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

_AVRO = {
    "a_f64": "double",
    "a_f32": "float",
    "a_i64": "long",
    "a_i32": "int",
    "a_b": "boolean",
    "a_s": "string",
    "a_y": "bytes",
    "a_t": {"type": "long", "logicalType": "timestamp-micros"},
}
AVRO = json.dumps(
    {
        "type": "record",
        "name": "Row",
        "namespace": "conformance",
        "fields": [
            {"name": "event_timestamp", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "case", "type": "string"},
            *({"name": name, "type": ["null", kind], "default": None} for name, kind in _AVRO.items()),
            {"name": "nested", "type": {"type": "record", "name": "Nested", "fields": [{"name": "x", "type": "int"}]}},
        ],
    }
)
_FIELD = descriptor_pb2.FieldDescriptorProto
_PROTOBUF = {
    "micros": _FIELD.TYPE_INT64,
    "case": _FIELD.TYPE_STRING,
    "p_f64": _FIELD.TYPE_DOUBLE,
    "p_f32": _FIELD.TYPE_FLOAT,
    "p_i64": _FIELD.TYPE_SINT64,
    "p_i32": _FIELD.TYPE_INT32,
    "p_b": _FIELD.TYPE_BOOL,
    "p_s": _FIELD.TYPE_STRING,
    "p_y": _FIELD.TYPE_BYTES,
    "p_t": _FIELD.TYPE_MESSAGE,
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="conformance_row.proto", package="conformance", syntax="proto3", dependency=[timestamp_pb2.DESCRIPTOR.name]
    )
    row = file.message_type.add(name="Row")
    for number, (name, kind) in enumerate(_PROTOBUF.items(), 1):
        field = row.field.add(name=name, number=number, type=kind, label=_FIELD.LABEL_OPTIONAL)
        if kind == _FIELD.TYPE_MESSAGE:
            field.type_name = ".google.protobuf.Timestamp"
        elif name.startswith("p_"):
            field.proto3_optional, field.oneof_index = True, len(row.oneof_decl)
            row.oneof_decl.add(name=f"_{name}")
    return file


descriptor_pool.Default().Add(_file())
Row = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName("conformance.Row"))
