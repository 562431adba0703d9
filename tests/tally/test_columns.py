"""Columns: nulls that never change a dtype, from whatever holds them."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tally.columns import Column, canonical, column, concatenate, infer_dtype, nulls
from tally.dtypes import DTYPES, KEY_DTYPES, STORAGE, Dtype
from tally.errors import DataError
from tests.oracle import same

BIG = 2**60 + 1
NULLS = [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT"), np.ma.masked]

ITEMS: dict[Dtype, st.SearchStrategy[Any]] = {
    "Float64": st.floats(allow_nan=False),
    "Float32": st.floats(allow_nan=False, width=32),
    "Int64": st.integers(-(2**63), 2**63 - 1),
    "Int32": st.integers(-(2**31), 2**31 - 1),
    "Bool": st.booleans(),
    "String": st.text(),
    "Bytes": st.binary(),
    "UnixTimestamp": st.datetimes().map(lambda moment: moment.replace(tzinfo=UTC)),
}


def rows(dtype: Dtype) -> st.SearchStrategy[list[Any]]:
    """Values of a dtype with nulls between them."""
    return st.lists(st.one_of(st.none(), ITEMS[dtype]), max_size=8)


def agree(one: Column, items: list[Any]) -> bool:
    """Whether a column holds exactly `items`."""
    held = one.to_list()
    return len(held) == len(items) and all(same(a, b) for a, b in zip(held, items, strict=True))


def check_form(one: Column) -> None:
    """The promises of `Column`: storage dtype, shapes, zero where null."""
    assert one.values.dtype == STORAGE[one.dtype]
    assert one.valid.dtype == np.bool_
    assert one.values.shape == one.valid.shape == (len(one),)
    for item, valid in zip(one.values.tolist(), one.valid.tolist(), strict=True):
        if not valid:
            assert item is None if one.dtype in ("String", "Bytes") else not item


def test_every_dtype_has_a_storage() -> None:
    """The tables of dtypes cover each other, and floats are no keys."""
    assert set(STORAGE) == set(DTYPES)
    assert set(DTYPES) - KEY_DTYPES == {"Float64", "Float32"}


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_lists_come_back(dtype: Dtype, data: st.DataObject) -> None:
    """A list with nulls goes in and comes back bit for bit, as a list, a tuple or an object array."""
    items = data.draw(rows(dtype))
    as_objects = np.empty(len(items), object)
    as_objects[:] = items
    for form in (items, tuple(items), as_objects):
        found = column(dtype, form)
        check_form(found)
        assert agree(found, items)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_user_form_and_back(dtype: Dtype, data: st.DataObject) -> None:
    """What a user's function gets, returned unchanged, is the same column with the same inferred dtype."""
    items = data.draw(rows(dtype))
    given_column = column(dtype, items)
    user = given_column.to_user()
    again = column(dtype, user)
    check_form(again)
    assert agree(again, items)
    if dtype != "Bytes":  # objects of bytes look like objects of text until one is read
        assert infer_dtype(user) == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_user_form_is_its_own(dtype: Dtype, data: st.DataObject) -> None:
    """Whatever a user's function writes into what it gets, the column stays as it is."""
    items = data.draw(rows(dtype))
    held = column(dtype, items)
    user = held.to_user()
    user[:] = None if user.dtype == object else 1
    if isinstance(user, np.ma.MaskedArray):
        user.mask = True
    check_form(held)
    assert agree(held, items)


@pytest.mark.parametrize("null", NULLS, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_null_is_a_null(dtype: Dtype, null: Any) -> None:
    """None, NaN, NaT, pandas.NA and a masked element are null in every dtype."""
    found = column(dtype, [null, null])
    check_form(found)
    assert found.to_list() == [None, None]


FORMS: list[Callable[[], Any]] = [
    lambda: [BIG, None],
    lambda: (BIG, pd.NA),
    lambda: [np.int64(BIG), float("nan")],
    lambda: np.array([BIG, None], object),
    lambda: np.array([BIG, float("nan")], object),
    lambda: np.ma.MaskedArray([BIG, 5], [False, True]),
    lambda: np.ma.MaskedArray(np.array([BIG, 2**64 - 1], np.uint64), [False, True]),
    lambda: np.ma.MaskedArray(np.array([BIG, "text"], object), [False, True]),
    lambda: list(np.ma.MaskedArray([BIG, 5], [False, True])),
    lambda: pd.Series([BIG, None], dtype="Int64"),
    lambda: pd.Series([BIG, None], dtype=object),
    lambda: pd.array([BIG, None], dtype="Int64"),
    lambda: pd.Series([BIG, None], dtype="int64[pyarrow]"),
    lambda: (item for item in [BIG, None]),
]


@pytest.mark.parametrize("form", FORMS)
def test_a_null_leaves_big_integers_whole(form: Callable[[], Any]) -> None:
    """2**60 + 1 beside a null survives every form of input."""
    found = column("Int64", form())
    check_form(found)
    assert found.to_list() == [BIG, None]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.data())
