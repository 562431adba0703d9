"""One table of Snowflake, on its way to the offline store: the questions that are asked of it, and how it is written."""

# ruff: noqa: S608 - identifiers cannot be bound: they are quoted (`quoted`); every value is bound.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import snowflake.connector
from deltalake import DeltaTable

from ingestion.arrow import conform, schema_of
from ingestion.delta import write_table
from ingestion.offline import Extracted
from tally.errors import DataError, UnavailableError
from tally.plan import Field, Plan, Source

Progress = Callable[[str, int, int | None], None]
"""(source, rows done, rows in all or None where that is not known)."""

SLICE: Final = 50_000
"""The most rows of a table that are worked on at a time."""
_NO_SUCH_OBJECT: Final = 2003


@dataclass(frozen=True, slots=True)
class Ingested:
    """What one run did to one source.

    `rows` were added, `rejected` messages put aside with their reasons, `duplicates` are events that lay in the landing
    table more than once. `version` is the offline table's. `watermark` is the greatest offset per partition (landing
    tables), or the greatest created or event time in µs. `whole` says that the table was read from the beginning.
    """

    source: str
    rows: int
    rejected: int
    duplicates: int
    version: int
    watermark: dict[int, int] | int | None
    whole: bool


@dataclass
class Extraction:
    """One run for one source. `known` is what the run before knew, None: read the table whole."""

    connection: Any
    plan: Plan
    source: Source
    offline_uri: str
    table: DeltaTable | None
    known: Extracted | None
    progress: Progress
    rows: int = 0

    @property
    def table_name(self) -> str:
        """The table as SQL names it: quoted, exactly as given."""
        parts = (self.source.database, self.source.schema, self.source.table)
        return ".".join(quoted(part) for part in parts if part)

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a small result."""
        with self._asking() as cursor:
            return list(cursor.execute(sql, tuple(values)).fetchall())

    def slices(self, sql: str, values: Sequence[Any], fields: Sequence[Field]) -> Iterator[pa.Table]:
        """A large result as tables of at most `SLICE` rows, its columns as `fields`."""
        with self._asking() as cursor:
            cursor.execute(sql, tuple(values))
            # Else a nanosecond in the year 1 or 9999 would overflow: Snowflake's times have nine digits unless told otherwise.
            for batch in cursor.fetch_arrow_batches(force_microsecond_precision=True):
                for start in range(0, batch.num_rows, SLICE):
                    piece = batch.slice(start, SLICE).combine_chunks()
                    arrays = [
                        conform(f.dtype, piece.column(i).combine_chunks(), f"Column {f.name} of {self.table_name}")
                        for i, f in enumerate(fields)
                    ]
                    yield pa.Table.from_arrays(arrays, schema=schema_of(fields))

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        try:
            with self.connection.cursor() as cursor:
                yield cursor
        except snowflake.connector.errors.ProgrammingError as error:
            if error.errno == _NO_SUCH_OBJECT:
                raise DataError(
                    f"Source {self.source.name}: Snowflake has no table {self.table_name} that this role may read; check its "
                    "name (as quoted here, letter case matters), and SNOWFLAKE_DATABASE and SNOWFLAKE_SCHEMA."
                ) from error
            raise DataError(f"Source {self.source.name}: Snowflake refused a query: {error.msg}") from error
        except snowflake.connector.errors.Error as error:
            raise UnavailableError(
                f"Snowflake failed while {self.table_name} was read ({error.msg}); nothing was changed, run it again."
            ) from error

    def column_names(self) -> list[str]:
        """Names of the table's columns."""
        with self._asking() as cursor:
            cursor.execute(f"SELECT * FROM {self.table_name} LIMIT 0")
            return [column.name for column in cursor.description]

    def column(self, name: str, existing: Sequence[str]) -> str:
        """A column as SQL names it: with that spelling, or the only one that differs in letter case."""
        found = [name] if name in existing else [e for e in existing if e.upper() == name.upper()]
        if len(found) != 1:
            raise DataError(
                f"Table {self.table_name} has no column {name}, which source {self.source.name} needs; "
                f"it has {', '.join(existing)}."
            )
        return quoted(found[0])

    def write(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch], knows: Extracted) -> int:
        """Commit `batches`, with what is known once they are in."""
        return write_table(
            self.offline_uri,
            self.source.name,
            self.table,
            schema,
            batches,
            overwrite=self.known is None,
            metadata=knows.to_metadata(),
        )


def quoted(name: str) -> str:
    """An identifier for SQL, exactly as given. Raises DataError for what can be no name."""
    if not name or not name.isprintable():
        raise DataError(
            f"{name!r} cannot be the name of a table or column in Snowflake; check the source's definition."
        )
    return '"' + name.replace('"', '""') + '"'
