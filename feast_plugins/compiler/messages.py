"""What a topic's messages hold: the columns and the encoding of a `KafkaSource`'s message format."""

from __future__ import annotations

import importlib
import json
import re
from typing import Any, Final

from feast import KafkaSource
from feast.data_format import AvroFormat, JsonFormat, ProtoFormat
from google.protobuf.message import Message

from feast_plugins.compiler.definitions import Definitions, doubled
from ingestion import protobuf
from ingestion.decoding import wires_of
from tally.dtypes import Dtype
from tally.errors import DefinitionError
from tally.plan import Encoding, Field

JSON: Final = Encoding()
_MESSAGE_DTYPES: Final[dict[str, Dtype]] = {
    "double": "Float64",
    "float": "Float32",
    "bigint": "Int64",
    "long": "Int64",
    "int": "Int32",
    "integer": "Int32",
    "boolean": "Bool",
    "string": "String",
    "binary": "Bytes",
    "timestamp": "UnixTimestamp",
}
"""Names of Spark's DDL, which is what Feast's `JsonFormat` holds."""


def message_of(definitions: Definitions, name: str, stream: KafkaSource) -> tuple[tuple[Field, ...], Encoding]:
    """The columns of a source's messages, and how they are written."""
    message_format = stream.kafka_options.message_format
    if isinstance(message_format, JsonFormat):
        return _json_fields(definitions, name, stream.name, message_format), JSON
    try:
        encoding = _encoding(message_format)
        return tuple(wire.field for wire in wires_of(encoding)), encoding
    except DefinitionError as error:
        raise definitions.refused(name, f"source {stream.name}: {str(error).rstrip('.')}") from error


def _encoding(message_format: Any) -> Encoding:
    if isinstance(message_format, ProtoFormat):
        return Encoding("protobuf", protobuf.describe(_imported(message_format.class_path)))
    if isinstance(message_format, AvroFormat):
        try:
            schema = json.loads(message_format.schema_json)
        except json.JSONDecodeError as error:
            raise DefinitionError(f"its Avro schema is not JSON ({error})") from error
        return Encoding("avro", json.dumps(schema, separators=(",", ":")))
    raise DefinitionError(
        f"it has {type(message_format).__name__} where Tally reads JsonFormat, AvroFormat or ProtoFormat"
    )


def _imported(class_path: str) -> type[Message]:
    """The generated class at ``module.Class``. Raises DefinitionError."""
    module_name, _, class_name = class_path.rpartition(".")
    advice = "it is the Python class that protoc generated, like flights_pb2.Departure, and must be on PYTHONPATH"
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise DefinitionError(f"its class_path {class_path!r} cannot be imported ({error}); {advice}") from error
    if not (isinstance(found, type) and issubclass(found, Message)):
        raise DefinitionError(f"its class_path {class_path!r} is no Protobuf message; {advice}")
    return found


def _json_fields(definitions: Definitions, name: str, source: str, message_format: JsonFormat) -> tuple[Field, ...]:
    fields = []
    for part in re.split(r"\s*,\s*", message_format.schema_json.strip()):
        words = part.split()
        if len(words) != 2 or words[1].lower() not in _MESSAGE_DTYPES:
            raise definitions.refused(
                name,
                f"source {source}: {part!r} in its JsonFormat is not `name type` with a type of "
                f"{', '.join(_MESSAGE_DTYPES)}",
            )
        fields.append(Field(words[0], _MESSAGE_DTYPES[words[1].lower()]))
    if twice := doubled(f.name for f in fields):
        raise definitions.refused(name, f"source {source}: its JsonFormat names {twice} twice; name each field once")
    return tuple(fields)
