"""Aggregations: orders, cells, and the one operation that makes a value, against loops and fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tally import exact
from tally.aggregates import (
    CELL_ORDER,
    CELLS,
    FUNCTIONS,
    LONGEST_TEXT,
    EventOrder,
    State,
    cells_of,
    finalize,
    from_ranks,
    limb_count,
    limbs_of,
    ordinals,
    output_dtype,
    ranks,
    storable,
    summable,
)
from tally.columns import column, nulls
from tally.dtypes import DTYPES, VARIABLE_WIDTH, Dtype
from tally.errors import DataError
from tests import oracle

TINY = 5e-324
FLOAT_EDGES = [-math.inf, -1.7e308, -1.0, -2.3e-308, -TINY, -0.0, 0.0, TINY, 2.3e-308, 1.0, 1.7e308, math.inf]
INT_EDGES = [-(2**63), -(2**63) + 1, -(2**31), -1, 0, 1, 2**31 - 1, 2**60 + 1, 2**63 - 2, 2**63 - 1]
TEXT_EDGES = [
    "",
    "\0",
    "\0\0",
    "A",
    "AA",
    "a",
    "\x7f",
    "\x80",
    "ÿ",
    "\ud7ff",
    "\ue000",
    "\uffff",
    "\U00010000",
    "\U0010ffff",
]
"""In the order of code points, which is that of their UTF-8, and not of UTF-16 or of any language."""
VALUES: dict[Dtype, st.SearchStrategy[Any]] = {
    "Float64": st.one_of(st.floats(allow_nan=False), st.sampled_from(FLOAT_EDGES)),
    "Float32": st.one_of(st.floats(allow_nan=False, width=32), st.sampled_from([-math.inf, -0.0, 0.0, 2.0**-149])),
    "Int64": st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from(INT_EDGES)),
    "Int32": st.integers(-(2**31), 2**31 - 1),
    "Bool": st.booleans(),
    "UnixTimestamp": st.integers(-(2**63) + 1, 2**63 - 1),
    "String": st.one_of(st.text(max_size=4), st.sampled_from(TEXT_EDGES)),
    "Bytes": st.binary(max_size=4),
}
SUMMABLE: dict[Dtype, st.SearchStrategy[Any]] = {
    "Float64": st.floats(-(2.0**64), 2.0**64, exclude_min=True, exclude_max=True),
    "Float32": st.floats(-(2.0**63), 2.0**63, width=32),
    "Int64": VALUES["Int64"],
    "Int32": VALUES["Int32"],
    "Bool": VALUES["Bool"],
}
ORDERED = ("min", "max", "first", "last")


def total_order(value: float) -> tuple[float, float]:
    """Numbers in order, -0.0 before 0.0."""
    return value, math.copysign(1.0, value)


@pytest.mark.parametrize("dtype", VALUES)
@given(data=st.data())
def test_ranks_have_the_order_of_their_values(dtype: Dtype, data: st.DataObject) -> None:
    """Sorting ranks sorts values, -0.0 below 0.0, infinities, subnormals and int64's extremes included; they come back."""
    values = data.draw(st.lists(VALUES[dtype], min_size=1, max_size=12))
    rank = ranks(column(dtype, values))
    assert rank.dtype == (object if dtype in VARIABLE_WIDTH else np.uint64)
    by_rank = [values[i] for i in np.argsort(rank, kind="stable").tolist()]
    assert all(map(oracle.same, by_rank, sorted(values, key=total_order if dtype.startswith("F") else None)))
    back = from_ranks(dtype, rank)
    assert back.dtype == column(dtype, values).values.dtype
    assert all(map(oracle.same, back.tolist(), values))


def test_ranks_of_the_edges_rise() -> None:
    """Each edge ranks strictly above the one before it."""
    for dtype, edges in (("Float64", FLOAT_EDGES), ("Int64", INT_EDGES), ("String", TEXT_EDGES)):
        rank = ranks(column(cast(Dtype, dtype), edges)).tolist()
        assert rank == sorted(set(rank))


