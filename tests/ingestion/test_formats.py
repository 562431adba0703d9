"""Avro and Protobuf: what the stream makes of a message is what ingest makes of the row that the connector lands of it."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import fastavro
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from infra.local import converters, landing
from infra.local.schema_registry import serving
from ingestion import avro, protobuf
from ingestion.avro import AvroDecoder
from ingestion.decoding import from_landing, from_topic
from ingestion.schema_registry import SchemaRegistry
from ingestion.wires import Messages
from tally.errors import DefinitionError, TallyError, UnavailableError
from tally.plan import Encoding, Source
from tests.ingestion.departure_proto import Everything

AVRO: dict[str, Any] = {
    "type": "record",
    "name": "Everything",
    "namespace": "tests",
    "fields": [
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "millis", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}], "default": None},
        {"name": "nanos", "type": ["null", {"type": "long", "logicalType": "local-timestamp-nanos"}], "default": None},
        {"name": "who", "type": "string"},
        {"name": "f64", "type": ["double", "null"], "default": 2.5},
        {"name": "f32", "type": ["null", "float"], "default": None},
        {"name": "i64", "type": ["null", "long"], "default": None},
        {"name": "i32", "type": "int", "default": -7},
        {"name": "b", "type": ["null", "boolean"], "default": None},
        {"name": "y", "type": ["null", "bytes"], "default": None},
        {"name": "fixed", "type": ["null", {"type": "fixed", "name": "Two", "size": 2}], "default": None},
        {"name": "colour", "type": {"type": "enum", "name": "Colour", "symbols": ["RED", "GREEN"]}, "default": "RED"},
        {"name": "id", "type": ["null", {"type": "string", "logicalType": "uuid"}], "default": None},
        {
            "name": "nested",
            "type": ["null", {"type": "record", "name": "Inner", "fields": [{"name": "x", "type": "long"}]}],
        },
        {"name": "list", "type": {"type": "array", "items": "long"}, "default": []},
        {"name": "either", "type": ["long", "string"], "default": 0},
    ],
}
TEXT = json.dumps(AVRO)
MICROS = st.integers(-(2**50), 2**50)
YEARS_1_TO_9999 = st.integers(-62_135_596_800_000, 253_402_300_799_999)
FLOATS = st.floats() | st.sampled_from([0.1, -0.0, 5e-324, 1e308, math.nan, math.inf, -math.inf])
FLOATS32 = st.floats(width=32) | st.sampled_from([math.nan, -0.0])
INT64 = st.integers(-(2**63), 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
AVRO_RECORDS = st.fixed_dictionaries(
    {
        "at": MICROS,
        "millis": st.none() | YEARS_1_TO_9999 | INT64,
        "nanos": st.none() | INT64,
        "who": TEXTS,
        "f64": st.none() | FLOATS,
        "f32": st.none() | FLOATS32,
        "i64": st.none() | INT64,
        "i32": INT32,
        "b": st.none() | st.booleans(),
        "y": st.none() | st.binary(max_size=8),
        "fixed": st.none() | st.binary(min_size=2, max_size=2),
        "colour": st.sampled_from(["RED", "GREEN"]),
        "id": st.none() | TEXTS,
        "nested": st.none() | st.fixed_dictionaries({"x": INT64}),
        "list": st.lists(INT64, max_size=3),
        "either": INT64 | TEXTS,
    }
)
PROTO_RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "who": TEXTS,
        "f64": FLOATS,
        "f32": FLOATS32,
        "i64": INT64,
        "i32": INT32,
        "u32": st.integers(0, 2**32 - 1),
        "b": st.booleans(),
        "y": st.binary(max_size=8),
        "colour": st.integers(0, 2) | INT32,
        "u64": st.integers(0, 2**64 - 1),
        "o64": FLOATS,
        "oi": INT64,
        "os": TEXTS,
        "many": st.lists(INT64, max_size=3),
        "seconds": st.integers(-62_135_596_800, 253_402_300_799) | INT64,
        "nanos": st.integers(0, 999_999_999) | INT32,
    },
)


def encoded(record: dict[str, Any], schema: dict[str, Any] = AVRO) -> bytes:
    """A record in Avro, without a frame."""
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(converters._raw(schema)), record)
    return buffer.getvalue()


def framed(schema_id: int, body: bytes) -> bytes:
    """A body behind a schema registry's frame."""
    return struct.pack(">BI", 0, schema_id) + body


