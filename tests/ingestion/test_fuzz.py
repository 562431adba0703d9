"""Decoders under garbage: a bad message is a dead letter, never a crash or a hang, and the good ones beside it stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion import protobuf
from ingestion.avro import AvroDecoder
from ingestion.decoding import Decoder, columns, from_landing
from ingestion.messages import decode_table
from tally.plan import Encoding, Field, Source
from tests.ingestion.departure_proto import Everything
from tests.ingestion.test_formats import AVRO_RECORDS, PROTO_RECORDS, TEXT, encoded, framed, source

FIELDS = (
    Field("at", "UnixTimestamp"),
    Field("who", "String"),
    Field("f64", "Float64"),
    Field("f32", "Float32"),
    Field("i64", "Int64"),
    Field("i32", "Int32"),
    Field("b", "Bool"),
    Field("y", "Bytes"),
)
GOOD_JSON = b'{"at": "2024-03-10T12:00:00Z", "who": "a", "f64": 0.1, "i64": 5, "b": true, "y": "aGk="}'
GOOD_AVRO = framed(
    1,
    encoded(
        {
            "at": 1, "who": "a", "f64": 0.1, "i32": 5, "colour": "RED", "list": [1], "either": "x", "nested": {"x": 1}
        }
    ),
)  # fmt: skip
GOOD_PROTO = Everything(who="a", f64=0.1, i64=5).SerializeToString()
PROTOBUF = source("protobuf", protobuf.describe(Everything))
AVRO = source("avro", TEXT)
DECODERS: dict[str, tuple[Decoder, bytes]] = {
    "json": (lambda values: decode_table(FIELDS, values), GOOD_JSON),
    "avro": (AvroDecoder(TEXT, {1: (TEXT,)}.get), GOOD_AVRO),
    "avro without a registry": (AvroDecoder(TEXT, None), GOOD_AVRO),
    "protobuf": (protobuf.ProtobufDecoder(PROTOBUF.encoding.schema), GOOD_PROTO),
    "landed avro": (from_landing(AVRO), b'{"at": 1, "who": "a", "f64": 0.1, "i32": 5, "colour": "RED"}'),
    "landed protobuf": (from_landing(PROTOBUF), b'{"who": "a", "f64": 0.1, "i64": 5}'),
    "json from a landing table": (from_landing(Source("s", "S", "", "", "at", "", "t", FIELDS, Encoding())), GOOD_JSON),
}

MESSAGES = st.one_of(
    st.just(GOOD_JSON),
    st.just(GOOD_AVRO),
    st.just(GOOD_PROTO),
    AVRO_RECORDS.map(lambda record: framed(1, encoded(record))),
    PROTO_RECORDS.map(
        lambda record: Everything(
            **{name: value for name, value in record.items() if name not in ("seconds", "nanos")}
        ).SerializeToString()
    ),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid message that was cut, or of which bits fell over, or to which something was added."""
    message = bytearray(draw(MESSAGES))
    for _ in range(draw(st.integers(1, 4))):
        what = draw(st.sampled_from(["cut", "flip", "insert", "repeat"]))
        at = draw(st.integers(0, max(0, len(message) - 1)))
        if what == "cut":
            del message[at:]
        elif what == "flip" and message:
            message[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "insert":
            message[at:at] = draw(st.binary(max_size=6))
        else:
            message += message[at:]
    return bytes(message)


NUMBERS = st.sampled_from(
    [
        *(
            [
                "1e999",
                "-1e999",
                "1e-999",
                "NaN",
                "Infinity",
                "-Infinity",
                "Inf",
                "01",
                "1.",
                ".5",
                "+1",
                "0x10",
                "1e",
                "-",
                "--1",
                "1_000",
                "true",
                "null",
            ]
        ),
        "9" * 400,
        "-" + "9" * 30,
        "0." + "1" * 400,
        "1e" + "9" * 400,
    ]
)
STRINGS = st.sampled_from(
    [
        '"\\ud800"',
        '"\\udfff\\ud800"',
        '"\\u0000"',
        '"\n"',
        '"\t"',
        '"',
        '"\\x41"',
        '"2024-13-45T99:99:99Z"',
        '"é"',
        '"' + "x" * 70 + '"',
    ]
)
JSON = st.recursive(
    NUMBERS | STRINGS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(st.sampled_from([*(f.name for f in FIELDS), "other"]), inner), max_size=4).map(
            lambda items: "{" + ",".join(f'"{name}":{item}' for name, item in items) + "}"
        )
    ),
    max_leaves=8,
).map(lambda text: text.encode("utf-8", "surrogatepass"))
GARBAGE = st.none() | st.binary(max_size=64) | damaged() | JSON | st.binary(max_size=40).map(lambda b: framed(1, b))

