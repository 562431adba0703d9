"""Bulk loads into Snowflake: Arrow -> Parquet -> PUT -> COPY INTO. The same statements serve a real account."""

from __future__ import annotations

import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import snowflake.connector

from infra.local.errors import LocalServiceError
from infra.settings import Settings

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")
_STAGE = "TALLY_LOAD"


@contextmanager
def connected(settings: Settings) -> Iterator[Any]:
    """A connection of the real Snowflake connector to the account, or emulator, that `settings` lead to."""
    if not settings.snowflake_account:
        raise LocalServiceError(
            "SNOWFLAKE_ACCOUNT is not set: set it, or pass settings through infra.local.ensure first."
        )
    connection = snowflake.connector.connect(**settings.snowflake_connect_args())
    try:
        yield connection
    finally:
        connection.close()


def quoted(name: str) -> str:
    """A table's or column's name as SQL: read as Snowflake reads an unquoted one (upper case), then quoted.

    A table may be `table`, `schema.table` or `database.schema.table`. Raises LocalServiceError on anything else.
    """
    parts = name.split(".")
    if len(parts) > 3 or not all(_IDENTIFIER.fullmatch(part) for part in parts):
        raise LocalServiceError(
            f"{name!r} is no Snowflake identifier: use letters, digits, _ and $, beginning with a letter or _."
        )
    return ".".join(f'"{part.upper()}"' for part in parts)


def load_table(settings: Settings, table: str, rows: pa.Table) -> int:
    """Append `rows` to `table`, created with typed columns if it is missing. Nulls stay nulls. Returns the count.

    Integers become NUMBER(38,0), floats FLOAT, strings VARCHAR, booleans BOOLEAN, dates DATE, and timestamps
    TIMESTAMP_NTZ in UTC, floored to microseconds. Raises LocalServiceError when the table has other columns.
    """
    columns = {field.name: _snowflake_type(table, field) for field in rows.schema}
    with connected(settings) as connection:
        declared = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns.items())
        cursor = connection.cursor()
        cursor.execute(f"CREATE TABLE IF NOT EXISTS {quoted(table)} ({declared})")
        _check_columns(cursor, table, list(columns))
        return copy_into(
            connection,
            table,
            pa.table([_normal(column) for column in rows.columns], names=[name.upper() for name in rows.column_names]),
            {name.upper(): f"$1:{quoted(name)}::{kind}" for name, kind in columns.items()},
        )


def copy_into(connection: Any, table: str, rows: pa.Table, expressions: dict[str, str]) -> int:
    """Append `rows` in one COPY, all of them or none: `expressions` give each column from `$1`, a row of the file."""
    if not rows.num_rows:
        return 0
    cursor = connection.cursor()
    cursor.execute(f"CREATE TEMPORARY STAGE IF NOT EXISTS {quoted(_STAGE)}")
    # A name of its own for each file: COPY skips a name that it has loaded before.
    name = f"{uuid.uuid4().hex}.parquet"
    with tempfile.TemporaryDirectory(prefix="tally-load-") as scratch:
        path = Path(scratch) / name
        pq.write_table(rows, path, compression="zstd")
        cursor.execute(f"PUT 'file://{path.as_posix()}' @{_STAGE} AUTO_COMPRESS=FALSE")
    columns = ", ".join(quoted(column) for column in expressions)
    source = f"SELECT {', '.join(expressions.values())} FROM @{_STAGE}/{name}"  # noqa: S608  its callers build the expressions from quoted()
    options = "FILE_FORMAT=(TYPE=PARQUET USE_LOGICAL_TYPE=TRUE) PURGE=TRUE"
    cursor.execute(f"COPY INTO {quoted(table)} ({columns}) FROM ({source}) {options}")
    loaded = sum(int(line[3]) for line in cursor.fetchall() if len(line) > 3)
    if loaded != rows.num_rows:
        raise LocalServiceError(
            f"COPY INTO {table} loaded {loaded} of {rows.num_rows} rows: look into the table before loading again."
        )
    return loaded


def _check_columns(cursor: Any, table: str, columns: list[str]) -> None:
    cursor.execute(f"SELECT * FROM {quoted(table)} LIMIT 0")  # noqa: S608  quoted() admits identifiers only
    present = {column.name for column in cursor.description}
    wanted = {name.upper() for name in columns}
    if present != wanted:
        raise LocalServiceError(
            f"Table {table} has other columns than the rows to load (only there: {sorted(present - wanted)}, only in "
            f"the rows: {sorted(wanted - present)}): drop the table, or load into another one."
        )


def _snowflake_type(table: str, field: pa.Field) -> str:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_integer(kind):
        return "NUMBER(38,0)"
    if pa.types.is_floating(kind):
        return "FLOAT"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "VARCHAR"
    if pa.types.is_boolean(kind):
        return "BOOLEAN"
    if pa.types.is_timestamp(kind):
        return "TIMESTAMP_NTZ"
    if pa.types.is_date(kind):
        return "DATE"
    raise LocalServiceError(
        f"Column {field.name!r} for table {table} is of Arrow type {field.type}, which is not loaded: cast it to an "
        "integer, float, string, boolean, date or timestamp first."
    )


def _normal(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_timestamp(column.type):
        if column.type.unit == "ns":
            column = pc.floor_temporal(column, unit="microsecond")
        # Dropping the zone of an Arrow timestamp leaves its UTC reading. What is finer was floored above.
        return column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.timestamp("us"))
    return column
