"""Every case on every path, against the oracle, by bits. `CANNOT` lists what a path cannot do, and why."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests import oracle
from tests.conformance.cases import Case, all_cases
from tests.conformance.conftest import Ask
from tests.conformance.expected import DECIDED_BY, Answer, status
from tests.conformance.paths import PATHS, AnsweringPath, output_dtypes
from tests.conformance.world import World

SECOND = 1_000_000
CANNOT = {
    "an instant behind what the store holds": (
        [path.name for path in PATHS if path.online],
        "Redis keeps the newest state, so an online path must say that it is ahead, and its value is not compared",
    ),
    "instants below a second": (
        [path.name for path in PATHS if path.whole_seconds],
        "Feast's protobuf values hold whole seconds, so instants are compared after flooring",
    ),
    "a NaN in the request": (["feast-serve"], "JSON has none; null is sent, which means the same"),
}
"""What paths cannot do: (which paths, why and what is asserted instead). Nothing else is left out."""


PAIRS = [pytest.param(path, case, id=f"{path.name}-{case.name}") for path in PATHS for case in all_cases()]


@pytest.mark.parametrize(("path", "case"), PAIRS)
def test_case(path: AnsweringPath, case: Case, world: World, ask: Ask, truth: list[Answer]) -> None:
    """Every value of every query of the case is the oracle's, and so is what the path says of it."""
    answered = ask(path.name)
    assert len(answered.values) == len(world.queries)
    dtypes = output_dtypes(world)
    wrong = []
    asked = [row for row, (name, _) in enumerate(world.queries) if name == case.name]
    assert asked
    for row in asked:
        values, views, as_of = truth[row].values, truth[row].views, world.queries[row][1].as_of
        assert answered.values[row].keys() == values.keys()
        for feature, value in values.items():
            found = answered.values[row][feature]
            if answered.status is not None:
                said, expected = answered.status[row][feature], status(feature, views)
                if said != expected:
                    wrong.append(f"{feature} as of {as_of} is said to be {said}, it is {expected}")
                if any(views[view] == "ahead" for view in DECIDED_BY[feature]):
                    continue
            if path.whole_seconds and dtypes[feature] == "UnixTimestamp" and value is not None:
                value = value // SECOND * SECOND
            if not oracle.same(found, value):
                wrong.append(f"{feature} as of {as_of}: {_shown(found)}, expected {_shown(value)}")
    assert not wrong, f"{case.pins}:\n" + "\n".join(wrong[:20])


def _shown(value: Any) -> str:
    return f"{value!r} ({value.hex()})" if isinstance(value, float) else repr(value)


def test_the_cases_reach_what_they_are_for(world: World, truth: list[Answer]) -> None:
    """The oracle's answers are no desert: every feature has values and nulls, every status occurs."""
    assert set(output_dtypes(world)) == set(DECIDED_BY)
    there: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    for answer in truth:
        there.update(name for name, value in answer.values.items() if value is not None)
        gone.update(name for name, value in answer.values.items() if value is None)
    assert [name for name in DECIDED_BY if there[name] < 5] == []
    always = {name for name in DECIDED_BY if "_count" in name} | {"is_heavy"}
    assert [name for name in set(DECIDED_BY) - always if gone[name] < 5] == []
    assert {how for answer in truth for how in answer.views.values()} == {"present", "missing", "expired", "ahead"}


def test_what_paths_cannot_do_is_known() -> None:
    """The table of exceptions names paths that exist, with a reason for each."""
    names = {path.name for path in PATHS}
    for paths, reason in CANNOT.values():
        assert set(paths) <= names
        assert len(reason.split()) > 5