HUGE: dict[str, bytes] = {
    "nested arrays": b"[" * 1_000_000,
    "nested objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "a nested field": b'{"other":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a nested wanted field": b'{"who":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a megabyte of text": b'{"who":"' + b"x" * 1_000_000 + b'","i64":"wrong"}',
    "a megabyte without an end": b'{"who":"' + b"x" * 1_000_000,
    "a megabyte of digits": b'{"i64":' + b"9" * 1_000_000 + b"}",
    "a megabyte of exponent": b'{"f64":1e' + b"9" * 1_000_000 + b"}",
    "a megabyte of zeros": b"\\x00" * 1_000_000,
    "a megabyte of ones": b"\xff" * 1_000_000,
    "a megabyte of groups": b"\x0b" * 1_000_000,
    "nested protobuf": b"\x5a\x02" * 200_000,
    "Avro text of 2^62 bytes": framed(1, b"\x02\x00\x00" + b"\xfe" * 9 + b"\x7f"),
    "Avro text of negative length": framed(1, b"\x02\x00\x00\x0f"),
    "an Avro list of 2^60 items": framed(1, GOOD_AVRO[5:-6] + b"\xfe" * 8 + b"\x7f" + b"\x02" * 1000),
    "line breaks": b"\n" * 1_000_000,
    "lines": b"{}\n" * 100_000,
    "keys given twice": b'{"i64":1,"i64":2,' + b'"i64":3,' * 100_000 + b'"b":true}',
    "half a byte order mark": b"\xef\xbb{}",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
}


def check(decode: Decoder, good: bytes, values: list[bytes | None]) -> None:
    """All rows are accounted for, the good ones stay as they are alone, and each message's fate is its own."""
    alone = [decode([value]) for value in values]
    batch: list[bytes | None] = [good, *values, good]
    table, rows, bad = decode(batch)
    assert sorted([*rows.tolist(), *bad]) == list(range(len(batch)))
    assert rows.tolist() == sorted(rows.tolist())
    assert all(0 < len(reason) < 400 for reason in bad.values())
    assert {0, len(batch) - 1} <= set(rows.tolist())
    for row, (own, own_rows, own_bad) in enumerate(alone, 1):
        assert (row in bad) == bool(own_bad), (bad.get(row), own_bad)
        if not own_bad:
            assert own_rows.tolist() == [0]
            position = rows.tolist().index(row)
            assert repr(table.slice(position, 1).to_pylist()) == repr(own.to_pylist())


@pytest.mark.parametrize("name", DECODERS)
@given(values=st.lists(GARBAGE, min_size=1, max_size=4))
def test_garbage_among_good_messages(name: str, values: list[bytes | None]) -> None:
    """Random bytes, damaged messages, odd JSON: refused or read, and the messages beside them are kept."""
    decode, good = DECODERS[name]
    check(decode, good, values)


@pytest.mark.parametrize("what", HUGE)
@pytest.mark.parametrize("name", DECODERS)
def test_large_and_deep_messages(name: str, what: str) -> None:
    """What could overflow a stack, or keep a decoder busy."""
    decode, good = DECODERS[name]
    check(decode, good, [HUGE[what]])


@pytest.mark.parametrize("name", DECODERS)
def test_a_topic_of_nothing_but_garbage(name: str) -> None:
    """Thousands of bad messages take as long as good ones do, not the square of it."""
    decode, good = DECODERS[name]
    rng = np.random.default_rng(1)
    values: list[bytes | None] = [rng.bytes(40) for _ in range(5_000)]
    values[1000] = good
    _, rows, bad = decode(values)
    assert 1000 in rows
    assert len(rows) + len(bad) == len(values)
    assert len(bad) > 4_000


def test_the_columns_of_a_batch_with_bad_messages() -> None:
    """Null where a message is bad; the rest in its place."""
    found = columns(FIELDS, decode_table(FIELDS, [b"{", GOOD_JSON, None]), 3)
    assert found.columns["i64"].to_list() == [None, 5, None]
    assert sorted(found.bad) == [0, 2]
