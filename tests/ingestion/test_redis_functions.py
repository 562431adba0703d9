"""What Redis does with deltas, rows and progress: once, atomically, and whatever the order."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from connections import open_client
from ingestion import redis_store, stream
from ingestion.progress import advance_progress, begin_progress, progress
from ingestion.redis_calls import load_library
from ingestion.redis_store import Delta, LatestWriter, TileWriter
from ingestion.stream import Counts
from tally.columns import column
from tally.errors import DataError, DefinitionMismatchError, StoredBytesError, UnavailableError
from tally.layout import pack_tiles, plan_key, services_key, version_key
from tally.plan import Field, Plan, Service, View, ViewUse, hashed_view
from tally.tiles import Aggregation
from tally.time import DAY, HOUR, MINUTE, SECOND
from tally.windows import Window
from tests import oracle
from tests.faults.proxy import proxies
from tests.ingestion import plans, streams
from tests.ingestion.streams import Message

VIEW = streams.view_with_every_cell(texts=False)
TEXTS = streams.view_with_every_cell(texts=True)
shared_server = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def key(entity: bytes, view: View = VIEW) -> bytes:
    """Where an entity is stored."""
    return view.prefix("p") + entity


def stored(redis: Redis, view: View = VIEW) -> dict[bytes, bytes]:
    """Entity -> value, of all entities of a view."""
    values: Any = {name: redis.get(name) for name in redis.scan_iter(view.prefix("p") + b"*")}
    return {name.removeprefix(view.prefix("p")): value for name, value in values.items()}


def deliver(redis: Redis, batches: list[list[Message]], view: View = VIEW) -> Counts:
    """Apply batches one by one, as a worker does."""
    writer, counts = TileWriter(redis, "p", view), Counts()
    for batch in batches:
        if batch:
            counts.add(stream.merge(streams.events_of(view, batch), writer.merge))
    return counts


def message(offset: int, second: int, partition: int = 0) -> Message:
    """A message of entity a."""
    fields = {"at": second * SECOND, "who": "a", "f": 1.0, "i": 1, "wide": 1, "text": str(offset), "raw": b"x"}
    return Message(partition, offset, fields)


@pytest.mark.parametrize("view", [VIEW, TEXTS], ids=["numbers", "texts"])
@shared_server
@given(data=st.data())
def test_stored_bytes_depend_on_the_set_of_events_alone(redis: Redis, view: View, data: st.DataObject) -> None:
    """However a topic is cut, repeated and interleaved, Redis holds the bytes of one pass, and windows equal the oracle's."""
    topic = data.draw(streams.topics())
    messages = [m for partition in topic for m in partition]
    batches = data.draw(streams.deliveries(topic))
    redis.flushdb()

    counts = deliver(redis, batches, view)

    assert counts.consumed == sum(map(len, batches))
    assert counts.duplicate == counts.consumed - len(messages)
    values = stored(redis, view)
    assert values == streams.expected_values(view, messages)
    for entity, value in values.items():
        newest = max(m.fields["at"] for m in messages if m.fields["who"] == entity.decode())
        for as_of in (newest, newest + data.draw(st.integers(1, 1500 * SECOND))):
            answer = streams.features(view, entity, value, as_of)
            expected = streams.oracle_features(view, entity.decode(), as_of, messages)
            assert all(oracle.same(answer[name], expected[name]) for name in expected), (answer, expected)


def test_texts_are_ordered_by_bytes(redis: Redis) -> None:
    """Least and greatest text in Redis are those by code point: not by a language, not by UTF-16, and NUL is a byte."""
    texts = ["b", "A", "a", "Z", "\0", "", "a\0", "ä", "\uffff", "\U00010000"]
    messages = [message(offset, 100) for offset in range(len(texts))]
    for one, text in zip(messages, texts, strict=True):
        one.fields["text"] = text
    for offset, one in enumerate(messages):
        deliver(redis, [[one]], TEXTS)
        value = stored(redis, TEXTS)[b"a"]
        answer = streams.features(TEXTS, b"a", value, 100 * SECOND)
        so_far = sorted(texts[: offset + 1], key=str.encode)
        assert (answer["text_min_60000000"], answer["text_max_60000000"]) == (so_far[0], so_far[-1])
        assert (answer["text_first_60000000"], answer["text_last_60000000"]) == (texts[0], texts[offset])


