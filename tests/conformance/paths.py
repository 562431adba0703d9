"""Every path that answers, each as a function from a world to what it answered for `world.queries`."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import multiprocessing
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pandas as pd
import pyarrow as pa
from redis.asyncio import Redis as AsyncRedis

from connections import open_client
from ingestion.redis_store import publish_plan
from serving_client import AsyncFeatureClient, FeatureClient, FeatureRows, Status
from serving_client.few_rows import FEW
from tally.layout import views_key
from tally.time import from_datetime, to_datetime
from tests import redis_servers
from tests.conformance.cases import CODES
from tests.conformance.world import ARROW, PROJECT, SERVICE, World, moments, redis_url, served, wait_for
from training import TrainingSet, build_training_set

SECONDS = "Feast's protobuf timestamps are whole seconds: what lies below is floored on this path"


@dataclass(frozen=True)
class Answered:
    """`values` has for each query the features by name: None, bool, int (instants: µs), float, str or bytes.

    `status` has for each query, by feature, how an online path says that the value came about: None offline.
    """

    values: Sequence[dict[str, Any]]
    status: Sequence[dict[str, str]] | None = None


@dataclass(frozen=True)
class AnsweringPath:
    """A path. `online` paths cannot look behind what the store holds; `whole_seconds` is why instants are floored."""

    name: str
    ask: Callable[[World], Answered]
    online: bool
    whole_seconds: str = ""


def labels(world: World) -> pa.Table:
    """All queries as label rows, with a column of their own that has to come along."""
    asked = [query.asked for _, query in world.queries]
    columns = {
        name: pa.array([one[name] for one in asked], ARROW[dtype])
        for name, dtype in {"case": "String", "left": "String", "right": "String", **CODES}.items()
    }
    columns["weight"] = pa.array([one["weight"] for one in asked], pa.float64())
    columns["label"] = pa.array([one["label"] for one in asked], pa.string())
    columns["event_timestamp"] = pa.array([query.as_of for _, query in world.queries], pa.timestamp("us", "UTC"))
    columns["row"] = pa.array(range(len(asked)), pa.int64())
    return pa.table(columns)


# Offline


def _offline_local(world: World) -> Answered:
    return _of_training_set(world, build_training_set(labels(world), **_offline(world)))


def _offline_cluster(world: World) -> Answered:
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        return _of_training_set(world, build_training_set(labels(world), client=client, **_offline(world)))


def _offline(world: World) -> dict[str, Any]:
    return {"service": SERVICE, "repo": world.repo, "offline_uri": world.offline_uri}


def _of_training_set(world: World, found: TrainingSet) -> Answered:
    return Answered(of_table(world, found.to_arrow()))


def of_table(world: World, table: pa.Table) -> list[dict[str, Any]]:
    """The features of a training set that has one row for each query, in order, with the right Arrow types."""
    names = output_dtypes(world)
    assert table.column("row").to_pylist() == list(range(len(world.queries))), "labels in are rows out, in their order"
    for name, dtype in names.items():
        assert table.schema.field(name).type == (
            pa.timestamp("us", "UTC") if dtype == "UnixTimestamp" else ARROW_OUT[dtype]
        )
    plain = table.select(list(names))
    for position, (name, dtype) in enumerate(names.items()):
        if dtype == "UnixTimestamp":
            plain = plain.set_column(position, name, plain.column(name).cast(pa.int64()))
    return plain.to_pylist()  # type: ignore[no-any-return]


ARROW_OUT = {**ARROW, "Bytes": pa.binary()}


def output_dtypes(world: World) -> dict[str, str]:
    """The service's outputs and their dtypes."""
    return {output.name: output.dtype for output in world.plan.service(SERVICE).outputs}


# The clients


def _sync(database: int) -> Callable[[World], Answered]:
    def ask(world: World) -> Answered:
        with world.client(database) as client:
            return _of_rows(world, [served(world, client)])

    return ask


