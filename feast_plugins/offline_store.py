"""`get_historical_features`: the very training sets of `training`."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import snowflake.connector
from deltalake import CommitProperties, write_deltalake
from feast import FeatureView, OnDemandFeatureView
from feast.data_source import DataSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.offline_stores.snowflake_source import SavedDatasetSnowflakeStorage
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage

from feast_plugins.requested import plan_of_service, requested_service
from feast_plugins.services import settings_of
from infra.repository import load_plan
from ingestion.arrow import INSTANT
from ingestion.delta import open_table, open_version, read_columns
from tally.errors import DataError, UnavailableError
from tally.plan import Service
from training import TrainingSet, training_set

_FEATURES_WITHOUT_ENTITIES: Final = (
    "Give an entity frame, or SQL that selects one: a training set has one row for each label, and labels are yours."
)
_SAVED_TIMESTAMP: Final = "event_timestamp"
"""The column by which Feast reads a saved dataset."""
_NO_TIME: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
MANIFEST_KEY: Final = "tally_training_set"
"""In the commit of a saved dataset: the manifest of its rows."""


class TallyOfflineStoreConfig(FeastConfigBaseModel):
    """TALLY_OFFLINE_URI says where the tables are; there is nothing to set here."""

    type: Literal["feast_plugins.offline_store.TallyOfflineStore"] = "feast_plugins.offline_store.TallyOfflineStore"


class TallyRetrievalJob(RetrievalJob):
    """Rows that are computed when they are first asked for.

    Request functions have run by then, with the code that serves, so there is no on-demand view left for Feast to run.
    """

    def __init__(
        self, compute: Callable[[], pa.Table], offline_uri: str, full_feature_names: bool, metadata: RetrievalMetadata
    ) -> None:
        self._compute = compute
        self._offline_uri = offline_uri
        self._full_feature_names = full_feature_names
        self._metadata = metadata
        self._table: pa.Table | None = None

    @property
    def full_feature_names(self) -> bool:
        """Whether columns are called ``view__feature``."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """None left to run."""
        return []

    @property
    def metadata(self) -> RetrievalMetadata:
        """Features and keys that were asked for; and the first and last instant of the rows, which are computed for it.

        By these Feast reads a saved dataset again, from the column event_timestamp.
        """
        rows = self._to_arrow_internal()
        if _SAVED_TIMESTAMP in rows.column_names:
            ends = pc.min_max(rows.column(_SAVED_TIMESTAMP)).as_py()
            self._metadata.min_event_timestamp = ends["min"] or _NO_TIME
            self._metadata.max_event_timestamp = ends["max"] or _NO_TIME
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        if self._table is None:
            self._table = self._compute()
        return self._table

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return TrainingSet.frame(self._to_arrow_internal())

    def to_df(self, validation_reference: Any = None, timeout: int | None = None) -> pd.DataFrame:
        """The rows as pandas, with nullable integers and booleans: a null never makes an integer a float."""
        return TrainingSet.frame(self.to_arrow(validation_reference=validation_reference, timeout=timeout))

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Keep the rows as the Delta table ``<TALLY_OFFLINE_URI>/<table>`` that `storage` names, with their manifest.

        Raises DataError for another kind of storage, a name that is taken, and rows that Feast could not read again.
        """
        if not isinstance(storage, SavedDatasetSnowflakeStorage):
            raise DataError(
                f"{type(storage).__name__} cannot be kept here; use SavedDatasetSnowflakeStorage(table_ref=...)."
            )
        name = storage.snowflake_options.table
        if not _NAME.fullmatch(name):
            raise DataError(f"table_ref {name!r} cannot be the name of a saved dataset; use letters, digits, _ and -.")
        rows = self.to_arrow(timeout=timeout)
        if _SAVED_TIMESTAMP not in rows.column_names:
            raise DataError(
                f"Feast reads a saved dataset by its column {_SAVED_TIMESTAMP}, which these rows do not have; "
                "give the entity frame's time that name."
            )
        existing = open_table(self._offline_uri, name)
        if existing is not None and MANIFEST_KEY not in existing.history(1)[0]:
            raise DataError(
                f"{name} is a table of the offline store and not a saved dataset; choose another table_ref."
            )
        if existing is not None and not allow_overwrite:
            raise DataError(
                f"There is a saved dataset {name} already; choose another table_ref, or allow_overwrite=True."
            )
        manifest = (rows.schema.metadata or {}).get(b"tally", b"{}").decode()
        write_deltalake(
            f"{self._offline_uri}/{name}",
            rows.replace_schema_metadata(None),
            mode="overwrite",
            schema_mode="overwrite",
            commit_properties=CommitProperties(custom_metadata={MANIFEST_KEY: manifest}),
        )


