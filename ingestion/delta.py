"""Delta tables: opened at a version, read by column, written in one commit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Final

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.dataset as ds  # type: ignore[import-untyped, unused-ignore]
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from ingestion.arrow import INSTANT
from ingestion.gather import gathered
from tally.errors import ArgumentError, DataError, NotReadyError, UnavailableError
from tally.time import from_datetime, to_datetime

_THREADS: Final = 4
# delta-rs blocks a thread of its runtime while it waits for a batch, and what makes the batch may read and write tables too.
# The runtime, made when the first table is used, has a thread for each core: on a machine with one core that would be for ever.
os.environ.setdefault("TOKIO_WORKER_THREADS", str(max(_THREADS, os.cpu_count() or 1)))
UNREADABLE: Final = (DeltaError, OSError, pa.ArrowException)
"""What is raised where the files of a table are away or damaged."""
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
_BACKTRACE: Final = re.compile(r"\n +\d+: .*", re.DOTALL)


def told(error: Exception) -> str:
    """What delta-rs or Arrow says, on one line: it draws trees of reasons, in colours, and adds backtraces."""
    text = _BACKTRACE.sub("", _COLOURS.sub("", str(error)))
    return " ".join(text.replace("\N{DOWNWARDS ARROW WITH TIP RIGHTWARDS}", ": ").split())


def unreadable(table: str, error: Exception) -> UnavailableError:
    """The error for a table (its address) whose files are away or damaged."""
    return UnavailableError(
        f"The offline table {table} cannot be read ({told(error)}); check TALLY_OFFLINE_URI, and rights there. If files of it "
        "are gone (VACUUM deletes those of earlier versions) or damaged, read a later version or put them back; or move its "
        "folder away and run tally ingest, which makes it anew."
    )


def table_uri(offline_uri: str, name: str) -> str:
    """Where the table of a source is."""
    return f"{offline_uri.rstrip('/')}/{name}"


def open_table(offline_uri: str, name: str) -> DeltaTable | None:
    """The latest version of a table, or None when there is none.

    Raises UnavailableError when the store cannot be read, ArgumentError where its address is of no kind that is known.
    """
    try:
        return DeltaTable(table_uri(offline_uri, name))
    except TableNotFoundError as error:
        if "Unknown scheme" in str(error):
            raise ArgumentError(
                f"TALLY_OFFLINE_URI is {offline_uri}, and nothing is known of {offline_uri.partition(':')[0]}:; give a folder, or "
                "an address such as s3://BUCKET/PATH, abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH or gs://BUCKET/PATH."
            ) from error
        return None
    except (DeltaError, OSError) as error:
        raise unreadable(table_uri(offline_uri, name), error) from error


def open_version(offline_uri: str, name: str, version: int | None) -> DeltaTable:
    """A source's table at `version` (None: the latest).

    Raises NotReadyError when the source was never ingested, DataError when it has no such version.
    """
    table = open_table(offline_uri, name)
    if table is None:
        raise NotReadyError(
            f"Source {name} has no offline table at {table_uri(offline_uri, name)}; run: tally ingest {name}"
        )
    newest = table.version()
    if version is None or version == newest:
        return table
    if not 0 <= version < newest:
        raise DataError(f"Offline table {name} has versions 0 to {newest}, not {version}; choose one of these.")
    try:
        table.load_as_version(version)
    except DeltaError as error:
        raise DataError(
            f"Version {version} of offline table {name} is no longer kept ({told(error)}); choose a later one, up to {newest}."
        ) from error
    return table


def version_at(offline_uri: str, name: str, instant: int) -> int:
    """The version that a source's table had at `instant` (µs): the newest that was committed at or before it.

    Raises NotReadyError when the source was never ingested, DataError when the table is younger or its log does not
    reach back that far.
    """
    commits = open_version(offline_uri, name, None).history()
    at_or_before = [commit["version"] for commit in commits if commit["timestamp"] * 1000 <= instant]
    if at_or_before:
        return int(max(at_or_before))
    first = min(commit["timestamp"] for commit in commits)
    raise DataError(
        f"Offline table {name} has no version as old as {to_datetime(instant).isoformat()}; the oldest that is known was "
        f"committed at {to_datetime(first * 1000).isoformat()}: choose a later instant."
    )


def table_identity(offline_uri: str, name: str) -> str:
    """What tells a source's table from one that was made anew in its place. Raises NotReadyError without a table."""
    return str(open_version(offline_uri, name, None).metadata().id)