def test_masked_integers_are_exact(numbers: list[int], data: st.DataObject) -> None:
    """A masked array keeps every integer and every hole."""
    holes = data.draw(st.lists(st.booleans(), min_size=len(numbers), max_size=len(numbers)))
    expected = [None if hole else number for number, hole in zip(numbers, holes, strict=True)]
    assert column("Int64", np.ma.MaskedArray(np.array(numbers), holes)).to_list() == expected
    assert column("Int64", pd.array(expected, dtype="Int64")).to_list() == expected


@pytest.mark.parametrize(
    ("dtype", "hidden"),
    [
        ("Int64", np.array([1.5, 2.0])),
        ("Int64", np.array([np.inf, 2.0])),
        ("Int32", np.array([2**40, 2])),
        ("Float64", np.array(["x", 2.0], object)),
        ("String", np.array([7, "2"], object)),
        ("UnixTimestamp", np.array([2**62, 2]).view("M8[s]")),
    ],
)
def test_what_lies_under_a_mask_does_not_matter(dtype: Dtype, hidden: Any) -> None:
    """A masked value may be anything, as NumPy leaves it; the array of the caller stays as it was."""
    before = hidden.copy()
    found = column(dtype, np.ma.MaskedArray(hidden, [True, False]))
    check_form(found)
    assert found.valid.tolist() == [False, True]
    assert found.values.tolist()[1] in {2, "2", 2_000_000}
    assert hidden.tolist() == before.tolist()


WRONG: list[tuple[Dtype, Any]] = [
    ("Float64", ["1.5"]), ("Float64", [b"1"]), ("Float64", [bytearray(b"1")]), ("Float64", [1j]),
    ("Float64", np.array(["1"])), ("Float64", [datetime(2020, 1, 1)]), ("Float64", [[1.0]]),
    ("Float64", np.array(["2020"], "M8[s]")), ("Float64", [timedelta(1)]), ("Float64", [10**400]),
    ("Float32", ["x"]),
    ("Int64", ["1"]), ("Int64", [1.5]), ("Int64", np.array([1.5])), ("Int64", [2**63]), ("Int64", [-(2**63) - 1]),
    ("Int64", np.array([2**63], np.uint64)), ("Int64", [math.inf]), ("Int64", np.array([math.inf])),
    ("Int64", [2.0**60]), ("Int64", np.array([2.0**60])), ("Int64", [Decimal("1.5")]), ("Int64", [b"1"]),
    ("Int64", np.array([1j])), ("Int64", [datetime(2020, 1, 1)]), ("Int64", [[1]]), ("Int64", [np.array([1, 2])]),
    ("Int32", [2**31]), ("Int32", np.array([2**31])), ("Int32", np.array([-(2**31) - 1])), ("Int32", [-(2**31) - 1]),
    ("Int32", np.array([2.0**31])),
    ("Int64", [True]), ("Int32", [2, np.False_, None]), ("Int64", np.array([True])), ("Int64", np.array([1, True], object)),
    ("Int64", pd.Series([True, None], dtype="boolean")), ("Int64", np.ma.MaskedArray([True, False], [True, False])),
    ("Float64", [True]), ("Float64", np.array([True])), ("Float32", [0.5, np.True_]), ("Float32", np.array([False])),
    ("Bool", [1]), ("Bool", np.array([1])), ("Bool", ["true"]), ("Bool", [0.0]), ("Bool", np.array([0.0])),
    ("String", [1]), ("String", [b"x"]), ("String", np.array([1.5])), ("String", np.array([b"x"])),
    ("String", [["a", "b"], ["c", "d"]]), ("String", ["fine", "\ud800"]), ("String", np.array(["\udfff"])),
    ("Bytes", ["x"]), ("Bytes", [1]), ("Bytes", np.array(["x"])),
    ("UnixTimestamp", ["2020-01-01"]), ("UnixTimestamp", [date(2020, 1, 1)]), ("UnixTimestamp", [1.5]),
    ("UnixTimestamp", [True]), ("UnixTimestamp", np.array([1.5])), ("UnixTimestamp", np.array([5], np.uint64)),
    ("UnixTimestamp", np.array([2**62]).view("M8[s]")), ("UnixTimestamp", [2**63]),
    ("UnixTimestamp", [np.datetime64(2**62, "s")]), ("UnixTimestamp", np.array([5], "m8[s]")),
    ("Float64", 5.0), ("Float64", np.float64(5.0)), ("Float64", np.array(5.0)), ("Float64", np.zeros((2, 2))),
    ("String", "abc"), ("Bytes", b"abc"), ("Int64", b"abc"), ("Int64", {1: 2}), ("Int64", None),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "data"), WRONG, ids=lambda item: repr(item)[:40])
