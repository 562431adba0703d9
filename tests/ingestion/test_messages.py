"""What a message may be, and that its fate depends on itself alone."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestion import messages
from ingestion.messages import TOMBSTONE, Decoded, decode, view_rows
from tally.columns import column
from tally.errors import DataError
from tally.plan import Field
from tests.ingestion import plans

FIELDS = (
    Field("i", "Int64"),
    Field("n", "Int32"),
    Field("f", "Float64"),
    Field("h", "Float32"),
    Field("b", "Bool"),
    Field("s", "String"),
    Field("y", "Bytes"),
    Field("t", "UnixTimestamp"),
)


def one(message: bytes | None) -> dict[str, Any] | str:
    """The fields that are there, or why the message is bad."""
    decoded = decode(FIELDS, [message])
    if decoded.bad:
        return decoded.bad[0]
    return {name: column.values.tolist()[0] for name, column in decoded.columns.items() if column.valid[0]}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"{}", {}),
        (b' {"i": 1}\r\n', {"i": 1}),
        (b'{\n"s":\n"NaN"}', {"s": "NaN"}),
        (b'{"i":null,"unknown":{"i":[1,{"f":"x"}]}}', {}),
        (b'{"i":9223372036854775807}', {"i": 2**63 - 1}),
        (b'{"i":1152921504606846977}', {"i": 2**60 + 1}),
        (b'{"i":1.0,"n":-1e2}', {"i": 1, "n": -100}),
        (b'{"f":1}', {"f": 1.0}),
        (b'{"s":"\\ud83d\\ude00\\u0000"}', {"s": "\U0001f600\0"}),
        (b'{"y":"aGk="}', {"y": b"hi"}),
        (b'{"t":"1970-01-01T00:00:01Z"}', {"t": 1_000_000}),
        (b'{"t":"1970-01-01T00:00:01"}', {"t": 1_000_000}),
        (b'{"t":"1970-01-01 00:00:01.5+01:00"}', {"t": 1_500_000 - 3_600_000_000}),
        (b'{"t":"1969-12-31T23:59:59.999999999Z"}', {"t": -1}),
        (b'{"t":"1970-01-02"}', {"t": 86_400_000_000}),
    ],
)
def test_good_messages(message: bytes, expected: dict[str, Any]) -> None:
    """Each form that a good message may take, and its values."""
    assert expected == one(message)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (None, TOMBSTONE),
        (b"", "empty message"),
        (b" \n", "empty message"),
        (b"[]", "not JSON: an object was expected, not []"),
        (b"\xef\xbb\xbf{}", "not JSON: an object was expected, not \ufeff{}"),
        (b'{"s":"\xff"}', "not UTF-8"),
        (b'{"unknown":"\xff"}', "not UTF-8"),
        (b"{}{}", "not JSON: Extra data"),
        (b"{} x", "not JSON: an object was expected"),
        (b"{}\x00}", "not JSON: Extra data"),
        (b'{"i":1,}', "not JSON: "),
        (b'{"f":NaN}', "not JSON: NaN is not a JSON number"),
        (b'{"unknown":-Infinity}', "not JSON: -Infinity is not a JSON number"),
        (b'{"s":"a\nb"}', "not JSON: Invalid control character"),
        (b'{"s":"\\ud800"}', "not JSON: "),
        (b'{"f":1e400}', "not JSON: a number beyond float64"),
        (b'{"i":1,"i":2}', "field i: a name is given twice"),
        (b'{"i":9223372036854775808}', "field i: 9223372036854775808 is not Int64"),
        (b'{"n":2147483648}', "field n: 2147483648 is not Int32"),
        (b'{"i":1.5}', "field i: 1.5 is not Int64"),
        (b'{"i":"1"}', 'field i: "1" is not Int64'),
        (b'{"f":"1"}', 'field f: "1" is not Float64'),
        (b'{"f":{"x":1}}', 'field f: {"x": 1} is not Float64'),
        (b'{"b":1}', "field b: 1 is not Bool"),
        (b'{"s":1}', "field s: 1 is not String"),
        (b'{"y":"aGk"}', 'field y: "aGk" is not Bytes'),
        (b'{"t":1}', "field t: 1 is not an ISO-8601 instant"),
        (b'{"t":"2013-02-30T00:00:00Z"}', 'field t: "2013-02-30T00:00:00Z" is not an ISO-8601 instant'),
    ],
)
def test_bad_messages(message: bytes | None, reason: str) -> None:
    """Each way to be bad has its reason."""
    found = one(message)

    assert isinstance(found, str)
    assert found.startswith(reason)


def test_the_sign_of_a_zero_is_dropped() -> None:
    """A VARIANT may not keep it, so no path does."""
    assert decode(FIELDS, [b'{"f":-0.0}']).columns["f"].values[0].hex() == "0x0.0p+0"


def test_deep_nesting_does_not_crash() -> None:
    """A field that nobody asked for may nest as deep as it likes; it is not looked at."""
    deep = b'{"unknown":' + b"[" * 100_000 + b"]" * 100_000 + b',"i":1}'

    assert one(deep) == {"i": 1}


def test_no_messages() -> None:
    """An empty batch has empty columns."""
    decoded = decode(FIELDS, [])

    assert decoded.bad == {}
    assert [0] * len(FIELDS) == [len(column) for column in decoded.columns.values()]


def test_a_bad_message_leaves_its_neighbours_alone() -> None:
    """Rows stay in place: the bad one is null and has a reason, the others have their values."""
    messages = [b'{"i":%d}' % i for i in range(100)]
    messages[41] = b'{"i":"x"}'
    decoded = decode(FIELDS, messages)

    assert decoded.bad == {41: 'field i: "x" is not Int64'}
    assert [None if i == 41 else i for i in range(100)] == decoded.columns["i"].to_list()


def test_messages_that_would_balance_each_other_out() -> None:
    """One message of two objects beside one of none cannot pass as two good messages."""
    assert sorted(decode(FIELDS, [b'{"i":1}{"i":2}', b" "]).bad) == [0, 1]
    assert sorted(decode(FIELDS, [b'{"i":1', b'"n":2}']).bad) == [0, 1]


def test_a_whole_batch_of_bad_messages() -> None:
    """A producer that changed a field's type gets one reason for each message."""
    decoded = decode(FIELDS, [b'{"i":"%d"}' % i for i in range(300)])

    assert {i: f'field i: "{i}" is not Int64' for i in range(300)} == decoded.bad


