"""`get_online_features`, its async twin and `feast serve`: the very lookups of `serving_client`."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from feast import FeatureService, FeatureView
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from google.protobuf.timestamp_pb2 import Timestamp

from connections import AsyncClient, Client, open_async_client
from feast_plugins.requested import plan_of_service, requested_service
from feast_plugins.services import open_redis, redis_url
from feast_plugins.values import add_values, from_values, request_items, to_values
from infra.repository import PLAN_FILE, load_plan
from ingestion.redis_store import LatestWriter, mark_view
from serving_client import AsyncFeatureClient, FeatureClient, FeatureRows
from serving_client.client import TIMEOUT_SECONDS, open_for_requests
from serving_client.request import Rows
from serving_client.rows import Status
from tally.columns import Column, column
from tally.errors import DataError
from tally.layout import entity_texts
from tally.plan import Field, Plan, Service, View, ViewUse, hashed_service
from tally.time import SECOND, from_datetime, to_datetime

AS_OF: Final = "event_timestamp"
"""A column of this name among the entity rows asks for the answer as of then, as it does in an entity frame offline."""

MOST_CLIENTS: Final = 256

_Any = TypeVar("_Any")
FeatureVector = GetOnlineFeaturesResponse.FeatureVector
EntityRows = list[dict[str, Any]] | Mapping[str, Sequence[Any] | RepeatedValue]

_STATUS: Final = {
    Status.PRESENT: FieldStatus.PRESENT,
    Status.MISSING: FieldStatus.NOT_FOUND,
    Status.EXPIRED: FieldStatus.OUTSIDE_MAX_AGE,
    Status.AHEAD: FieldStatus.INVALID,  # Feast has no word for it; PRESENT would hide that the value is not exact
}


class TallyOnlineStoreConfig(FeastConfigBaseModel):
    """REDIS_URL says where Redis is; there is nothing to set here."""

    type: Literal["feast_plugins.online_store.TallyOnlineStore"] = "feast_plugins.online_store.TallyOnlineStore"


class TallyOnlineStore(OnlineStore):
    """Feast's view of what Tally keeps in Redis."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._redis: Client | None = None
        self._applied: tuple[tuple[str, int, int, int], Plan] | None = None
        self._clients: dict[tuple[str, str], FeatureClient] = {}
        # By the loop itself: the next one may get the `id` of one that is gone, and must not get its connections.
        self._of_loops: dict[
            asyncio.AbstractEventLoop, tuple[AsyncClient, dict[tuple[str, str], AsyncFeatureClient]]
        ] = {}

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Reads are asynchronous, so `feast serve` answers without a thread a request."""
        return SupportedAsyncMethods(read=True, write=False)

    def get_online_features(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        entity_rows: EntityRows,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> OnlineResponse:
        """Answer as `FeatureClient.get` does. Raises TallyError subclasses."""
        plan, service = self._resolve(config, registry, features, full_feature_names)
        columns, as_of = _columns(service, entity_rows)
        return _response(service, columns, self._client(config, plan, service).get(_rows(columns), as_of))

    async def get_online_features_async(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        entity_rows: EntityRows,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> OnlineResponse:
        """Answer as `AsyncFeatureClient.get` does. Raises TallyError subclasses."""
        plan, service = self._resolve(config, registry, features, full_feature_names)
        columns, as_of = _columns(service, entity_rows)
        client = self._async_client(config, plan, service)
        return _response(service, columns, await client.get(_rows(columns), as_of))

    def _resolve(
        self, config: RepoConfig, registry: BaseRegistry, features: list[str] | FeatureService, full_feature_names: bool
    ) -> tuple[Plan, Service]:
        plan = self._plan(config)
        return plan, requested_service(registry, plan, features, full_feature_names)

    def _plan(self, config: RepoConfig) -> Plan:
        """The plan that is applied now: read again when its file is another one."""
        repo = config.repo_path or "."
        try:
            there = os.stat(f"{repo}/{PLAN_FILE}")  # noqa: PTH116 a Path costs ten times the call, at every request
        except FileNotFoundError:
            return load_plan(Path(repo))  # says what is missing
        file = str(repo), there.st_ino, there.st_mtime_ns, there.st_size
        known = self._applied
        if known is None or known[0] != file:
            known = self._applied = file, load_plan(Path(repo))
        return known[1]

    def _client(self, config: RepoConfig, plan: Plan, service: Service) -> FeatureClient:
        key = plan.hash, service.hash
        with self._lock:
            if key not in self._clients:
                if self._redis is None:
                    self._redis = open_for_requests(redis_url(Path(config.repo_path or ".")), TIMEOUT_SECONDS)
                _bounded(self._clients)[key] = FeatureClient(self._redis, plan_of_service(plan, service))
            return self._clients[key]

    def _async_client(self, config: RepoConfig, plan: Plan, service: Service) -> AsyncFeatureClient:
        loop = asyncio.get_running_loop()  # a connection belongs to the event loop that opened it
        if loop not in self._of_loops:
            for ended in [other for other in self._of_loops if other.is_closed()]:
                del self._of_loops[ended]
            redis = open_async_client(redis_url(Path(config.repo_path or ".")), TIMEOUT_SECONDS / 2)
            self._of_loops[loop] = redis, {}
        redis, clients = self._of_loops[loop]
        key = plan.hash, service.hash
        if key not in clients:
            _bounded(clients)[key] = AsyncFeatureClient(redis, plan_of_service(plan, service))
        return clients[key]

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Rows of one view, as of now."""
        plan = self._plan(config)
        view = plan.view(table.name)
        service = _service_of_view(plan, view, requested_features)
        client = self._client(config, plan, service)
        keys = [dict(zip(k.join_keys, k.entity_values, strict=True)) for k in entity_keys]
        columns = {f.name: request_items(f.dtype, [k.get(f.name) for k in keys], f.name) for f in service.keys}
        rows = client.get(columns)
        values = {f.name: to_values(rows.columns[f.name]) for f in service.outputs}
        stamps = rows.event_timestamps[view.name]
        return [
            (to_datetime(int(stamps.values[i])), {name: values[name][i] for name in values})
            if stamps.valid[i]
            else (None, None)
            for i in range(len(keys))
        ]

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write latest rows that were pushed. Raises DataError for views whose rows come from Kafka."""
        repo = Path(config.repo_path or ".")
        plan = load_plan(repo)
        view = plan.view(table.name)
        if view.stream:
            raise DataError(
                f"{view.name} is fed from Kafka, and a pushed row has no offset to count it once; produce it to the topic instead."
            )
        columns = {
            f.name: from_values(f.dtype, [values.get(f.name) for _, values, _, _ in data], f.name) for f in view.fields
        }
        keys = [dict(zip(k.join_keys, k.entity_values, strict=True)) for k, _, _, _ in data]
        entities = [from_values(f.dtype, [key.get(f.name) for key in keys], f.name) for f in view.keys]
        for field, column_of_key in zip(view.keys, entities, strict=True):
            if not column_of_key.valid.all():
                missing = int((~column_of_key.valid).sum())
                raise DataError(
                    f"{missing} rows pushed to {view.name} have no entity key {field.name}; drop or mend them."
                )
        stamps = np.array([from_datetime(moment) for _, _, moment, _ in data], np.int64)
        created = np.array([from_datetime(c) if c is not None else 0 for _, _, _, c in data], np.int64)
        packed = view.row_layout.pack(stamps, created, np.zeros(len(data), np.int64), columns)
        with open_redis(repo) as redis:
            LatestWriter(redis, plan.project, view).put(entity_texts(entities), packed)
            mark_view(redis, plan.project, view, {"by": "push"})
        if progress is not None:
            progress(len(data))

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Any,
        tables_to_keep: Any,
        entities_to_delete: Any,
        entities_to_keep: Any,
        partial: bool,
    ) -> None:
        """Nothing to prepare: keys come with the first row, and those of old definitions expire."""

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Any) -> None:
        """Remove every key of the project."""
        with open_redis(Path(config.repo_path or ".")) as redis:
            for pattern in (f"{config.project}/*", f"tally:{config.project}:*"):
                for key in redis.scan_iter(match=pattern, count=1000):
                    redis.unlink(key)


def _bounded(clients: dict[tuple[str, str], _Any]) -> dict[tuple[str, str], _Any]:
    """`clients`, emptied when there are many: lists of references come from outside, and each is a service of its own."""
    if len(clients) >= MOST_CLIENTS:
        clients.clear()
    return clients


def _service_of_view(plan: Plan, view: View, requested: Sequence[str] | None) -> Service:
    fields = [f for f in view.fields if requested is None or f.name in requested]
    keys = tuple(k.name for k in view.keys)
    use = ViewUse(view.name, view.name, keys, tuple((f.name, f.name) for f in fields))
    return hashed_service(Service(view.name, (use,), (), view.keys, (), tuple(fields)), plan)


def _columns(service: Service, entity_rows: EntityRows) -> tuple[dict[str, list[Any]], Any]:
    """The request's columns that the service needs, and the instant or instants asked for (None: now)."""
    if isinstance(entity_rows, list):
        entity_rows = {name: [row.get(name) for row in entity_rows] for name in (entity_rows[0] if entity_rows else {})}
    listed = {name: list(v.val) if isinstance(v, RepeatedValue) else list(v) for name, v in entity_rows.items()}
    needed: tuple[Field, ...] = (*service.keys, *service.request)
    columns = {f.name: request_items(f.dtype, listed[f.name], f.name) for f in needed if f.name in listed}
    if AS_OF not in listed or AS_OF in columns:
        return columns, None
    return columns, request_items("UnixTimestamp", listed[AS_OF], AS_OF)


