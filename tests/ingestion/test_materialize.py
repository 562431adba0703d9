"""What Redis holds after a load equals plain loops over the same rows, to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from infra.local import embedded
from ingestion.materialize import bootstrap_view, materialize_view
from ingestion.progress import progress
from ingestion.redis_store import LatestWriter, TileWriter, view_mark
from tally import merging
from tally.columns import column
from tally.errors import NotReadyError
from tally.layout import LatestRows, TileRows, pack_tiles, unpack_tiles
from tally.merging import Tiles
from tally.plan import Plan, View, hashed_view
from tally.time import HOUR, MINUTE, to_datetime
from tests.ingestion import plans, stored
from tests.ingestion.stored import message

NOON = 1_357_041_600_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real server."""
    with embedded(tmp_path_factory.mktemp("redis"), ["redis"]) as services:
        yield services.redis_url


@pytest.fixture
def redis(server: str) -> Iterator[Redis]:
    """A client of the server, which is empty."""
    with Redis.from_url(server) as client:
        client.flushall()
        yield client


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Makes an empty offline store; hypothesis wants one per example."""
    return lambda: str(tmp_path_factory.mktemp("offline"))


def read_latest(redis: Redis, plan: Plan, view: View, entities: Sequence[bytes]) -> LatestRows:
    """The latest rows of entities, as a client reads them."""
    keys = [view.prefix(plan.project) + entity for entity in entities]
    return view.row_layout.unpack(redis.mget(keys), keys)  # type: ignore[arg-type]


def read_tiles(redis: Redis, plan: Plan, view: View, entities: Sequence[bytes]) -> TileRows:
    """The tiles of entities, as a client reads them."""
    keys = [view.prefix(plan.project) + entity for entity in entities]
    return unpack_tiles(view.tile_layout, view.tag, redis.mget(keys), keys)  # type: ignore[arg-type]


def weather(origin: str, at: int, created: int | None, temp: float) -> dict[str, Any]:
    """A row of the weather table."""
    made = None if created is None else to_datetime(created)
    return {"origin": origin, "event_timestamp": to_datetime(at), "created": made, "temp": temp, "sky": "clear"}


_weather = st.lists(
    st.builds(
        weather,
        st.sampled_from(["JFK", "LGA", "a|b\\"]),
        st.sampled_from([NOON + i for i in range(4)]),
        st.sampled_from([None, NOON, NOON + 1]),
        st.floats(allow_nan=False),
    ),
    max_size=30,
)


def _micros(moment: datetime | None) -> int:
    return 0 if moment is None else (moment - to_datetime(0)) // timedelta(microseconds=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=_weather, end=st.sampled_from([NOON - 1, NOON + 1, NOON + 9]))
def test_latest_rows_equal_a_plain_loop(
    redis: Redis, fresh: Callable[[], str], rows: list[dict[str, Any]], end: int
) -> None:
    """The greatest (event timestamp, created) wins, and on a full tie the greater bytes."""
    redis.flushall()
    view = plans.weather_view()
    plan, uri = plans.plan_of(view), fresh()
    stored.put_rows(plan, plans.BATCH, uri, rows)
    materialize_view(plan, view, uri, redis, end=end)

    best: dict[str, tuple[Any, ...]] = {}
    for row in rows:
        at, made = (_micros(row[name]) for name in ("event_timestamp", "created"))
        fields = {f.name: column(f.dtype, [row.get(f.name)]) for f in view.fields}
        packed = view.row_layout.pack(np.array([at]), np.array([made]), np.array([0]), fields)[0]
        if at <= end:
            best[row["origin"]] = max(best.get(row["origin"], ()), (at, made, packed))
    escaped = {"JFK": b"JFK", "LGA": b"LGA", "a|b\\": b"a\\|b\\\\"}
    held = {name: redis.get(view.prefix("flights") + entity) for name, entity in escaped.items()}
    assert held == {name: best[name][2] if name in best else None for name in escaped}


def test_a_row_is_there_until_it_is_older_than_its_ttl(redis: Redis, tmp_path: Path) -> None:
    """At exactly the TTL a row is still written, a microsecond later it is not; written keys expire."""
    view = plans.weather_view(ttl=HOUR)
    plan = plans.plan_of(view)
    rows = [weather("JFK", NOON, None, 1.0), weather("LGA", NOON - 1, None, 2.0)]
    stored.put_rows(plan, plans.BATCH, str(tmp_path), rows)
    written = materialize_view(plan, view, str(tmp_path), redis, end=NOON + HOUR)

    assert (written.rows, written.keys, written.kept) == (2, 1, 0)
    assert read_latest(redis, plan, view, [b"JFK", b"LGA"]).found.tolist() == [True, False]
    assert 0 < redis.pttl(view.prefix("flights") + b"JFK") <= HOUR // 1000


def test_a_newer_row_in_redis_stays(redis: Redis, tmp_path: Path) -> None:
    """A load that comes after the stream changes nothing that the stream wrote later."""
    view = plans.latest_stream_view()
    plan = plans.plan_of(view)
    row = message(0, 1, event_timestamp="2013-01-01T12:00:00Z", carrier="UA", flight=1)
    stored.put_messages(plan, plans.LANDING, str(tmp_path), [row])
    fields = {"flight": column("Int64", [2]), "dep_delay": column("Float64", [None])}
    later = view.row_layout.pack(np.array([NOON]), np.array([0]), np.array([2]), fields)
    LatestWriter(redis, "flights", view).put([b"UA"], later)
    written = materialize_view(plan, view, str(tmp_path), redis, end=NOON)

    assert (written.keys, written.kept) == (1, 1)
    assert read_latest(redis, plan, view, [b"UA"]).columns["flight"].to_list() == [2]


def test_what_was_loaded_is_marked(redis: Redis, tmp_path: Path) -> None:
    """Workers see that data is there; progress is reported to the end."""
    view = plans.weather_view()
    plan = plans.plan_of(view)
    stored.put_rows(plan, plans.BATCH, str(tmp_path), [weather(f"{i}", NOON, None, 1.0) for i in range(3)])
    seen: list[tuple[int, int]] = []
    materialize_view(plan, view, str(tmp_path), redis, end=NOON, progress=lambda *done: seen.append(done))

    assert view_mark(redis, "flights", view) == {"how": "materialize", "version": 0, "end": NOON}
    assert seen == [(3, 3)]


def test_a_source_that_was_never_ingested(redis: Redis, tmp_path: Path) -> None:
    """Nothing is marked, and the error says what to run."""
    view = plans.window_view()

    with pytest.raises(NotReadyError, match="run: tally ingest departures"):
        bootstrap_view(plans.plan_of(view), view, str(tmp_path), redis)
    assert view_mark(redis, "flights", view) is None


# Exact sums keep what lies above 2^-96 (law 3), which is all of a float from 2^-43 on.
_floats = st.floats(-(2.0**60), 2.0**60).filter(lambda x: abs(x) >= 2.0**-43)
_events = st.lists(
    st.tuples(
        st.sampled_from(["UA", "AA"]),
        st.integers(-9 * HOUR // MINUTE, 0).map(lambda m: NOON + m * MINUTE) | st.integers(NOON - 7 * HOUR, NOON),
        st.integers(0, 2),
        st.one_of(st.none(), st.sampled_from([0.1, 0.0, -0.1]), _floats),
        st.one_of(st.none(), st.integers(-(2**61), 2**61)),
    ),
    max_size=40,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=_events, later=st.lists(st.integers(0, 8 * HOUR), max_size=3))
def test_windows_equal_plain_loops(
    redis: Redis, fresh: Callable[[], str], events: list[tuple[str, int, int, Any, Any]], later: list[int]
) -> None:
    """Every aggregation, as of the newest event and later, equals math.fsum and statistics over the same rows."""
    redis.flushall()
    view = plans.window_view()
    plan, uri = plans.plan_of(view), fresh()
    messages = [
        message(
            partition,
            offset,
            event_timestamp=to_datetime(at).isoformat(),
            carrier=carrier,
            dep_delay=delay,
            flight=flight,
        )
        for offset, (carrier, at, partition, delay, flight) in enumerate(events)
    ]
    stored.put_messages(plan, plans.LANDING, uri, messages)
    written = bootstrap_view(plan, view, uri, redis)

    fences: dict[int, int] = {}
    for offset, event in enumerate(events):
        fences[event[2]] = offset
    carriers = sorted({event[0] for event in events})
    held = read_tiles(redis, plan, view, [carrier.encode() for carrier in carriers])
    assert written.keys == len(carriers)
    assert held.found.all()
    assert held.fences == [fences] * len(carriers)
    for row, carrier in enumerate(carriers):
        newest = max(event[1] for event in events if event[0] == carrier)
        assert held.newest[row] == newest
        own = np.flatnonzero(held.rows == row)
        for as_of in [newest, *(newest + more for more in later)]:
            values = merging.read(view.tile_layout, Tiles(held.records[own], np.array([len(own)]), np.array([as_of])))
            for aggregation in view.aggregations:
                chosen = [
                    (at, partition, offset, (0.0 + delay if delay is not None else None) if aggregation.column == "dep_delay" else flight)
                    for offset, (name, at, partition, delay, flight) in enumerate(events)
                    if name == carrier
                ]  # fmt: skip
                expected = stored.aggregate(aggregation, chosen, as_of)
                found = values[aggregation.feature].to_list()[0]
                assert stored.bits(found) == stored.bits(expected), aggregation.feature


def test_only_tiles_that_a_window_can_see_are_kept(redis: Redis, tmp_path: Path) -> None:
    """A year of history costs no more in Redis than the longest window."""
    view = plans.window_view()
    plan = plans.plan_of(view)
    stamps = [NOON - day * 24 * HOUR for day in range(300)] + [NOON - 6 * HOUR]
    stored.put_messages(plan, plans.LANDING, str(tmp_path), [
        message(0, i, event_timestamp=to_datetime(at).isoformat(), carrier="UA", dep_delay=1.0)
        for i, at in enumerate(stamps)
    ])  # fmt: skip
    bootstrap_view(plan, view, str(tmp_path), redis)
    records = read_tiles(redis, plan, view, [b"UA"]).records

    # The newest event in both levels, and the one of six hours before in that of the longer windows.
    assert records["level"].tolist() == [0, 1, 1]


def test_a_bootstrap_hands_over_to_the_stream(redis: Redis, tmp_path: Path) -> None:
    """Progress is the offset after the watermark, per definition and partition, and is never lowered."""
    for view in (plans.window_view(), plans.latest_stream_view()):
        plan, uri = plans.plan_of(view), str(tmp_path / view.name)
        for p in (0, 3):
            row = message(p, 7 + p, event_timestamp="2013-01-01T12:00:00Z", carrier="UA", dep_delay=1.0)
            stored.put_messages(plan, plans.LANDING, uri, [row])
        stored.put_messages(plan, plans.LANDING, uri, [
            message(p, 7 + p, event_timestamp="2013-01-01T12:00:00Z", carrier="UA", dep_delay=1.0) for p in (0, 3)
        ])  # fmt: skip
        bootstrap_view(plan, view, uri, redis)

        topic = "flights.departures"
        assert progress(redis, "flights", view) == {(topic, 0): 8, (topic, 3): 11}
        assert view_mark(redis, "flights", view) == {"how": "bootstrap", "version": 2, "offsets": {"0": 7, "3": 10}}
        again = bootstrap_view(plan, view, uri, redis)
        assert (again.keys, again.refused) == (1, {})


def test_tiles_that_are_ahead_stay_and_progress_with_them(redis: Redis, tmp_path: Path) -> None:
    """A key that the stream took further in one partition may lack events of another: the stream must read them again."""
    view = plans.window_view()
    plan = plans.plan_of(view)
    rows = [message(p, 5, event_timestamp="2013-01-01T12:00:00Z", carrier="UA", dep_delay=1.0) for p in (0, 1)]
    stored.put_messages(plan, plans.LANDING, str(tmp_path), rows)
    TileWriter(redis, "flights", view).load([b"UA"], [pack_tiles(view.tag, NOON, {0: 9}, b"")])
    written = bootstrap_view(plan, view, str(tmp_path), redis)

    assert (written.keys, written.kept) == (1, 1)
    assert read_tiles(redis, plan, view, [b"UA"]).fences == [{0: 9}]
    assert progress(redis, "flights", view) == {}


def test_materializing_windows_is_a_bootstrap(redis: Redis, tmp_path: Path) -> None:
    """The end of the interval does not cut: fences promise every event up to the watermark."""
    view = plans.window_view()
    plan = plans.plan_of(view)
    row = message(0, 5, event_timestamp="2013-01-01T12:00:00Z", carrier="UA", dep_delay=1.0)
    stored.put_messages(plan, plans.LANDING, str(tmp_path), [row])
    written = materialize_view(plan, view, str(tmp_path), redis, end=NOON - HOUR)

    assert str(written) == "1 rows gave 1 keys"
    assert read_tiles(redis, plan, view, [b"UA"]).fences == [{0: 5}]


def test_another_definition_has_other_keys(redis: Redis, tmp_path: Path) -> None:
    """Changing a view leaves what was stored under the old definition alone."""
    view = plans.weather_view()
    other = hashed_view(dataclasses.replace(view, ttl=HOUR), plans.BATCH)
    plan = plans.plan_of(view)
    stored.put_rows(plan, plans.BATCH, str(tmp_path), [weather("JFK", NOON, None, 1.0)])
    materialize_view(plan, view, str(tmp_path), redis, end=NOON)

    assert read_latest(redis, plan, view, [b"JFK"]).found.tolist() == [True]
    assert read_latest(redis, plan, other, [b"JFK"]).found.tolist() == [False]