def test_partitions_in_any_order_leave_the_same_bytes(redis: Redis) -> None:
    """Three partitions, each applied by itself, in all six orders."""
    parts = [[message(offset, 100 * offset + partition, partition) for offset in range(9)] for partition in range(3)]
    seen = set()
    for order in itertools.permutations(parts):
        redis.flushdb()
        deliver(redis, list(order))
        seen.add(tuple(stored(redis).items()))
    assert len(seen) == 1


def test_a_delta_across_its_fence_is_cut(redis: Redis) -> None:
    """A zombie with other batch limits sends what is applied in part: only what is new counts."""
    messages = [message(offset, 10 * offset) for offset in range(6)]
    deliver(redis, [messages[:4]])

    counts = deliver(redis, [messages[2:], messages[:5]])

    assert counts == Counts(applied=2, duplicate=2 + 5, conflicts=2)
    assert stored(redis) == streams.expected_values(VIEW, messages)


@pytest.mark.parametrize("newest", [0, -1, 1_357_000_000_000_000, 2**52, -(2**52), 2**53, 2**62, -(2**62)])
def test_long_windows_hold_what_they_see(redis: Redis, newest: int) -> None:
    """Of windows longer than 2^32 µs, too, the oldest tile is kept and the one before it is not, whatever the time."""
    windows = (Window(2 * HOUR, 10 * MINUTE), Window(30 * DAY, DAY))
    counts = tuple(Aggregation(f"count_{w.length}", "f", "Float64", "count", w, "Int64") for w in windows)
    view = hashed_view(replace(VIEW, name="long", aggregations=counts), streams.SOURCE)
    times = [newest, *(window.lower(newest) + by for window in windows for by in (-1, 0))]
    messages = [Message(0, offset, {**message(0, 0).fields, "at": at}) for offset, at in enumerate(times)]

    for one in messages:
        deliver(redis, [[one]], view)

    assert stored(redis, view) == streams.expected_values(view, messages)


def test_too_late_events_are_counted(redis: Redis) -> None:
    """An event older than every window as of the newest one is dropped and counted; it moves the fence all the same."""
    deliver(redis, [[message(0, 100_000)]])

    counts = deliver(redis, [[message(1, 10), message(2, 11), message(3, 99_990)]])

    assert counts == Counts(applied=1, too_late=2)
    assert deliver(redis, [[message(1, 10), message(2, 11)]]) == Counts(duplicate=2, conflicts=1)


def test_tiles_expire_when_the_last_window_has_passed(redis: Redis) -> None:
    """The time to live is the longest window and its hop, and how far events may lie ahead, whatever the event times."""
    deliver(redis, [[message(0, 100)]])

    ahead = VIEW.future_tolerance // 1000
    assert ahead == 600_000
    assert 1_290_000 < redis.pttl(key(b"a")) - ahead <= 1_300_000


def test_a_sum_that_outgrows_its_cell_is_refused(redis: Redis) -> None:
    """The error names the key, and what was stored stays."""
    record = np.zeros(1, VIEW.tile_layout.record)
    name, cell = next((n, c) for n, (_, cs) in VIEW.tile_layout.columns.items() for c in cs if c == "sum")
    position = list(VIEW.tile_layout.columns).index(name)
    record[f"count{position}"] = 1
    record[f"{cell}{position}"][:, -1] = 0x7FFF_FFFF
    newest = np.zeros(1, np.int64).tobytes()
    writer = TileWriter(redis, "p", VIEW)

    def delta(offset: int) -> Delta:
        extent = np.array([(0, offset, offset)], redis_store.EXTENT).tobytes()
        return Delta(b"a", newest, extent, record.tobytes())

    assert writer.merge([delta(0)]) == [redis_store.APPLIED]
    before = redis.get(key(b"a"))
    with pytest.raises(DataError, match=r"cells@.*/a.*grown beyond"):
        writer.merge([delta(1)])
    assert redis.get(key(b"a")) == before