def test_what_does_not_fit_is_refused_by_name(dtype: Dtype, data: Any) -> None:
    """Wrong types, fractions for integers, overflows and wrong shapes are DataErrors that name column and dtype."""
    with pytest.raises(DataError, match=f"^wind_speed: .*; expected {dtype} values"):
        column(dtype, data, "wind_speed")


def test_numbers_of_other_kinds_are_taken_when_exact() -> None:
    """Whole floats, decimals and fractions are integers; integers, decimals and fractions are floats."""
    assert column("Int64", [2.0, Decimal(3), Fraction(4), np.uint8(5)]).to_list() == [2, 3, 4, 5]
    assert column("Int64", np.array([2.0, np.nan, -(2.0**53)])).to_list() == [2, None, -(2**53)]
    assert column("Int32", np.array([2, 3], np.uint64)).to_list() == [2, 3]
    assert column("Float64", [2, Decimal("0.5"), Fraction(1, 4)]).to_list() == [2.0, 0.5, 0.25]
    assert column("Bool", [np.True_, False, None]).to_list() == [True, False, None]
    assert column("String", np.array(["a", "é"])).to_list() == ["a", "é"]
    assert column("Bytes", np.array([b"a", b"bc"])).to_list() == [b"a", b"bc"]


@given(st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-40, 40).map(lambda n: 2**54 + 2**30 + n))))
def test_integers_as_floats_do_not_depend_on_the_form(numbers: list[int]) -> None:
    """A list and an array of integers give the same floats, in Float32 too, where rounding twice would show."""
    for dtype in cast(tuple[Dtype, ...], ("Float64", "Float32")):
        from_list = column(dtype, numbers).values
        from_array = column(dtype, np.array(numbers, np.int64)).values
        assert from_list.tobytes() == from_array.tobytes()


@given(st.lists(st.floats()))
def test_float32_is_the_nearest_and_overflows_to_infinity(numbers: list[float]) -> None:
    """Float64 input to Float32 is rounded once, without a warning, alike from lists and arrays; NaN is null."""
    with np.errstate(over="ignore"):
        expected = [None if math.isnan(n) else float(np.float32(n)) for n in numbers]
    assert agree(column("Float32", numbers), expected)
    assert agree(column("Float32", np.array(numbers, np.float64)), expected)


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", ">f8", "f2", "<i4", ">i8", "u1", ">u2"])
@pytest.mark.parametrize("dtype", ["Float64", "Float32"])
def test_numeric_arrays_of_any_make(dtype: Dtype, kind: str) -> None:
    """Width and byte order of the caller's array leave no trace."""
    found = column(dtype, np.array([0, 1, 1], kind))
    check_form(found)
    assert found.to_list() == [0.0, 1.0, 1.0]


def test_timestamps_of_any_make() -> None:
    """datetime64 of any unit and order, pandas and Python datetimes and integers are one instant."""
    moment = datetime(2013, 6, 1, 12, 30, tzinfo=UTC)
    micros = 1_370_089_800_000_000
    for form in (
        [moment, None],
        [micros, None],
        np.array(["2013-06-01T12:30", "NaT"], "M8[m]"),
        np.array(["2013-06-01T12:30", "NaT"], ">M8[ns]"),
        pd.Series([moment, None]),
        pd.Series([pd.Timestamp(moment).tz_convert("Asia/Tokyo"), pd.NaT]),
        np.ma.MaskedArray(np.array([micros, 7]), [False, True]),
        [np.datetime64("2013-06-01T12:30", "ns"), np.datetime64("NaT")],
    ):
        found = column("UnixTimestamp", form)
        check_form(found)
        assert found.to_list() == [moment, None]
    assert column("UnixTimestamp", pd.Series([pd.Timestamp(-1)])).values.tolist() == [-1]


