"""Fields of messages that a library decodes (Avro, Protobuf) as typed columns, from the topic and from its landing table.

Both sides end in `table`, so what a value may be and what a missing one means is said once. A landing table holds what
Kafka Connect makes of such a message, which `landed` reads back:

- bytes are base64 text, an enum is its symbol's name, NaN and the infinities are text;
- instants of Kafka Connect's own Timestamp type (Avro's timestamp-millis, Protobuf's Timestamp) are ISO-8601 text with
  milliseconds; Avro's other timestamps are plain integers in their unit;
- a null of a field that has a default is the default, and so is a field that the writer did not know.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.compute as pc  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray

from ingestion.arrow import INSTANT, TYPES, schema_of
from ingestion.messages import TOMBSTONE, parse_instants
from tally.dtypes import FLOATS
from tally.plan import Field

Messages = tuple[pa.Table, NDArray[np.int64], dict[int, str]]
"""The good messages as a table (types of `ingestion.arrow.TYPES`), their rows, and the reasons for the others."""

ISO: Final = "iso"
UNITS: Final = {"millis": (1000, 1), "micros": (1, 1), "nanos": (1, 1000)}
"""Microseconds per tick, and ticks per microsecond."""
_FIRST_YEAR: Final = -62_135_596_800_000_000
_AFTER_LAST_YEAR: Final = 253_402_300_800_000_000
_EXACT_IN_FLOAT64: Final = 2.0**53
_SPECIAL: Final = {
    "NaN": np.nan,
    "Inf": np.inf,
    "Infinity": np.inf,
    "+Infinity": np.inf,
    "-Inf": -np.inf,
    "-Infinity": -np.inf,
}


@dataclass(frozen=True, slots=True)
class Wire:
    """One column of a message. Values are Python's own, instants are integers of microseconds.

    `default` stands for a missing value (None: there is none), else a missing value is null, or bad where `required`.
    `symbols` are those of an enum. `landed_as` says how a landing table has an instant: "iso", or the unit of an integer.
    """

    field: Field
    required: bool = False
    default: Any = None
    symbols: frozenset[str] = frozenset()
    landed_as: str = ""


def table(
    wires: Sequence[Wire], columns: Mapping[str, Sequence[Any]], rows: NDArray[np.int64], bad: dict[int, str]
) -> Messages:
    """Columns of decoded messages, one value for each of `rows`; what no column can hold is added to `bad`."""
    arrays = {}
    wrong: dict[int, str] = {}
    for wire in wires:
        arrays[wire.field.name], complaints = _array(wire, columns[wire.field.name])
        for position, complaint in complaints.items():
            wrong.setdefault(position, f"field {wire.field.name}: {complaint}")
    fields = [wire.field for wire in wires]
    whole = pa.Table.from_arrays([arrays[field.name] for field in fields], schema=schema_of(fields))
    if wrong:
        bad |= {int(rows[position]): reason for position, reason in wrong.items()}
        kept = np.setdiff1d(np.arange(len(rows)), np.fromiter(wrong, np.int64, len(wrong)))
        whole, rows = whole.take(kept), rows[kept]
    return whole, rows, bad


def _array(wire: Wire, values: Sequence[Any]) -> tuple[Any, dict[int, str]]:
    """(Arrow array, null where a value is bad; position -> complaint)."""
    wrong: dict[int, str] = {}
    if wire.default is not None or wire.required:
        missing = [position for position, value in enumerate(values) if value is None]
        if missing and wire.default is None:
            wrong = dict.fromkeys(missing, "is missing, and has no default")
        elif missing:
            values = [wire.default if value is None else value for value in values]
    if wire.symbols:
        strange = [i for i, value in enumerate(values) if value is not None and value not in wire.symbols]
        wrong |= {i: f"{_shown(values[i])} is no symbol of its enum" for i in strange}
    if wire.landed_as == ISO:
        ticks = np.array([0 if value is None else value for value in values], object)
        outside = np.flatnonzero((ticks < _FIRST_YEAR) | (ticks >= _AFTER_LAST_YEAR)).tolist()
        wrong |= dict.fromkeys(outside, "is not between the years 1 and 9999")
    if wrong:
        values = [None if i in wrong else value for i, value in enumerate(values)]
    array = _converted(wire.field, values)
    if array is None:
        checked: list[Any] = []
        for position, value in enumerate(values):
            if _converted(wire.field, [value]) is None:
                wrong[position] = f"{_shown(value)} is not {wire.field.dtype}"
                checked.append(None)
            else:
                checked.append(value)
        array = _converted(wire.field, checked)
    return array, wrong


def _converted(field: Field, values: Sequence[Any]) -> Any:
    try:
        if field.dtype == "UnixTimestamp":
            return pa.array(values, pa.int64()).cast(INSTANT)
        array = pa.array(values, TYPES[field.dtype])
    except (pa.ArrowException, OverflowError, UnicodeError):
        return None
    if field.dtype in FLOATS:
        array = pc.add(array, pa.scalar(0.0, array.type))  # -0.0 + 0.0 is 0.0
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    return array


# What a landing table holds


def landed(wires: Sequence[Wire], contents: Sequence[bytes | None]) -> Messages:
    """The messages of a landing table's RECORD_CONTENT, as JSON text."""
    bad: dict[int, str] = {}
    documents = []
    rows = []
    for row, content in enumerate(contents):
        document, reason = _document(content)
        if reason:
            bad[row] = reason
        else:
            documents.append(document)
            rows.append(row)
    columns = {}
    for wire in wires:
        name = wire.field.name
        values, complaints = _read(wire, [document.get(name) for document in documents])
        columns[name] = values
        for position, complaint in complaints.items():
            bad.setdefault(rows[position], f"field {name}: {complaint}")
    good = [position for position, row in enumerate(rows) if row not in bad]
    columns = {name: [values[position] for position in good] for name, values in columns.items()}
    return table(wires, columns, np.array([rows[position] for position in good], np.int64), bad)


