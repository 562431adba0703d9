from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from feast.infra.offline_stores.snowflake_source import SavedDatasetSnowflakeStorage
from redis.asyncio import Redis as AsyncRedis

from feast_plugins.offline_store import MANIFEST_KEY
from infra.local.snowflake_load import load_table
from serving_client import AsyncFeatureClient, FeatureClient
from tally.dtypes import Dtype
from tally.errors import DataError
from tally.plan import Service
from tests.end_to_end.bits import Bits, of_columns, of_table, shown
from tests.end_to_end.world import ENDS, PROJECT, SERVICE, World
from training import TrainingSet, build_training_set

LATER = (
    timedelta(minutes=12),
    timedelta(minutes=47, microseconds=1),
    timedelta(hours=3, minutes=20),
    timedelta(hours=26),
    timedelta(days=6),
)
"""When it is asked, after the last message has arrived: windows slide on, the weather expires."""

_FIELDS: Mapping[str, Dtype] = {
    "double_val": "Float64",
    "int64_val": "Int64",
    "bool_val": "Bool",
    "string_val": "String",
    "unix_timestamp_val": "UnixTimestamp",
}
_TYPES: Mapping[Dtype, tuple[str, type]] = {
    "Float64": ("double", float),
    "Int64": ("int64", int),
    "Bool": ("bool", bool),
    "String": ("string", str),
    "UnixTimestamp": ("timestamp[us, tz=UTC]", int),
}
"""What Arrow calls them, and what JSON and protobuf must give; timestamps in whole seconds."""


@pytest.fixture(scope="module")
def asked(world: World) -> pd.DataFrame:
    """Label rows of a sixth of a day's flights and of one that nothing is known of, at each of several instants."""
    flights = world.labels.iloc[::6][["origin", "carrier", "tailnum", "scheduled_departure", "distance"]]
    unknown = flights.iloc[:1].assign(origin="LHR", carrier="BA", tailnum="G-BOAC")
    flights = pd.concat([flights, unknown])
    rows = pd.concat([flights.assign(event_timestamp=ENDS + later) for later in LATER], ignore_index=True)
    return rows.astype({"event_timestamp": "datetime64[us, UTC]"})


@pytest.fixture(scope="module")
def built(world: World, asked: pd.DataFrame) -> TrainingSet:
    """The builder's answer."""
    return build_training_set(asked, service=SERVICE, repo=world.repo, offline_uri=world.settings.offline_uri())


@pytest.fixture(scope="module")
def expected(built: TrainingSet) -> Bits:
    """The builder's answer, as bits."""
    return of_columns(built.columns)


@pytest.fixture
def in_feast(world: World) -> Iterator[Any]:
    """Stock Feast on the repository."""
    with world.feast() as store:
        yield store


def requests(asked: pd.DataFrame) -> dict[str, list[Any]]:
    """The rows as columns of Python values, without the instants."""
    frame = asked.drop(columns="event_timestamp")
    columns: dict[str, list[Any]] = {str(name): frame[name].tolist() for name in frame}
    columns["scheduled_departure"] = [moment.to_pydatetime() for moment in columns["scheduled_departure"]]
    return columns


def instants(asked: pd.DataFrame) -> list[Any]:
    """When each row is asked."""
    return [moment.to_pydatetime() for moment in asked["event_timestamp"]]


def references(service: Service) -> list[str]:
    """Every feature of the service as ``view:feature``."""
    stored = [f"{use.name}:{feature}" for use in service.views for feature, _ in use.features]
    return stored + [f"{use.function}:{feature}" for use in service.functions for feature, _ in use.features]


def full_names(world: World, bits: Bits) -> Bits:
    """The same answers under the names ``view__feature``."""
    return {name.replace(":", "__"): bits[name.partition(":")[2]] for name in references(world.plan.service(SERVICE))}


# What the others are compared with


def test_there_is_something_to_compare(built: TrainingSet, world: World) -> None:
    """The rows hold values and nulls of every dtype that the service has, and no feature is null everywhere."""
    assert len(built) > 500
    dtypes = {field.dtype for field in world.plan.service(SERVICE).outputs}
    assert dtypes == {"Float64", "Int64", "String", "Bool", "UnixTimestamp"}
    for name, column in built.columns.items():
        assert column.valid.any(), name
    assert {column.dtype for column in built.columns.values() if not column.valid.all()} == dtypes


def test_client_and_builder(world: World, asked: pd.DataFrame, expected: Bits) -> None:
    """FeatureClient answers from Redis with the bits that the builder finds in the offline store; nothing is ahead."""
    with FeatureClient.connect(world.settings.redis_url, project=PROJECT, service=SERVICE, timeout=60) as client:
        rows = client.get(requests(asked), instants(asked))

    assert of_columns(rows.columns) == expected
    assert not rows.ahead.any()


