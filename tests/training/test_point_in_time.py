"""The join against the oracle, on hostile rows, by bits."""

from __future__ import annotations

import dataclasses
import random
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion.reading import Rows
from tally.columns import Column, column
from tally.dtypes import DTYPES, Dtype
from tally.layout import row_check
from tally.plan import Field, Source, View
from tally.time import DAY, HOUR, MINUTE, SECOND
from tally.windows import Window
from tests import oracle
from tests.oracle import Event
from tests.views import aggregation, latest_view, window_view
from training.join import Ask, join
from training.keys import partition_of

SOURCE = Source("events", "EVENTS", "", "", "at", "", "events", ())
KEYS = (Field("place", "String"), Field("number", "Int64"))
WINDOWS = (Window(HOUR, 5 * MINUTE), Window(DAY, 2 * HOUR), Window(10 * SECOND, 3 * SECOND), Window(7, 7))
NUMBERS: tuple[Dtype, ...] = ("Float64", "Float32", "Int64", "Int32", "Bool")
FUNCTIONS = ("count", "sum", "mean", "std", "var", "min", "max", "first", "last")


AT = Field("at", "UnixTimestamp")
FIELDS = tuple(Field(f"v_{dtype}", dtype) for dtype in DTYPES)
TTL = 90 * SECOND
LATEST = latest_view("latest", SOURCE, KEYS, FIELDS)
MORTAL = latest_view("latest", SOURCE, KEYS, FIELDS, ttl=TTL)
WINDOWED = window_view(
    "window",
    SOURCE,
    KEYS,
    [
        aggregation(f"{function}_{field.dtype}_{number}", field, function, window)
        for field in FIELDS
        for function in FUNCTIONS
        if field.dtype in NUMBERS or function not in ("sum", "mean", "std", "var")
        for number, window in enumerate(WINDOWS)
    ],
    columns=(*KEYS, *FIELDS, AT),
)

# Ends of windows, of tiles and of days, the epoch, before 1970, and one microsecond to either side of each.
INSTANTS = st.builds(
    lambda base, steps, off: base + steps + off,
    st.sampled_from([0, DAY, -DAY, 16_000 * DAY, -3 * DAY]),
    st.sampled_from([0, 5 * MINUTE, HOUR, 2 * HOUR, 3 * SECOND, 10 * SECOND, DAY, TTL, 7, 14]),
    st.sampled_from([0, 0, 0, 1, -1]),
)
PLACES = st.sampled_from(["", "a", "a\x00", "|", "\\|", "é", "e\u0301", "\U0001f6eb", "1"])
ENTITIES = st.tuples(PLACES, st.sampled_from([1, 11, -1, 2**62]))
HOSTILE = st.one_of(
    st.sampled_from([0.0, -0.0, 1e16, 1.0, -1e16, 0.1, 2.0**-96, 2.0**-97, -(2.0**-95), 5e-324, 1e-300, 2.0**63, float("nan")]),
    st.floats(min_value=-(2.0**63), max_value=2.0**63),
)  # fmt: skip


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "v_Float64": HOSTILE,
    "v_Float32": HOSTILE.map(_float32),
    "v_Int64": st.sampled_from([0, 1, -1, 2**57 + 1, -(2**57) - 1, 2**53 + 1]),
    "v_Int32": st.integers(-(2**31), 2**31 - 1),
    "v_Bool": st.booleans(),
    "v_String": st.sampled_from(["", "x", "é", "a\x00b", "\uffff", "\U00010000"]),
    "v_Bytes": st.sampled_from([b"", b"\x00", b"\xff"]),
    "v_UnixTimestamp": INSTANTS,
}


@st.composite
def _events(draw: st.DrawFn) -> list[Event]:
    """Events of few entities, often at one instant, arriving up to a day late; (partition, offset) are unique."""
    chosen = draw(st.lists(st.tuples(ENTITIES, INSTANTS, st.integers(0, 2), st.integers(0, DAY)), max_size=25))
    entities = draw(st.lists(ENTITIES, min_size=1, max_size=3))
    events = []
    for offset, (entity, at, partition, late) in enumerate(chosen):
        place, number = entities[offset % len(entities)] if draw(st.booleans()) else entity
        row = {name: draw(st.none() | strategy) for name, strategy in VALUES.items()}
        events.append(Event(at, partition, offset, at + late, {"place": place, "number": number, **row}))
    return draw(st.permutations(events))


Label = tuple[tuple[str, int], int]