def _document(content: bytes | None) -> tuple[dict[str, Any], str]:
    if content is None:
        return {}, TOMBSTONE
    try:
        document = orjson.loads(content)
    except ValueError as error:
        return {}, f"not JSON: {error}"
    if not isinstance(document, dict):
        return {}, f"not a record: {_shown(document)}"
    return document, ""


def _read(wire: Wire, values: list[Any]) -> tuple[list[Any], dict[int, str]]:
    if wire.landed_as == ISO:
        texts = [value if isinstance(value, str) else None for value in values]
        wrong = {
            i: f"{_shown(v)} is not an ISO-8601 instant"
            for i, v in enumerate(values)
            if v is not None and texts[i] is None
        }
        try:
            return parse_instants(pa.array(texts, pa.string())).cast(pa.int64()).to_pylist(), wrong
        except (pa.ArrowException, UnicodeError):
            read: Callable[[Any], Any] = _instant
    elif wire.landed_as:
        per_tick, per_micro = UNITS[wire.landed_as]
        read = lambda value: _integer(value) * per_tick // per_micro  # noqa: E731
    else:
        read = _READERS[wire.field.dtype]
    result, wrong = [], {}
    for position, value in enumerate(values):
        try:
            result.append(None if value is None else read(value))
        except (ValueError, TypeError, OverflowError, binascii.Error):
            wrong[position] = f"{_shown(value)} is not {wire.field.dtype}"
            result.append(None)
    return result, wrong


def _instant(value: Any) -> Any:
    if not isinstance(value, str):
        raise TypeError
    try:
        return parse_instants(pa.array([value], pa.string())).cast(pa.int64())[0].as_py()
    except pa.ArrowException as error:
        raise ValueError from error


def _float(value: Any) -> float:
    if isinstance(value, str) and value in _SPECIAL:
        return _SPECIAL[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def _integer(value: Any) -> int:
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_IN_FLOAT64:
        return int(value)  # a warehouse may spell 100 as 1e2
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _bytes(value: Any) -> bytes:
    return base64.b64decode(_text(value).encode("ascii", "strict"), validate=True)


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "Float64": _float,
    "Float32": _float,
    "Int64": _integer,
    "Int32": _integer,
    "Bool": _boolean,
    "String": _text,
    "Bytes": _bytes,
}


def _shown(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