def test_async_client(world: World, asked: pd.DataFrame, expected: Bits) -> None:
    """AsyncFeatureClient answers with the same bits."""

    async def ask() -> Bits:
        client = AsyncFeatureClient(AsyncRedis.from_url(world.settings.redis_url), world.plan.for_service(SERVICE))
        try:
            return of_columns((await client.get(requests(asked), instants(asked))).columns)
        finally:
            await client.close()

    assert asyncio.run(ask()) == expected


# Stock Feast, online


def of_response(response: Any, wanted: Sequence[str]) -> Bits:
    """Of the features `wanted` in Feast's answer, whose values say their dtype where they are not null."""
    found: Bits = {}
    for name, vector in zip(response.proto.metadata.feature_names.val, response.proto.results, strict=True):
        kinds = [value.WhichOneof("val") for value in vector.values]
        (kind,) = {kind for kind in kinds if kind is not None}
        items = [None if one is None else getattr(value, one) for one, value in zip(kinds, vector.values, strict=True)]
        found[name] = plain(_FIELDS[kind], items)
    return {name: found[name] for name in wanted}


def entity_rows(asked: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as Feast takes them, with the instant of each."""
    columns = {**requests(asked), "event_timestamp": instants(asked)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def plain(dtype: Dtype, items: Sequence[Any]) -> list[str | None]:
    """Bits of values as Feast gives them."""
    name, kind = _TYPES[dtype]
    assert {type(item) for item in items} <= {kind, type(None)}, dtype
    if dtype == "UnixTimestamp":
        items = [None if item is None else item * 1_000_000 for item in items]
    return [name, *map(shown, items)]


def test_online_features_of_a_service(in_feast: Any, asked: pd.DataFrame, expected: Bits) -> None:
    """`get_online_features` of a feature service."""
    response = in_feast.get_online_features(in_feast.get_feature_service(SERVICE), entity_rows(asked))

    assert of_response(response, list(expected)) == expected


def test_online_features_by_full_names(world: World, in_feast: Any, asked: pd.DataFrame, expected: Bits) -> None:
    """`get_online_features` of a list of features under their full names; on-demand ones among them."""
    wanted = references(world.plan.service(SERVICE))
    response = in_feast.get_online_features(wanted, entity_rows(asked), full_feature_names=True)

    assert of_response(response, [name.replace(":", "__") for name in wanted]) == full_names(world, expected)


def test_online_features_async(in_feast: Any, asked: pd.DataFrame, expected: Bits) -> None:
    """`get_online_features_async`."""

    async def ask() -> Any:
        try:
            return await in_feast.get_online_features_async(in_feast.get_feature_service(SERVICE), entity_rows(asked))
        finally:
            await in_feast.close()

    assert of_response(asyncio.run(ask()), list(expected)) == expected


def test_feast_serve(world: World, asked: pd.DataFrame, expected: Bits) -> None:
    """`feast serve` over HTTP: a service by name, instants as ISO texts, the answer as of the column event_timestamp."""
    columns = requests(asked)
    columns["scheduled_departure"] = [moment.isoformat() for moment in columns["scheduled_departure"]]
    entities = {**columns, "event_timestamp": [moment.isoformat() for moment in instants(asked)]}
    answer = post(world, "/get-online-features", {"feature_service": SERVICE, "entities": entities})
    dtypes = {field.name: field.dtype for field in world.plan.service(SERVICE).outputs}
    served: Bits = {}
    for name, vector in zip(answer["metadata"]["feature_names"], answer["results"], strict=True):
        if name in dtypes:
            served[name] = plain(dtypes[name], vector["values"])

    assert served == expected


def post(world: World, path: str, body: Mapping[str, Any]) -> Any:
    """What `feast serve` answers, once it is there."""
    give_up = time.monotonic() + 240
    while True:
        try:
            urllib.request.urlopen(f"{world.server}/health", timeout=5).close()
            break
        except OSError:
            assert time.monotonic() < give_up, world.outcome("serve")
            time.sleep(0.05)
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{world.server}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


# Stock Feast, offline


def test_historical_features_of_a_service(in_feast: Any, asked: pd.DataFrame, built: TrainingSet) -> None:
    """`get_historical_features` of a frame, to Arrow and to pandas: columns, dtypes, order and bits are the builder's."""
    job = in_feast.get_historical_features(asked, in_feast.get_feature_service(SERVICE))
    names = built.to_arrow().column_names
    frame, again = job.to_df(), built.to_pandas()

    assert of_table(job.to_arrow(), names) == of_table(built.to_arrow(), names)
    assert frame.dtypes.to_dict() == again.dtypes.to_dict()
    assert of_table(pa.Table.from_pandas(frame), names) == of_table(pa.Table.from_pandas(again), names)


def test_historical_features_by_full_names(world: World, in_feast: Any, asked: pd.DataFrame, expected: Bits) -> None:
    """`get_historical_features` of a list of features, under their full names."""
    wanted = references(world.plan.service(SERVICE))
    table = in_feast.get_historical_features(asked, wanted, full_feature_names=True).to_arrow()

    assert of_table(table, [name.replace(":", "__") for name in wanted]) == full_names(world, expected)
    assert table.column("tailnum").to_pylist() == asked["tailnum"].tolist()


def test_historical_features_of_a_query(world: World, in_feast: Any, asked: pd.DataFrame, expected: Bits) -> None:
    """`get_historical_features` of SQL that Snowflake runs."""
    labels = pa.Table.from_pandas(asked.assign(row=range(len(asked))), preserve_index=False)
    load_table(world.settings, "ASKED", labels)
    selected = ", ".join(f'{name.upper()} AS "{name}"' for name in labels.column_names)
    sql = f"SELECT {selected} FROM ASKED ORDER BY ROW"
    table = in_feast.get_historical_features(sql, in_feast.get_feature_service(SERVICE)).to_arrow()

    assert of_table(table, list(expected)) == expected


def test_sql_as_snowflake_spells_it(world: World, in_feast: Any, asked: pd.DataFrame, expected: Bits) -> None:
    """Names that SQL does not quote come back in upper case; those that the service needs get their spelling back."""
    load_table(
        world.settings, "ASKED_TOO", pa.Table.from_pandas(asked.assign(row=range(len(asked))), preserve_index=False)
    )
    names = ", ".join(asked.columns)
    table = in_feast.get_historical_features(
        f"SELECT {names}, row FROM ASKED_TOO ORDER BY row", in_feast.get_feature_service(SERVICE)
    ).to_arrow()

    assert of_table(table, list(expected)) == expected
    assert "ROW" in table.column_names


def test_sql_that_snowflake_refuses(in_feast: Any) -> None:
    """The error is a sentence with Snowflake's own reason."""
    job = in_feast.get_historical_features("SELECT * FROM NOWHERE", in_feast.get_feature_service(SERVICE))
    with pytest.raises(DataError, match=r"Snowflake refused the SQL of the entities: .*NOWHERE"):
        job.to_arrow()


def test_on_demand_features_alone(in_feast: Any, asked: pd.DataFrame, expected: Bits) -> None:
    """A list that names only on-demand features: they run on stored ones, which Feast returns as well."""
    wanted = ["hour_of_day:hour_sin", "against_carrier:delay_against_carrier"]
    table = in_feast.get_historical_features(asked, wanted).to_arrow()
    names = [name.partition(":")[2] for name in wanted]

    assert of_table(table, names) == {name: expected[name] for name in names}


def test_an_empty_entity_frame(in_feast: Any, asked: pd.DataFrame, built: TrainingSet) -> None:
    """No rows in, no rows out, with the dtypes of a full answer."""
    job = in_feast.get_historical_features(asked[:0], in_feast.get_feature_service(SERVICE))

    assert len(job.to_df()) == 0
    names = list(built.columns)
    assert job.to_arrow().select(names).schema.equals(built.to_arrow().select(names).schema, check_metadata=False)


def test_a_saved_dataset_by_full_names(world: World, in_feast: Any, asked: pd.DataFrame, expected: Bits) -> None:
    """On-demand features and full names are kept too; the table's commit says what the rows were made from."""
    wanted = references(world.plan.service(SERVICE))
    job = in_feast.get_historical_features(asked, wanted, full_feature_names=True)
    in_feast.create_saved_dataset(job, "full", SavedDatasetSnowflakeStorage(table_ref="full"))
    names = [name.replace(":", "__") for name in wanted]
    kept = of_table(pa.Table.from_pandas(in_feast.get_saved_dataset("full").to_df()), names)
    whole = full_names(world, expected)
    (commit,) = DeltaTable(f"{world.settings.offline_uri()}/full").history(1)

    assert sorted(zip(*kept.values(), strict=True), key=str) == sorted(zip(*whole.values(), strict=True), key=str)
    assert json.loads(commit[MANIFEST_KEY])["label_rows"] == len(asked)


def test_a_saved_dataset(in_feast: Any, asked: pd.DataFrame, expected: Bits) -> None:
    """`create_saved_dataset` keeps the rows in the offline store, from where `get_saved_dataset` reads them in any order."""
    service = in_feast.get_feature_service(SERVICE)
    job = in_feast.get_historical_features(asked, service)
    in_feast.create_saved_dataset(job, "kept", SavedDatasetSnowflakeStorage(table_ref="kept"), feature_service=service)
    kept = of_table(pa.Table.from_pandas(in_feast.get_saved_dataset("kept").to_df()), list(expected))

    assert sorted(zip(*kept.values(), strict=True), key=str) == sorted(zip(*expected.values(), strict=True), key=str)