@pytest.mark.parametrize("value", [b"", b"\x07", b"\x02" + b"x" * 40, b"\x01" + b"x" * 40])
def test_foreign_bytes_are_refused(redis: Redis, value: bytes) -> None:
    """A key that holds something else is named, and stays as it is."""
    redis.set(key(b"a"), value)

    with pytest.raises((StoredBytesError, DefinitionMismatchError), match="/a"):
        TileWriter(redis, "p", VIEW).merge([Delta(b"a", bytes(8), bytes(20), b"")])

    assert redis.get(key(b"a")) == value


def test_one_call_of_many_keys_is_as_many_deltas(redis: Redis) -> None:
    """The error names the key in the middle that is wrong; those before it are applied once, though the call is made again."""
    writer = TileWriter(redis, "p", VIEW)
    messages = [Message(0, offset, message(offset, 100).fields | {"who": who}) for offset, who in enumerate("abcab")]
    events = streams.events_of(VIEW, messages)
    redis.set(key(b"b"), b"\x07")

    with pytest.raises(StoredBytesError, match="/b"):
        stream.merge(events, writer.merge)
    assert redis.get(key(b"b")) == b"\x07"
    redis.delete(key(b"b"))

    assert stream.merge(events, writer.merge) == Counts(applied=3, duplicate=2, conflicts=1)
    assert stored(redis) == streams.expected_values(VIEW, messages)


@pytest.mark.parametrize("bytes_passed", [1, 5_000, 20_000, 40_000, 60_000])
def test_what_was_answered_before_a_cut_is_not_asked_again(redis: Redis, bytes_passed: int) -> None:
    """Of many calls under way, a lost connection leaves only the last few without an answer."""
    messages = [Message(0, offset, message(offset, 100).fields | {"who": f"{offset:03}"}) for offset in range(200)]
    events = streams.events_of(VIEW, messages)
    with proxies(None) as (proxy,):
        proxy.target = redis.connection_pool.connection_kwargs["port"]
        with open_client(f"redis://127.0.0.1:{proxy.port}") as behind:
            behind.ping()
            proxy.cut_after(bytes_passed)
            counts = stream.merge(events, TileWriter(cast(Redis, behind), "p", VIEW).merge)
        assert not proxy.is_about_to_cut

    assert counts.applied + counts.duplicate == len(messages)
    assert counts.duplicate <= 48
    assert stored(redis) == streams.expected_values(VIEW, messages)


def test_loading_yields_to_what_the_stream_has_applied(redis: Redis) -> None:
    """Tiles from the offline store replace what they include, and nothing that goes beyond them."""
    writer = TileWriter(redis, "p", VIEW)

    def load(newest: int, fences: dict[int, int]) -> bool:
        return bool(writer.load([b"a"], [pack_tiles(VIEW.tag, newest, fences, b"")])[0])

    assert load(1, {0: 5, 2: 7})
    assert load(2, {0: 5, 1: 0, 2: 8})
    assert not load(3, {0: 6, 2: 8})
    assert not load(3, {0: 6, 1: 0, 2: 7})
    assert redis.get(key(b"a")) == pack_tiles(VIEW.tag, 2, {0: 5, 1: 0, 2: 8}, b"")


_EDGES = [-(2**63), -1, 0, 1, 2**32, 2**53, 2**53 + 1, 2**63 - 1]
_ROWS = st.tuples(*[st.sampled_from(_EDGES)] * 3, st.integers(0, 255))


