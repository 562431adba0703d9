"""Laws 3, 5, 6, 7 and 8 on the suite's own data: what the answers alone do not show."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, KafkaError
from deltalake import DeltaTable
from distributed import Client, LocalCluster
from redis import Redis

from ingestion.reading import read_rows
from ingestion.redis_store import publish_plan
from serving_client import FeatureClient, FeatureRows, Status
from tally.errors import DataError, DefinitionMismatchError, NotReadyError
from tally.layout import progress_key, unpack_tiles, views_key
from tally.plan import Plan
from tally.served import EVIDENCE_COLUMN
from tally.time import to_datetime
from tests import oracle
from tests.conformance.cases import DAY, FADING_TTL, Case, T, unanswerable
from tests.conformance.conftest import Ask
from tests.conformance.expected import DECIDED_BY, answer
from tests.conformance.paths import PATHS, entities, entity_rows, label_frame, labels, of_table, open_store, post
from tests.conformance.world import EVENTS, PROJECT, SERVICE, World, redis_url, stream
from training import audit, build_training_set


def _stored(redis: Redis) -> dict[bytes, bytes]:
    keys = sorted(redis.scan_iter(match=f"{PROJECT}/*", count=1000))
    return dict(zip(keys, redis.mget(keys), strict=True))


def _differences(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], world: World) -> list[str]:
    return [
        f"{case}: {name} as of {query.as_of} is {one[name]!r}, not {value!r}"
        for (case, query), one, other in zip(world.queries, found, expected, strict=True)
        for name, value in other.items()
        if not oracle.same(one[name], value)
    ]


# Law 3: order-free


def test_both_ways_into_redis_end_with_the_same_tiles(world: World) -> None:
    """All from the stream, or half from the offline store: each key's tiles, latest rows and newest instant are the same."""
    streamed, bootstrapped = _stored(world.redis(0)), _stored(world.redis(1))
    assert streamed.keys() == bootstrapped.keys()
    for view in world.plan.views:
        prefix = view.prefix(PROJECT)
        keys = [key for key in streamed if key.startswith(prefix)]
        assert keys
        one, other = [streamed[key] for key in keys], [bootstrapped[key] for key in keys]
        if view.kind == "latest":
            assert one == other
            continue
        ones, others = (unpack_tiles(view.tile_layout, view.tag, values, keys) for values in (one, other))
        assert ones.newest.tolist() == others.newest.tolist()
        assert ones.rows.tolist() == others.rows.tolist()
        whole = np.zeros(1, np.int64)
        assert view.tile_layout.pack(ones.records, whole) == view.tile_layout.pack(others.records, whole)


# Law 5: each event counts once


def test_redelivery_changes_no_byte(world: World) -> None:
    """Everything delivered once more, from the first offset, leaves every key as it is."""
    redis = world.redis()
    before = _stored(redis)
    assert len(before) > 100
    redis.delete(progress_key(PROJECT))
    again = stream(world, redis, "conformance-again")
    assert again.consumed == sum(world.log["sent"].values())
    assert again.views["windows"].applied == 0
    assert _stored(redis) == before


def test_every_event_ends_once(world: World) -> None:
    """Over all workers, one of them rewound, an event of a window is applied or too late once; the rest are duplicates."""
    for name in ("windows", "pairs"):
        runs = [summary.views[name] for summary in world.log["streamed"]]
        accepted = sum(len(rows) for rows in world.truth.views[name].values())
        assert sum(run.applied + run.too_late for run in runs) == accepted
        assert runs[1].duplicate + runs[2].duplicate > 0
        for summary, run in zip(world.log["streamed"], runs, strict=True):
            assert run.consumed == summary.topics[EVENTS].consumed


def test_duplicates_in_the_landing_table_are_seen(world: World) -> None:
    """A third of the events landed twice, and the second ingestion said so."""
    second = {done.source: done for done in world.log["ingested"][1]}
    assert second["events"].duplicates > 100
    assert second["rows"].duplicates > 0


# Law 6: visibility is known


def _as_served(world: World, rows: FeatureRows) -> pa.Table:
    evidence = pa.array(rows.evidence_json(), pa.string())
    return labels(world).append_column(EVIDENCE_COLUMN, evidence)


def _replayed(world: World, **how: Any) -> list[dict[str, Any]]:
    asked = _as_served(world, world.log["served"])
    found = build_training_set(
        asked, service=SERVICE, repo=world.repo, offline_uri=world.offline_uri, visibility="as_served", **how
    )
    return of_table(world, found.to_arrow())


