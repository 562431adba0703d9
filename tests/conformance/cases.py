"""The one list of cases. Each has entity keys of its own, so that all are loaded at once and asked on every path."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import fastavro

from tests.conformance.repo import row_messages

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
PARTITIONS = 3

MIDNIGHT = 19_792 * DAY  # 2024-03-10
NOON = MIDNIGHT + 12 * HOUR
T = NOON + 33 * MINUTE + 7 * SECOND + 123_457
"""When most cases are asked: on no boundary of anything."""
FADING_TTL = 30 * DAY

WINDOWS = {"1h": (HOUR, 5 * MINUTE), "50m": (50 * MINUTE, 7 * MINUTE), "1d": (DAY, 2 * HOUR)}
"""Length and hop; that of 1h is the one that is picked where none is given."""
_ALL = ("count", "sum", "mean", "min", "max", "std", "var", "first", "last")
_ORDERED = ("count", "min", "max", "first", "last")
FUNCTIONS = {
    "f64": _ALL,
    "f32": ("sum", "min", "max", "std", "last"),
    "i64": _ALL,
    "big": _ORDERED,
    "i32": ("sum", "mean", "min", "first"),
    "b": _ALL,
    "ts": _ORDERED,
    "s": _ORDERED,
    "y": ("max", "last"),
}
DTYPES = {
    "f64": "Float64", "f32": "Float32", "i64": "Int64", "big": "Int64", "i32": "Int32", "b": "Bool",
    "ts": "UnixTimestamp", "s": "String", "y": "Bytes",
}  # fmt: skip
LATEST = {
    "r_f64": "Float64", "r_f32": "Float32", "r_i64": "Int64", "r_i32": "Int32", "r_b": "Bool", "r_s": "String",
    "r_y": "Bytes", "r_t": "UnixTimestamp",
}  # fmt: skip
AVRO = {name.replace("r_", "a_"): dtype for name, dtype in LATEST.items()}
PROTOBUF = {name.replace("r_", "p_"): dtype for name, dtype in LATEST.items()}
"""The same rows, in two other formats."""
FADING = {"temperature": "Float64", "reading": "Int64", "note": "String"}
LASTING = {
    "level": "Int64", "ratio": "Float32", "small": "Int32", "flag": "Bool", "name": "String",
    "seen_at": "UnixTimestamp",
}  # fmt: skip
CODES = {"code_s": "String", "code_i": "Int64", "code_n": "Int32", "code_b": "Bool", "code_t": "UnixTimestamp"}
NO_CODE = {"code_s": "", "code_i": 0, "code_n": 0, "code_b": False, "code_t": 0}


@dataclass(frozen=True)
class Message:
    """A message of a topic. `fields` are its values (instants in µs); `raw`, where given, is sent in their place.

    Messages of wave 2 are sent after everything of wave 1 has been applied, served and ingested.
    """

    fields: Mapping[str, Any]
    partition: int
    wave: int
    raw: bytes | None = None
    is_bad: bool = False

    def value(self) -> bytes | None:
        """The bytes that are sent; None is a tombstone."""
        if self.is_bad:
            return self.raw
        texts = {
            name: iso(item) if name in ("event_timestamp", "ts", "r_t") else item for name, item in self.fields.items()
        }
        return self.raw or json.dumps(texts).encode()


def as_avro(message: Message) -> bytes:
    """A latest row in Avro."""
    schema = json.loads(row_messages.AVRO)
    for described in schema["fields"]:
        if isinstance(described["type"], dict):
            described["type"].pop("logicalType", None)
    schema["fields"] = [
        {**f, "type": ["null", "long"]} if f["name"] == "a_t" else f for f in schema["fields"]
    ]  # integers as they are
    values = {name.replace("r_", "a_"): value for name, value in message.fields.items()} | {"nested": {"x": 1}}
    if values.get("a_y") is not None:
        values["a_y"] = base64.b64decode(values["a_y"])
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(schema), values)
    return buffer.getvalue()


def as_protobuf(message: Message) -> bytes:
    """A latest row in Protobuf, behind a schema registry's frame."""
    values = {name.replace("r_", "p_"): value for name, value in message.fields.items() if value is not None}
    values["micros"] = values.pop("event_timestamp")
    instant = values.pop("p_t", None)
    if "p_y" in values:
        values["p_y"] = base64.b64decode(values["p_y"])
    row: Any = row_messages.Row(**values)
    if instant is not None:
        row.p_t.seconds, row.p_t.nanos = instant // SECOND, instant % SECOND * 1000
    return b"\0\0\0\0\7\0" + row.SerializeToString()