@shared_server
@given(rows=st.lists(_ROWS, min_size=1, max_size=6), random=st.randoms(use_true_random=False))
def test_the_greatest_latest_row_stays(redis: Redis, rows: list[tuple[int, int, int, int]], random: Any) -> None:
    """By (timestamp, a, b), then by bytes, in whatever order rows come."""
    view = plans.weather_view()
    at, a, b = (np.array([row[i] for row in rows], np.int64) for i in range(3))
    columns = {
        "temp": column("Float64", [1.0] * len(rows)),
        "reading": column("Int64", [row[3] for row in rows]),
        "sky": column("String", ["é" if row[3] % 2 else None for row in rows]),
    }
    values = view.row_layout.pack(at, a, b, columns)
    greatest = max(zip(rows, values, strict=True), key=lambda pair: (pair[0][:3], pair[1]))[1]
    random.shuffle(values)
    redis.flushdb()

    changed = LatestWriter(redis, "p", view).put([b"JFK"] * len(values), values)

    assert changed[0]
    assert redis.get(key(b"JFK", view)) == greatest
    assert redis.pttl(key(b"JFK", view)) == -1


@pytest.mark.parametrize("deciding", [0, 1, 2])
def test_each_number_alone_decides_between_latest_rows(redis: Redis, deciding: int) -> None:
    """Rows that are equal but in the timestamp, a or b, which bytes would often order otherwise: any two, either first."""
    view = plans.weather_view()
    pairs = np.array(list(itertools.product(_EDGES, repeat=2)))
    fields = {f.name: column(f.dtype, [None] * len(pairs)) for f in view.fields}
    numbers = np.zeros((2, 3, len(pairs)), np.int64)
    numbers[:, deciding] = pairs.T
    first, second = (view.row_layout.pack(at, a, b, fields) for at, a, b in numbers)
    entities = [b"%d" % number for number in range(len(pairs))]
    writer = LatestWriter(redis, "p", view)

    assert writer.put(entities, first).all()
    later = pairs[:, 1] > pairs[:, 0]
    assert (writer.put(entities, second) == later).all()
    expected = [new if it_is else old for old, new, it_is in zip(first, second, later.tolist(), strict=True)]
    assert stored(redis, view) == dict(zip(entities, expected, strict=True))


def test_latest_rows_of_another_definition_are_refused(redis: Redis) -> None:
    """Law 8: the error names the key and the stored hash."""
    view = plans.weather_view(ttl=10**9)
    redis.set(key(b"JFK", view), b"\x01" + bytes(range(8)) + bytes(40))
    zero = np.zeros(1, np.int64)
    fields = {f.name: column(f.dtype, [None]) for f in view.fields}

    with pytest.raises(DefinitionMismatchError, match=r"/JFK.*0001020304050607"):
        LatestWriter(redis, "p", view).put([b"JFK"], view.row_layout.pack(zero, zero, zero, fields))


def test_lost_functions_are_loaded_again(redis: Redis) -> None:
    """A server that was flushed or replaced forgets the library; the write that notices it brings it back."""
    deliver(redis, [[message(0, 0)]])
    redis.function_flush()

    assert deliver(redis, [[message(0, 0)], [message(1, 1)]]).consumed == 2
    assert redis.function_list()


def test_an_unreachable_server_is_named_without_its_password() -> None:
    """The error says which address and which variable."""
    gone = Redis.from_url("redis://user:secret@127.0.0.1:1/0")

    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1 .*REDIS_URL") as raised:
        load_library(gone)

    assert "secret" not in str(raised.value)


