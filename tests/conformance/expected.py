"""What each query must be answered, by loops over the rows that were loaded; `tests.oracle` has the arithmetic."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

from tests import oracle
from tests.conformance import cases
from tests.conformance.cases import AVRO, CODES, DTYPES, FADING, FUNCTIONS, LASTING, LATEST, PROTOBUF, WINDOWS, Query

LATEST_VIEWS = {"latest": LATEST, "latest_avro": AVRO, "latest_protobuf": PROTOBUF}
MILLISECOND = 1000
SUM_BOUND = 2.0**64
LONGEST_TEXT = 1024
Keys = tuple[Any, ...]


@dataclass(frozen=True)
class Row:
    """A row that counts. `order` breaks ties: (partition, offset), or (created, packed bytes) for warehouse rows."""

    at: int
    order: tuple[Any, ...]
    values: Mapping[str, Any]
    wave: int


@dataclass
class Truth:
    """All rows of each view by entity key, and how many messages each view must refuse."""

    views: dict[str, dict[Keys, list[Row]]] = field(
        default_factory=lambda: {name: {} for name in ("windows", "pairs", *LATEST_VIEWS, "fading", "lasting")}
    )
    refused: dict[str, int] = field(default_factory=lambda: {"windows": 0, "pairs": 0})
    bad: int = 0

    def add(self, view: str, key: Keys, row: Row) -> None:
        """Remember a row."""
        self.views[view].setdefault(key, []).append(row)


@dataclass(frozen=True)
class Answer:
    """`values` of all features. `views` says how each view came to its answer: present, missing, expired or ahead."""

    values: Mapping[str, Any]
    views: Mapping[str, str]


WINDOW_FEATURES = [f"{c}_{f}_{w}" for c, functions in FUNCTIONS.items() for f in functions for w in WINDOWS]
VIEWS_OF: dict[tuple[str, ...], Sequence[str]] = {
    ("windows",): WINDOW_FEATURES,
    ("pairs",): ("pair_sum", "pair_count"),
    ("latest",): (*LATEST, "next_reading", "greeting"),
    ("latest_avro",): tuple(AVRO),
    ("latest_protobuf",): tuple(PROTOBUF),
    ("fading",): tuple(FADING),
    ("lasting",): tuple(LASTING),
    ("windows", "fading"): ("score",),
    (): ("is_heavy",),
}
DECIDED_BY = {name: views for views, names in VIEWS_OF.items() for name in names}
"""The views whose rows decide a feature's value."""
STATED_BY = DECIDED_BY | {"is_heavy": ("windows", "fading")}
"""The views whose statuses a feature's status is the greatest of: a request function's outputs share theirs."""
SEVERITY = ("present", "missing", "expired", "ahead")


def status(feature: str, views: Mapping[str, str]) -> str:
    """How a value came about, as the client says it."""
    return max((views[view] for view in STATED_BY[feature]), key=SEVERITY.index)


# From what was sent and loaded to rows


def add_event(truth: Truth, message: cases.Message, partition: int, offset: int) -> None:
    """A message of the windows' topic, which two views read."""
    if message.is_bad:
        truth.bad += 1
        return
    sent = as_decoded(message.fields)
    at = sent["event_timestamp"]
    divided = _divided(sent.get("f64"), sent.get("divisor"))
    row = {name: sent.get(name) for name in DTYPES}
    if at is None or not (_summable(divided) and _summable(sent.get("f32")) and _storable(sent)):
        truth.refused["windows"] += 1
    else:
        truth.add(
            "windows", (sent["case"],), Row(at, (partition, offset), {**row, "f64": _null(divided)}, message.wave)
        )
    if at is None:
        truth.refused["pairs"] += 1
    else:
        truth.add("pairs", (sent["left"], sent["right"]), Row(at, (partition, offset), row, message.wave))


def add_row(truth: Truth, message: cases.Message, partition: int, offset: int) -> None:
    """A message of the latest rows' topic."""
    sent = as_decoded(message.fields)
    values = {name: sent.get(name) for name in LATEST}
    row = Row(sent["event_timestamp"], (partition, offset), values, message.wave)
    truth.add("latest", (sent["case"],), row)


def add_avro(truth: Truth, message: cases.Message, partition: int, offset: int) -> None:
    """The same row in Avro."""
    sent = as_decoded(message.fields)
    values = {name: sent.get(name.replace("a_", "r_")) for name in AVRO}
    truth.add("latest_avro", (sent["case"],), Row(sent["event_timestamp"], (partition, offset), values, message.wave))


def add_protobuf(truth: Truth, message: cases.Message, partition: int, offset: int) -> None:
    """The same row in Protobuf: Kafka Connect keeps milliseconds of its timestamps."""
    sent = as_decoded(message.fields)
    values = {name: sent.get(name.replace("p_", "r_")) for name in PROTOBUF}
    if values["p_t"] is not None:
        values["p_t"] = values["p_t"] // MILLISECOND * MILLISECOND
    truth.add(
        "latest_protobuf", (sent["case"],), Row(sent["event_timestamp"], (partition, offset), values, message.wave)
    )


def add_fading(truth: Truth, record: cases.Record) -> None:
    """A row of the batch view with a time to live."""
    values = {name: record.values[name] for name in FADING}
    order = (record.values["created"] or 0, packed(FADING, values))
    truth.add("fading", (record.values["case"],), Row(record.values["event_timestamp"], order, values, record.wave))


def add_lasting(truth: Truth, record: cases.Record) -> None:
    """A row of the batch view with a composite key."""
    values = {name: _as_dtype(dtype, record.values[name]) for name, dtype in LASTING.items()}
    order = (record.values["created"] or 0, packed(LASTING, values))
    key = tuple(record.values[name] for name in CODES)
    truth.add("lasting", key, Row(record.values["event_timestamp"], order, values, record.wave))


