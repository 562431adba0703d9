"""Bad labels are refused with the column, how many rows and the remedy; odd but good ones are read as they are meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tally.errors import DataError
from tally.plan import Field
from tally.time import from_datetime
from tests.training.stores import PLAN, SERVICE
from training.digests import TableDigest, table_digest
from training.labels import Labels, read_labels

AT = datetime(2013, 3, 1, 12, tzinfo=UTC)
COUNT = 40


def frame() -> pd.DataFrame:
    """Good labels."""
    return pd.DataFrame(
        {
            "row": range(COUNT),
            "carrier": ["AA"] * COUNT,
            "origin": ["JFK"] * COUNT,
            "dest": ["LGA"] * COUNT,
            "limit": [0.5, None] * (COUNT // 2),
            "event_timestamp": pd.to_datetime([AT + timedelta(minutes=i) for i in range(COUNT)], utc=True),
        }
    )


def read(labels: Any) -> Labels:
    """The labels as the service reads them."""
    return read_labels(labels, PLAN.service(SERVICE), "event_timestamp")


def _half(good: Any, bad: Any) -> list[Any]:
    return [good, bad] * (COUNT // 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="carrier"), r"no column 'carrier'. Service delay needs carrier \(String\), .*; the labels have row, origin, .*; add it, or rename"),
        (lambda f: f.drop(columns="event_timestamp"), r"no column 'event_timestamp'.*; name the column of instants with timestamp=.* \(--timestamp\)\."),
        (lambda f: f.set_index("carrier"), r"no column 'carrier'.*in the frame's index: labels\.reset_index\(\)"),
        (lambda f: dd.from_pandas(f.set_index("origin"), npartitions=2), r"no column 'origin'.*labels\.reset_index\(\)"),
        (lambda _: pd.DataFrame(), "no column 'carrier'.* the labels have no columns"),
        (lambda f: f.assign(origin=_half("JFK", None)), "origin is null in 20 of 40 rows, first in row 1; .*drop these rows"),
        (lambda f: f.assign(event_timestamp=pd.NaT), "event_timestamp is null in 40 of 40 rows, first in row 0"),
        (lambda f: f.assign(limit=_half("0.5", "much")), r"limit holds string values that do not fit Float64, which service delay reads there, in 40 of 40 rows, first '0.5' in row 0; convert it, for example with pd.to_numeric\(labels\[.limit.\]\)"),
        (lambda f: f.assign(carrier=7), r"carrier holds int64 values .* String.* in 40 of 40 rows, first 7 .*astype\(.string.\)"),
        (lambda f: f.assign(event_timestamp="2013-03-01"), r"string values that do not fit UnixTimestamp.*pd.to_datetime\(labels\[.event_timestamp.\], utc=True\)"),
        (lambda f: f.assign(event_timestamp=1362139200), "event_timestamp holds int64 values that do not fit UnixTimestamp"),
        (lambda f: f.assign(limit=_half(0.5, "much")), "limit mixes types .*: (float|str) in 20, (float|str) in 20 of 40 rows"),
        (lambda f: f.assign(temp=1.0), "'temp' has the name of a feature of service delay; rename or drop it"),
        (lambda f: pa.Table.from_pandas(f)["row"], "not ChunkedArray"),
    ],
)  # fmt: skip
def test_bad_labels(change: Callable[[pd.DataFrame], Any], message: str) -> None:
    """What is wrong is named: the column, how many rows, what to do."""
    with pytest.raises(DataError, match=message):
        read(change(frame()))


def test_numbers_that_do_not_fit_are_counted() -> None:
    """Of a column of integers that is read from floats, only the fractions are counted."""
    service = PLAN.service(SERVICE)
    keys = tuple(type(k)(k.name, "Int64") if k.name == "dest" else k for k in service.keys)
    whole = type(service)(service.name, service.views, service.functions, keys, service.request, service.outputs)
    with pytest.raises(DataError, match=r"in 20 of 40 rows, first 1\.5 in row 1; .*astype\(.Int64.\)"):
        read_labels(frame().assign(dest=_half(1.0, 1.5)), whole, "event_timestamp")
    assert read_labels(frame().assign(dest=2.0), whole, "event_timestamp").columns["dest"].to_list() == [2] * COUNT


@pytest.mark.parametrize(
    ("dtype", "array", "said"),
    [
        ("Int64", pa.array([1, None, 2**63, 2**64 - 1], pa.uint64()), "in 2 of 4 rows, first 9223372036854775808 in row 2"),
        ("Int64", pa.array([1.0, None, 2.0**63, -(2.0**64), float("inf")]), r"in 3 of 5 rows, first 9\.22.* in row 2"),
        ("Int64", pa.array([True, None, False]), "in 2 of 3 rows, first True in row 0"),
        ("Float64", pa.array([None, False]), "in 1 of 2 rows, first False in row 1"),
        ("Int32", pa.array([1, 2**32 + 5, -(2**31) - 1]), "in 2 of 3 rows, first 4294967301 in row 1"),
        ("UnixTimestamp", pa.array([1, None, 2**62, -(2**62)], pa.timestamp("s")), "in 2 of 4 rows, first 4611686018427387904 in row 2"),
        ("UnixTimestamp", pa.array([2**60], pa.timestamp("ms", "UTC")), "in 1 of 1 rows, first 1152921504606846976 in row 0"),
    ],
)  # fmt: skip
def test_numbers_and_times_beyond_a_dtype_are_counted(dtype: Any, array: pa.Array, said: str) -> None:
    """Of unsigned integers, floats, wide integers and coarse times only those are counted that the dtype cannot hold."""
    service = PLAN.service(SERVICE)
    asked = dataclasses.replace(service, keys=(), request=(Field("held", dtype),))
    labels = pa.table({"held": array, "event_timestamp": pa.array([AT] * len(array), pa.timestamp("us", "UTC"))})
    with pytest.raises(DataError, match=f"Label column held holds .* that do not fit {dtype}, .* {said}; convert it"):
        read_labels(labels, asked, "event_timestamp")


@pytest.mark.parametrize(
    ("change", "notes"),
    [
        (lambda at: at, 0),
        (lambda at: at.dt.tz_convert(timezone(timedelta(hours=-7))), 0),
        (lambda at: at.dt.tz_convert("America/New_York").astype("datetime64[s, America/New_York]"), 0),
        (lambda at: at.dt.tz_localize(None), "no time zone: its times were taken as UTC"),
        (lambda at: at + pd.Timedelta(999, "ns") * pd.Series(range(COUNT)).clip(0, 1), "finer than a microsecond in 39 rows: they were floored"),
    ],
)  # fmt: skip
def test_times(change: Callable[[Any], Any], notes: Any) -> None:
    """Zones are converted, naive times are UTC and nanoseconds are floored; the last two are said."""
    found = read(frame().assign(event_timestamp=change(frame()["event_timestamp"].astype("datetime64[ns, UTC]"))))
    assert found.as_of.tolist() == [from_datetime(AT + timedelta(minutes=i)) for i in range(COUNT)]
    assert found.table.schema.field("event_timestamp").type == pa.timestamp("us", "UTC")
    assert len(found.notes) == (1 if notes else 0)
    assert not notes or notes in found.notes[0]


def test_times_before_1970_are_floored_too() -> None:
    """A nanosecond before a microsecond of 1969 belongs to the microsecond before."""
    moments = pd.Series(np.array([-1, -1000, -1001], "datetime64[ns]"))
    assert read(frame()[:3].assign(event_timestamp=moments)).as_of.tolist() == [-1, -1, -2]


def test_an_empty_frame() -> None:
    """No rows are no error, with or without dtypes."""
    for labels in (frame()[:0], frame()[:0].astype(object), pa.Table.from_pandas(frame())[:0]):
        found = read(labels)
        assert (found.table.num_rows, len(found.as_of)) == (0, 0)
        assert found.table.schema.field("limit").type == pa.float64()


def test_every_column_comes_along() -> None:
    """Columns of any type that Arrow has are kept as they are, nulls in integers included."""
    extra = {
        "whole": pd.array([2**60 + 1, None] * (COUNT // 2), "Int64"),
        "kind": pd.Categorical(["a", "b"] * (COUNT // 2)),
        "price": [Decimal("1.10")] * COUNT,
        "path": [[1, 2], None] * (COUNT // 2),
        "day": [AT.date()] * COUNT,
    }
    table = read(frame().assign(**extra)).table
    assert table.column_names == [*frame().columns, *extra]
    assert table["whole"].to_pylist() == [2**60 + 1, None] * (COUNT // 2)
    assert [str(table.schema.field(name).type)[:10] for name in extra] == ["int64", "dictionary", "decimal128", "list<item:", "date32[day"]  # fmt: skip


# Files


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    """Part files by name, hidden ones left out; partition folders give their column."""
    table = pa.Table.from_pandas(frame(), preserve_index=False)
    pq.write_table(table.slice(30), tmp_path / "part-2.parquet")
    pq.write_table(table.slice(0, 30), tmp_path / "part-1.parquet")
    (tmp_path / "_SUCCESS").touch()
    assert read(tmp_path).table["row"].to_pylist() == list(range(COUNT))
    assert read(tmp_path).digest == read(str(tmp_path)).digest == read(frame()).digest
    parted = tmp_path / "parted"
    for month, piece in (("02", table.slice(20)), ("01", table.slice(0, 20))):
        (parted / f"month={month}").mkdir(parents=True)
        pq.write_table(piece, parted / f"month={month}" / "x.parquet")
    assert read(parted).table["row"].to_pylist() == list(range(COUNT))
    assert read(parted).table["month"].to_pylist() == [1] * 20 + [2] * 20


def _csv(folder: Path) -> Path:
    (folder / "labels.parquet").write_text("carrier\nAA\n")
    return folder / "labels.parquet"


def _stray(folder: Path) -> Path:
    frame().to_parquet(folder / "a.parquet")
    (folder / "readme.txt").write_text("labels")
    return folder


def _cut(folder: Path) -> Path:
    frame().to_parquet(folder / "a.parquet")
    whole = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(whole[:-40])
    return folder / "a.parquet"


def _unlike(folder: Path) -> Path:
    frame().to_parquet(folder / "a.parquet")
    frame().assign(weight=1.0).to_parquet(folder / "b.parquet")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.parquet", r"no labels at .*none\.parquet; give a Parquet file, or a folder"),
        (lambda folder: folder, "no labels in the folder .*: it holds no Parquet file; write some with to_parquet"),
        (
            _csv,
            r"labels\.parquet are not Parquet that can be read \(Parquet magic bytes [^:]*\); write them with to_parquet\.",
        ),
        (_stray, "not Parquet that can be read"),
        (_cut, r"a\.parquet are not Parquet that can be read"),
        (_unlike, r"a\.parquet and .*b\.parquet do not have the same columns: only one of them has weight"),
    ],
)
def test_paths_that_are_no_labels(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    """A path that leads nowhere, to something else, or to parts that do not fit together."""
    with pytest.raises(DataError, match=message):
        read(make(tmp_path))


# Digests


def test_a_digest_does_not_depend_on_the_pieces() -> None:
    """Rows in one table or in many, from any offset, with anything below their nulls: one digest."""
    table = pa.table(
        {
            "number": pa.array([1, None, 3]),
            "real": pa.Array.from_buffers(pa.float64(), 3, [pa.py_buffer(b"\x05"), pa.py_buffer(np.array([1.0, 7.0, 3.0]))]),
            "text": ["é", None, ""],
            "bytes": [b"\x00", b"", None],
            "yes": [True, None, False],
            "price": [Decimal("1.1"), None, Decimal("2.2")],
            "kind": pa.array(["a", None, "a"]).dictionary_encode(),
            "list": [[1], None, []],
            "nothing": pa.nulls(3),
        }
    )  # fmt: skip
    clean = table.set_column(1, "real", pa.array([1.0, None, 3.0]))
    pieces = TableDigest()
    for row in range(3):
        pieces.add(table.slice(row, 1))
    assert pieces.hexdigest() == table_digest(table) == table_digest(clean)


@pytest.mark.parametrize(
    "other",
    [
        {"a": ["x", "yz"], "b": [0.0, None]},
        {"a": ["xy", "z"], "b": [0.0, 0.0]},
        {"a": ["xy", "z"], "b": [-0.0, None]},
        {"a": ["xy", None], "b": [0.0, None]},
        {"b": [0.0, None], "a": ["xy", "z"]},
        {"a": ["z", "xy"], "b": [None, 0.0]},
        {"a": ["xy", "z"], "c": [0.0, None]},
        {"a": ["xy"], "b": [0.0]},
    ],
)
def test_a_digest_tells_tables_apart(other: dict[str, list[Any]]) -> None:
    """Values, their order, nulls, the sign of zero, names and the order of columns: each counts."""
    assert table_digest(pa.table(other)) != table_digest(pa.table({"a": ["xy", "z"], "b": [0.0, None]}))