def _sync_one_by_one(world: World) -> Answered:
    with world.client() as client:
        return _of_rows(world, [client.get([dict(query.asked)], query.as_of) for _, query in world.queries])


def _sync_few(world: World) -> Answered:
    """As many at a time as are looked up in scalars."""
    positions = range(len(world.queries))
    with world.client() as client:
        some = [positions[start : start + FEW] for start in positions[::FEW]]
        return _of_rows(world, [client.get(*_asked(world, few)) for few in some])


def _shares(world: World) -> list[list[int]]:
    """The positions of all queries in four shares."""
    return [list(range(start, len(world.queries), 4)) for start in range(4)]


def _asked(world: World, positions: Sequence[int]) -> tuple[list[dict[str, Any]], list[int]]:
    """Rows and instants of some queries."""
    chosen = [world.queries[position][1] for position in positions]
    return [dict(query.asked) for query in chosen], [query.as_of for query in chosen]


def _in_order(world: World, shares: Sequence[tuple[Sequence[int], Answered]]) -> Answered:
    """The shares' answers in the order of the queries."""
    values: list[dict[str, Any]] = [{} for _ in world.queries]
    status: list[dict[str, str]] = [{} for _ in world.queries]
    for positions, answered in shares:
        assert answered.status is not None
        for position, own, how in zip(positions, answered.values, answered.status, strict=True):
            values[position], status[position] = own, how
    return Answered(values, status)


def _threads(world: World) -> Answered:
    """One client, four threads at once."""
    shares = _shares(world)
    with world.client() as client, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda positions: client.get(*_asked(world, positions)), shares))
    return _in_order(world, [(p, _of_rows(world, [rows])) for p, rows in zip(shares, answers, strict=True)])


def _forks(world: World) -> Answered:
    """One client that was used before the process forked, asked by two children and the parent at once."""
    shares = _shares(world)
    context = multiprocessing.get_context("fork")
    with world.client() as client:
        client.get(*_asked(world, [0]))

        def child(positions: list[int], end: Any) -> None:
            answered = _of_rows(world, [client.get(*_asked(world, positions))])
            end.send((answered.values, answered.status))
            end.close()

        waiting = []
        for positions in shares[:2]:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=child, args=(positions, there))
            process.start()
            there.close()
            waiting.append((positions, process, here))
        done = [(p, _of_rows(world, [client.get(*_asked(world, p))])) for p in shares[2:]]
        for positions, process, here in waiting:
            done.append((positions, Answered(*here.recv())))
            process.join()
            assert process.exitcode == 0
    return _in_order(world, done)


@contextmanager
def _on_cluster(world: World) -> Iterator[str]:
    """The address of a Redis Cluster that holds what the first store does."""
    with TemporaryDirectory() as folder, redis_servers.cluster(Path(folder)) as servers:
        source = world.redis()
        with open_client(servers.url) as target:
            for key in source.scan_iter(match=f"{PROJECT}/*", count=1000):
                target.set(key, cast(bytes, source.get(key)))
            target.hset(views_key(PROJECT), mapping=cast(Any, source.hgetall(views_key(PROJECT))))
            publish_plan(target, world.plan)
        yield servers.url


def _cluster(world: World) -> Answered:
    with _on_cluster(world) as url, FeatureClient.connect(url, project=PROJECT, service=SERVICE, timeout=60) as client:
        return _of_rows(world, [served(world, client)])


def _cluster_async(world: World) -> Answered:
    async def ask(url: str) -> list[FeatureRows]:
        async with await AsyncFeatureClient.connect(url, project=PROJECT, service=SERVICE, timeout=60) as client:
            shares = _shares(world)
            return await asyncio.gather(*(client.get(*_asked(world, positions)) for positions in shares))

    with _on_cluster(world) as url:
        answers = asyncio.run(ask(url))
    shares = _shares(world)
    return _in_order(world, [(p, _of_rows(world, [rows])) for p, rows in zip(shares, answers, strict=True)])


