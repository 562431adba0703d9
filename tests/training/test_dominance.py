"""Ranges of places with a limit on their keys, against a look at each row."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.dominance import last_within, running_extremes, seen_rows

KEYS = st.lists(st.integers(-3, 12) | st.sampled_from([-(2**63), 2**63 - 1]), max_size=70)


def _queries(data: st.DataObject, count: int) -> tuple[Any, Any, Any]:
    ends = st.tuples(st.integers(0, count), st.integers(0, count)).map(sorted)
    limits = st.integers(-4, 12) | st.sampled_from([-(2**63), 2**63 - 1])
    asked = data.draw(st.lists(st.tuples(ends, limits), min_size=1, max_size=15))
    low, high, limit = zip(*((ends[0], ends[1], limit) for ends, limit in asked), strict=True)
    return np.array(low, np.int64), np.array(high, np.int64), np.array(limit, np.int64)


@given(keys=KEYS, data=st.data())
def test_the_last_within_a_limit(keys: list[int], data: st.DataObject) -> None:
    """The last place of a range whose key is within the limit, or the place before the range."""
    low, high, limit = _queries(data, len(keys))
    found = last_within(np.array(keys, np.int64), low, high, limit).tolist()
    for query, (start, stop, most) in enumerate(zip(low.tolist(), high.tolist(), limit.tolist(), strict=True)):
        assert found[query] == max([i for i in range(start, stop) if keys[i] <= most], default=start - 1)


@given(keys=KEYS, data=st.data())
def test_the_rows_that_are_seen(keys: list[int], data: st.DataObject) -> None:
    """Each row of the range within the limit once, and no other; in blocks of the size that is told, sorted by key."""
    low, high, limit = _queries(data, len(keys))
    among = data.draw(st.none() | st.lists(st.booleans(), min_size=len(keys), max_size=len(keys)))
    found: list[list[int]] = [[] for _ in low]
    for seen in seen_rows(np.array(keys, np.int64), low, high, limit, None if among is None else np.array(among, bool)):
        for part in seen.parts:
            assert len(set(part.queries.tolist())) == len(part.queries)
            for query, start, stop in zip(
                part.queries.tolist(), part.starts.tolist(), part.stops.tolist(), strict=True
            ):
                assert start % seen.size == 0
                assert start < stop <= start + seen.size
                rows = seen.rows[start:stop].tolist()
                assert [keys[row] for row in rows] == sorted(keys[row] for row in rows)
                found[query] += rows
    for query, (start, stop, most) in enumerate(zip(low.tolist(), high.tolist(), limit.tolist(), strict=True)):
        own = [i for i in range(start, stop) if keys[i] <= most and (among is None or among[i])]
        assert sorted(found[query]) == own


@given(values=st.lists(st.integers(0, 9), min_size=1, max_size=20), size=st.sampled_from([1, 2, 4, 8]))
def test_running_extremes(values: list[int], size: int) -> None:
    """The least and the greatest so far, anew in each block."""
    for pick, best in ((np.minimum, min), (np.maximum, max)):
        found = running_extremes(np.array(values, np.uint64), size, pick).tolist()
        assert found == [best(values[i - i % size : i + 1]) for i in range(len(values))]
