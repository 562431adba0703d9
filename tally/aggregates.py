"""Aggregations as partial states that merge without loss, and the one operation that turns a state into a value.

For each column a state keeps *cells*: a count of non-nulls, exact sums (`tally.exact`), and least or greatest entries by a
total order. A value's order is that of its *rank*: an unsigned 64-bit integer, or the bytes of a text, whose order in UTF-8
is that of code points. For first and last the rank of the row is ``(event_timestamp, partition, offset)``. Every cell
merges by addition, min or max, so a window's value depends only on the set of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from tally import exact
from tally.columns import Column, all_true, canonical
from tally.dtypes import FLOATS, INTEGERS, VARIABLE_WIDTH, Dtype
from tally.errors import DataError, StoredBytesError

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
    `statistics.stdev`), null below two rows, rounded once from the exact fraction. Features of one kind are made together,
    since a call costs as much as a hundred values: their columns are stretches of the same arrays.
    Raises DataError, naming the feature, when a sum of integers does not fit int64, and StoredBytesError when a sum of
    squares is less than the sum demands, or a string is not UTF-8.
    """
    columns: dict[int, Column] = {}
    groups: dict[tuple[str, Dtype], list[int]] = {}
    for position, (function, dtype, _, _) in enumerate(wanted):
        groups.setdefault(_together(function, dtype), []).append(position)
    for (kind, dtype), positions in groups.items():
        some = [wanted[position] for position in positions]
        columns.update(zip(positions, _FINALIZED[kind](dtype, some), strict=True))
    return [columns[position] for position in range(len(wanted))]


def _together(function: str, dtype: Dtype) -> tuple[str, Dtype]:
    """(kind, dtype): functions of one kind and dtype are finalized in one go."""
    if function in ("std", "var"):
        return "spread", "Float64"
    if function == "mean" or (function == "sum" and dtype in FLOATS):
        return "total", "Float64"
    if function == "count":
        return "count", "Int64"
    return ("integers", "Int64") if function == "sum" else ("rank", dtype)


def _counts(dtype: Dtype, wanted: Sequence[Wanted]) -> list[Column]:
    counts = _joined([state.count for _, _, state, _ in wanted])
    return _apart(dtype, counts, np.ones(len(counts), np.bool_), wanted)


def _extremes(dtype: Dtype, wanted: Sequence[Wanted]) -> list[Column]:
    if dtype == "String" and len(wanted) > 1:  # an error names its feature
        return [column for one in wanted for column in _extremes(dtype, [one])]
    rank = _joined([state.rank[function] for function, _, state, _ in wanted])  # type: ignore[index]
    try:
        values = from_ranks(dtype, rank)
    except UnicodeDecodeError as error:
        raise StoredBytesError(
            f"{wanted[0][3]}: a tile holds text that is not UTF-8 ({error}), so it is damaged; bootstrap its view again."
        ) from error
    column = canonical(dtype, values, _joined([state.count for _, _, state, _ in wanted]) > 0)
    return _apart(dtype, column.values, column.valid, wanted)


def _integers(dtype: Dtype, wanted: Sequence[Wanted]) -> list[Column]:
    limbs = exact.carry(_joined([state.limbs["sum"] for _, _, state, _ in wanted]))
    fitting = exact.fits_int64(limbs)
    if not fitting.all():
        raise DataError(
            f"{_owner(wanted, fitting)}: a sum of integers is outside int64; aggregate a Float64 column instead."
        )
    column = canonical(dtype, exact.to_int64(limbs), _joined([state.count for _, _, state, _ in wanted]) > 0)
    return _apart(dtype, column.values, column.valid, wanted)


def _totals(dtype: Dtype, wanted: Sequence[Wanted]) -> list[Column]:
    """Sums of floats, and means. They are never NaN, and 0 where there is nothing."""
    states = {id(one[2]): one for one in wanted}
    limbs = [_as_floats(state.limbs["sum"], held, exact.FLOAT_LIMBS) for _, held, state, _ in states.values()]
    counts = _joined([state.count for _, _, state, _ in states.values()])
    sums, present = exact.to_float64(_joined(limbs), exact.FLOAT_LOWEST), counts > 0
    means = sums / np.maximum(counts, 1) if any(function == "mean" for function, _, _, _ in wanted) else sums
    places = dict(zip(states, _stretches(states.values()), strict=True))
    return [
        Column(dtype, (means if function == "mean" else sums)[places[id(state)]], present[places[id(state)]])
        for function, _, state, _ in wanted
    ]


def _spreads(dtype: Dtype, wanted: Sequence[Wanted]) -> list[Column]:
    """Deviations and variances, of groups of two rows and more."""
    states: dict[int, Wanted] = {}
    for one in wanted:
        states.setdefault(id(one[2]), one)
    counts = _joined([state.count for _, _, state, _ in states.values()])
    sums = _joined([_as_floats(s.limbs["sum"], held, exact.FLOAT_LIMBS) for _, held, s, _ in states.values()])
    squares = _joined([_as_floats(s.limbs["squares"], held, exact.SQUARE_LIMBS) for _, held, s, _ in states.values()])
    enough = counts > 1
    values, there = np.zeros((2, len(counts))), np.ones(len(counts), np.bool_)
    chosen: Any = slice(None) if all_true(enough) else enough
    values[0, chosen], values[1, chosen], there[chosen] = exact.sample_variances(
        counts[chosen], sums[chosen], squares[chosen], exact.FLOAT_LOWEST
    )
    if not there.all():
        raise StoredBytesError(
            f"{_owner(list(states.values()), there)}: the stored sums contradict each other, so some tile is damaged; "
            "bootstrap its view again."
        )
    places = dict(zip(states, _stretches(states.values()), strict=True))
    return [
        Column(dtype, values[int(function == "std")][places[id(state)]], enough[places[id(state)]])
        for function, _, state, _ in wanted
    ]


_FINALIZED: Final[dict[str, Callable[[Dtype, Sequence[Wanted]], list[Column]]]] = {
    "count": _counts,
    "rank": _extremes,
    "integers": _integers,
    "total": _totals,
    "spread": _spreads,
}


def _apart(dtype: Dtype, values: NDArray[Any], valid: NDArray[np.bool_], wanted: Sequence[Wanted]) -> list[Column]:
    """The columns of features whose groups stand one after the other."""
    return [Column(dtype, values[place], valid[place]) for place in _stretches(wanted)]


def _stretches(wanted: Iterable[Wanted]) -> list[slice]:
    """Where the groups of each stand when they stand one after the other."""
    return [slice(*bounds) for bounds in pairwise(accumulate([len(one[2].count) for one in wanted], initial=0))]


def _owner(wanted: Sequence[Wanted], good: NDArray[np.bool_]) -> str:
    """The name of the first feature of which a group is not `good`."""
    together = zip(wanted, _stretches(wanted), strict=True)
    return next(feature for (_, _, _, feature), place in together if not good[place].all())


def _as_floats(limbs: exact.Limbs, dtype: Dtype, count: int) -> exact.Limbs:
    """Limbs of a sum in the units of floats; those of integers have zeros below them."""
    if dtype in FLOATS:
        return limbs
    out = np.zeros((len(limbs), count), np.int64)
    out[:, count - limbs.shape[1] :] = limbs
    return out


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def cells_of(functions: Iterable[str]) -> tuple[Cell, ...]:
    """The cells that a set of functions over one column needs, in the order in which they are stored."""
    needed = {cell for function in functions for cell in CELLS[function]}
    return tuple(cell for cell in CELL_ORDER if cell in needed)