def test_patience_decides_about_another_try(redis: Redis) -> None:
    """What a lost connection left unanswered is asked again; once it is there, each event counts once."""
    asked = []

    def patience(error: UnavailableError) -> None:
        asked.append(error)
        redis.config_set("maxmemory", 0)

    load_library(redis)
    redis.config_set("maxmemory", 1)
    try:
        writer = TileWriter(redis, "p", VIEW, patience)
        counts = stream.merge(streams.events_of(VIEW, [message(0, 0)]), writer.merge)
    finally:
        redis.config_set("maxmemory", 0)

    assert counts == Counts(applied=1)
    assert len(asked) == 1


def test_progress_is_kept_per_definition_and_never_falls(redis: Redis) -> None:
    """Two definitions of one name are two; a slow worker cannot take progress back."""
    one, other = plans.window_view(), plans.latest_stream_view()
    advance_progress(redis, "p", [one, other], {("t", 0): 9, ("t", 1): 2**52 + 1})
    advance_progress(redis, "p", [one], {("t", 0): 8, ("u.v", 1): 10})

    assert progress(redis, "p", one) == {("t", 0): 9, ("t", 1): 2**52 + 1, ("u.v", 1): 10}
    assert progress(redis, "p", other) == {("t", 0): 9, ("t", 1): 2**52 + 1}


def test_a_published_plan_replaces_the_one_before(redis: Redis) -> None:
    """Services that are gone disappear, with their plans."""

    def plan(*names: str) -> Plan:
        view = plans.window_view()
        use = ViewUse(view.name, view.name, ("carrier",), ())
        services = tuple(Service(n, (use,), (), (Field("carrier", "String"),), (), (), f"hash of {n}") for n in names)
        return Plan("flights", (plans.LANDING,), (view,), (), services)

    redis_store.publish_plan(redis, plan("one", "two"))
    redis_store.publish_plan(redis, plan("two", "three"))

    hashes: Any = redis.hgetall(services_key("flights"))
    assert hashes == {b"two": b"hash of two", b"three": b"hash of three"}
    assert redis.exists(plan_key("flights", "one"), version_key("flights", "one")) == 0
    assert redis.get(version_key("flights", "three")) == redis.hget(services_key("flights"), "three")
    text: Any = redis.get(plan_key("flights", "three"))
    assert Plan.from_json(text) == plan("two", "three").for_service("three")


def test_a_mark_says_how_data_came(redis: Redis) -> None:
    """No mark: nothing was ever loaded under this definition."""
    view = plans.window_view()
    changed = hashed_view(view, plans.BATCH)
    redis_store.mark_view(redis, "p", view, {"by": "bootstrap"})

    assert redis_store.view_mark(redis, "p", view) == {"by": "bootstrap"}
    assert redis_store.view_mark(redis, "p", changed) is None


def test_where_a_worker_begins_is_no_proof_of_what_redis_holds(redis: Redis) -> None:
    """Redis may lose writes between the look at its progress and the first batch: what it has then stays as it is."""
    view = plans.window_view()
    advance_progress(redis, "p", [view], {("t", 0): 5})

    begin_progress(redis, "p", [view], {("t", 0): 9, ("t", 1): 3})

    assert progress(redis, "p", view) == {("t", 0): 5, ("t", 1): 3}


def test_progress_is_that_of_the_shard_that_is_least_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shard's mark does not name is not in its data; a mark that no other has heard of says nothing by silence."""
    view = plans.window_view()
    field = f"{view.name}@{view.hash}:a.b"
    heard = {"shards:1:0": 1, "shards:2:0": 1}
    marks = {
        "1": {f"{field}:0": 7, f"{field}:12": 4, **heard},
        "2": {f"{field}:0": 5, "other@00:a.b:0": 1, **heard},
        "3": {},
    }
    monkeypatch.setattr("ingestion.progress._reached", lambda *_: marks)
    server: Any = None
    assert progress(server, "p", view) == {("a.b", 0): 5, ("a.b", 12): 0}
    marks["3"] = {f"{field}:0": 3}
    assert progress(server, "p", view) == {("a.b", 0): 3, ("a.b", 12): 0}
