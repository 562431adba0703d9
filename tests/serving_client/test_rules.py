"""The edges of the rules, one by one, on every path that answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from redis import Redis

from serving_client import FeatureClient, FeatureRows, Status, answering
from serving_client.few_rows import FEW
from serving_client.lookup import Lookup
from tally.errors import DataError
from tally.layout import row_check
from tally.time import DAY, instant, to_datetime
from tests.serving_client import world
from tests.serving_client.world import DELAYS, PAIRS, PLANES, SECOND, TTL

ASKED = {"place": "JFK", "other": "LGA", "code": 1, "who": "a|b", "weight": 2.0, "label": "!"}
PLANE = {
    "place": "JFK",
    "at": 0,
    "a": 5,
    **{f.name: None for f in PLANES.fields},
    "v_Float64": 0.1,
    "v_Int64": 2**60 + 1,
}
EVENT = {"place": "JFK", "partition": 3, **{a.column: None for a in DELAYS.aggregations}}


@pytest.fixture
def client(redis: Redis) -> FeatureClient:
    """A client of the service that uses every view."""
    return FeatureClient(redis, world.ONE)


def each_way(client: FeatureClient, as_of: Any, asked: dict[str, Any] = ASKED) -> list[FeatureRows]:
    """The same question as one row, as the first of two, and as that of columns: without arrays twice, and with them."""
    two = [asked, {**asked, "place": "EWR"}]
    return [client.get(rows, as_of) for rows in ([asked], two, world.in_columns(two))]


def check(redis: Redis, place: str) -> int:
    """What tells the stored row of an aircraft from others of its time."""
    value = redis.get(world.key_of(PLANES, {"place": place}))
    assert isinstance(value, bytes)
    return row_check(value)


@pytest.mark.parametrize(
    ("as_of", "status"), [(-1, Status.AHEAD), (0, Status.PRESENT), (TTL, Status.PRESENT), (TTL + 1, Status.EXPIRED)]
)
def test_time_to_live_at_its_edges(redis: Redis, client: FeatureClient, as_of: int, status: Status) -> None:
    """A row is seen from its own instant until exactly its time to live after it, and not one microsecond longer."""
    world.store_latest(redis, PLANES, [PLANE])
    for rows in each_way(client, as_of):
        assert rows.status["v_Int64"][0] == status
        assert rows.to_dict()["v_Int64"][0] == (2**60 + 1 if status == Status.PRESENT else None)
        assert rows.ahead[0] == (status == Status.AHEAD)
        assert rows.evidence[0]["planes"] == {"version": [0, 5, 0, check(redis, "JFK")]}


def test_time_to_live_zero_never_expires(redis: Redis, client: FeatureClient) -> None:
    """A view with ttl 0 answers from a row however old."""
    world.store_latest(redis, PAIRS, [{"code": 1, "who": "a|b", "at": -(2**60), "a": 0, "level": 7, "note": "ö"}])
    for rows in each_way(client, 2**60):
        assert (rows.to_dict()["level"][0], rows.to_dict()["note"][0]) == (7, "ö")


@pytest.mark.parametrize(("at", "count"), [(40 * SECOND - 1, 0), (40 * SECOND, 1), (103 * SECOND, 1)])
def test_windows_at_their_bounds(redis: Redis, client: FeatureClient, at: int, count: int) -> None:
    """A 60 s window in hops of 5 s, as of 103 s, begins exactly at 40 s and ends exactly at 103 s."""
    world.store_tiles(redis, DELAYS, [{**EVENT, "at": at, "offset": 1, "v_Float64": 0.5}])
    for rows in each_way(client, 103 * SECOND):
        assert rows.to_dict()["count_Float64_short"][0] == count
        assert rows.to_dict()["sum_Float64_short"][0] == (0.5 if count else None)
        assert rows.status["count_Float64_short"].tolist()[0] == Status.PRESENT


def test_tiles_ahead_of_as_of_are_flagged(redis: Redis, client: FeatureClient) -> None:
    """An event one microsecond after as_of, in the same tile, is in the window's value; the row says so."""
    world.store_tiles(redis, DELAYS, [{**EVENT, "at": SECOND + 1, "offset": 1, "v_Float64": 0.5}])
    for rows in each_way(client, SECOND):
        assert rows.status["count_Float64_short"][0] == Status.AHEAD
        assert rows.ahead.tolist()[0] is True
        assert not rows.ahead[1:].any()