def _served_values(world: World) -> list[dict[str, Any]]:
    """What was served half way, without what was ahead of its instant."""
    rows: FeatureRows = world.log["served"]
    plain = {name: [_micros(item) for item in items] for name, items in rows.to_dict().items()}
    kept = []
    for row, (_, query) in enumerate(world.queries):
        views = answer(world.truth, query, waves=1).views
        kept.append({n: plain[n][row] for n in plain if not any(views[view] == "ahead" for view in DECIDED_BY[n])})
    return kept


def _micros(item: Any) -> Any:
    epoch = to_datetime(0)
    return (item - epoch) // (to_datetime(1) - epoch) if hasattr(item, "tzinfo") else item


def test_certificate(world: World) -> None:
    """Replayed offline after everything else has arrived, the evidence of each served row gives the served bits."""
    assert _differences(_replayed(world), _served_values(world), world) == []


def test_certificate_at_the_version_of_then(world: World) -> None:
    """The same from the offline tables as they were when the rows were served."""
    found = _replayed(world, offline_version=world.log["versions"])
    assert _differences(found, _served_values(world), world) == []


def test_an_audit_of_what_was_served_half_way(world: World) -> None:
    """After everything else has arrived, every value of the log is compared but those ahead of their instant, and none differs."""
    rows: FeatureRows = world.log["served"]
    with world.environment():
        (part,) = audit(world.served, repo=world.repo, offline_uri=world.offline_uri).parts
    ahead = sum(int((status == Status.AHEAD).sum()) for status in rows.status.values())
    assert (part.differ, part.left_out, part.audited) == (0, {}, len(world.queries))
    assert (part.flagged, part.values) == ({"ahead": ahead}, len(world.queries) * len(rows.names) - ahead)
    assert 0 < ahead < part.values
    assert part.later > 0


def test_half_way_the_store_served_half_the_truth(world: World) -> None:
    """What was served between the waves is the oracle's answer over the first."""
    expected = [answer(world.truth, query, waves=1).values for _, query in world.queries]
    served = _served_values(world)
    asked = [{name: one[name] for name in other} for one, other in zip(expected, served, strict=True)]
    assert _differences(served, asked, world) == []


def test_an_older_version_is_the_older_truth(world: World) -> None:
    """A training set as of the version after the first wave is the oracle's answer over the first wave."""
    found = build_training_set(
        labels(world),
        service=SERVICE,
        repo=world.repo,
        offline_uri=world.offline_uri,
        offline_version=world.log["versions"],
    )
    expected = [answer(world.truth, query, waves=1).values for _, query in world.queries]
    assert _differences(of_table(world, found.to_arrow()), expected, world) == []


def test_late_events_are_in_one_training_set_only(world: World, ask: Ask) -> None:
    """An event that had not arrived is not in the served set, and is in the set by event time."""
    replayed, classical = _replayed(world), ask("offline").values
    row = next(i for i, (case, q) in enumerate(world.queries) if case == "late-events" and q.as_of == T)
    first, both = (answer(world.truth, world.queries[row][1], waves).values for waves in (1, 2))
    for name in ("f64_sum_1h", "i64_count_1h", "f64_count_1d", "b_count_1h"):
        assert first[name] != both[name]
        assert replayed[row][name] == first[name]
        assert classical[row][name] == both[name]


def test_without_evidence_arrival_decides(world: World) -> None:
    """Messages made today were not there for labels of long ago; a correction counts from when it was created."""
    found = build_training_set(
        labels(world), service=SERVICE, repo=world.repo, offline_uri=world.offline_uri, visibility="as_served"
    )
    values = of_table(world, found.to_arrow())
    for (case, query), one in zip(world.queries, values, strict=True):
        if query.as_of < T + 366 * DAY:
            assert one["f64_count_1d"] == one["pair_count"] == 0
            assert one["r_i64"] is None
        if case == "ttl-edge":
            assert one["reading"] == (2**60 + 1 if 0 <= query.as_of - T <= FADING_TTL else None)
        if case == "correction":
            assert one["reading"] is None


# Law 7: nothing is silently lost


