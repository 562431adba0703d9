"""How a source's messages become columns: from the topic, and from its landing table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ingestion import avro, protobuf, wires
from ingestion.arrow import to_columns
from ingestion.avro import AvroDecoder, WriterSchema
from ingestion.messages import Decoded, decode_table
from ingestion.protobuf import ProtobufDecoder
from ingestion.wires import Messages, Wire
from tally.plan import Encoding, Field, Source, digest

Decoder = Callable[[Sequence[bytes | None]], Messages]
"""Messages as a table. Raises UnavailableError when that takes a schema registry which cannot be asked."""


def from_topic(source: Source, writer_schema: WriterSchema | None) -> Decoder:
    """Decodes the messages of a source's topic. `writer_schema` asks the schema registry; None: there is none."""
    encoding = source.encoding
    if encoding.format == "avro":
        return AvroDecoder(encoding.schema, writer_schema)
    if encoding.format == "protobuf":
        return ProtobufDecoder(encoding.schema)
    return partial(decode_table, source.message)


def from_landing(source: Source) -> Decoder:
    """Decodes what Kafka Connect made of the messages: the JSON text of RECORD_CONTENT."""
    if source.encoding.format == "json":
        return partial(decode_table, source.message)
    return partial(wires.landed, wires_of(source.encoding))


def schema_hash(source: Source) -> str:
    """Hash of all that decides whether a message of a source decodes."""
    fields = [[field.name, field.dtype] for field in source.message]
    return digest([fields, source.encoding.format, source.encoding.schema])


def wires_of(encoding: Encoding) -> tuple[Wire, ...]:
    """The columns of an Avro or Protobuf schema. Raises DefinitionError for one that Tally cannot read."""
    return avro.wires_of(encoding.schema) if encoding.format == "avro" else protobuf.wires_of(encoding.schema)


def columns(fields: tuple[Field, ...], messages: Messages, count: int) -> Decoded:
    """The columns of `count` messages, null where a message is bad."""
    table, rows, bad = messages
    found = to_columns(fields, table)
    if not bad:
        return Decoded(found, bad)
    where = np.zeros(count, np.int64)
    there = np.zeros(count, np.bool_)
    where[rows] = np.arange(len(rows))
    there[rows] = True
    return Decoded({name: column.take(where, there) for name, column in found.items()}, bad)