OUTPUTS: dict[str, dict[str, Dtype]] = {
    "count": dict.fromkeys(DTYPES, "Int64"),
    "sum": {"Float64": "Float64", "Float32": "Float64", "Int64": "Int64", "Int32": "Int64", "Bool": "Int64"},
    **{f: dict.fromkeys(("Float64", "Float32", "Int64", "Int32", "Bool"), "Float64") for f in ("mean", "std", "var")},
    **{f: {d: d for d in DTYPES} for f in ORDERED},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_output_dtypes(function: str, dtype: Dtype) -> None:
    """The dtype of every function over every dtype, or the refusal that names both."""
    expected = OUTPUTS[function].get(dtype)
    if expected is None:
        with pytest.raises(
            DataError, match=f"{function} does not apply to {dtype} columns; count, min, max, first, last do"
        ):
            output_dtype(function, dtype)
    else:
        assert output_dtype(function, dtype) == expected


def test_cells_are_stored_in_one_order() -> None:
    """The cells of several functions, each once, in the order in which they are stored."""
    assert set(CELLS) == set(FUNCTIONS) == set(OUTPUTS)
    assert cells_of(FUNCTIONS) == cells_of(reversed(FUNCTIONS)) == CELL_ORDER
    assert cells_of(["count"]) == ()
    assert cells_of(["std", "mean"]) == ("sum", "squares")
    assert cells_of(["last", "min", "min"]) == ("min", "last")


@given(st.lists(st.one_of(st.none(), VALUES["String"])))
def test_ordinals_stand_for_ranks(values: list[str | None]) -> None:
    """Positions among the distinct texts are in the order of the texts, and give their bytes back."""
    there = [value for value in values if value is not None]
    codes, distinct = ordinals(column("String", there))
    assert len(distinct) >= 1
    assert distinct.tolist() == (sorted(set(distinct.tolist())) if there else [b""])
    assert distinct[codes].tolist() == [value.encode() for value in there]


@given(st.lists(st.one_of(st.none(), st.text(st.sampled_from("aé🛫"), min_size=250, max_size=1030)), max_size=4))
@example(["é" * 512, "é" * 512 + "a", "🛫" * 256, "🛫" * 257, "a" * 1024, "a" * 1025])
def test_texts_up_to_the_longest_are_storable(values: list[str | None]) -> None:
    """The bound is on the bytes of UTF-8; nulls and columns of numbers are always within it."""
    expected = [value is None or len(value.encode()) <= LONGEST_TEXT for value in values]
    assert storable(column("String", values)).tolist() == expected
    assert storable(column("Int64", [2**60, None])).tolist() == [True, True]


@given(st.lists(st.floats()))
@example([2.0**64, -(2.0**64), math.nextafter(2.0**64, 0), math.inf, -math.inf, math.nan, 0.0])
def test_summable_floats_are_below_2_to_64(values: list[float]) -> None:
    """Finite and below 2^64 in magnitude, or null."""
    expected = [math.isnan(v) or abs(v) < 2**64 for v in values]
    assert summable(column("Float64", values)).tolist() == expected
    assert summable(column("Int64", [2**63 - 1, None])).tolist() == [True, True]


@pytest.mark.parametrize("dtype", SUMMABLE)
@given(data=st.data())
def test_limbs_of_columns(dtype: Dtype, data: st.DataObject) -> None:
    """Sum and square limbs of each row in the layout's width, zero where null."""
    values = data.draw(st.lists(st.one_of(st.none(), SUMMABLE[dtype]), max_size=5))
    source = column(dtype, values)
    for cell, power in (("sum", 1), ("squares", 2)):
        limbs = limbs_of(source, cell)  # type: ignore[arg-type]
        assert limbs.shape == (len(values), limb_count(cell, dtype))  # type: ignore[arg-type]
        scale = 96 * power if dtype.startswith("Float") else 0
        for value, number in zip(values, exact.to_python(limbs), strict=True):
            units = 0 if value is None else math.trunc(Fraction(value) * 2 ** (scale // power)) ** power
            assert number == units


def state_of(dtype: Dtype, groups: list[list[Any]]) -> State:
    """The state of groups of values, by loops."""
    width = {cell: limb_count(cell, dtype) for cell in CELL_ORDER[:2]}
    count = np.array([len(group) for group in groups], np.int64)
    state = State(count, {cell: np.zeros((len(groups), width[cell]), np.int64) for cell in width}, {})
    for cell in ORDERED:
        empty: Any = np.full(len(groups), b"", object) if dtype in VARIABLE_WIDTH else np.zeros(len(groups), np.uint64)
        state.rank[cell] = empty  # type: ignore[index]
    for i, group in enumerate(groups):
        if not group:
            continue
        source = column(dtype, group)
        if dtype in SUMMABLE and summable(source).all():
            for cell in CELL_ORDER[:2]:
                state.limbs[cell][i] = limbs_of(source, cell).sum(axis=0)
        rank = ranks(source)
        state.rank["min"][i], state.rank["max"][i] = min(rank.tolist()), max(rank.tolist())
        state.rank["first"][i], state.rank["last"][i] = rank[0], rank[-1]
    return state


@pytest.mark.parametrize("dtype", SUMMABLE)
@given(data=st.data())
def test_sums_means_and_spreads_are_the_oracles(dtype: Dtype, data: st.DataObject) -> None:
    """Every function of sums over several groups at once, by bits; int64 overflow is refused by the feature's name."""
    groups = data.draw(st.lists(st.lists(SUMMABLE[dtype], max_size=6), min_size=1, max_size=4))
    state = state_of(dtype, groups)
    for function in ("count", "sum", "mean", "std", "var"):
        expected = [oracle.aggregate(function, dtype, group) for group in groups]
        if function == "sum" and any(isinstance(e, int) and not -(2**63) <= e < 2**63 for e in expected):
            with pytest.raises(DataError, match=r"^total_1h: .*outside int64"):
                finalize(function, dtype, state, "total_1h")
            continue
        found = finalize(function, dtype, state, "total_1h")
        assert found.dtype == output_dtype(function, dtype)
        assert all(map(oracle.same, found.to_list(), expected)), (function, expected)


@pytest.mark.parametrize("dtype", VALUES)
@given(data=st.data())
def test_extremes_and_ends_are_the_oracles(dtype: Dtype, data: st.DataObject) -> None:
    """Least, greatest, first and last value of several groups, by bits; null for an empty group."""
    groups = data.draw(st.lists(st.lists(VALUES[dtype], max_size=6), min_size=1, max_size=4))
    state = state_of(dtype, groups)
    for function in ORDERED:
        found = finalize(function, dtype, state, "f")
        assert found.dtype == dtype
        held = [v if ok else None for v, ok in zip(found.values.tolist(), found.valid.tolist(), strict=True)]
        assert all(map(oracle.same, held, [oracle.aggregate(function, dtype, group) for group in groups]))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_empty_window_counts_zero_and_is_null_otherwise(function: str) -> None:
    """No rows: count 0, everything else null and zeroed; one row has no spread."""
    found = finalize(function, "Float64", state_of("Float64", [[], [2.5]]), "f")
    assert found.to_list()[0] == (0 if function == "count" else None)
    assert found.values.tolist()[0] == 0
    assert found.valid.tolist()[1] == (function not in ("std", "var"))


@pytest.mark.parametrize(
    ("numbers", "fits"),
    [
        ([2**63 - 1], True),
        ([2**63 - 1, 1], False),
        ([-(2**63)], True),
        ([-(2**63), -1], False),
        ([2**63 - 1] * 3, False),
    ],
)
def test_sums_of_integers_up_to_the_edge(numbers: list[int], fits: bool) -> None:  # noqa: FBT001
    """The last sum that int64 holds is given; the first beyond is refused, never wrapped."""
    state = state_of("Int64", [numbers])
    if fits:
        assert finalize("sum", "Int64", state, "f").to_list() == [sum(numbers)]
    else:
        with pytest.raises(DataError, match="outside int64"):
            finalize("sum", "Int64", state, "f")


def test_entries_of_an_order_are_taken() -> None:
    """Entries are taken whole."""
    order = EventOrder(np.array([1, 0, 1, 1]), np.array([0, 9, 0, 1]), np.array([5, 9, 4, 0]))
    taken = order.take(np.array([True, False, False, True]))
    assert (taken.timestamp.tolist(), taken.partition.tolist(), taken.offset.tolist()) == ([1, 1], [0, 1], [5, 0])


def test_a_column_of_nulls_has_no_limbs() -> None:
    """Nulls add nothing to a sum."""
    assert not limbs_of(nulls("Float64", 3), "squares").any()