def source(format_: str, schema: str) -> Source:
    """A source with this encoding."""
    encoding = Encoding("avro" if format_ == "avro" else "protobuf", schema)
    wires = avro.wires_of(schema) if format_ == "avro" else protobuf.wires_of(schema)
    return Source("s", "S", "", "", "at", "", "s", tuple(wire.field for wire in wires), encoding)


def through_landing(of: Source, convert: converters.Converter, values: Sequence[bytes]) -> Messages:
    """What `tally ingest` reads of the rows that the connector lands."""
    described: list[bytes | None] = [landing._content(value, {}, convert) for value in values]
    return from_landing(of)(described)


def same(one: Messages, other: Messages) -> None:
    """Equal bits, and the same messages refused."""
    assert sorted(one[2]) == sorted(other[2]), (one[2], other[2])
    assert one[1].tolist() == other[1].tolist()
    for name in one[0].column_names:
        left, right = one[0].column(name).combine_chunks(), other[0].column(name).combine_chunks()
        assert left.type == right.type
        assert [_bits(v) for v in left.to_pylist()] == [_bits(v) for v in right.to_pylist()], name


def _bits(value: Any) -> Any:
    return value.hex() if isinstance(value, float) else value


@given(st.lists(AVRO_RECORDS, max_size=5))
def test_avro_is_the_same_from_the_topic_and_from_the_landing_table(records: list[dict[str, Any]]) -> None:
    """Every type, logical type, union with null and default, decoded twice by code that shares only the last step."""
    of = source("avro", TEXT)
    values = [encoded(record) for record in records]
    decoded = AvroDecoder(TEXT, lambda _: (TEXT,))([framed(1, value) for value in values])
    same(decoded, through_landing(of, converters.avro(TEXT), values))
    assert "nested" not in decoded[0].column_names
    for row, record in zip(decoded[1].tolist(), decoded[0].to_pylist(), strict=True):
        sent = records[row]
        assert (record["who"], record["i64"], record["y"], record["b"]) == (
            sent["who"],
            sent["i64"],
            sent["y"],
            sent["b"],
        )
        assert record["f64"] == (2.5 if sent["f64"] is None else None if math.isnan(sent["f64"]) else sent["f64"])


def _damaged(values: list[bytes], row: int, how: str) -> None:
    """Spoil a message; what is next to it may hide it from whoever reads them as one stream."""
    following = (row + 1) % len(values)
    if how == "shorter":
        values[row] = values[row][:-1]
    elif how == "longer":
        values[row] += b"\x02"
    elif how == "the next begins in it":
        values[row], values[following] = values[row] + values[following][:1], values[following][1:]
    elif how == "it ends in the next":
        values[row], values[following] = values[row][:-1], values[row][-1:] + values[following]
    elif how == "two in one":
        values[row], values[following] = values[row] + values[following], b""
    elif how == "endless text":
        values[row] = b"\x00\x00\x00\x00\xfe\xff\xff\xff\x0f"