@pytest.mark.parametrize("value", ['"01/02/2013 10:00"', '"2013-13-01T00:00:00Z"'], ids=["another form", "no month"])
@pytest.mark.parametrize("others", [b"{}", b'{"i":1.0}'])
def test_a_producer_whose_values_all_fail_costs_no_parse_for_each(
    monkeypatch: pytest.MonkeyPatch, value: str, others: bytes
) -> None:
    """Times of another form, fractions for integers and broken base64 show without the parser, as values of another type do."""
    parse, calls = messages._parse, []
    monkeypatch.setattr(messages, "_parse", lambda *arguments: (calls.append(1), parse(*arguments))[1])
    bad = [f'{{"t":{value}}}', '{"i":1.5}', '{"i":9223372036854775808}', '{"n":2147483648}', '{"y":"a"}']
    decoded = decode(FIELDS, [text.encode() for text in bad for _ in range(100)] + [others] * 100)

    assert sorted(decoded.bad) == list(range(500))
    assert len(calls) < 50


NUMBERS = st.sampled_from(
    ["1.0", "1e2", "1e-400", "1e400", "-0", "-0.0", "0.5", "1.0000000000000000001", "0.99999999999999999999", "1e19"]
    + [f"{sign}{whole}{end}" for sign in ("", "-") for end in ("", ".0", "e0", ".5") for whole in (2**31 - 1, 2**31)]
    + [f"{sign}{whole}{end}" for sign in ("", "-") for end in ("", ".0") for whole in (2**53 - 1, 2**53, 2**53 + 1)]
    + [f"{sign}{whole}" for sign in ("", "-") for whole in (2**63 - 1, 2**63, 2**63 + 1, 10**30)]
)
TIMES = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["2013-01-01", "2013-1-1", "0000-01-01", "9999-12-31", "2013-02-29", "20130101", "", "1"]),
        st.sampled_from(["", "T", " ", "t"]),
        st.sampled_from(["", "00", "24", "10:20", "10:20:30", "10:20:60", "102030", "10:20:30.", "10:20:30.1234567"]),
        st.sampled_from(["", "Z", "z", "+02", "+02:00", "-0230", "+25:00", " ", "\\u0000", "\\ud800", "é"]),
    ),
).map(lambda text: f'"{text}"')
TEXTS = st.sampled_from(['"aGk="', '"aGk"', '"a"', '""', '" aGk="', '"aG k="', '"é"', '"\\ud800"', '"a-_="'])


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from("intyfhs"), st.one_of(NUMBERS, TIMES, TEXTS), max_size=3))
def test_a_neighbour_of_a_bad_message_is_read_as_alone(fields: dict[str, str]) -> None:
    """What is found bad without the parser is what the parser refuses, however a number or a time is spelt."""
    message = "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"
    alone, together = decode(FIELDS, [message.encode()]), decode(FIELDS, [message.encode(), b'{"i":"x"}'])

    assert _bits(alone, 0) == _bits(together, 0)