def test_nothing_stored(client: FeatureClient) -> None:
    """An unknown entity: nulls, counts of 0, status missing everywhere but for outputs of request fields alone."""
    for rows in each_way(client, 0):
        values = rows.to_dict()
        assert values["count_Bool_long"][0] == 0
        assert values["sum_Float64_long"][0] is None
        assert {s[0] for name, s in rows.status.items() if name != "both"} == {Status.MISSING}
        assert (values["both"][0], rows.status["both"][0]) == ("JFK!", Status.PRESENT)
        assert rows.evidence[0] == dict.fromkeys(["planes", "there", "pairs", "delays", "delays_there"])
        assert rows.event_timestamps["planes"].to_list()[0] is None


def test_evidence(redis: Redis, client: FeatureClient) -> None:
    """Evidence holds the row versions and fences that were read, under the names of the uses, as Python and as JSON."""
    world.store_latest(redis, PLANES, [PLANE, {**PLANE, "place": "LGA", "at": 9}])
    world.store_tiles(
        redis, DELAYS, [{**EVENT, "at": 4, "offset": 2**40}, {**EVENT, "at": 3, "offset": 8, "partition": 0}]
    )
    for rows in each_way(client, 10):
        assert rows.evidence[0] == {
            "planes": {"version": [0, 5, 0, check(redis, "JFK")]},
            "there": {"version": [9, 5, 0, check(redis, "LGA")]},
            "pairs": None,
            "delays": {"fences": {0: 8, 3: 2**40}},
            "delays_there": None,
        }
        assert '"delays":{"fences":{"0":8,"3":1099511627776}}' in rows.evidence_json()[0]
        assert rows.event_timestamps["delays"].to_list()[0] == to_datetime(4)
        assert rows.definition == world.ONE.services[0].hash
        assert rows.as_of.tolist() == [10] * len(rows)


def test_as_of_forms(redis: Redis, client: FeatureClient) -> None:
    """as_of is now, one instant, or one for each row; a wrong number of them is refused."""
    world.store_latest(redis, PLANES, [PLANE])
    assert client.get([ASKED]).status["v_Int64"].tolist() == [Status.EXPIRED]
    assert client.get([ASKED] * 2, [0, -1]).to_dict()["v_Int64"] == [2**60 + 1, None]
    assert client.get([ASKED], to_datetime(5)).as_of.tolist() == [5]
    assert client.get([ASKED], np.datetime64(7, "us")).as_of.tolist() == [7]
    for count in (1, 2, FEW + 1):
        with pytest.raises(DataError, match="one for each row"):
            client.get([ASKED] * count, [0, 1, 2])