@dataclass(frozen=True)
class Record:
    """A row of a warehouse table, loaded with wave 1 or 2."""

    values: Mapping[str, Any]
    wave: int


@dataclass(frozen=True)
class Query:
    """What is asked: the request's columns but for the instant, and the instant."""

    asked: Mapping[str, Any]
    as_of: int


@dataclass
class Case:
    """`pins` says what would be wrong if it failed."""

    name: str
    pins: str
    key: str = ""
    events: list[Message] = field(default_factory=list)
    rows: list[Message] = field(default_factory=list)
    fading: list[Record] = field(default_factory=list)
    lasting: list[Record] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)

    def event(self, at: int | None, partition: int = 0, wave: int = 1, **values: Any) -> Case:
        """An event of the windows; `raw` replaces its bytes."""
        raw = values.pop("raw", None)
        fields = {"event_timestamp": at, "case": self.key, "left": self.key, "right": "", **values}
        self.events.append(Message(fields, partition, wave, raw))
        return self

    def bad(self, raw: bytes | None, partition: int = 0, wave: int = 1) -> Case:
        """A message of the windows' topic that does not decode."""
        self.events.append(Message({}, partition, wave, raw, is_bad=True))
        return self

    def row(self, at: int, partition: int = 0, wave: int = 1, **values: Any) -> Case:
        """A message of the latest rows."""
        self.rows.append(Message({"event_timestamp": at, "case": self.key, **values}, partition, wave))
        return self

    def fades(self, at: int, created: int | None, wave: int = 1, **values: Any) -> Case:
        """A row of the batch view with a time to live."""
        given = {"case": self.key, "event_timestamp": at, "created": created}
        self.fading.append(Record({**dict.fromkeys(FADING), **given, **values}, wave))
        return self

    def lasts(self, at: int, created: int | None, wave: int = 1, **values: Any) -> Case:
        """A row of the batch view with a composite key, which never expires."""
        given = {**NO_CODE, "code_s": self.key, "event_timestamp": at, "created": created}
        self.lasting.append(Record({**dict.fromkeys(LASTING), **given, **values}, wave))
        return self

    def ask(self, *moments: int, **asked: Any) -> Case:
        """A query at each of `moments`."""
        given = {
            "case": self.key,
            "left": self.key,
            "right": "",
            **NO_CODE,
            "code_s": self.key,
            "weight": 1.5,
            "label": "hi",
        }
        self.queries.extend(Query({**given, **asked}, moment) for moment in moments)
        return self


def iso(instant: int | None) -> str | None:
    """An instant as messages spell it."""
    if instant is None:
        return None
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=instant)).isoformat(timespec="microseconds")


def lower(window: str, as_of: int) -> int:
    """The first instant inside a window."""
    length, hop = WINDOWS[window]
    return (as_of - length) // hop * hop


