"""Aggregations as partial states that merge without loss, and the one operation that turns a state into a value.

For each column a state keeps *cells*: a count of non-nulls, exact sums (`tally.exact`), and least or greatest entries by a
total order. A value's order is that of its *rank*: an unsigned 64-bit integer, or the bytes of a text, whose order in UTF-8
is that of code points. For first and last the rank of the row is ``(event_timestamp, partition, offset)``. Every cell
merges by addition, min or max, so a window's value depends only on the set of its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from tally import exact
from tally.columns import Column, canonical
from tally.dtypes import FLOATS, INTEGERS, VARIABLE_WIDTH, Dtype
from tally.errors import DataError, StoredBytesError

_Spread = tuple[exact.Floats, exact.Floats, NDArray[np.bool_]]
Cell = Literal["sum", "squares", "min", "max", "first", "last"]
Ranks = NDArray[Any]
"""uint64, or bytes objects for columns of strings and bytes."""

CELLS: Final[dict[str, tuple[Cell, ...]]] = {
    "count": (),
    "sum": ("sum",),
    "mean": ("sum",),
    "std": ("sum", "squares"),
    "var": ("sum", "squares"),
    "min": ("min",),
    "max": ("max",),
    "first": ("first",),
    "last": ("last",),
}
"""Which cells each function needs, besides the count of non-nulls, which every column has."""

FUNCTIONS: Final = tuple(CELLS)
CELL_ORDER: Final[tuple[Cell, ...]] = ("sum", "squares", "min", "max", "first", "last")
LONGEST_TEXT: Final = 1024
"""How many bytes a text may have in a column whose first, last, min or max is kept: tiles hold such texts whole."""
_SIGN: Final = np.uint64(1 << 63)
_SUMS: Final = ("sum", "mean", "std", "var")


def output_dtype(function: str, dtype: Dtype) -> Dtype:
    """The dtype of an aggregation's value. Raises DataError when the function does not apply to the column's dtype."""
    if function == "count":
        return "Int64"
    if function in _SUMS:
        if dtype not in FLOATS and dtype not in INTEGERS:
            fitting = ", ".join(name for name in FUNCTIONS if name not in _SUMS)
            raise DataError(f"{function} does not apply to {dtype} columns; {fitting} do")
        return "Int64" if function == "sum" and dtype in INTEGERS else "Float64"
    return dtype


def limb_count(cell: Cell, dtype: Dtype) -> int:
    """How many limbs a sum or squares cell of a column of `dtype` has."""
    if dtype in FLOATS:
        return exact.FLOAT_LIMBS if cell == "sum" else exact.SQUARE_LIMBS
    return exact.INT_LIMBS if cell == "sum" else exact.INT_SQUARE_LIMBS


def summable(column: Column) -> NDArray[np.bool_]:
    """Which rows of a column can be summed exactly: nulls, integers, and finite floats below 2^64 in magnitude."""
    if column.dtype in FLOATS:
        return np.abs(column.values) < exact.FLOAT_BOUND
    return np.ones(len(column), np.bool_)


def storable(column: Column) -> NDArray[np.bool_]:
    """Which rows of a column a tile can hold as first, last, min or max: all but texts above `LONGEST_TEXT` bytes."""
    if column.dtype not in VARIABLE_WIDTH:
        return np.ones(len(column), np.bool_)
    texts = column.values.tolist()
    short = np.fromiter((text is None or 4 * len(text) <= LONGEST_TEXT for text in texts), np.bool_, len(texts))
    for row in np.flatnonzero(~short).tolist():  # a character has at most four bytes
        short[row] = len(_encoded(texts[row])) <= LONGEST_TEXT
    return short


def _encoded(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def ranks(column: Column) -> Ranks:
    """Each value as an unsigned integer in the same order, or the bytes of a text; -0.0 ranks below 0.0.

    Nulls have any rank.
    """
    if column.dtype in VARIABLE_WIDTH:
        return np.fromiter((_encoded(text or b"") for text in column.values.tolist()), object, len(column))
    if column.dtype in FLOATS:
        bits = column.values.astype(np.float64).view(np.uint64)
        return np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return integer_ranks(column.values)


def ordinals(column: Column) -> tuple[NDArray[np.uint64], Ranks]:
    """(each value's position among the distinct ranks, the distinct ranks by rising order; one at least) of texts.

    For many rows at once: comparing integers is faster than comparing texts.
    """
    texts = column.values.tolist()
    distinct = sorted(set(texts))
    position = {text: at for at, text in enumerate(distinct)}
    codes = np.fromiter(map(position.__getitem__, texts), np.uint64, len(texts))
    return codes, np.fromiter(map(_encoded, distinct or [b""]), object, len(distinct) or 1)


def integer_ranks(integers: NDArray[Any]) -> Ranks:
    """Each signed integer (or bool) as an unsigned one in the same order."""
    return integers.astype(np.int64).view(np.uint64) ^ _SIGN


def from_ranks(dtype: Dtype, rank: Ranks) -> NDArray[Any]:
    """The values of `ranks`, in the storage dtype. Raises UnicodeDecodeError for a string's bytes that are not UTF-8."""
    if dtype == "String":
        return np.fromiter((text.decode() for text in rank.tolist()), object, len(rank))
    if dtype == "Bytes":
        return rank
    if dtype in FLOATS:
        bits = np.where(rank & _SIGN, rank ^ _SIGN, ~rank)
        values = bits.view(np.float64)
        return values if dtype == "Float64" else values.astype(np.float32)
    integers = (rank ^ _SIGN).view(np.int64)
    if dtype == "Bool":
        return integers.astype(np.bool_)
    return integers.astype(np.int32) if dtype == "Int32" else integers


def limbs_of(column: Column, cell: Cell) -> exact.Limbs:
    """The sum or squares limbs of each row, shape (n, `limb_count`); zero where null."""
    if column.dtype in FLOATS:
        values = column.values.astype(np.float64, copy=False)
        return exact.split_floats(values) if cell == "sum" else exact.split_squares(values)
    integers = column.values.astype(np.int64)
    return exact.split_integers(integers) if cell == "sum" else exact.split_integer_squares(integers)


@dataclass(frozen=True, slots=True)
class EventOrder:
    """The total order of events, one entry per row: `timestamp` int64 µs, `partition` int64, `offset` int64."""

    timestamp: NDArray[np.int64]
    partition: NDArray[np.int64]
    offset: NDArray[np.int64]

    def take(self, positions: NDArray[Any]) -> EventOrder:
        """The entries at `positions` (integers or a mask)."""
        return EventOrder(self.timestamp[positions], self.partition[positions], self.offset[positions])

    def sort_keys(self) -> tuple[NDArray[np.int64], ...]:
        """Keys for `numpy.lexsort`, least significant first."""
        return self.offset, self.partition, self.timestamp


@dataclass(slots=True)
class State:
    """States of one column for n groups: `count` int64 (n,), `limbs` per sum cell (n, k), `rank` per ordered cell (n,).

    A rank is meaningless where `count` is 0 (of a text it is some bytes).
    """

    count: NDArray[np.int64]
    limbs: dict[Cell, exact.Limbs]
    rank: dict[Cell, Ranks]


Wanted = tuple[str, Dtype, State, str]
"""What to finalize: function, dtype of the column, states, and the name of the feature for errors."""


def finalize(function: str, dtype: Dtype, state: State, feature: str) -> Column:
    """As `finalize_all`, of one feature."""
    return finalize_all([(function, dtype, state, feature)])[0]


def finalize_all(wanted: Sequence[Wanted]) -> list[Column]:
    """The value of each function over its groups: null for an empty group, except count. The only place that rounds.

    `mean` is the correctly rounded sum divided by the count (as `statistics.fmean`); `std` and `var` are the sample's (as
    `statistics.stdev`), null below two rows, rounded once from the exact fraction. All sums are rounded together, and all
    spreads, since a call costs as much as a hundred values.
    Raises DataError, naming the feature, when a sum of integers does not fit int64, and StoredBytesError when a sum of
    squares is less than the sum demands, or a string is not UTF-8.
    """
    totals = _totals([one for one in wanted if one[0] == "mean" or (one[0] == "sum" and one[1] in FLOATS)])
    spreads = _spreads([one for one in wanted if one[0] in ("std", "var")])
    return [_finalized(one, totals, spreads) for one in wanted]


def _finalized(wanted: Wanted, totals: Mapping[int, exact.Floats], spreads: Mapping[int, _Spread]) -> Column:
    function, dtype, state, feature = wanted
    present = state.count > 0
    if function == "count":
        return Column("Int64", state.count.astype(np.int64), np.ones(len(state.count), np.bool_))
    if function in ("min", "max", "first", "last"):
        try:
            return canonical(dtype, from_ranks(dtype, state.rank[function]), present)  # type: ignore[index]
        except UnicodeDecodeError as error:
            raise StoredBytesError(
                f"{feature}: a tile holds text that is not UTF-8 ({error}), so it is damaged; bootstrap its view again."
            ) from error
    if function == "sum" and dtype in INTEGERS:
        limbs = exact.carry(state.limbs["sum"])
        if not exact.fits_int64(limbs).all():
            raise DataError(f"{feature}: a sum of integers is outside int64; aggregate a Float64 column instead.")
        return canonical("Int64", exact.to_int64(limbs), present)
    if function in ("sum", "mean"):
        total = totals[id(state)]
        return canonical("Float64", total / np.maximum(state.count, 1) if function == "mean" else total, present)
    variance, deviation, there = spreads[id(state)]
    enough = state.count > 1
    if not there.all():
        raise StoredBytesError(
            f"{feature}: the stored sums contradict each other, so some tile is damaged; bootstrap its view again."
        )
    values = np.zeros(len(state.count), np.float64)
    values[enough] = deviation if function == "std" else variance
    return canonical("Float64", values, enough)


def _totals(wanted: Sequence[Wanted]) -> dict[int, exact.Floats]:
    """The rounded sums of each state, by its id."""
    states = {id(state): (dtype, state) for _, dtype, state, _ in wanted}
    limbs = [_as_floats(state.limbs["sum"], dtype, exact.FLOAT_LIMBS) for dtype, state in states.values()]
    if not limbs:
        return {}
    rounded = exact.to_float64(_joined(limbs), exact.FLOAT_LOWEST)
    return dict(zip(states, _apart(rounded, limbs), strict=True))


def _spreads(wanted: Sequence[Wanted]) -> dict[int, _Spread]:
    """The variances and deviations of each state's groups of two rows and more, by its id."""
    states = {id(state): (dtype, state) for _, dtype, state, _ in wanted}
    if not states:
        return {}
    counts, sums, squares = [], [], []
    for dtype, state in states.values():
        enough = state.count > 1
        counts.append(state.count[enough])
        sums.append(_as_floats(state.limbs["sum"][enough], dtype, exact.FLOAT_LIMBS))
        squares.append(_as_floats(state.limbs["squares"][enough], dtype, exact.SQUARE_LIMBS))
    found = exact.sample_variances(_joined(counts), _joined(sums), _joined(squares), exact.FLOAT_LOWEST)
    apart = zip(*(_apart(values, counts) for values in found), strict=True)
    return dict(zip(states, apart, strict=True))


def _as_floats(limbs: exact.Limbs, dtype: Dtype, count: int) -> exact.Limbs:
    """Limbs of a sum in the units of floats; those of integers have zeros below them."""
    if dtype in FLOATS:
        return limbs
    out = np.zeros((len(limbs), count), np.int64)
    out[:, count - limbs.shape[1] :] = limbs
    return out


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _apart(values: NDArray[Any], parts: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    return np.split(values, np.cumsum([len(part) for part in parts])[:-1])


def cells_of(functions: Iterable[str]) -> tuple[Cell, ...]:
    """The cells that a set of functions over one column needs, in the order in which they are stored."""
    needed = {cell for function in functions for cell in CELLS[function]}
    return tuple(cell for cell in CELL_ORDER if cell in needed)