def test_every_bad_message_is_a_dead_letter(world: World) -> None:
    """Each message that a view refuses is in the dead-letter topic with its reason, and counted offline."""
    letters = list(_letters(world))
    assert all(reason for *_, reason in letters)
    by_view: dict[str, set[tuple[int, int]]] = {"": set(), "windows": set(), "pairs": set()}
    for partition, offset, view, _ in letters:
        by_view[view].add((partition, offset))
    assert len(by_view[""]) == world.truth.bad
    assert {view: len(by_view[view]) for view in ("windows", "pairs")} == world.truth.refused
    for view in ("windows", "pairs"):
        rows = read_rows(world.plan, world.plan.view(view), world.offline_uri)
        assert sum(rows.refused.values()) == world.truth.refused[view]
    rejected = DeltaTable(f"{world.offline_uri}/events__rejected").to_pyarrow_table()
    places = zip(rejected.column("_partition").to_pylist(), rejected.column("_offset").to_pylist(), strict=True)
    assert set(places) == by_view[""]


def _letters(world: World) -> Iterator[tuple[int, int, str, str]]:
    """(partition, offset, view, reason) of every dead letter of the windows' topic."""
    config = {"group.id": "conformance-letters", "auto.offset.reset": "earliest", "enable.partition.eof": True}
    consumer = Consumer({**world.settings.kafka_config(), **config})
    try:
        consumer.subscribe([f"{EVENTS}.dlq"])
        give_up = time.monotonic() + 120
        while True:
            assert time.monotonic() < give_up, "the dead-letter topic has no end"
            message = consumer.poll(0.1)
            if message is None:
                continue
            error = message.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                return
            said = {name: (value or b"").decode() for name, value in message.headers()}
            assert said["tally-topic"] == EVENTS
            yield int(said["tally-partition"]), int(said["tally-offset"]), said["tally-view"], said["tally-reason"]
    finally:
        consumer.close()


def test_sums_beyond_int64_are_refused_alike(world: World) -> None:
    """A sum of integers that does not fit is an error that names the feature: offline, online, and of Feast's either side."""
    case: Case = unanswerable()
    query = case.queries[0]
    alone = dataclasses.replace(world, queries=[(case.name, query)])

    def from_client() -> None:
        with world.client() as client:
            client.get([dict(query.asked)], query.as_of)

    def from_cluster() -> None:
        with LocalCluster(1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster, Client(cluster):
            build_training_set(labels(alone), service=SERVICE, repo=world.repo, offline_uri=world.offline_uri)

    def from_builder() -> None:
        build_training_set(labels(alone), service=SERVICE, repo=world.repo, offline_uri=world.offline_uri)

    def from_feast_offline() -> None:
        with world.environment():
            store = open_store(world)
            store.get_historical_features(label_frame(alone), store.get_feature_service(SERVICE)).to_arrow()

    def from_feast_online() -> None:
        with world.environment():
            store = open_store(world)
            store.get_online_features(store.get_feature_service(SERVICE), entity_rows(alone))

    def from_feast_async() -> None:
        next(path for path in PATHS if path.name == "feast-online-async").ask(alone)

    refused = r"(i64|pair)_sum\w*: a sum of integers is outside int64"
    for answer_of in (from_client, from_builder, from_cluster, from_feast_offline, from_feast_online, from_feast_async):
        with pytest.raises(DataError, match=refused):
            answer_of()
    code, said = post(alone, {"feature_service": SERVICE, "entities": entities(alone)})
    assert code == 500
    assert re.match(refused, said)


def test_numbers_that_json_lacks(world: World) -> None:
    """Over HTTP an infinity is a text, NaN is null, and an integer has all its digits, in the request and in the answer."""
    row = next(row for row, (case, _) in enumerate(world.queries) if case == "request-fields")
    asked = dataclasses.replace(world, queries=[world.queries[row]])
    _, query = world.queries[row]
    for weight in (math.nan, math.inf, -math.inf, 1e308):
        columns = {**entities(asked), "weight": [weight]}
        code, answer = post(asked, {"feature_service": SERVICE, "entities": columns})
        assert code == 200
        found = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
        with world.client() as client:
            expected = client.get([{**query.asked, "weight": weight}], query.as_of).to_dict()
        for name in ("score", "is_heavy"):
            (value,) = found[name]["values"]
            if isinstance(value, str):
                assert value in ("Infinity", "-Infinity")
                value = float(value)
            assert repr(value) == repr(expected[name][0])


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("code_i", 2**63),
        ("code_i", 2.0**53 + 2),
        ("code_i", 1.5),
        ("code_i", "1"),
        ("code_i", math.nan),
        ("code_n", 2**31),
        ("weight", "Infinity"),
        ("weight", 10**400),
    ],
    ids=["int64", "rounded", "fraction", "text", "nan", "int32", "infinity as text", "float64"],
)
def test_numbers_that_do_not_fit_over_http(world: World, name: str, item: Any) -> None:
    """A number that its column cannot hold whole is an error that names the column, never another number."""
    asked = dataclasses.replace(world, queries=world.queries[:1])
    code, said = post(asked, {"feature_service": SERVICE, "entities": {**entities(asked), name: [item]}})
    assert code == 500
    assert name in said