def float32(value: float) -> float:
    """The nearest Float32."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def all_cases() -> list[Case]:
    """Every case, by rising name within each kind."""
    made = [*_edges(), *_values(), *_order(), *_keys(), *_latest(), *_fading(), *_lasting(), *_requests(), *_random()]
    assert len({case.name for case in made}) == len(made)
    assert len({case.key for case in made}) == len(made)
    return made


def unanswerable() -> Case:
    """Events whose sum of integers is beyond int64: whoever asks is refused, so it is asked apart from the others."""
    made = _case("overflow", "a sum of integers beyond int64 is an error, never a wrapped number")
    for partition in range(PARTITIONS):
        made.event(T - partition, partition, i64=2**62)
    return made.ask(T)


def _case(name: str, pins: str, key: str | None = None) -> Case:
    return Case(name, pins, name if key is None else key)


def _edges() -> Iterator[Case]:
    for window, (length, hop) in WINDOWS.items():
        edge = lower(window, T)
        yield (
            _case(f"lower-end-{window}", "a window's first instant is inside it, the microsecond before is not")
            .event(edge, f64=1.0, i64=1)
            .event(edge - 1, 1, f64=2.0, i64=2)
            .event(edge + 1, 2, f64=4.0, i64=4)
            .ask(T)
        )
        first = lower(window, T)
        yield (
            _case(
                f"tail-hops-{window}", "the tail moves by whole hops, exactly when as_of minus the length is a multiple"
            )
            .event(first, f64=1.0, i64=10)
            .event(first + hop, 1, f64=2.0, i64=20)
            .ask(first + hop + length - 1, first + hop + length, first + hop + length + 1, first + 2 * hop + length)
        )
    yield (
        _case("exactly-at-t", "an event of the very instant is inside")
        .event(T, f64=3.0, i64=3, b=True, ts=T)
        .row(T, r_i64=3)
        .fades(T, T, reading=3)
        .lasts(T, T, level=3)
        .ask(T, T + 1)
    )
    yield (
        _case("one-after-t", "an event one microsecond later is not visible offline, and flagged online")
        .event(T - 5, f64=1.0)
        .event(T + 1, 1, f64=3.0, i64=3)
        .row(T - 5, r_i64=1)
        .row(T + 1, 1, r_i64=3)
        .fades(T - 5, T, reading=1)
        .fades(T + 1, T, reading=3)
        .lasts(T - 5, T, level=1)
        .lasts(T + 1, T, level=3)
        .ask(T, T + 1)
    )
    yield (
        _case("only-after-t", "nothing has happened yet")
        .event(T + HOUR, f64=1.0)
        .row(T + HOUR, r_f64=1.0)
        .fades(T + HOUR, T, temperature=1.0)
        .ask(T)
    )
    on_tile = NOON + 30 * MINUTE
    yield (
        _case("tile-boundary", "an event on a tile's boundary is in the later tile, and in no two")
        .event(on_tile - 1, f64=1.0, i64=1)
        .event(on_tile, 1, f64=2.0, i64=2)
        .event(on_tile + 1, 2, f64=4.0, i64=4)
        .ask(
            on_tile + 1,
            on_tile + HOUR - 1,
            on_tile + HOUR,
            on_tile + HOUR + 5 * MINUTE - 1,
            on_tile + HOUR + 5 * MINUTE,
        )
    )
    yield (
        _case("midnight", "rows stamped by day lie on every boundary at once")
        .event(MIDNIGHT - DAY, f64=0.5, i64=7)
        .event(MIDNIGHT - 1, f64=1.0, i64=1)
        .event(MIDNIGHT, 1, f64=2.0, i64=2)
        .event(MIDNIGHT + 1, 2, f64=4.0, i64=4)
        .ask(MIDNIGHT + 1, MIDNIGHT + HOUR, MIDNIGHT + DAY, MIDNIGHT + DAY + 2 * HOUR - 1, MIDNIGHT + DAY + 2 * HOUR)
    )
    yield (
        _case("epoch", "nothing happens to a window at the epoch")
        .event(-1, f64=1.0, i64=1, ts=-1)
        .event(0, 1, f64=2.0, i64=2, ts=0)
        .event(1, 2, f64=4.0, i64=4, ts=1)
        .row(0, r_t=0, r_i64=0)
        .ask(1, HOUR - 1, HOUR, HOUR + 5 * MINUTE - 1, HOUR + 5 * MINUTE, DAY, DAY + 2 * HOUR)
    )
    old = -400 * DAY + 12_345_678_901
    yield (
        _case("before-1970", "floors go down, not toward zero")
        .event(old - HOUR, f64=1.0, i64=1, ts=old)
        .event(old - 1, 1, f64=2.0, i64=2, ts=-1)
        .event(old, 2, f64=4.0, i64=4, ts=-999_999)
        .row(old, r_t=old, r_s="old")
        .lasts(old, old, level=5, seen_at=old)
        .ask(old, old + 1, old + HOUR, old + DAY)
    )
    yield (
        _case("empty-window", "a window whose rows have all passed: count 0, null otherwise")
        .event(T - 3 * DAY, f64=1.0, i64=1, b=True, ts=T)
        .ask(T)
    )
    yield _case("nothing-stored", "an entity that nobody has heard of").ask(T)
    yield (
        _case("long-gap", "tiles that are dropped online were out of every window")
        .event(T - 9 * DAY, f64=1.0, i64=1)
        .event(T - 2 * DAY, 1, f64=2.0, i64=2)
        .event(T - DAY + 1, 2, f64=4.0, i64=4)
        .event(T, 0, f64=8.0, i64=8)
        .ask(T, T + HOUR, T + DAY, T + DAY + 2 * HOUR, T + 5 * DAY)
    )


def _values() -> Iterator[Case]:
    def numbers(name: str, pins: str, column: str, values: Sequence[Any], **rest: Any) -> Case:
        made = _case(name, pins)
        for position, value in enumerate(values):
            made.event(T - (len(values) - position) * SECOND, position % PARTITIONS, **{column: value}, **rest)
        return made.ask(T)

    yield numbers("only-nulls", "nulls are skipped, and an empty set of values is null", "f64", [None, None, None])
    yield numbers("one-value", "a spread needs two rows", "f64", [0.1])
    yield numbers("same-values", "the spread of equal values is 0, not nearly 0", "f64", [0.1, 0.1, 0.1])
    yield numbers("tenths", "a sum is rounded once", "f64", [0.1] * 10)
    yield numbers("cancellation", "what is small survives what cancels out", "f64", [1e17, 1.0, -1e17])
    yield numbers("wide-range", "1e18 beside 1e-13", "f64", [1e18, 1e-13, -1e18, 1e-13, 3e-20])
    yield numbers(
        "below-range", "values below 2^-96 are cut off on entry, not in min and max", "f64", [1e-30, 5e-324, 2.0**-96]
    )
    yield numbers(
        "below-range-part", "a float whose last bits lie below 2^-96", "f64", [2.0**-60 * (1 + 2.0**-52), -1e-28, 1e-27]
    )
    yield numbers("subnormals", "subnormals are values", "f64", [5e-324, -5e-324, 2.2250738585072014e-308, 1e-310])
    yield numbers("half-to-even", "2^53 + 1 is a tie", "f64", [2.0**53, 1.0, 2.0**53, 1.0, 1.0])
    yield numbers("sum-bound", "the greatest float that can be summed", "f64", [1.8446744073709550e19, -1.0, 2.0**63])
    yield numbers("sums-beyond-2-53", "sums of integers do not pass through floats", "i64", [2**53 + 1, 2**53 + 1, 1])
    yield numbers("null-beside-big", "a null beside 2^60 + 1 changes nothing", "i64", [None, 2**60 + 1, None])
    yield numbers("int-extremes", "int64 from end to end", "big", [2**63 - 1, -(2**63), 0, 2**63 - 2])
    yield numbers("int-lowest", "the lowest int64 alone", "big", [-(2**63)])
    yield numbers("int-sum-edge", "an exact sum at the edge of int64", "i64", [2**62, 2**62 - 1, -1, 1])
    yield numbers("int32-extremes", "int32 from end to end", "i32", [2**31 - 1, -(2**31), 5])
    yield numbers("booleans", "booleans are summed and ordered", "b", [True, False, None, True])
    yield numbers(
        "texts",
        "texts are ordered by code point: not by a language, not by UTF-16; an empty one is a value",
        "s",
        [
            "b",
            None,
            "Z",
            "a",
            "ä",
            "z",
            "\ue000",
            "\uffff",
            "\U00010000",
            "",
            "a\u0000",
            "\u0000",
            "é",
            "e\u0301",
            None,
            "🛫",
        ],
    )
    yield numbers("empty-texts", "an empty text is not a null", "s", [None, "", None, ""])
    yield numbers("one-text", "a text of any length up to the longest", "s", ["é" * 512])
    yield numbers("same-texts", "equal texts", "s", ["a|b\\", "a|b\\", "a|b\\"])
    yield numbers("bytes", "bytes are ordered as bytes", "y", [None, "", "AA==", "/w==", "f/8=", None])
    yield (
        _case("too-long-texts", "a text that a tile cannot hold is refused alike, by the view that keeps it only")
        .event(T - 9, s="a" * 1024, i64=1)
        .event(T - 8, 1, s="a" * 1025, i64=2)
        .event(T - 7, 2, s="é" * 512 + "a", i64=4)
        .event(T - 6, 0, s="🛫" * 256, i64=8)
        .event(T - 5, 1, y="A" * 1368, i64=16)
        .event(T - 4, 2, y="A" * 1364, i64=32)
        .ask(T)
    )
    edge = lower("1h", T)
    yield (
        _case("texts-at-edges", "texts at the ends of tiles and windows")
        .event(edge - 1, s="before", b=False, ts=edge - 1)
        .event(edge, 1, s="first", b=True, ts=edge)
        .event(edge + 5 * MINUTE - 1, 2, s="zz", ts=-1)
        .event(edge + 5 * MINUTE, 0, s="", b=False)
        .event(T, 1, s="last", ts=T)
        .ask(T, T + 5 * MINUTE, T + HOUR, T + DAY + 2 * HOUR)
    )
    yield numbers("instants", "instants before 1970 and below a second", "ts", [T - 1, -1, None, 999_999, -DAY - 1])
    yield numbers(
        "float32s",
        "Float32 in, Float32 or Float64 out",
        "f32",
        [0.1, -0.1, 3.4028234663852886e38 / 2**65, 1e-40, 16_777_217.0],
    )
    yield (
        _case("negative-zero", "-0.0 is below 0.0, and a sum of them is 0.0")
        .event(T - 3, f64=0.0, divisor=-1.0)
        .event(T - 2, 1, f64=0.0)
        .event(T - 1, 2, f64=0.0, divisor=-1.0)
        .ask(T)
    )
    yield _case("negative-zero-alone", "as a sum it is 0.0, as a value -0.0").event(T - 3, f64=0.0, divisor=-1.0).ask(T)
    yield (
        _case("not-a-number", "NaN is null")
        .event(T - 3, f64=0.0, divisor=0.0, i64=1)
        .event(T - 2, 1, f64=2.5, i64=2)
        .ask(T)
    )
    yield (
        _case("refused", "rows that cannot be summed are refused alike, by the view that sums them only")
        .event(T - 5, f64=1.0, divisor=0.0, i64=1)
        .event(T - 4, 1, f64=2.0**64, i64=2)
        .event(T - 3, 2, f64=-(2.0**64), i64=4)
        .event(T - 2, 0, f64=5.0, i64=8)
        .ask(T)
    )
    yield (
        _case("bad-messages", "a bad message stops nothing and is never lost")
        .bad(b"not json", 0)
        .bad(b'{"event_timestamp": "2024-03-10T12:00:00Z", "case": "bad-messages", "f64": "one"}', 1)
        .bad(b'{"event_timestamp": "2024-03-10T12:00:00Z", "case": "bad-messages", "f64": NaN}', 2)
        .bad(b'{"event_timestamp": "2024-03-10T12:00:00Z", "case": "bad-messages", "f64": 1e999}', 0)
        .bad(b'{"event_timestamp": "tomorrow", "case": "bad-messages", "f64": 1.0}', 1)
        .bad(b'["case"]', 2)
        .bad(b"\xff\xfe", 0)
        .bad(b"", 1, wave=2)
        .bad(None, 2)
        .bad(
            b'{"event_timestamp": "2024-03-10T12:00:00Z", "case": "bad-messages", "i64": 9223372036854775808}',
            2,
            wave=2,
        )
        .event(None, 1, f64=1.0, i64=1)
        .event(T - 2, 0, f64=5.0, i64=8)
        .ask(T)
    )
    yield (
        _case("spellings", "instants with zones, without, and finer than a microsecond")
        .event(T, 0, f64=1.0, i64=1, raw=_spelt("spellings", "2024-03-10T14:33:07.123457+02:00", 1))
        .event(T - 1, 1, f64=1.0, i64=2, raw=_spelt("spellings", "2024-03-10T12:33:07.123456999Z", 2))
        .event(T - 7 * SECOND - 123_457, 2, f64=1.0, i64=4, raw=_spelt("spellings", "2024-03-10 12:33:00", 4))
        .ask(T)
    )


def _spelt(case: str, moment: str, i64: int) -> bytes:
    return json.dumps(
        {"event_timestamp": moment, "case": case, "left": case, "right": "", "f64": 1.0, "i64": i64, "x": [1]}
    ).encode()


def _order() -> Iterator[Case]:
    tied = _case("ties", "equal instants are ordered by partition, then offset")
    for partition in (2, 0, 1):
        for copy in range(2):
            text, raw = f"{9 - partition}.{copy}", ("AA==", "/w==")[copy]
            values: dict[str, Any] = {"b": bool(copy), "ts": copy, "s": text, "y": raw}
            tied.event(T, partition, f64=partition + copy / 4, i64=10 * partition + copy, **values)
            tied.row(T, partition, r_i64=10 * partition + copy, r_s=f"{partition}.{copy}")
    yield tied.ask(T)
    yield (
        _case("ties-with-nulls", "first and last skip the nulls of tied rows")
        .event(T, 0, f64=None, i64=1, s=None)
        .event(T, 1, f64=2.0, i64=None, s="x")
        .event(T, 1, f64=None, i64=None, s="")
        .event(T, 2, f64=None, i64=None, s=None)
        .ask(T)
    )
    yield (
        _case("late-events", "an event that arrives late counts as if it had not")
        .event(T, f64=1.0, i64=1, b=True, s="m")
        .event(T - 10 * MINUTE, 1, wave=2, f64=2.0, i64=2, s="a")
        .event(T - 59 * MINUTE, 0, wave=2, f64=4.0, i64=4, b=False, s="zürich")
        .event(T - 23 * HOUR, 2, wave=2, f64=8.0, i64=8, s="🛫")
        .ask(T, T + 10 * MINUTE)
    )
    yield (
        _case(
            "too-late", "an event that no window can see any more changes nothing, and is still there for older labels"
        )
        .event(T, f64=1.0, i64=1)
        .event(T - 4 * DAY, 1, wave=2, f64=2.0, i64=2)
        .ask(T, T - 4 * DAY + 5)
    )
    yield (
        _case("late-tie", "a tied event from a lower partition that arrives last is not the last")
        .event(T, 2, f64=1.0, i64=1, s="first to arrive")
        .event(T, 0, wave=2, f64=2.0, i64=2, s="")
        .row(T, 2, r_i64=1)
        .row(T, 0, wave=2, r_i64=2)
        .ask(T)
    )
    yield (
        _case("late-row", "an older row that arrives late does not overwrite")
        .row(T - 5, r_i64=1, r_s="new")
        .row(T - 10, 1, wave=2, r_i64=2, r_s="old")
        .ask(T, T - 5)
    )
    yield (
        _case("new-row-of-nulls", "the newest row counts as a whole, its nulls too")
        .row(T - 5, r_i64=1, r_s="full", r_b=True)
        .row(T - 1, 1, wave=2)
        .ask(T)
    )
    yield (
        _case("same-place-again", "of equal instants in one partition the later offset wins")
        .row(T, 1, r_i64=9, r_s="z")
        .row(T, 1, wave=2, r_i64=1, r_s="a")
        .ask(T)
    )


def _keys() -> Iterator[Case]:
    for name, key in (
        ("empty-key", ""),
        ("unicode-key", "Zürich 🛫 \u202e\u0000 ñ"),
        ("pipe-key", "a|b\\|c\\"),
        ("space-key", " lead and trail \n"),
        ("slash-key", "x/y@00000000/z"),
    ):
        yield (
            _case(name, "a key is any text", key)
            .event(T - 2, f64=1.0, i64=len(name))
            .row(T - 2, 1, r_i64=len(name), r_s=key, r_b=len(name) % 2 == 1)
            .fades(T - 2, T, reading=len(name), note=key)
            .lasts(T - 2, T, level=len(name), name=key, ratio=0.1, flag=len(name) % 2 == 0)
            .ask(T)
        )
    colliding = _case("colliding-texts", "escaping keeps composite keys apart")
    texts = [("a|b", "c"), ("a", "b|c"), ("a\\", "|b"), ("a\\|", "b"), ("a", "\\|b"), ("", "a|b|c"), ("a|b|c", "")]
    for position, (left, right) in enumerate(texts):
        colliding.event(T - 9, position % PARTITIONS, left=left, right=right, f64=1.0, i64=10**position)
        colliding.ask(T, left=left, right=right)
    yield colliding
    codes = _case("colliding-codes", "(1, 11) and (11, 1) are two keys")
    parts: list[dict[str, Any]] = [
        {"code_i": 1, "code_n": 11}, {"code_i": 11, "code_n": 1}, {"code_i": 111, "code_n": 0}, {"code_i": -1, "code_n": 1},
        {"code_i": 1, "code_n": 1, "code_b": True}, {"code_i": 1, "code_n": 1}, {"code_t": 1}, {"code_t": -1},
        {"code_t": MIDNIGHT}, {"code_t": MIDNIGHT + 1}, {"code_i": 2**63 - 1}, {"code_i": -(2**63)}, {"code_n": -(2**31)},
    ]  # fmt: skip
    for position, part in enumerate(parts):
        codes.lasts(T - 9, T, level=position, small=-position, **part)
        codes.ask(T, **part)
    yield codes.ask(T, code_i=1, code_n=111)


def _latest() -> Iterator[Case]:
    yield (
        _case("every-dtype", "a row with a value of each dtype")
        .row(
            T, r_f64=0.1, r_f32=0.1, r_i64=2**60 + 1, r_i32=-7, r_b=False, r_s="déjà 🛫", r_y="AAH/gA==",
            r_t=MIDNIGHT + 5 * SECOND,
        )
        .ask(T, T + DAY, T + 3650 * DAY)
    )  # fmt: skip
    yield _case("every-null", "a row without any value").row(T).ask(T)
    yield (
        _case("extremes", "the ends of each dtype")
        .row(
            T, r_f64=1.7976931348623157e308, r_f32=3.4028234663852886e38, r_i64=2**63 - 1, r_i32=2**31 - 1, r_b=True,
            r_s="", r_y="", r_t=-1,
        )
        .ask(T)
    )  # fmt: skip
    yield (
        _case("other-extremes", "the other ends of each dtype")
        .row(
            T, r_f64=5e-324, r_f32=1e-45, r_i64=-(2**63), r_i32=-(2**31), r_b=None, r_s="\u0000|\\",
            r_y="AA==", r_t=-62_135_596_800 * SECOND,
        )
        .ask(T)
    )  # fmt: skip
    yield (
        _case("null-and-big", "an integer beyond 2^53 beside nulls, through a request function")
        .row(T - 1, 0, r_i64=2**60 + 1)
        .row(T, 1, wave=2, r_i64=2**53 + 1)
        .ask(T)
    )
    yield _case("subsecond", "instants below a second").row(T, r_t=T).lasts(T, T, seen_at=T).ask(T)
    yield (
        _case("minus-zero", "the sign of a zero is dropped where a message comes in")
        .row(T, r_f64=-0.0, r_f32=-0.0)
        .ask(T)
    )


def _fading() -> Iterator[Case]:
    yield (
        _case("ttl-edge", "a row is there for exactly its time to live, and not a microsecond longer")
        .fades(T, T, temperature=1.5, reading=2**60 + 1, note="x")
        .ask(T, T + FADING_TTL - 1, T + FADING_TTL, T + FADING_TTL + 1, T - 1)
    )
    yield (
        _case("ttl-of-newest", "an expired newest row hides nothing older behind it")
        .fades(T - DAY, T, reading=1)
        .fades(T, T, reading=2)
        .ask(T + FADING_TTL, T + FADING_TTL + 1)
    )
    yield (
        _case("correction", "of equal event times the later created row wins, whatever the order in the table")
        .fades(T - 5, T + 9, reading=2, temperature=2.0)
        .fades(T - 5, T + 1, reading=1, temperature=1.0)
        .ask(T)
    )
    yield (
        _case("late-correction", "a correction that arrives after the first materialization")
        .fades(T - 5, T + 1, reading=1, temperature=1.0)
        .fades(T - 5, T + 9, wave=2, reading=2)
        .lasts(T - 5, T + 1, level=1)
        .lasts(T - 5, T + 9, wave=2, level=2)
        .ask(T)
    )
    yield (
        _case("late-old-row", "a warehouse row that arrives late and is older")
        .fades(T - 5, T + 1, reading=1)
        .fades(T - 50, T + 9, wave=2, reading=2)
        .ask(T, T - 6)
    )
    yield (
        _case("full-tie", "rows equal in event and created time: the greater bytes win, on both sides")
        .fades(T - 5, T, reading=1, temperature=1.0)
        .fades(T - 5, T, reading=256, temperature=1.0)
        .lasts(T - 5, T, level=256, name="b")
        .lasts(T - 5, T, level=1, name="a")
        .ask(T)
    )
    yield (
        _case("full-tie-later", "the same when the rows arrive one after the other")
        .fades(T - 5, T, reading=1, temperature=1.0)
        .fades(T - 5, T, wave=2, reading=256, temperature=1.0)
        .lasts(T - 5, T, level=256)
        .lasts(T - 5, T, wave=2, level=1)
        .ask(T)
    )
    yield (
        _case("full-tie-null", "a null against a value in such a tie")
        .fades(T - 5, T, reading=None, temperature=9.0)
        .fades(T - 5, T, reading=0, temperature=None, note="n")
        .ask(T)
    )
    yield (
        _case("created-null", "a row without a created time counts as the oldest of its instant")
        .fades(T - 5, None, reading=1)
        .fades(T - 5, 1, reading=2)
        .ask(T)
    )
    yield _case("fading-nulls", "a stored row of nulls is there").fades(T - 5, T).ask(T)
    yield (
        _case("infinite", "an infinity of the warehouse is one on every path, and through a request function")
        .event(T - 9, f64=1.0, i64=1)
        .fades(T - 9, T, temperature=math.inf)
        .fades(T - 5, T, temperature=-math.inf)
        .lasts(T - 5, T, ratio=math.inf)
        .ask(T, T - 6)
    )


def _lasting() -> Iterator[Case]:
    yield (
        _case("lasts-for-ever", "a time to live of 0 never ends")
        .lasts(T - 5, T, level=2**60 + 1, ratio=0.1, small=-1, flag=True, name="Zürich|🛫", seen_at=MIDNIGHT)
        .ask(T, T + 3650 * DAY)
    )
    yield (
        _case("null-after-value", "a null in the newer row")
        .lasts(T - 5, T, level=1, ratio=1.5, flag=False)
        .lasts(T - 4, T, wave=2, ratio=None, small=7)
        .ask(T)
    )


def _requests() -> Iterator[Case]:
    made = (
        _case("request-fields", "request functions see stored features, request fields and nulls of either")
        .event(T - 2, f64=0.1, i64=1)
        .event(T - 1, 1, f64=0.2, i64=1)
        .row(T - 1, r_i64=5, r_s="world")
        .fades(T - 1, T, temperature=-40.25)
    )
    for weight in (1.5, 0.0, -0.0, None, float("nan"), 1e308, 5e-324):
        made.ask(T, weight=weight)
    yield made.ask(T, label=None).ask(T, label="").ask(T, label="ñ🛫")
    yield _case("request-of-nothing", "request functions of entities that are not there").ask(T).ask(T, weight=None)


def _random() -> Iterator[Case]:
    for seed in range(6):
        chosen = random.Random(seed)
        made = _case(f"random-{seed}", f"many events around boundaries, seed {seed}")
        boundaries = [lower(window, T + shift) for window in WINDOWS for shift in (0, 7 * MINUTE, -HOUR, 2 * HOUR)]
        boundaries += [T, NOON, MIDNIGHT, T - DAY]
        for _ in range(30 if seed else 150):
            at = chosen.choice(boundaries) + chosen.choice((-1, 0, 1, chosen.randrange(-HOUR, HOUR)))
            made.event(
                min(at, T + 2 * HOUR),
                chosen.randrange(PARTITIONS),
                wave=chosen.choice((1, 1, 2)),
                f64=chosen.choice((None, chosen.uniform(-1, 1) * 10.0 ** chosen.randrange(-20, 19), chosen.random())),
                f32=chosen.choice((None, float32(chosen.uniform(-9e9, 9e9)))),
                i64=chosen.choice((None, chosen.randrange(-(2**53), 2**53), 2**53 + 1)),
                big=chosen.choice((None, chosen.randrange(-(2**63), 2**63))),
                i32=chosen.choice((None, chosen.randrange(-(2**31), 2**31))),
                b=chosen.choice((None, True, False)),
                ts=chosen.choice((None, chosen.randrange(-(2**50), 2**50))),
                s=chosen.choice((None, "", "".join(chosen.choices("aAzé\u0000\uffff🛫", k=chosen.randrange(6))))),
                y=chosen.choice((None, base64.b64encode(chosen.randbytes(chosen.randrange(4))).decode())),
            )
        newest = max(event.fields["event_timestamp"] for event in made.events)
        offsets = [0, 1, 7 * MINUTE, HOUR, DAY, *(chosen.randrange(2 * DAY) for _ in range(3))]
        yield made.ask(*(newest + offset for offset in offsets), T, NOON)
