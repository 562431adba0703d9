"""Which rows of a view count, and what is said of the others."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tally.aggregates import CELLS, FUNCTIONS, output_dtype
from tally.columns import Column, column
from tally.dtypes import Dtype
from tally.events import UNKNOWN_TIME, create_times, refusals
from tally.plan import Field, View
from tally.tiles import Aggregation
from tally.windows import Window

COLUMNS: dict[str, Dtype] = {"at": "UnixTimestamp", "k1": "String", "k2": "Int64", "x": "Float64", "n": "Int64"}
VIEW = View(
    name="delays", kind="latest", source="s", keys=(Field("k1", "String"), Field("k2", "Int64")), fields=(),
    columns=tuple(Field(name, dtype) for name, dtype in COLUMNS.items()), timestamp="at", created="", ttl=0, online=True,
    stream=True, function=None, aggregations=(),
)  # fmt: skip
FLOATS = st.one_of(
    st.none(), st.floats(), st.sampled_from([2.0**64, -(2.0**64), math.nextafter(2.0**64, 0), math.inf, -math.inf])
)


def aggregated(*functions: str) -> View:
    """The view with aggregations of x and n."""
    asked = [(name, function) for function in functions for name in ("x", "n")]
    return replace(
        VIEW,
        kind="window",
        aggregations=tuple(
            Aggregation(f"{n}_{f}", n, COLUMNS[n], f, Window(60, 5), output_dtype(f, COLUMNS[n])) for n, f in asked
        ),
    )


def columns_of(rows: list[dict[str, Any]]) -> dict[str, Column]:
    """Rows as columns."""
    return {name: column(dtype, [row[name] for row in rows]) for name, dtype in COLUMNS.items()}


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.one_of(st.none(), st.integers(-5, 5)),
            "k1": st.sampled_from([None, "", "a"]),
            "k2": st.sampled_from([None, 0, 2**63 - 1]),
            "x": FLOATS,
            "n": st.sampled_from([None, 0, 2**63 - 1, -(2**63)]),
        }
    ),
    max_size=10,
)


@given(ROWS, st.lists(st.sampled_from(FUNCTIONS), max_size=3))
def test_refused_rows_and_their_reasons(rows: list[dict[str, Any]], functions: list[str]) -> None:
    """Refused is what has no timestamp, lacks a key, or cannot be summed where it is summed; the first reason is said."""
    view = aggregated(*functions) if functions else VIEW
    sums = any("sum" in CELLS[function] for function in functions)
    accepted, reasons = refusals(view, columns_of(rows))
    for number, row in enumerate(rows):
        x = 0.0 if row["x"] is None or math.isnan(row["x"]) else row["x"]
        said = [
            reason
            for wrong, reason in (
                (row["at"] is None, "delays: event timestamp at is null"),
                (row["k1"] is None, "delays: entity key k1 is null"),
                (row["k2"] is None, "delays: entity key k2 is null"),
                (
                    sums and abs(x) >= 2**64,
                    "delays: x is infinite or at least 2^64 in magnitude, which cannot be summed exactly",
                ),
            )
            if wrong
        ]
        assert bool(accepted[number]) == (not said)
        assert reasons.get(number) == (said[0] if said else None)
    assert len(accepted) == len(rows)


@pytest.mark.parametrize("function", ["count", "min", "max", "first", "last"])
def test_infinities_count_where_nothing_is_summed(function: str) -> None:
    """An infinity has an order: only sums cannot hold it."""
    row = {"at": 0, "k1": "a", "k2": 1, "x": math.inf, "n": 1}
    accepted, reasons = refusals(aggregated(function), columns_of([row]))
    assert accepted.tolist() == [True]
    assert reasons == {}


@pytest.mark.parametrize(("function", "fits"), [("count", True), ("min", False), ("last", False)])
def test_long_texts_are_refused_where_one_is_kept(function: str, fits: bool) -> None:  # noqa: FBT001
    """A text above the longest that a tile holds is refused by views that keep texts of its column, and by no other."""
    view = replace(
        VIEW,
        kind="window",
        aggregations=(Aggregation("t", "k1", "String", function, Window(60, 5), output_dtype(function, "String")),),
    )
    rows = [{"at": 0, "k1": text, "k2": 1, "x": None, "n": 1} for text in ("é" * 512, "é" * 512 + "a")]
    accepted, reasons = refusals(view, columns_of(rows))
    assert accepted.tolist() == [True, fits]
    assert fits or reasons == {1: "delays: k1 is longer than the 1024 bytes that a window keeps of a text"}


AHEAD = "delays: event timestamp at is more than 0:00:00.000010 after the message was made"


@pytest.mark.parametrize(
    ("at", "made", "fits"),
    [
        (15, 5, True),
        (16, 5, False),
        (-(2**62), 5, True),
        (5, -5, True),
        (6, -5, False),
        (2**62, UNKNOWN_TIME, True),
        (UNKNOWN_TIME, UNKNOWN_TIME - 9, True),
        (UNKNOWN_TIME, UNKNOWN_TIME - 10, True),
        (UNKNOWN_TIME, UNKNOWN_TIME - 11, False),
    ],
)
def test_events_too_far_ahead_of_their_message_are_refused(at: int, made: int, fits: bool) -> None:  # noqa: FBT001
    """An event may be ahead of its CreateTime by the tolerance and no more; one without a known CreateTime by anything."""
    columns = columns_of([{"at": at, "k1": "a", "k2": 1, "x": None, "n": 1}])
    accepted, reasons = refusals(replace(VIEW, future_tolerance=10), columns, np.array([made], np.int64))
    assert accepted.tolist() == [fits]
    assert reasons == ({} if fits else {0: AHEAD})
    assert refusals(replace(VIEW, future_tolerance=10), columns)[0].tolist() == [True]


def test_create_times() -> None:
    """Milliseconds become microseconds; none, or one that int64 cannot hold, is not known, and wraps around to no other."""
    longest = (2**63 - 2) // 1000
    millis = np.array([0, 1, longest, longest + 1, 1_700_000_000_000_000_000, 2**63 - 1, -1, -(2**63)])
    assert create_times(millis).tolist() == [0, 1000, longest * 1000, *[UNKNOWN_TIME] * 5]