def test_feast_frames_keep_integers(world: World) -> None:
    """`to_df` of a historical retrieval holds 2^60 + 1 beside nulls, and one row for each label."""
    with world.environment():
        store = open_store(world)
        frame = store.get_historical_features(
            entity_df=label_frame(world), features=store.get_feature_service(SERVICE)
        ).to_df()
    assert frame["row"].tolist() == list(range(len(world.queries)))
    assert str(frame["i64_sum_1h"].dtype) == "Int64"
    row = next(i for i, (case, _) in enumerate(world.queries) if case == "null-beside-big")
    assert frame["i64_sum_1h"][row] == 2**60 + 1
    assert frame["i64_sum_1h"].isna().sum() > 10


# Law 8: everything carries its definition's hash


@pytest.fixture
def elsewhere(world: World) -> Iterator[Redis]:
    """A third store that holds what the first does; emptied afterwards."""
    redis, other = world.redis(), world.redis(2)
    loaded: Any = redis.hgetall(views_key(PROJECT))
    values: Any = _stored(redis)
    other.mset(values)
    other.hset(views_key(PROJECT), mapping=loaded)
    publish_plan(other, world.plan)
    yield other
    other.flushdb()


def _get(redis: Redis, plan: Plan, world: World) -> FeatureRows:
    asked = [(dict(query.asked), query.as_of) for case, query in world.queries if case == "exactly-at-t"]
    return FeatureClient(redis, plan.for_service(SERVICE)).get([row for row, _ in asked], [at for _, at in asked])


@pytest.mark.parametrize("name", ["windows", "latest", "fading", "lasting"])
def test_rows_of_another_definition_are_refused(name: str, world: World, elsewhere: Redis) -> None:
    """A stored value whose definition hash is another's is never decoded, also where the key's eight digits agree."""
    _get(elsewhere, world.plan, world)
    prefix = world.plan.view(name).prefix(PROJECT)
    key = next(key for key in elsewhere.scan_iter(match=prefix + b"*", count=1000) if b"exactly-at-t" in key)
    value = bytearray(elsewhere.get(key))  # type: ignore[arg-type]
    value[8] ^= 1  # the last byte of the hash, behind the four that the key shows
    elsewhere.set(key, bytes(value))
    with pytest.raises(DefinitionMismatchError, match="was written under definition"):
        _get(elsewhere, world.plan, world)


def test_another_source_of_a_function_is_refused(world: World, elsewhere: Redis) -> None:
    """A plan made with other source of a request function does not connect."""
    changed = [
        dataclasses.replace(f, function=dataclasses.replace(f.function, source_hash="0" * 32))
        for f in world.plan.functions
    ]
    publish_plan(elsewhere, dataclasses.replace(world.plan, functions=tuple(changed)))
    with pytest.raises(DefinitionMismatchError, match="source hash"):
        FeatureClient.connect(redis_url(world.settings, 2), project=PROJECT, service=SERVICE)


def test_a_definition_that_was_never_loaded_is_refused(world: World, elsewhere: Redis) -> None:
    """A changed view is not answered from nothing: whoever connects hears that it was never loaded."""
    changed = [dataclasses.replace(view, hash="f" * 32) if view.name == "fading" else view for view in world.plan.views]
    publish_plan(elsewhere, dataclasses.replace(world.plan, views=tuple(changed)))
    with pytest.raises(NotReadyError, match="fading"):
        FeatureClient.connect(redis_url(world.settings, 2), project=PROJECT, service=SERVICE)


def test_the_training_set_names_its_definition(world: World) -> None:
    """Manifest and served rows carry the service's hash, and every view's."""
    found = build_training_set(labels(world), service=SERVICE, repo=world.repo, offline_uri=world.offline_uri)
    service = world.plan.service(SERVICE)
    assert found.definition == service.hash == world.log["served"].definition
    assert found.manifest["view_hashes"] == {view.name: view.hash for view in world.plan.views}
    assert found.manifest["label_rows"] == found.manifest["rows"] == len(world.queries)