def read_columns(table: DeltaTable, columns: Iterable[str], condition: Any = None) -> pa.Table:
    """These columns of the rows for which `condition` (a pyarrow expression) holds. Raises UnavailableError."""
    try:
        dataset = table.to_pyarrow_dataset()
        at_most = sum(fragment.count_rows() for fragment in dataset.get_fragments(filter=condition))
        # Little is read ahead: what is read is copied at once, and its memory is used again for what is read next.
        scanner = dataset.scanner(columns=list(columns), filter=condition, batch_readahead=2, fragment_readahead=1)
        return gathered(scanner.projected_schema, scanner.to_batches(), at_most)
    except UNREADABLE as error:
        raise unreadable(f"{table.table_uri} (version {table.version()})", error) from error


def count_rows(table: DeltaTable, condition: Any = None) -> int:
    """How many rows there are for which `condition` (a pyarrow expression) holds. Raises UnavailableError."""
    try:
        return int(table.to_pyarrow_dataset().count_rows(filter=condition))
    except UNREADABLE as error:
        raise unreadable(f"{table.table_uri} (version {table.version()})", error) from error


def rows_table(
    uri: str, columns: Sequence[str], timestamp: str, start: datetime | None, end: datetime | None
) -> pa.Table:
    """The raw `columns` of the table at `uri` whose `timestamp` lies in `start..end`, both inclusive; None: no bound.

    Rows without a timestamp are left out where there is a bound. Raises NotReadyError when there is no such table.
    """
    root, _, name = uri.rstrip("/").rpartition("/")
    bounds = [None if moment is None else from_datetime(moment) for moment in (start, end)]
    return read_columns(open_version(root, name, None), columns, between(timestamp, bounds[0], bounds[1]))


def between(column: str, start: int | None, end: int | None) -> Any:
    """The condition for a time in `start..end` (µs, inclusive); None without bounds."""
    condition = None
    if start is not None:
        condition = ds.field(column) >= pa.scalar(start, pa.int64()).cast(INSTANT)
    if end is not None:
        upper = ds.field(column) <= pa.scalar(end, pa.int64()).cast(INSTANT)
        condition = upper if condition is None else condition & upper
    return condition


def write_table(
    offline_uri: str,
    name: str,
    table: DeltaTable | None,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    *,
    overwrite: bool,
    metadata: dict[str, str],
) -> int:
    """Append `batches` to `table` (None: make it), or replace its rows, in one commit; the version that this made.

    Batches are written as they come, so memory stays bounded. What `batches` raises is raised here, and nothing is
    committed then, nor when another writer committed after `table` was opened (UnavailableError: run again).
    """
    raised: list[BaseException] = []

    def watched() -> Iterator[pa.RecordBatch]:
        try:
            yield from _one_ahead(batches)
        except BaseException as error:
            raised.append(error)  # delta-rs would hide it in an error of its own
            raise

    uri = table_uri(offline_uri, name)
    replaced = overwrite and table is not None
    try:
        write_deltalake(
            uri if table is None else table,
            pa.RecordBatchReader.from_batches(schema, watched()),
            mode="error" if table is None else "overwrite" if replaced else "append",
            schema_mode="overwrite" if replaced else None,
            commit_properties=CommitProperties(
                custom_metadata=metadata,
                max_commit_retries=0,  # a second try would lay rows beside those of another creation, or of an OPTIMIZE
            ),
        )
    except Exception as error:
        if raised:  # on one core delta-rs raises a plain Exception then
            raise raised[0] from None
        if not isinstance(error, (DeltaError, OSError)):
            raise
        if isinstance(error, CommitFailedError):
            raise UnavailableError(
                f"Offline table {name} was written by another extraction, or an OPTIMIZE, at the same time, so this one changed "
                "nothing; run tally ingest again."
            ) from error
        raise UnavailableError(
            f"The offline table {uri} cannot be written ({told(error)}); check TALLY_OFFLINE_URI, and room and rights there."
        ) from error
    return DeltaTable(uri).version()


def _one_ahead(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches, made in a thread of their own while the one before is used.

    delta-rs asks for them from inside its runtime, where no other Delta table can be read or written; that thread can.
    """
    iterator = iter(batches)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield batch