@given(
    st.lists(AVRO_RECORDS, min_size=1, max_size=9),
    st.lists(
        st.tuples(
            st.integers(0, 8),
            st.sampled_from(
                ["shorter", "longer", "the next begins in it", "it ends in the next", "two in one", "endless text"]
            ),
        ),
        max_size=3,
    ),
    st.sampled_from(["one schema", "two schemas", "no registry"]),
)
def test_avro_decoded_together_is_what_it_is_one_by_one(
    records: list[dict[str, Any]], damages: list[tuple[int, str]], frames: str
) -> None:
    """Values, rows and reasons are the same, whatever is wrong with some of the messages."""
    values = [encoded(record) for record in records]
    for row, how in damages:
        _damaged(values, row % len(values), how)
    if frames != "no registry":
        values = [framed(1 + (frames == "two schemas" and row % 4 == 3), value) for row, value in enumerate(values)]
    whole = [*values, None] if len(values) % 5 == 0 else values
    decode = AvroDecoder(TEXT, None if frames == "no registry" else lambda _: (TEXT,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(avro, "_TOGETHER", 2)
        together = decode(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(avro, "_decoded_together", None)
        patch.setattr(avro, "_TOGETHER", 100)
        alone = decode(whole)
    same(together, alone)
    assert together[2] == alone[2]


@given(st.lists(PROTO_RECORDS, max_size=5), st.sampled_from([b"", struct.pack(">BI", 0, 1) + b"\x02\x02"]))
def test_protobuf_is_the_same_from_the_topic_and_from_the_landing_table(
    records: list[dict[str, Any]], frame: bytes
) -> None:
    """Fields with and without presence, enums that nobody knows, instants out of range; framed or not."""
    schema = protobuf.describe(Everything)
    of = source("protobuf", schema)
    values = []
    for record in records:
        message: Any = Everything(**{name: value for name, value in record.items() if name not in ("seconds", "nanos")})
        if "seconds" in record:
            message.at.seconds, message.at.nanos = record["seconds"], record.get("nanos", 0)
        values.append(frame + message.SerializeToString())
    decoded = from_topic(of, None)(values)
    same(decoded, through_landing(of, converters.protobuf(Everything), values))
    for row, found in zip(decoded[1].tolist(), decoded[0].to_pylist(), strict=True):
        sent = records[row]
        assert (found["i64"], found["oi"], found["os"]) == (sent.get("i64", 0), sent.get("oi"), sent.get("os"))


def _with(*changed: dict[str, Any], without: str = "") -> str:
    fields = [f for f in AVRO["fields"] if f["name"] not in {without, *(c["name"] for c in changed)}]
    return json.dumps({**AVRO, "name": "Older", "fields": [*fields, *changed]})


@pytest.mark.parametrize(
    ("writer", "record", "name", "expected"),
    [
        (_with({"name": "f64", "type": "int"}), {"f64": 3}, "f64", 3.0),
        (_with({"name": "f64", "type": "long"}), {"f64": 2**53 + 1}, "f64", float(2**53)),
        (_with({"name": "f64", "type": "float"}), {"f64": 0.1}, "f64", 0.1),
        (_with({"name": "i64", "type": "int"}), {"i64": 5}, "i64", 5),
        (_with(without="f64"), {}, "f64", 2.5),
        (_with(without="i32"), {}, "i32", -7),
        (_with(without="i64"), {}, "i64", None),
        (_with({"name": "extra", "type": "long"}), {"extra": 1}, "i32", 1),
        (_with({"name": "colour", "type": "string"}), {"colour": "GREEN"}, "colour", "GREEN"),
    ],
    ids=["int", "long", "float", "int64", "default", "default-required", "null", "unknown-field", "text-for-enum"],
)
def test_another_version_of_the_schema(writer: str, record: dict[str, Any], name: str, expected: Any) -> None:
    """Promotions and defaults give the same as the row that was landed under the writer's schema."""
    base = {"at": 1, "who": "a", "i32": 1, "colour": "RED", "nested": None, "list": [], "either": 0, "f64": 1.5}
    value = encoded({**base, **record}, json.loads(writer))
    decoded = AvroDecoder(TEXT, lambda _: (writer,))([framed(7, value)])
    assert decoded[2] == {}
    assert decoded[0].column(name).to_pylist() == [expected]
    same(decoded, through_landing(source("avro", TEXT), converters.avro(writer), [value]))


@pytest.mark.parametrize(
    ("writer", "reason"),
    [
        (_with(without="who"), "field who: is missing, and has no default"),
        (_with({"name": "who", "type": "long"}), "schema id 7: field who is Int64 there, and String here"),
        (
            _with({"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}),
            "schema id 7: field at counts millis there, and micros here",
        ),
        ('{"type": "string"}', "schema id 7: its Avro schema must be a record"),
        ("no json", "schema id 7: its Avro schema is not one"),
    ],
    ids=["missing", "type", "unit", "no-record", "no-json"],
)
def test_versions_that_cannot_be_read(writer: str, reason: str) -> None:
    """A writer's schema that does not fit is a reason, for its messages only."""
    base = {"at": 1, "who": "a", "i32": 1, "colour": "RED", "nested": None, "list": [], "either": 0, "f64": 1.5}
    try:
        value = encoded({**base, **({"who": 1} if '"who", "type": "long"' in writer else {})}, json.loads(writer))
    except (ValueError, KeyError, TypeError, AttributeError):
        value = b""
    decoded = AvroDecoder(TEXT, {7: (writer,), 1: (TEXT,)}.get)([framed(7, value), framed(1, encoded(base))])
    assert list(decoded[2]) == [0]
    assert decoded[2][0].startswith(reason)
    assert decoded[1].tolist() == [1]


def test_without_a_registry_the_definition_is_the_writers_schema() -> None:
    """Framed or bare; what could be read both ways is refused rather than guessed."""
    schema = json.dumps({"type": "record", "name": "R", "fields": [{"name": "text", "type": "string"}]})
    decode = AvroDecoder(schema, None)
    bare = encoded({"text": "abc"}, json.loads(schema))
    table, rows, bad = decode([bare, framed(9, bare), b"\x00"])
    assert bad == {}
    assert (rows.tolist(), table.column("text").to_pylist()) == ([0, 1, 2], ["abc", "abc", ""])
    two = [{"name": "i", "type": "int"}, {"name": "s", "type": "string"}]
    text = json.dumps({"type": "record", "name": "R", "fields": two})
    # A zero and a string of five characters; or a frame, and behind it a zero and an empty string.
    doubtful = AvroDecoder(text, None)([b"\x00\x0a\x00\x00\x00\x00\x00"])
    assert "with and without" in doubtful[2][0]


def test_a_registry_is_asked_once_for_each_id() -> None:
    """References are followed, basic authentication is sent, an id that is not there is a reason and no failure."""
    inner = json.dumps({"type": "record", "name": "Inner", "namespace": "n", "fields": [{"name": "x", "type": "long"}]})
    outer = {
        "type": "record",
        "name": "Outer",
        "fields": [{"name": "in", "type": "n.Inner"}, {"name": "who", "type": "string"}],
    }
    with serving("me", "secret") as registry:
        registry.schemas = {1: inner, 2: json.dumps(outer)}
        registry.references = {2: [{"name": "n.Inner", "subject": "inner", "version": 1}]}
        registry.versions = {("inner", 1): 1}
        own = json.dumps({"type": "record", "name": "Own", "fields": [{"name": "who", "type": "string"}]})
        decode = AvroDecoder(own, SchemaRegistry({"url": registry.url, "basic.auth.user.info": "me:secret"}).avro)
        value = framed(2, b"\x02" + b"\x06abc")
        table, _, bad = decode([value, value, framed(3, b""), b"bare"])
        assert table.column("who").to_pylist() == ["abc", "abc"]
        assert bad[2] == "schema id 3 is not in the schema registry"
        assert bad[3].startswith("not framed")
        asked = registry.asked
        assert decode([value])[2] == {}
        assert registry.asked == asked
        registry.schemas[3] = own
        assert decode([framed(3, b"\x02z")])[2] == {}


def test_a_registry_that_fails_is_an_error_and_no_dead_letter() -> None:
    """The messages are as good as ever: whoever asks waits and tries again."""
    with serving("me", "secret") as registry:
        decode = AvroDecoder(TEXT, SchemaRegistry({"url": registry.url, "max.retries": 0}).avro)
        with pytest.raises(UnavailableError, match="SCHEMA_REGISTRY_URL"):
            decode([framed(1, b"")])
    url = registry.url.replace("http://", "http://me:secret@")
    gone = AvroDecoder(TEXT, SchemaRegistry({"url": url, "max.retries": 0}).avro)
    with pytest.raises(UnavailableError) as raised:
        gone([framed(1, b"")])
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("properties", "problem"),
    [
        ({"url": "registry"}, "not an address like"),
        ({"url": "ftp://me:secret@registry"}, "not an address like"),
        ({"url": "http://me:secret@registry:port"}, "not an address like"),
        ({"url": "me:secret@registry:8081"}, "not an address like"),
        ({"url": "http://registry", "ssl.ca.location": "/nowhere.pem"}, "No such file"),
    ],
)
def test_settings_that_no_registry_has(properties: dict[str, str], problem: str) -> None:
    """They are refused with a sentence that names the variable and repeats no password."""
    with pytest.raises(TallyError, match=problem) as raised:
        SchemaRegistry(properties)
    assert "SCHEMA_REGISTRY_URL" in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ('{"type": "record", "name": "R", "fields": [{"name": "next", "type": ["null", "R"]}]}', "contains itself"),
        (
            '{"type": "record", "name": "R", "fields": [{"name": "l", "type": {"type": "array", "items": "null"}}]}',
            "take no bytes",
        ),
        ('{"type": "record", "name": "R", "fields": [{"name": "x", "type": "nothing"}]}', "is not one"),
        ('"long"', "must be a record"),
    ],
)
def test_schemas_that_are_refused(schema: str, problem: str) -> None:
    """What a few bytes could blow up, and what is no schema."""
    with pytest.raises(DefinitionError, match=problem):
        avro.wires_of(schema)


def test_a_frame_that_names_another_message_is_refused() -> None:
    """A topic of several types would be misread, since fields are known by number only."""
    decode = from_topic(source("protobuf", protobuf.describe(Everything)), None)
    body = Everything(who="a").SerializeToString()
    head = struct.pack(">BI", 0, 1)
    table, rows, bad = decode([head + b"\x02\x02" + body, head + b"\x00" + body, head + b"\x02", head[:3], body, b""])
    assert rows.tolist() == [0, 4, 5]
    assert table.column("who").to_pylist() == ["a", "a", ""]
    assert bad[1].startswith("its frame names message [0]")
    assert (bad[2], bad[3]) == ("its frame is damaged", "its frame is damaged")


def test_a_message_type_survives_the_plan() -> None:
    """The description is text, and the same one however often it is made."""
    assert protobuf.describe(Everything) == protobuf.describe(Everything)
    assert isinstance(Everything(), Message)
    names = [wire.field.name for wire in protobuf.wires_of(protobuf.describe(Everything))]
    assert names == ["at", "who", "f64", "f32", "i64", "i32", "u32", "b", "y", "colour", "o64", "oi", "os"]


def test_a_reason_is_the_same_each_time() -> None:
    """It names no address in memory: dead letters of one fault are told by their text."""
    record = {"at": 1, "who": "a", "i32": 1, "colour": "RED", "nested": None, "list": [], "either": 0, "f64": 1.5}
    message: Any = Everything(who="a", f64=1.5, oi=7)
    decoders: list[tuple[Any, bytes]] = [
        (AvroDecoder(TEXT, None), encoded(record)),
        (from_topic(source("protobuf", protobuf.describe(Everything)), None), message.SerializeToString()),
    ]
    for decode, value in decoders:
        cut = [value[:length] for length in range(len(value))]
        first, again = decode(cut)[2], decode(cut)[2]
        assert first
        assert first == again
        assert not any("0x" in reason for reason in first.values())