def _async(world: World) -> Answered:
    async def ask() -> FeatureRows:
        redis = AsyncRedis.from_url(redis_url(world.settings, 0))
        client = AsyncFeatureClient(redis, world.plan.for_service(SERVICE))
        try:
            columns = {name: [query.asked[name] for _, query in world.queries] for name in world.queries[0][1].asked}
            return await client.get(columns, moments(world))
        finally:
            await client.close()

    return _of_rows(world, [asyncio.run(ask())])


def _of_rows(world: World, answers: Sequence[FeatureRows]) -> Answered:
    values: list[dict[str, Any]] = []
    status: list[dict[str, str]] = []
    dtypes = output_dtypes(world)
    for rows in answers:
        assert {name: column.dtype for name, column in rows.columns.items()} == dtypes
        found = rows.to_dict()
        for row in range(len(rows)):
            values.append({name: _plain(items[row]) for name, items in found.items()})
            status.append({name: Status(int(how[row])).name.lower() for name, how in rows.status.items()})
    return Answered(values, status)


def _plain(item: Any) -> Any:
    return from_datetime(item) if hasattr(item, "tzinfo") else item


# Feast, offline


def open_store(world: World) -> Any:
    """Feast's own way in."""
    from feast import FeatureStore

    return FeatureStore(repo_path=str(world.repo))


def label_frame(world: World) -> pd.DataFrame:
    """`labels` as the entity frame that Feast asks for."""
    frame: pd.DataFrame = labels(world).to_pandas(types_mapper={pa.string(): pd.StringDtype()}.get)
    return frame


def _historical_service(world: World) -> Answered:
    with world.environment():
        store = open_store(world)
        job = store.get_historical_features(entity_df=label_frame(world), features=store.get_feature_service(SERVICE))
        return Answered(of_table(world, job.to_arrow()))


def _historical_list(world: World) -> Answered:
    with world.environment():
        job = open_store(world).get_historical_features(entity_df=label_frame(world), features=references(world))
        return Answered(of_table(world, job.to_arrow()))


def references(world: World) -> list[str]:
    """Every feature as ``view:feature``."""
    service = world.plan.service(SERVICE)
    stored = [f"{use.view}:{feature}" for use in service.views for feature, _ in use.features]
    return stored + [f"{use.function}:{feature}" for use in service.functions for feature, _ in use.features]


# Feast, online


def entity_rows(world: World) -> list[dict[str, Any]]:
    """All queries as Feast asks online, with the instant as a column of its own."""
    return [
        {**query.asked, "code_t": to_datetime(query.asked["code_t"]), "event_timestamp": to_datetime(query.as_of)}
        for _, query in world.queries
    ]


def _online_service(world: World) -> Answered:
    with world.environment():
        store = open_store(world)
        response = store.get_online_features(
            features=store.get_feature_service(SERVICE), entity_rows=entity_rows(world)
        )
        return answers_of(world, response)


def _online_list(world: World) -> Answered:
    with world.environment():
        response = open_store(world).get_online_features(features=references(world), entity_rows=entity_rows(world))
        return answers_of(world, response)


def _online_async(world: World) -> Answered:
    async def ask() -> Any:
        store = open_store(world)
        try:
            return await store.get_online_features_async(
                features=store.get_feature_service(SERVICE), entity_rows=entity_rows(world)
            )
        finally:
            await store.close()

    with world.environment():
        return answers_of(world, asyncio.run(ask()))


_FEAST_STATUS = {"PRESENT": "present", "NOT_FOUND": "missing", "OUTSIDE_MAX_AGE": "expired", "INVALID": "ahead"}