@st.composite
def _labels(draw: st.DrawFn, events: Sequence[Event]) -> list[Label]:
    """Labels at and around the events, for their entities and others; some twice."""
    known = [((e.values["place"], e.values["number"]), e.timestamp) for e in events]
    at = [t + length + off for _, t in known[:5] for length in (0, 7, TTL, HOUR, DAY) for off in (-1, 0, 1)]
    instants = st.sampled_from(at) | INSTANTS if at else INSTANTS
    entities = st.sampled_from([k for k, _ in known]) | ENTITIES if known else ENTITIES
    return draw(st.lists(st.tuples(entities, instants), min_size=1, max_size=12))


@st.composite
def _crowd(draw: st.DrawFn) -> tuple[list[Event], list[Label]]:
    """One entity whose events crowd into few instants and arrive in another order, and labels among them."""
    seed = random.Random(draw(st.integers(0, 2**32)))
    step = seed.choice([1, SECOND])
    events = [
        _event(
            seed.randint(0, 8) * step,
            seed.choice([None, 0.5, 1.5, 2.5, 3.5]),
            offset=seed.randint(0, 60),
            partition=partition,
        )
        for partition in range(seed.randint(1, 3))
        for _ in range(seed.randint(0, 12))
    ]
    distinct = list({(e.a, e.b): e for e in events}.values())
    late = [dataclasses.replace(e, arrival=e.timestamp + seed.choice([0, 1, 3, 9]) * step) for e in distinct]
    return late, [(("a", 1), seed.randint(-1, 20) * step) for _ in range(8)]


@st.composite
def _sparse(draw: st.DrawFn) -> tuple[list[Event], list[Label]]:
    events = draw(_events())
    return events, draw(_labels(events))


def _cases() -> st.SearchStrategy[tuple[list[Event], list[Label]]]:
    return _sparse() | _crowd()


def rows_of(view: View, events: Sequence[Event]) -> Rows:
    """The events as `read_rows` gives them."""
    columns = {
        f.name: column(f.dtype, [e.timestamp if f.name == "at" else e.values[f.name] for e in events])
        for f in view.columns
    }
    timestamp, a, b, arrival = (
        np.array([getattr(e, name) for e in events], np.int64) for name in ("timestamp", "a", "b", "arrival")
    )
    return Rows(columns, timestamp, a, b, arrival, {}, 0)


def ask(view: View, labels: Sequence[Label], mode: Any = "event_time", evidence: Any = None) -> Ask:
    """All features of the view for the labels."""
    keys = [column(k.dtype, [label[0][i] for label in labels]) for i, k in enumerate(view.keys)]
    names = [a.feature for a in view.aggregations] or [f.name for f in view.fields]
    return Ask(keys, np.array([at for _, at in labels], np.int64), names, mode, evidence)


def check(answer: dict[str, Column], expected: Sequence[dict[str, Any]]) -> None:
    """Fail where any value is not the expected one, bit for bit."""
    for name, values in answer.items():
        found = [int(v) if ok else None for v, ok in zip(values.values, values.valid, strict=True)] if (
            values.dtype == "UnixTimestamp"
        ) else values.to_list()  # fmt: skip
        for row, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert oracle.same(one, other[name]), f"{name} of label {row}: {one!r}, expected {other[name]!r}"


def same_bits(one: dict[str, Column], other: dict[str, Column]) -> bool:
    """Whether two answers have the same columns, to the bit."""
    return list(one) == list(other) and all(
        one[n].valid.tobytes() == other[n].valid.tobytes()
        and (
            one[n].values.tolist() == other[n].values.tolist()
            if one[n].values.dtype == object
            else one[n].values.tobytes() == other[n].values.tobytes()
        )
        for n in one
    )


@pytest.mark.parametrize("view", [LATEST, MORTAL, WINDOWED], ids=["latest", "ttl", "windows"])
@given(case=_cases())
def test_event_time_is_the_oracle(view: View, case: tuple[list[Event], list[Label]]) -> None:
    """Every feature at every label is the oracle's, whatever the rows."""
    events, labels = case
    answer = join(view, rows_of(view, events), [ask(view, labels)])[0]
    check(answer, [oracle.features(view, key, at, events) for key, at in labels])