def _rows(columns: dict[str, list[Any]]) -> Rows:
    """The columns; as a row where there is one, which the client answers fastest."""
    if columns and all(len(items) == 1 for items in columns.values()):
        return [{name: items[0] for name, items in columns.items()}]
    return columns


def _response(service: Service, request: Mapping[str, Sequence[Any]], rows: FeatureRows) -> OnlineResponse:
    """Feast's response: the entity keys, then the features, each with values, statuses and event timestamps."""
    response = GetOnlineFeaturesResponse()
    names = response.metadata.feature_names.val
    never = [Timestamp()] * len(rows)
    instants = rows.event_timestamps
    view_of = {answered: use.name for use in service.views for _, answered in use.features}
    alike: dict[tuple[str | None, bytes], FeatureVector] = {}
    """Vectors without values: a view's features mostly share their statuses, and a copy costs a fifth of a new one."""

    def add(field: Field, items: list[Any], status: npt.NDArray[np.uint8], view: str | None) -> None:
        known_as = view, status.tobytes()
        if known_as not in alike:
            statuses = [_STATUS[item] for item in status.tolist()]
            at = never if view is None else _timestamps(instants[view])
            alike[known_as] = FeatureVector(statuses=statuses, event_timestamps=at)
        names.append(field.name)
        vector = response.results.add()
        vector.CopyFrom(alike[known_as])
        add_values(vector.values, field.dtype, items)

    present = np.full(len(rows), Status.PRESENT, np.uint8)
    for key in service.keys:
        add(key, column(key.dtype, request[key.name], key.name).items(), present, None)
    items, status = rows.items(), rows.status  # few rows have no columns, and none are made of them here
    for output in service.outputs:
        add(output, items[output.name], status[output.name], view_of.get(output.name))
    return OnlineResponse(response)


def _timestamps(instants: Column) -> list[Timestamp]:
    return [Timestamp(seconds=v // SECOND, nanos=v % SECOND * 1000) for v in instants.values.tolist()]
