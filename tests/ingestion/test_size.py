"""What `feast apply` says of the bytes of a key is never exceeded, and is reached."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tally.columns import column
from tally.plan import Field, View
from tally.size import Size, bytes_per_key, most_tiles
from tally.time import SECOND
from tests.ingestion import plans, streams

VIEW = streams.view_with_every_cell(texts=False)
WITH_TEXTS = streams.view_with_every_cell(texts=True)


@pytest.mark.parametrize("view", [VIEW, WITH_TEXTS], ids=["numbers", "texts"])
@given(topic=streams.topics())
def test_no_stored_value_is_larger(view: View, topic: list[list[streams.Message]]) -> None:
    """Whatever events there were, anywhere in time."""
    size = bytes_per_key(view)
    messages = [message for partition in topic for message in partition]
    for value in streams.expected_values(view, messages).values():
        bound = size.bound(len(topic))
        assert bound is not None
        assert len(value) <= bound


def test_the_bound_is_reached() -> None:
    """By an entity with an event in every hop: it is no guess."""
    messages = [
        streams.Message(
            0, step, {"at": 10**15 + step * SECOND, "who": "a", "f": 1.0, "i": 1, "wide": 1, "text": None, "raw": None}
        )
        for step in range(2_400)
    ]
    (value,) = streams.expected_values(VIEW, messages).values()
    assert len(value) == bytes_per_key(VIEW).bound(1)
    assert most_tiles(VIEW.tile_layout) == 60 // 5 + 1 + 10 + 1 + 4 + 1


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3))
def test_latest_rows_have_one_size(readings: list[int | None]) -> None:
    """Nulls take the same room; texts come on top."""
    view = plans.weather_view()
    numbers = replace(view, fields=(Field("temp", "Float64"), Field("reading", "Int64")))
    stamps = column("Int64", [0] * len(readings)).values
    columns = {"temp": column("Float64", [None] * len(readings)), "reading": column("Int64", readings)}
    packed = numbers.row_layout.pack(stamps, stamps, stamps, columns)
    assert {len(value) for value in packed} == {bytes_per_key(numbers).bound(0)}
    assert bytes_per_key(view).bound(0) is None


def test_sizes_in_words() -> None:
    """As `feast apply` prints them."""
    assert str(Size(4567, 12, 0)) == "at most 4,567 bytes per key, 12 more per partition"
    assert str(Size(45, 0, None)) == "at most 45 bytes per key, plus text"
    assert str(Size(45, 12, 2048)) == "at most 45 bytes per key, 12 more per partition, plus text of at most 2,048"