def test_string_arrays_with_their_own_null() -> None:
    """NumPy's StringDType may have any object for its null: it is None here."""
    for null in (None, float("nan"), pd.NA):
        array = np.array(["a", null], dtype=np.dtypes.StringDType(na_object=null))
        assert column("String", array).to_list() == ["a", None]
    assert column("String", np.array(["a", "b"], dtype=np.dtypes.StringDType())).to_list() == ["a", "b"]
    assert column("String", pd.Series(["a", None], dtype="string")).to_list() == ["a", None]


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_take_is_indexing(dtype: Dtype, data: st.DataObject) -> None:
    """Rows at positions; null where not found, whatever the position there."""
    items = data.draw(rows(dtype))
    source = column(dtype, items)
    picks = data.draw(st.lists(st.tuples(st.integers(-5, 20), st.booleans()), max_size=6))
    positions = np.array([p for p, _ in picks], np.int64)
    found = np.array([ok and 0 <= p < len(items) for p, ok in picks], np.bool_)
    taken = source.take(positions, found)
    check_form(taken)
    assert agree(taken, [items[p] if ok else None for p, ok in zip(positions, found, strict=True)])
    assert agree(source.take(positions[found]), [items[p] for p in positions[found]])


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_concatenate_is_adding_lists(dtype: Dtype, data: st.DataObject) -> None:
    """One column after the other, nulls and dtype kept."""
    parts = data.draw(st.lists(rows(dtype), min_size=1, max_size=4))
    joined = concatenate([column(dtype, part) for part in parts])
    check_form(joined)
    assert agree(joined, [item for part in parts for item in part])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nulls_are_nulls(dtype: Dtype) -> None:
    """A column of nothing has the dtype's form."""
    for count in (0, 3):
        empty = nulls(dtype, count)
        check_form(empty)
        assert empty.to_list() == [None] * count


def test_equal_columns_have_equal_bytes() -> None:
    """Whatever stood where a null is leaves no trace, and the array that was given stays as it was."""
    values = np.array([1.0, np.nan, 3.0])
    found = canonical("Float64", values, np.array([True, True, False]))
    assert found.values.tobytes() == np.array([1.0, 0.0, 0.0]).tobytes()
    assert found.valid.tolist() == [True, False, False]
    assert values.tolist()[2] == 3.0
    mixed = np.array(["a", pd.NA, "c"], object)
    assert column("String", mixed).values.tolist() == ["a", None, "c"]
    assert mixed[1] is pd.NA


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.zeros(0, "f2"), "Float32"), (np.zeros(0, "f4"), "Float32"), (np.zeros(0), "Float64"),
        (np.zeros(0, "i1"), "Int32"), (np.zeros(0, "u2"), "Int32"), (np.zeros(0, "i4"), "Int32"),
        (np.zeros(0, "u4"), "Int64"), (np.zeros(0, "i8"), "Int64"), (np.zeros(0, "u8"), "Int64"),
        (np.zeros(0, "?"), "Bool"), (np.zeros(0, "M8[ns]"), "UnixTimestamp"), (np.zeros(0, "U3"), "String"),
        (np.zeros(0, object), "String"), (np.zeros(0, "S3"), "Bytes"), (np.zeros(0, np.dtypes.StringDType()), "String"),
    ],
)  # fmt: skip
def test_dtypes_of_arrays(array: Any, dtype: Dtype) -> None:
    """The dtype that an event function's array means, known without a row; it holds every value of the array."""
    assert infer_dtype(array) == dtype


@pytest.mark.parametrize("kind", ["c16", "m8[s]", "V4"])
def test_arrays_without_a_feature_dtype_are_refused(kind: str) -> None:
    """Complex numbers, durations and raw bytes are no features."""
    with pytest.raises(DataError, match="no feature dtype"):
        infer_dtype(np.zeros(0, kind))
