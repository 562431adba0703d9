"""Messages: JSON objects to typed columns. The stream and the landing tables are decoded here, so both read the same.

What a message may be, field by field (anything else is bad, with a reason, and never stops the others):

- a message is one JSON object in UTF-8, without a byte order mark; NaN and Infinity are not JSON;
- fields that are missing are null, fields that nobody asked for are ignored, a wanted field given twice is bad;
- numbers are JSON numbers, never strings: the nearest float, with -0.0 as 0.0; for integers a literal in range, or,
  below 2^53, a whole number spelt otherwise (``1.0``, ``1e2``). A warehouse's VARIANT may respell a number and drop the
  sign of a zero: this way that changes nothing;
- timestamps are ISO-8601 text: a zone offset is honoured, none means UTC, finer than microseconds is floored;
- bytes are base64 text (RFC 4648, padded);
- an empty message is bad, and so is a tombstone (null).

A message's fate depends on that message alone, not on its batch: the whole batch is parsed at once, and where that fails
it is halved until the bad messages are found, always with the same parser.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.compute as pc  # type: ignore[import-untyped, unused-ignore]
import pyarrow.json as pj  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray

from ingestion.arrow import INSTANT, TYPES, schema_of, to_columns
from tally.columns import Column
from tally.dtypes import FLOATS, STORAGE, Dtype
from tally.errors import DataError
from tally.events import refusals
from tally.functions import Transformation, run_on_events
from tally.plan import Field, View

TOMBSTONE: Final = "tombstone (null value)"
_SPACE: Final = b" \t\r\n"
_INTEGERS: Final = ("Int64", "Int32")
_TEXTS: Final = ("String", "Bytes", "UnixTimestamp")
_EXACT_IN_FLOAT64: Final = 2.0**53
_FEW: Final = 64
_NUMBERS: Final = (int, Decimal)
_JSON_TYPES: Final[dict[Dtype, tuple[type, ...]]] = {
    "Float64": _NUMBERS,
    "Float32": _NUMBERS,
    "Int64": _NUMBERS,
    "Int32": _NUMBERS,
    "Bool": (bool,),
    "String": (str,),
    "Bytes": (str,),
    "UnixTimestamp": (str,),
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """Columns of n rows, null where a message is bad, and the reason for each bad row."""

    columns: dict[str, Column]
    bad: dict[int, str]


def decode(fields: tuple[Field, ...], values: Sequence[bytes | None]) -> Decoded:
    """The columns of `values`, one row for each; see the top of this module for what counts as bad."""
    table, rows, bad = decode_table(fields, values)
    columns = to_columns(fields, table)
    if not bad:
        return Decoded(columns, bad)
    where = np.zeros(len(values), np.int64)
    found = np.zeros(len(values), np.bool_)
    where[rows] = np.arange(len(rows))
    found[rows] = True
    return Decoded({name: column.take(where, found) for name, column in columns.items()}, bad)


def decode_table(
    fields: tuple[Field, ...], values: Sequence[bytes | None]
) -> tuple[pa.Table, NDArray[np.int64], dict[int, str]]:
    """The good messages as an Arrow table (types of `ingestion.arrow.TYPES`), their rows, and the reasons for the others."""
    whole = _parse_if_plain(fields, values)
    if whole is not None:
        return whole, np.arange(len(values)), {}
    bad: dict[int, str] = {}
    lines: list[bytes] = []
    rows: list[int] = []
    for row, value in enumerate(values):
        line, reason = _line(value)
        if reason:
            bad[row] = reason
        else:
            lines.append(line)
            rows.append(row)
    pieces: list[pa.Table] = []
    kept: list[int] = []
    _halve(fields, lines, rows, pieces, kept, bad)
    table = pa.concat_tables(pieces) if pieces else schema_of(fields).empty_table()
    return table, np.array(kept, np.int64), bad


def view_rows(
    view: View,
    function: Transformation | None,
    columns: Mapping[str, Column],
    count: int,
    create_time: NDArray[np.int64] | None = None,
) -> tuple[dict[str, Column], NDArray[np.bool_], dict[int, str]]:
    """`view.columns` of `count` good messages after the view's event function, which rows count, and why others do not.

    `create_time` (µs) is that of `tally.events.refusals`. Raises DataError when the function leaves a column out or returns
    it with another dtype than its definition has.
    """
    produced = run_on_events(function, columns, count)
    result: dict[str, Column] = {}
    for field in view.columns:
        found = produced.get(field.name)
        if found is None or found.dtype != field.dtype:
            has = "is missing" if found is None else f"is {found.dtype}"
            raise DataError(
                f"{view.name}: column {field.name} {has} after the event function, its definition has {field.dtype}; "
                "make the function return that dtype, or run feast apply."
            )
        result[field.name] = found
    accepted, reasons = refusals(view, result, create_time)
    return result, accepted, reasons


def _parse_if_plain(fields: tuple[Field, ...], values: Sequence[bytes | None]) -> pa.Table | None:
    """All messages in one parse, when each of them is surely one line; None when that has to be found out one by one."""
    try:
        joined = b"\n".join(values)  # type: ignore[arg-type]
    except TypeError:  # a tombstone
        return None
    breaks = len(values) - 1
    plain = (
        joined[:1] == b"{"
        and joined[-1:] == b"}"
        and joined.count(b"\n") == breaks
        and joined.count(b"}\n{") == breaks
        and not _needs_a_look(joined)
        and _is_utf8(joined)
    )
    return _parse(fields, joined, len(values)) if plain else None


def _needs_a_look(text: bytes) -> bool:
    # The parser takes NaN, Inf and Infinity for numbers, JSON does not; in a string they are fine.
    return b"NaN" in text or b"Inf" in text


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _line(value: bytes | None) -> tuple[bytes, str]:
    """(the message on one line, why it is bad)."""
    if value is None:
        return b"", TOMBSTONE
    line = value.strip(_SPACE)
    if not line:
        return b"", "empty message"
    if not _is_utf8(line):
        return b"", "not UTF-8"
    if line[:1] != b"{" or line[-1:] != b"}":
        return b"", f"not JSON: an object was expected, not {_shown(line.decode())}"
    if b"\n" in line or _needs_a_look(line):
        # Line breaks between tokens are fine, inside a string they are not: the strict parser knows.
        try:
            json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            return b"", f"not JSON: {error}"
        line = line.replace(b"\n", b" ")
    return line, ""


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _halve(
    fields: tuple[Field, ...],
    lines: Sequence[bytes],
    rows: Sequence[int],
    pieces: list[pa.Table],
    kept: list[int],
    bad: dict[int, str],
) -> None:
    if not lines:
        return
    table = _parse(fields, b"\n".join(lines), len(lines))
    if table is not None:
        pieces.append(table)
        kept.extend(rows)
    elif len(lines) == 1:
        bad[rows[0]] = _reason(fields, lines[0])
    elif len(lines) <= _FEW and _drop_obvious(fields, lines, rows, bad):
        rest = [i for i, row in enumerate(rows) if row not in bad]
        _halve(fields, [lines[i] for i in rest], [rows[i] for i in rest], pieces, kept, bad)
    else:
        middle = len(lines) // 2
        _halve(fields, lines[:middle], rows[:middle], pieces, kept, bad)
        _halve(fields, lines[middle:], rows[middle:], pieces, kept, bad)


def _drop_obvious(fields: tuple[Field, ...], lines: Sequence[bytes], rows: Sequence[int], bad: dict[int, str]) -> bool:
    """Note the messages whose fault shows without the parser; whether there are any.

    Halving costs hundreds of microseconds for each bad message, this costs a few: a producer that breaks every message must
    not hold up the others.
    """
    before = len(bad)
    for row, line in zip(rows, lines, strict=True):
        reason = _obvious(fields, line)
        if reason:
            bad[row] = reason
    return len(bad) > before


def _obvious(fields: tuple[Field, ...], line: bytes) -> str:
    """Why a message is bad: not JSON, or a field of another JSON type or spelling. Empty where only the parser can tell.

    Says nothing of what the parser would take, so both ways find the same messages bad.
    """
    try:
        message = _loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error}"
    except (ValueError, TypeError, RecursionError):
        return ""
    for field in fields:
        value = message.get(field.name)
        if value is not None and (type(value) not in _JSON_TYPES[field.dtype] or _is_misspelt(field.dtype, value)):
            return f"field {field.name}: {_complaint(field, value)}"
    return ""


def _is_misspelt(dtype: Dtype, value: Any) -> bool:
    """Whether a value of the right JSON type is surely one that the parser refuses."""
    if dtype in _INTEGERS:
        if type(value) is Decimal:
            nearest = float(value)
            if not nearest.is_integer() or abs(nearest) >= _EXACT_IN_FLOAT64:
                return True
            value = nearest
        bounds = np.iinfo(STORAGE[dtype].type)  # type: ignore[type-var]
        return not bounds.min <= value <= bounds.max
    try:
        if dtype == "UnixTimestamp":
            parse_instants(pa.array([value], pa.string()))
        elif dtype == "Bytes":
            _from_base64(value)
    except (pa.ArrowInvalid, binascii.Error):
        return True
    except UnicodeEncodeError:
        pass  # half of a surrogate pair: the parser says so of the whole message
    return False


def _parse(fields: tuple[Field, ...], lines: bytes, count: int) -> pa.Table | None:
    """`count` lines that each begin with { and end with }, or None when they are not `count` good messages.

    A line break ends a message for certain: after } only a comma could go on, and no string holds a line break. So as
    many rows as lines means one row for each line.
    """
    wire = [pa.string() if field.dtype in _TEXTS else TYPES[field.dtype] for field in fields]
    arrays = _read(fields, wire, lines, count)
    if arrays is None and any(field.dtype in _INTEGERS for field in fields):
        wire = [pa.float64() if f.dtype in _INTEGERS else kind for f, kind in zip(fields, wire, strict=True)]
        arrays = _read(fields, wire, lines, count)
    return None if arrays is None else pa.Table.from_arrays(arrays, schema=schema_of(fields))


def _read(fields: tuple[Field, ...], wire: list[Any], lines: bytes, count: int) -> list[Any] | None:
    schema = pa.schema([(field.name, kind) for field, kind in zip(fields, wire, strict=True)])
    try:
        table = pj.read_json(
            pa.BufferReader(lines),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(lines) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=schema, newlines_in_values=False, unexpected_field_behavior="ignore"
            ),
        )
        if table.num_rows != count:
            return None
        return [_typed(field, table.column(position).combine_chunks()) for position, field in enumerate(fields)]
    except (pa.ArrowInvalid, binascii.Error):
        return None


def _typed(field: Field, array: Any) -> Any:
    if field.dtype == "UnixTimestamp":
        return parse_instants(array)
    if field.dtype in _INTEGERS and array.type == pa.float64():
        if not pc.all(pc.less(pc.abs(array), _EXACT_IN_FLOAT64), min_count=0).as_py():
            raise pa.ArrowInvalid("an integer that float64 may have rounded")
        return array.cast(TYPES[field.dtype])
    if field.dtype in FLOATS:
        return pc.add(array, pa.scalar(0.0, array.type))  # -0.0 + 0.0 is 0.0
    if field.dtype == "Bytes":
        decoded = [None if text is None else _from_base64(text) for text in array.to_pylist()]
        return pa.array(decoded, pa.binary())
    return array


def _from_base64(text: str) -> bytes:
    if not text.isascii():
        raise binascii.Error("not ASCII")
    return base64.b64decode(text, validate=True)


def parse_instants(texts: Any) -> Any:
    """ISO-8601 texts as instants. Raises pyarrow.ArrowInvalid when one of them is not."""
    try:
        return texts.cast(INSTANT)
    except pa.ArrowInvalid:
        # The cast wants a zone, a time of day and at most six digits of fraction.
        texts = pc.replace_substring_regex(texts, r"^(\d{4}-\d\d-\d\d)$", r"\1T00")
        texts = pc.replace_substring_regex(texts, r"(\.\d{6})\d+", r"\1")
        texts = pc.replace_substring_regex(texts, r"^(\d{4}-\d\d-\d\d[T ][0-9:.]+)$", r"\1Z")
        return texts.cast(INSTANT)


def _loads(line: bytes) -> dict[str, Any]:
    """The object with exact numbers. Raises ValueError, also for a name given twice, TypeError and RecursionError."""
    try:
        loaded = json.loads(line, parse_float=Decimal, object_pairs_hook=_once)
    except InvalidOperation as error:
        raise ValueError("a number whose exponent nothing holds") from error
    if not isinstance(loaded, dict):
        raise TypeError("an object was expected")
    return loaded


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name is given twice")
    return result


def _reason(fields: tuple[Field, ...], line: bytes) -> str:
    """Why a single message does not parse."""
    obvious = _obvious(fields, line)
    if obvious:
        return obvious
    if _parse((), line, 1) is None:
        return "not JSON: a number beyond float64, or text that is not Unicode (half of a surrogate pair)"
    for field in fields:
        if _parse((field,), line, 1) is None:
            try:
                return f"field {field.name}: {_complaint(field, _loads(line).get(field.name))}"
            except (ValueError, RecursionError) as error:
                return f"field {field.name}: {error}"
    return "not JSON: fields that cannot be read together"


def _complaint(field: Field, value: Any) -> str:
    shown = str(value) if isinstance(value, Decimal) else json.dumps(value, default=str)
    expected = {"Bytes": "Bytes (base64 text)", "UnixTimestamp": "an ISO-8601 instant"}.get(field.dtype, field.dtype)
    return f"{_shown(shown)} is not {expected}"


def _shown(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