def as_decoded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as they are after JSON: floats of their dtype, without the sign of a zero; bytes from base64."""
    dtypes = {**DTYPES, **LATEST, "divisor": "Float64"}
    decoded = {}
    for name, value in json.loads(json.dumps(fields)).items():
        dtype = dtypes.get(name, "String")
        if value is not None and dtype.startswith("Float"):
            value = _as_dtype(dtype, float(value)) + 0.0
        decoded[name] = _from_base64(value) if dtype == "Bytes" and value is not None else value
    return decoded


def _as_dtype(dtype: str, value: Any) -> Any:
    return cases.float32(value) if dtype == "Float32" and value is not None else value


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text)


def _divided(value: float | None, divisor: float | None) -> float | None:
    if divisor is None or value is None:
        return value
    if divisor == 0:
        return math.nan if value == 0 else math.copysign(math.inf, value)
    return value / divisor


def _null(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _summable(value: float | None) -> bool:
    return value is None or math.isnan(value) or abs(value) < SUM_BOUND


def _storable(sent: Mapping[str, Any]) -> bool:
    return len((sent.get("s") or "").encode()) <= LONGEST_TEXT and len(sent.get("y") or b"") <= LONGEST_TEXT


def packed(fields: Mapping[str, str], values: Mapping[str, Any]) -> bytes:
    """The bytes that break full ties, fields by name: a bit per value that is there, fixed-width parts, then texts."""
    fields = dict(sorted(fields.items()))
    codes = {
        "Float64": "d",
        "Float32": "f",
        "Int64": "q",
        "Int32": "i",
        "Bool": "?",
        "String": "I",
        "UnixTimestamp": "q",
    }
    present, fixed, tail = 0, b"", b""
    for position, (name, dtype) in enumerate(fields.items()):
        value = values[name]
        present |= (value is not None) << position
        text = (value or "").encode() if dtype == "String" else b""
        number = len(text) if dtype == "String" else value or 0
        fixed += struct.pack("<" + codes[dtype], number)
        tail += text
    return present.to_bytes(-(-len(fields) // 8), "little") + fixed + tail


# From rows to answers


def answer(truth: Truth, query: Query, waves: int = 2) -> Answer:
    """Every feature of one query, from the rows of the first `waves` waves."""
    asked, as_of = query.asked, query.as_of
    keys: dict[str, Keys] = {
        "windows": (asked["case"],),
        "pairs": (asked["left"], asked["right"]),
        **dict.fromkeys(LATEST_VIEWS, (asked["case"],)),
        "fading": (asked["case"],),
        "lasting": tuple(asked[name] for name in CODES),
    }
    rows = {name: [row for row in truth.views[name].get(key, ()) if row.wave <= waves] for name, key in keys.items()}
    ttls = {"fading": cases.FADING_TTL}
    views = {name: _how(own, as_of, ttls.get(name, 0)) for name, own in rows.items()}
    values: dict[str, Any] = {}
    for name, column, function, window in _named_windows():
        values[name] = _window(rows["windows"], column, function, *WINDOWS[window], as_of)
    values["pair_sum"] = _window(rows["pairs"], "i64", "sum", *WINDOWS["1h"], as_of)
    values["pair_count"] = _window(rows["pairs"], "f64", "count", *WINDOWS["1h"], as_of)
    for name, fields in LATEST_VIEWS.items():
        values |= _latest(rows[name], fields, as_of, 0)
    values |= _latest(rows["fading"], FADING, as_of, cases.FADING_TTL)
    values |= _latest(rows["lasting"], LASTING, as_of, 0)
    return Answer(values | _requested(values, asked), views)


@lru_cache
def _named_windows() -> tuple[tuple[str, str, str, str], ...]:
    return tuple((f"{c}_{f}_{w}", c, f, w) for c, functions in FUNCTIONS.items() for f in functions for w in WINDOWS)


def _how(rows: Sequence[Row], as_of: int, ttl: int) -> str:
    if not rows:
        return "missing"
    newest = max(row.at for row in rows)
    if newest > as_of:
        return "ahead"
    return "expired" if ttl and as_of - newest > ttl else "present"


def _window(rows: Sequence[Row], column: str, function: str, length: int, hop: int, as_of: int) -> Any:
    lower = math.floor(Fraction(as_of - length, hop)) * hop
    inside = sorted((row for row in rows if lower <= row.at <= as_of), key=lambda row: (row.at, row.order))
    values = [row.values[column] for row in inside]
    return oracle.aggregate(function, DTYPES[column], [value for value in values if value is not None])


def _latest(rows: Sequence[Row], fields: Mapping[str, str], as_of: int, ttl: int) -> dict[str, Any]:
    seen = [row for row in rows if row.at <= as_of]
    newest = max(seen, key=lambda row: (row.at, row.order), default=None)
    if newest is None or (ttl and as_of - newest.at > ttl):
        return dict.fromkeys(fields)
    return {name: newest.values[name] for name in fields}


def _requested(values: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    weight, label = _null(asked["weight"]), asked["label"]
    total, temperature, reading, text = (values[n] for n in ("f64_sum_1h", "temperature", "r_i64", "r_s"))
    score = None if None in (weight, total, temperature) else total * weight + temperature
    return {
        "score": score,
        "is_heavy": weight is not None and weight > 1.0,
        "next_reading": None if reading is None else (reading + 1 + 2**63) % 2**64 - 2**63,  # as int64 adds
        "greeting": None if label is None or text is None else f"{label} {text}",
    }