def _bits(decoded: Decoded, row: int) -> list[Any]:
    cells = []
    for values in decoded.columns.values():
        cell = values.values[row]
        cells.append((bool(values.valid[row]), cell.tobytes() if isinstance(cell, np.generic) else cell))
    return [decoded.bad.get(row), *cells]


_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**66), 2**66),
    st.integers(-5, 5),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["2013-01-01T00:00:00Z", "2013-01-01", "2013-01-01T00:00:00.1234567+02:00", "aGk=", "NaN"]),
    st.lists(st.integers(0, 1), max_size=2),
)
_objects = st.dictionaries(st.sampled_from(["i", "n", "f", "h", "b", "s", "y", "t", "unknown"]), _scalars, max_size=4)
_spelt = st.builds(
    lambda value, ascii_only, indent: json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode(
        errors="surrogatepass"
    ),
    _objects,
    st.booleans(),
    st.sampled_from([None, None, 1]),
)
_garbage = st.one_of(
    st.binary(max_size=12),
    st.text(st.sampled_from('{}[]",:\\ \n\r\t01.eE-+NaInfity\0su'), max_size=14).map(str.encode),
    st.none(),
)
_mangled = st.builds(
    lambda message, at, junk: message[:at] + junk + message[at:], _spelt, st.integers(0, 20), st.binary(max_size=3)
)


@settings(max_examples=400)
@given(st.lists(st.one_of(_spelt, _spelt, _garbage, _mangled), max_size=12))
def test_a_message_is_read_the_same_alone_and_in_a_batch(some: list[bytes | None]) -> None:
    """Whatever is in the batch, each message has the bits and the reason that it has alone; garbage never crashes."""
    together = decode(FIELDS, some)

    for row, message in enumerate(some):
        assert _bits(decode(FIELDS, [message]), 0) == _bits(together, row)


@settings(max_examples=200)
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "i": st.integers(-(2**63), 2**63 - 1),
                "f": st.floats(allow_nan=False, allow_infinity=False),
                "b": st.booleans(),
                "s": st.text(),
                "y": st.binary(),
            },
        )
    )
)
def test_good_values_survive_to_the_bit(rows: list[dict[str, Any]]) -> None:
    """Integers, floats, text and bytes come out as they went in, nulls beside them."""
    spelt = [{k: base64.b64encode(v).decode() if k == "y" else v for k, v in row.items()} for row in rows]
    decoded = decode(FIELDS, [json.dumps(row).encode() for row in spelt])

    assert decoded.bad == {}
    for name in ("i", "b", "s", "y"):
        assert [row.get(name) for row in rows] == decoded.columns[name].to_list()
    expected = [None if "f" not in row else (row["f"] + 0.0).hex() for row in rows]
    assert expected == [None if v is None else v.hex() for v in decoded.columns["f"].to_list()]


def test_view_rows_refuses_a_dtype_that_the_definition_does_not_have() -> None:
    """A function that returns another dtype than was applied is an error, not a silent conversion."""
    view = plans.latest_stream_view()
    columns = decode(plans.MESSAGE, [b"{}"]).columns

    def changed(flight: Any) -> dict[str, Any]:
        return {"flight": np.array(["x"] * len(flight), object)}

    with pytest.raises(DataError, match="flight is String after the event function, its definition has Int64"):
        view_rows(view, changed, columns, 1)


def test_view_rows_counts_rows_without_key_or_time() -> None:
    """Rows without an entity key or an event timestamp are refused, with their reasons."""
    view = plans.latest_stream_view()
    landed = [
        b'{"event_timestamp":"2013-01-01T00:00:00Z","carrier":"UA"}',
        b'{"carrier":"UA"}',
        b'{"event_timestamp":"2013-01-01T00:00:00Z"}',
    ]
    columns, accepted, reasons = view_rows(view, None, decode(plans.MESSAGE, landed).columns, 3)

    assert accepted.tolist() == [True, False, False]
    assert reasons == {
        1: "last_departure: event timestamp event_timestamp is null",
        2: "last_departure: entity key carrier is null",
    }
    assert column("String", ["UA", "UA", None]).to_list() == columns["carrier"].to_list()