class TallyOfflineStore(OfflineStore):
    """Feast's view of the offline store: Delta tables that `tally ingest` keeps."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pa.Table | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **unsupported: Any,
    ) -> RetrievalJob:
        """One row for each row of `entity_df` (a frame, or SQL that Snowflake runs), in its order.

        SQL has no order of its own: end it with ORDER BY where it matters. `filter_by_created_timestamp` leaves out what
        had not arrived yet: ``visibility="as_served"``.
        """
        if entity_df is None:
            raise DataError(_FEATURES_WITHOUT_ENTITIES)
        repo = Path(config.repo_path or ".")
        plan = load_plan(repo)
        service = requested_service(registry, plan, feature_refs, full_feature_names)
        offline_uri = settings_of(repo).offline_uri()

        def compute() -> pa.Table:
            labels = _selected(repo, entity_df, service) if isinstance(entity_df, str) else entity_df
            return training_set(
                plan_of_service(plan, service),
                labels,
                service=service.name,
                offline_uri=offline_uri,
                visibility="as_served" if filter_by_created_timestamp else "event_time",
                timestamp=_timestamp(labels),
            ).to_arrow()

        keys = [field.name for field in (*service.keys, *service.request)]
        return TallyRetrievalJob(compute, offline_uri, full_feature_names, RetrievalMetadata(feature_refs, keys))

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row of a source's offline table (or of a saved dataset) between two instants, ends included."""
        uri = settings_of(Path(config.repo_path or ".")).offline_uri()
        columns = [*join_key_columns, *feature_name_columns, timestamp_field]
        if created_timestamp_column:
            columns.append(created_timestamp_column)
        wanted = list(dict.fromkeys(columns))
        return TallyRetrievalJob(
            lambda: _rows(uri, data_source.name, wanted, timestamp_field, start_date, end_date),
            uri,
            False,
            RetrievalMetadata(feature_name_columns, join_key_columns),
        )

    @staticmethod
    def pull_latest_from_table_or_query(*_: Any, **__: Any) -> RetrievalJob:
        """Not used: `TallyComputeEngine` materializes."""
        raise NotImplementedError("feast materialize goes through TallyComputeEngine; name it as batch_engine.")

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Nothing here: a missing table or column is reported by `tally ingest`, so that applying needs no warehouse."""


def _rows(
    offline_uri: str, name: str, columns: list[str], timestamp: str, start: datetime | None, end: datetime | None
) -> pa.Table:
    condition = pc.field(timestamp).is_valid()
    if start is not None:
        condition &= pc.field(timestamp) >= pa.scalar(start, INSTANT)
    if end is not None:
        condition &= pc.field(timestamp) <= pa.scalar(end, INSTANT)
    return read_columns(open_version(offline_uri, name, None), columns, condition)


def _timestamp(labels: pd.DataFrame | pa.Table) -> str:
    """The column of instants, by Feast's rule: event_timestamp, else the only one that holds timestamps."""
    if isinstance(labels, pa.Table):
        return str(infer_event_timestamp_from_entity_df(dict(labels.slice(0, 0).to_pandas().dtypes)))
    return str(infer_event_timestamp_from_entity_df(dict(labels.dtypes)))


def _selected(repo: Path, sql: str, service: Service) -> pa.Table:
    """The rows that Snowflake answers, in its order.

    Snowflake writes names that are not quoted in upper case: columns that the service needs get their own spelling back.
    """
    try:
        with snowflake.connector.connect(**settings_of(repo, "snowflake").snowflake_connect_args()) as connection:
            rows = connection.cursor().execute(sql).fetch_arrow_all(force_return_table=True)
    except snowflake.connector.errors.ProgrammingError as error:
        raise DataError(f"Snowflake refused the SQL of the entities: {error.msg}") from error
    except snowflake.connector.errors.Error as error:
        raise UnavailableError(
            f"Snowflake cannot be asked for the entities ({error.msg}); check SNOWFLAKE_ACCOUNT and its companions."
        ) from error
    needed = [*(field.name for field in (*service.keys, *service.request)), _SAVED_TIMESTAMP]
    spelled = {name.upper(): name for name in needed if name not in rows.column_names}
    return rows.rename_columns([spelled.get(name, name) for name in rows.column_names])