def test_now_is_the_clock_in_microseconds(redis: Redis, client: FeatureClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an instant a lookup is as of the clock, floored: an event of this microsecond is seen, and none after it."""
    now = 1_357_000_000_123_456
    monkeypatch.setattr(answering, "time_ns", lambda: 1_000 * now + 999)
    world.store_latest(redis, PLANES, [{**PLANE, "at": now}, {**PLANE, "place": "EWR", "at": now + 1}])
    for rows in each_way(client, None):
        assert rows.as_of.tolist() == [now] * len(rows)
        assert rows.status["v_Int64"].tolist() == [Status.PRESENT, Status.AHEAD][: len(rows)]


def test_as_of_beyond_what_int64_holds(client: FeatureClient) -> None:
    """An instant beyond int64, or so far that a window would leave it, is refused in words, for one row and many."""
    for count in (1, 2, FEW + 1):
        for moment in (
            2**63,
            -(2**63) - 1,
            2**64,
            2**63 - 1,
            -(2**63),
            [2**63] * count,
            np.array([2**63] * count, "u8"),
        ):
            with pytest.raises(DataError, match=r"nanoseconds\?"):
                client.get([ASKED] * count, moment)
        assert len(client.get([ASKED] * count, 2**62)) == len(client.get([ASKED] * count, -(2**62))) == count


def test_repeated_entities_are_fetched_once() -> None:
    """One key for each different entity of a view, whichever rows and columns of the request name it."""
    lookup = Lookup(world.ONE)
    rows = [ASKED, ASKED, {**ASKED, "other": "JFK"}]
    assert len(lookup.request(rows).keys) == 5  # planes: JFK, LGA; pairs: 1; delays: JFK, LGA
    assert len(lookup.request([rows[2]]).keys) == 3


def test_one_round_trip(redis: Redis, client: FeatureClient) -> None:
    """A lookup is one command, whatever the number of rows and views; no rows: none at all."""
    for rows, commands in (([ASKED], 1), ([ASKED] * 7, 1), ([ASKED] * (FEW + 1), 1), ([], 0)):
        before = redis.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"]
        client.get(rows, 0)
        assert redis.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"] - before == commands


def test_no_rows(client: FeatureClient) -> None:
    """An empty request has an empty answer, with all columns and dtypes."""
    for rows in (client.get([]), client.get({name: [] for name in ASKED})):
        assert len(rows) == 0
        assert rows.to_dict() == {o.name: [] for o in world.ONE.services[0].outputs}
        assert rows.to_pandas()["v_Int64"].dtype == pd.Int64Dtype()
        assert (rows.evidence, rows.ahead.tolist()) == ([], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"place": None}, r"Row 1.*'place' is null"),
        ({"code": None}, r"Row 1.*'code' is null"),
        ({"code": "1"}, r"Row 1, column code.*'1' is str.*Int64"),
        ({"code": True}, r"Row 1, column code.*True is bool.*Int64"),
        ({"code": np.True_}, r"Row 1, column code.*True.* is bool.*Int64"),
        ({"weight": False}, r"Row 1, column weight.*False is bool.*Float64"),
        ({"code": 1.5}, r"Row 1, column code.*not a whole number"),
        ({"code": 2**63}, r"Row 1, column code.*Int64"),
        ({"place": 7}, r"Row 1, column place.*7 is int.*String"),
        ({"place": "\ud800"}, r"place.*not valid Unicode"),
        ({"weight": "2"}, r"Row 1, column weight.*Float64"),
        ({"weight": ...}, r"Row 1 lacks the column 'weight' \(Float64\); each row needs place \(String\)"),
        ({"place": ...}, r"Row 1 lacks the column 'place'"),
    ],
)
def test_rows_that_do_not_fit(client: FeatureClient, change: dict[str, Any], message: str) -> None:
    """A missing column, a null key or a wrong type is refused, naming column, row and what is needed."""
    wrong = {name: value for name, value in {**ASKED, **change}.items() if value is not ...}
    for after in (0, FEW):
        with pytest.raises(DataError, match=message):
            client.get([ASKED, wrong, *[ASKED] * after])
    with pytest.raises(DataError, match=message.replace("Row 1", "Row 0")):
        client.get([wrong])
    if ... not in change.values():
        with pytest.raises(DataError, match=message):
            client.get({name: [ASKED[name], wrong[name]] for name in ASKED})


def test_requests_of_the_wrong_shape(client: FeatureClient) -> None:
    """Things that are not rows, columns that are not there, and columns of unequal length are refused."""
    with pytest.raises(DataError, match="list of dicts or a dict of columns"):
        client.get("JFK")  # type: ignore[arg-type]
    wrong: list[Any] = [["JFK"], [ASKED, "JFK"]]
    for rows in wrong:
        with pytest.raises(DataError, match=r"Row \d is str, not a dict"):
            client.get(rows)
    with pytest.raises(DataError, match="lacks the column 'label'"):
        client.get({name: [value] for name, value in ASKED.items() if name != "label"})
    with pytest.raises(DataError, match="one length"):
        client.get({**{name: [value] for name, value in ASKED.items()}, "label": []})


def test_a_row_is_no_columns(client: FeatureClient) -> None:
    """One row given as it is, where a list of rows or columns belong, is an error that says so."""
    some: list[Any] = [ASKED, {**ASKED, "place": ["JFK"]}, dict.fromkeys(ASKED, 1), dict.fromkeys(ASKED, "JFK")]
    for row in some:
        with pytest.raises(DataError, match=r"The column '\w+' is one (str|int|float); a dict holds columns"):
            client.get(row)


def test_numbers_of_other_kinds(redis: Redis, client: FeatureClient) -> None:
    """Whole numbers for floats, NumPy scalars and arrays, and subclasses of str are what they mean, in one row and many."""

    class Name(str):
        __slots__ = ()

    world.store_latest(redis, PLANES, [PLANE])
    plain = client.get([ASKED], 0).to_dict()
    for other in (
        {**ASKED, "weight": 2, "code": np.int32(1), "place": Name("JFK")},
        {**ASKED, "weight": np.float32(2), "code": 1.0, "place": np.str_("JFK")},
    ):
        assert client.get([other], 0).to_dict() == plain
        columns: dict[str, Any] = {name: np.array([value]) for name, value in other.items()}
        assert client.get(columns, 0).to_dict() == plain


def test_to_numpy(redis: Redis, client: FeatureClient) -> None:
    """A C-contiguous float64 matrix, NaN for null; strings and unknown names are refused with the way out."""
    world.store_latest(redis, PLANES, [{**PLANE, "v_Bool": True, "v_UnixTimestamp": 12}])
    for rows in each_way(client, 0):
        matrix = rows.to_numpy(["v_Bool", "v_UnixTimestamp", "v_Float64", "v_Int32"])
        assert (str(matrix.dtype), matrix.flags.c_contiguous, matrix.shape) == ("float64", True, (len(rows), 4))
        assert matrix[0, :3].tolist() == [1.0, 12.0, 0.1]
        assert np.isnan(matrix[0, 3])
        numeric = rows.to_numpy(rows.numeric_names)
        texts = [o for o in world.ONE.services[0].outputs if o.dtype in ("String", "Bytes")]
        assert numeric.shape == (len(rows), len(world.ONE.services[0].outputs) - len(texts))
        with pytest.raises(DataError, match=r"'v_String'.*numeric_names"):
            rows.to_numpy()
        with pytest.raises(DataError, match="no features"):
            rows.to_numpy(["v"])


def test_frames(redis: Redis, client: FeatureClient) -> None:
    """Arrow and pandas keep dtypes and 2**60 + 1 beside a null; timestamps are microseconds UTC."""
    world.store_latest(
        redis, PLANES, [{**PLANE, "v_Bool": True, "v_UnixTimestamp": 12, "v_String": "é", "v_Bytes": b"\xff"}]
    )
    for rows in each_way(client, 0):
        table, frame = rows.to_arrow(), rows.to_pandas()
        assert table.column_names == list(frame.columns) == rows.names
        assert table.schema.field("v_UnixTimestamp").type == pa.timestamp("us", tz="UTC")
        assert table.schema.field("v_String").type == pa.string()
        assert table["v_Int64"].to_pylist() == [2**60 + 1, None][: len(rows)]
        assert frame["v_Int64"].dtype == pd.Int64Dtype()
        assert frame["v_Int32"].dtype == pd.Int32Dtype()
        assert frame["v_Bool"].dtype == pd.BooleanDtype()
        assert isinstance(frame["v_String"].dtype, pd.StringDtype)
        assert [str(frame[f"v_{name}"].dtype) for name in ("Float32", "Float64")] == ["float32", "float64"]
        assert str(frame["v_UnixTimestamp"].dtype) == "datetime64[us, UTC]"
        assert frame["v_Int64"].tolist() == [2**60 + 1, pd.NA][: len(rows)]
        assert frame["v_UnixTimestamp"][0] == to_datetime(12)
        assert (frame["v_String"][0], frame["v_Bytes"][0]) == ("é", b"\xff")


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2013, 12, 1, 10),  # naive is UTC
        datetime(2013, 12, 1, 5, tzinfo=timezone(timedelta(hours=-5))),
        np.datetime64("2013-12-01T10:00:00.000000999", "ns"),
        pd.Timestamp("2013-12-01T10:00:00Z"),
        -1,
        None,
    ],
)
def test_times_in_a_request(redis: Redis, moment: Any) -> None:
    """A time in the request, of whatever kind, means the same instant for one row as for many."""
    client = FeatureClient(redis, world.PLAN.for_service("clocked"))
    asked = {"code": 1, "who": "x", "moment": moment}
    micros = None if moment is None else instant(moment)
    for rows in (client.get([asked], 0), client.get([asked, asked], 0), client.get([asked] * (FEW + 1), 0)):
        later, day = rows.columns["later"], rows.columns["day"]
        assert (bool(later.valid[0]), bool(day.valid[0])) == (micros is not None, micros is not None)
        if micros is not None:
            assert (int(later.values[0]), int(day.values[0])) == (micros + 1, micros // DAY * DAY)