def answers_of(world: World, response: Any, names: Mapping[str, str] | None = None) -> Answered:
    """Feast's response, its features renamed by `names`."""
    from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

    proto = response.proto
    count = len(world.queries)
    values: list[dict[str, Any]] = [{} for _ in range(count)]
    status: list[dict[str, str]] = [{} for _ in range(count)]
    dtypes = output_dtypes(world)
    for answered, vector in zip(proto.metadata.feature_names.val, proto.results, strict=True):
        name = (names or {}).get(answered, answered)
        if name not in dtypes:
            continue
        for row in range(count):
            kind = vector.values[row].WhichOneof("val")
            assert kind is None or kind == _KINDS[dtypes[name]], f"{name} came as {kind}"
            item: Any = None if kind is None else getattr(vector.values[row], kind)
            values[row][name] = item * 1_000_000 if kind == "unix_timestamp_val" else item
            status[row][name] = _FEAST_STATUS[FieldStatus.Name(vector.statuses[row])]
    return Answered(values, status)


_KINDS = {
    "Float64": "double_val", "Float32": "float_val", "Int64": "int64_val", "Int32": "int32_val", "Bool": "bool_val",
    "String": "string_val", "Bytes": "bytes_val", "UnixTimestamp": "unix_timestamp_val",
}  # fmt: skip


# HTTP


def entities(world: World) -> dict[str, list[Any]]:
    """All queries as the columns of a request over HTTP."""
    asked = [query.asked for _, query in world.queries]
    columns: dict[str, list[Any]] = {name: [one[name] for one in asked] for name in asked[0]}
    columns["weight"] = [None if weight is None or math.isnan(weight) else weight for weight in columns["weight"]]
    columns["code_t"] = [to_datetime(moment).isoformat() for moment in columns["code_t"]]
    columns["event_timestamp"] = [moment.isoformat() for moment in moments(world)]
    return columns


def _http(world: World) -> Answered:
    asked = [query.asked for _, query in world.queries]
    code, answer = post(world, {"feature_service": SERVICE, "entities": entities(world)})
    assert code == 200, answer
    values: list[dict[str, Any]] = [{} for _ in asked]
    status: list[dict[str, str]] = [{} for _ in asked]
    dtypes = output_dtypes(world)
    for name, vector in zip(answer["metadata"]["feature_names"], answer["results"], strict=True):
        for row in range(len(asked)) if name in dtypes else ():
            values[row][name] = _from_json(dtypes[name], vector["values"][row])
            status[row][name] = _FEAST_STATUS[vector["statuses"][row]]
    return Answered(values, status)


def post(world: World, body: Any) -> tuple[int, Any]:
    """(HTTP's status code, the JSON) that `feast serve` answers."""
    wait_for(world.server)
    request = urllib.request.Request(
        f"{world.server}/get-online-features", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def _from_json(dtype: str, item: Any) -> Any:
    if item is None:
        return None
    if dtype == "UnixTimestamp":
        return item * 1_000_000
    if dtype in ("Float64", "Float32"):
        return float(item)  # JSON has no infinities: they are the texts that protobuf's JSON has for them
    return base64.b64decode(item) if dtype == "Bytes" else item


PATHS = (
    AnsweringPath("offline", _offline_local, online=False),
    AnsweringPath("offline-cluster", _offline_cluster, online=False),
    AnsweringPath("client", _sync(0), online=True),
    AnsweringPath("client-one-by-one", _sync_one_by_one, online=True),
    AnsweringPath("client-few", _sync_few, online=True),
    AnsweringPath("client-async", _async, online=True),
    AnsweringPath("client-bootstrapped", _sync(1), online=True),
    AnsweringPath("client-threads", _threads, online=True),
    AnsweringPath("client-forks", _forks, online=True),
    AnsweringPath("client-cluster", _cluster, online=True),
    AnsweringPath("client-cluster-async", _cluster_async, online=True),
    AnsweringPath("feast-historical", _historical_service, online=False),
    AnsweringPath("feast-historical-list", _historical_list, online=False),
    AnsweringPath("feast-online", _online_service, online=True, whole_seconds=SECONDS),
    AnsweringPath("feast-online-list", _online_list, online=True, whole_seconds=SECONDS),
    AnsweringPath("feast-online-async", _online_async, online=True, whole_seconds=SECONDS),
    AnsweringPath("feast-serve", _http, online=True, whole_seconds=SECONDS),
)