@pytest.mark.parametrize("view", [LATEST, MORTAL, WINDOWED], ids=["latest", "ttl", "windows"])
@given(case=_cases())
def test_as_served_by_arrival_is_the_oracle(view: View, case: tuple[list[Event], list[Label]]) -> None:
    """Rows that had not arrived by the label's time do not exist for it."""
    events, labels = case
    answer = join(view, rows_of(view, events), [ask(view, labels, "as_served")])[0]
    check(answer, [oracle.features(view, key, at, events, oracle.arrived_by(at)) for key, at in labels])


@given(case=_cases(), data=st.data())
def test_as_served_by_fences_is_the_oracle(case: tuple[list[Event], list[Label]], data: st.DataObject) -> None:
    """A window replays exactly the messages at or behind the fences it was served from."""
    events, labels = case
    fences = [data.draw(st.none() | st.dictionaries(st.integers(0, 3), st.integers(0, 25))) for _ in labels]
    evidence = [None if fence is None else {"fences": fence} for fence in fences]
    answer = join(WINDOWED, rows_of(WINDOWED, events), [ask(WINDOWED, labels, "as_served", evidence)])[0]
    check(
        answer,
        [
            oracle.features(WINDOWED, key, at, events, oracle.behind_fences(fence or {}))
            for (key, at), fence in zip(labels, fences, strict=True)
        ],
    )


@given(case=_cases(), data=st.data())
def test_as_served_by_version_is_the_oracle(case: tuple[list[Event], list[Label]], data: st.DataObject) -> None:
    """A latest row replays the version it was served from, or what came before it."""
    events, labels = case
    served = st.sampled_from([(e.timestamp, e.a, e.b) for e in events]) if events else st.none()
    versions = [
        data.draw(st.none() | served | st.tuples(INSTANTS, st.integers(0, 2), st.integers(0, 25))) for _ in labels
    ]
    evidence = [None if version is None else {"version": version} for version in versions]
    answer = join(MORTAL, rows_of(MORTAL, events), [ask(MORTAL, labels, "as_served", evidence)])[0]
    check(
        answer,
        [
            oracle.features(MORTAL, key, at, events, oracle.up_to_version(version))
            for (key, at), version in zip(labels, versions, strict=True)
        ],
    )


@pytest.mark.parametrize("mode", ["event_time", "as_served"])
@given(case=_cases(), seed=st.integers(0, 2**32), parts=st.integers(2, 5))
def test_order_and_parts_do_not_matter(mode: str, case: tuple[list[Event], list[Label]], seed: int, parts: int) -> None:
    """Shuffled rows, and keys divided into parts, give the same bits in the order of the labels."""
    events, labels = case
    shuffled = random.Random(seed).sample(events, len(events))
    for view in (MORTAL, WINDOWED):
        whole = join(view, rows_of(view, events), [ask(view, labels, mode)])[0]
        assert same_bits(whole, join(view, rows_of(view, shuffled), [ask(view, labels, mode)])[0])
        rows = rows_of(view, shuffled)
        row_part = partition_of([rows.columns[key.name] for key in view.keys], parts)
        label_part = partition_of(ask(view, labels, mode).keys, parts)
        back = np.argsort(np.argsort(label_part, kind="stable"), kind="stable")
        answers = [
            join(
                view,
                rows.take(np.flatnonzero(row_part == part)),
                [ask(view, [label for label, own in zip(labels, label_part, strict=True) if own == part], mode)],
            )[0]
            for part in range(parts)
        ]
        joined = {
            name: Column(
                whole[name].dtype,
                np.concatenate([a[name].values for a in answers])[back],
                np.concatenate([a[name].valid for a in answers])[back],
            )
            for name in whole
        }
        assert same_bits(whole, joined)


def _event(at: int, value: float | None, *, offset: int, arrival: int | None = None, partition: int = 0) -> Event:
    row = {**dict.fromkeys(VALUES), "v_Float64": value, "place": "a", "number": 1}
    return Event(at, partition, offset, at if arrival is None else arrival, row)


def _value(view: View, feature: str, events: Sequence[Event], at: int, mode: str, evidence: Any = None) -> Any:
    return join(view, rows_of(view, events), [ask(view, [(("a", 1), at)], mode, evidence)])[0][feature].to_list()[0]


def test_event_time_leaks_what_as_served_does_not() -> None:
    """An event that came after the prediction is in the classical training set and not in the served one."""
    events = [_event(0, 1.0, offset=0), _event(10, 100.0, offset=1, arrival=HOUR)]
    assert _value(WINDOWED, "sum_Float64_0", events, 20, "event_time") == 101.0
    assert _value(WINDOWED, "sum_Float64_0", events, 20, "as_served") == 1.0
    assert _value(LATEST, "v_Float64", events, 20, "event_time") == 100.0
    assert _value(LATEST, "v_Float64", events, 20, "as_served") == 1.0


