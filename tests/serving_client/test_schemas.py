"""Views of any fields: what is stored is what a lookup gives, bit for bit; damaged bytes are never a number."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving_client.lookup import Lookup
from tally.columns import Column, column
from tally.dtypes import DTYPES, Dtype
from tally.errors import DefinitionMismatchError, StoredBytesError
from tally.plan import Field, Plan, Service, View, ViewUse, hashed_service, hashed_view
from tests.serving_client import world
from tests.serving_client.world import PLANES

ANY: dict[Dtype, st.SearchStrategy[Any]] = {
    "Float64": st.floats(allow_nan=False),
    "Float32": st.floats(allow_nan=False, width=32),
    "Int64": st.integers(-(2**63), 2**63 - 1),
    "Int32": st.integers(-(2**31), 2**31 - 1),
    "Bool": st.booleans(),
    "String": st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    "Bytes": st.binary(max_size=12),
    "UnixTimestamp": st.integers(-(2**55), 2**55),
}
SCHEMAS = st.lists(st.sampled_from(DTYPES), min_size=1, max_size=20)


@st.composite
def views(draw: st.DrawFn) -> tuple[View, dict[str, list[Any]], int]:
    """A view of some fields, and the values of one to four rows."""
    dtypes = draw(SCHEMAS)
    count = draw(st.integers(1, 4))
    fields = tuple(Field(f"f{i}", dtype) for i, dtype in enumerate(dtypes))
    columns = (*PLANES.keys, *fields, Field("at", "UnixTimestamp"))
    view = hashed_view(dataclasses.replace(PLANES, fields=fields, columns=columns, ttl=0, hash=""), world.SOURCE)
    values = {f.name: draw(st.lists(st.none() | ANY[f.dtype], min_size=count, max_size=count)) for f in fields}
    return view, values, count


def lookup_of(view: View) -> Lookup:
    """The lookup of a service that returns every field."""
    use = ViewUse(view.name, view.name, ("place",), tuple((f.name, f.name) for f in view.fields))
    service = Service("one", (use,), (), view.keys, (), view.fields)
    plan = Plan("p", (world.SOURCE,), (view,), (), ())
    return Lookup(dataclasses.replace(plan, services=(hashed_service(service, plan),)))


def packed(view: View, values: dict[str, list[Any]], count: int) -> tuple[dict[str, Column], list[bytes]]:
    """The columns, and the stored bytes of each row."""
    columns = {f.name: column(f.dtype, values[f.name], f.name) for f in view.fields}
    at = np.arange(count)
    return columns, view.row_layout.pack(at, at, at, columns)


def bits(values: Column) -> list[Any]:
    """What makes two columns the same."""
    items = values.values.tolist()
    if values.dtype.startswith("Float"):
        items = [struct.pack("<d", item) for item in items]
    return [(type(item).__name__, item) if ok else None for item, ok in zip(items, values.valid.tolist(), strict=True)]


@given(made=views())
def test_what_is_stored_is_what_a_lookup_gives(made: tuple[View, dict[str, list[Any]], int]) -> None:
    """Every dtype, in any order and number, with nulls anywhere: one row, few and many, the same bits."""
    view, values, count = made
    columns, stored = packed(view, values, count)
    lookup = lookup_of(view)
    rows = [{"place": f"p{i}"} for i in range(count)]
    many, few = (lookup.decode(lookup.request(asked), stored, count) for asked in (world.in_columns(rows), rows))
    for field in view.fields:
        for answer in (many, few):
            assert answer.columns[field.name].dtype == field.dtype
            assert bits(answer.columns[field.name]) == bits(columns[field.name])
    for i, row in enumerate(rows):
        one = lookup.decode(lookup.request([row]), [stored[i]], count)
        for field in view.fields:
            assert bits(one.columns[field.name]) == bits(columns[field.name])[i : i + 1]
            assert one.to_dict()[field.name] == many.to_dict()[field.name][i : i + 1]


@given(made=views(), data=st.data())
def test_cut_bytes_are_refused(made: tuple[View, dict[str, list[Any]], int], data: st.DataObject) -> None:
    """Whatever is missing at the end, or follows it, the error names the key; one row, few and many."""
    view, values, count = made
    _, stored = packed(view, values, count)
    row = data.draw(st.integers(0, count - 1))
    cut = data.draw(st.integers(0, len(stored[row]) - 1))
    rows = [{"place": f"p{i}"} for i in range(count)]
    lookup = lookup_of(view)
    for damaged in (stored[row][:cut], stored[row] + b"\0"):
        broken = [*stored[:row], damaged, *stored[row + 1 :]]
        for asked, held in ((world.in_columns(rows), broken), (rows, broken), ([rows[row]], [damaged])):
            try:
                lookup.decode(lookup.request(asked), held, count)
            except StoredBytesError as error:
                assert f"/p{row}" in str(error)  # noqa: PT017 what is caught is looked at in a loop
            else:
                raise AssertionError("damaged bytes were decoded")


@given(made=views(), data=st.data())
def test_another_definitions_bytes_are_refused(
    made: tuple[View, dict[str, list[Any]], int], data: st.DataObject
) -> None:
    """One bit of the hash is enough."""
    view, values, count = made
    _, stored = packed(view, values, count)
    bit = data.draw(st.integers(8, 71))
    value = bytearray(stored[0])
    value[bit // 8] ^= 1 << bit % 8
    lookup = lookup_of(view)
    rows = [{"place": f"p{i}"} for i in range(count)]
    for asked, others in ((rows[:1], []), (rows, stored[1:]), (world.in_columns(rows), stored[1:])):
        try:
            lookup.decode(lookup.request(asked), [bytes(value), *others], count)
        except DefinitionMismatchError as error:
            assert "/p0" in str(error)  # noqa: PT017 as above
        else:
            raise AssertionError("another definition's bytes were decoded")
