"""What a result says, and what stays in the file of results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.measure import Result, Target, alone, in_turns, write


@pytest.mark.parametrize(
    ("target", "meets"),
    [
        (Target("ratio", "<=", 0.5), True),
        (Target("ratio", "<=", 0.49), False),
        (Target("ratio", ">=", 0.5), True),
        (Target("ours", "<=", 1.9), False),
        (Target("ours", ">=", 2.0), True),
        (None, None),
    ],
)
def test_a_target_is_met_at_its_bound_and_not_beyond(target: Target | None, meets: object) -> None:
    """Ratios are ours / theirs, bounds are inclusive, and without a target nothing is met or missed."""
    assert Result("s: one", 2.0, 4.0, "s", target).meets is meets


def test_a_ratio_without_the_other_side_is_a_miss() -> None:
    """A target that could not be measured is never reported as met."""
    result = Result("s: one", 2.0, None, "s", Target("ratio", "<=", 1e9))
    assert result.ratio is None
    assert result.meets is False


def test_results_of_other_subjects_stay(tmp_path: Path) -> None:
    """A subject that is run again replaces its own results alone."""
    path = tmp_path / "results.json"
    write(path, "one", [Result("one: a", 1.0, None, "s"), Result("one: b", 1.0, None, "s")])
    write(path, "two", [Result("two: a", 1.0, None, "s")])
    write(path, "one", [Result("one: c", 1.23456, 2.0, "s")])
    entries = json.loads(path.read_text())
    assert [entry["name"] for entry in entries] == ["one: c", "two: a"]
    assert list(entries[0]) == ["name", "ours", "theirs", "unit", "ratio", "target", "meets"]
    assert entries[0]["ours"] == 1.235


def test_calls_take_turns() -> None:
    """Every case gets all of its samples, and no case has run to its end before another began."""
    calls: list[str] = []
    times = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 120)
    assert {name: len(taken) for name, taken in times.items()} == {"a": 120, "b": 120}
    timed = calls[-240:]
    assert timed.index("b") < len(timed) - 1 - timed[::-1].index("a")


def test_a_process_of_its_own_says_what_it_used() -> None:
    """The value comes back with the peak of the process that made it."""
    value, peak = alone(_hundred_megabytes, 3)
    assert value == 300_000_000
    assert 0.3 < peak < 10.0


def _hundred_megabytes(times: int) -> int:
    return len(b"\1" * (times * 100_000_000))