def test_evidence_decides_in_place_of_arrival() -> None:
    """A lagging worker had not applied an event that had arrived; the replay leaves it out too."""
    events = [_event(0, 1.0, offset=0), _event(10, 2.0, offset=1), _event(10, 4.0, offset=0, partition=1)]
    assert _value(WINDOWED, "sum_Float64_0", events, 20, "as_served") == 7.0
    assert _value(WINDOWED, "sum_Float64_0", events, 20, "as_served", [{"fences": {0: 0, 1: 5}}]) == 5.0
    assert _value(WINDOWED, "sum_Float64_0", events, 20, "as_served", [{"fences": {0: 1}}]) == 3.0
    assert _value(WINDOWED, "count_Float64_0", events, 20, "as_served", [None]) == 0
    assert _value(LATEST, "v_Float64", events, 20, "as_served", [{"version": (10, 0, 1)}]) == 2.0
    assert _value(LATEST, "v_Float64", events, 20, "as_served", [None]) is None


def test_a_late_correction_steps_back_to_the_row_that_was_there() -> None:
    """Of many rows that had not arrived, each is passed over."""
    events = [_event(0, 1.0, offset=0)] + [_event(i, float(i), offset=i, arrival=DAY) for i in range(1, 50)]
    assert _value(LATEST, "v_Float64", events, 60, "as_served") == 1.0


def test_time_to_live_ends_are_inclusive() -> None:
    """A row exactly as old as its time to live is there; one microsecond later it is not."""
    events = [_event(0, 1.0, offset=0)]
    assert _value(MORTAL, "v_Float64", events, TTL, "event_time") == 1.0
    assert _value(MORTAL, "v_Float64", events, TTL + 1, "event_time") is None
    assert _value(LATEST, "v_Float64", events, 10**15, "event_time") == 1.0


def test_full_ties_fall_to_the_greater_bytes() -> None:
    """Warehouse rows that tie in all else are decided by their packed bytes, as in Redis, in any order."""
    tied = [dataclasses.replace(_event(5, value, offset=0), b=0) for value in (1.0, -2.0, None, 3.0)]
    packed = {}
    for event in tied:
        rows = rows_of(LATEST, [event])
        fields = {f.name: rows.columns[f.name] for f in LATEST.fields}
        packed[LATEST.row_layout.pack(rows.timestamp, rows.a, rows.b, fields)[0]] = event.values["v_Float64"]
    winner = packed[max(packed)]
    for _ in range(5):
        random.shuffle(tied)
        assert _value(LATEST, "v_Float64", tied, 5, "event_time") == winner


def test_a_served_row_of_a_full_tie_is_known_by_its_bytes() -> None:
    """Of rows that tie in all but their bytes the one that was served is replayed, whichever arrived later."""
    tied = [dataclasses.replace(_event(5, value, offset=0), b=0) for value in (1.0, -2.0, None, 3.0)]
    rows = rows_of(LATEST, tied)
    fields = {f.name: rows.columns[f.name] for f in LATEST.fields}
    checks = [row_check(value) for value in LATEST.row_layout.pack(rows.timestamp, rows.a, rows.b, fields)]
    assert len(set(checks)) == len(tied)
    winner = _value(LATEST, "v_Float64", tied, 5, "event_time")
    for event, check in zip(tied, checks, strict=True):
        served = [{"version": (5, 0, 0, check)}]
        assert _value(LATEST, "v_Float64", tied, 5, "as_served", served) == event.values["v_Float64"]
        assert (
            _value(LATEST, "v_Float64", [*tied, _event(6, 9.0, offset=0)], 7, "as_served", served)
            == event.values["v_Float64"]
        )
    for other in ((5, 0, 0), (5, 0, 0, 1)):
        assert _value(LATEST, "v_Float64", tied, 5, "as_served", [{"version": other}]) == winner


def test_no_rows_at_all() -> None:
    """A view without rows answers nulls and counts of zero."""
    assert _value(LATEST, "v_Float64", [], 5, "event_time") is None
    assert _value(WINDOWED, "count_Float64_0", [], 5, "as_served") == 0
    assert _value(WINDOWED, "max_Float64_0", [], 5, "as_served", [{"fences": {0: 1}}]) is None
