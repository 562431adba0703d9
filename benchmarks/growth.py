"""Whole training sets as they grow, from a Delta table and a Parquet file of labels to a Parquet file, within a bound of memory.

Table and labels are made in pieces, so that their size is bounded by the disk alone.
"""

from __future__ import annotations

import importlib
import math
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from distributed import Client, LocalCluster

from benchmarks.definitions import AMOUNT, AT, KEY, plan_of, topic_source, windowed_view
from benchmarks.measure import DifferentAnswersError, Report, Result, Target, alone
from ingestion.arrow import INSTANT
from ingestion.delta import open_table, write_table
from ingestion.offline import IDENTITY, Extracted, source_hash
from tally.plan import Plan
from tally.time import DAY, MINUTE
from training import training_set

SOURCE: Final = topic_source("events")
FUNCTIONS: Final = ("count", "sum", "max")
VIEW: Final = windowed_view("w", [(function, window) for window in ("1h", "24h") for function in FUNCTIONS], SOURCE)
PLAN: Final[Plan] = plan_of("growth", SOURCE, [VIEW])
SPAN: Final = 30 * DAY
EVENTS_PER_KEY: Final = 1_000
EVENTS_PER_LABEL: Final = 10
LOOKED_AT: Final = 50
MEMORY: Final = "4GB"
_PIECE: Final = 1_000_000


def write_inputs(folder: Path, events: int) -> None:
    """``folder/offline/events`` with `events` events in the order in which they came, ``folder/labels.parquet`` in none."""
    schema = pa.schema([*IDENTITY, (AT.name, INSTANT), (KEY.name, pa.int64()), (AMOUNT.name, pa.float64())])
    knows = Extracted(source_hash(PLAN, SOURCE), {0: events - 1}, {0: events}, None)
    write_table(
        str(folder / "offline"),
        SOURCE.name,
        open_table(str(folder / "offline"), SOURCE.name),
        schema,
        _events(events, schema),
        overwrite=False,
        metadata=knows.to_metadata(),
    )
    rng = np.random.default_rng(2)
    labels = events // EVENTS_PER_LABEL
    fields = pa.schema([("id", pa.int64()), (KEY.name, pa.int64()), ("event_timestamp", INSTANT)])
    with pq.ParquetWriter(folder / "labels.parquet", fields) as writer:
        for start in range(0, labels, _PIECE):
            count = min(_PIECE, labels - start)
            keys, at = rng.integers(0, events // EVENTS_PER_KEY, count), rng.integers(0, SPAN, count)
            columns = [pa.array(np.arange(start, start + count)), pa.array(keys), pa.array(at).cast(INSTANT)]
            writer.write_table(pa.table(columns, schema=fields))


def _events(events: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    rng = np.random.default_rng(1)
    step = SPAN // events
    for start in range(0, events, _PIECE):
        count = min(_PIECE, events - start)
        offsets = np.arange(start, start + count)
        came = offsets * step
        happened = np.maximum(came - rng.integers(0, MINUTE, count), 0)
        columns: dict[str, Any] = {
            "_topic": pa.array(["events"] * count, pa.string()),
            "_partition": pa.array(np.zeros(count, np.int32)),
            "_offset": pa.array(offsets),
            "_create_time": pa.array(came).cast(INSTANT),
            "_landed_at": pa.array(came).cast(INSTANT),
            AT.name: pa.array(happened).cast(INSTANT),
            KEY.name: pa.array(rng.integers(0, events // EVENTS_PER_KEY, count)),
            AMOUNT.name: pa.array(np.round(rng.gamma(2.0, 30.0, count), 2)),
        }
        arrays = [columns[field.name] if field.name in columns else pa.nulls(count, field.type) for field in schema]
        yield pa.record_batch(arrays, schema=schema)


def export(folder: Path, memory: str) -> tuple[float, float]:
    """(seconds, processor seconds) that it took to write ``folder/training.parquet``."""
    before, began = _processor(), time.perf_counter()
    built = training_set(
        PLAN, folder / "labels.parquet", service="all", offline_uri=str(folder / "offline"), memory=memory
    )
    built.to_parquet(folder / "training.parquet")
    return time.perf_counter() - began, _processor() - before


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def check(folder: Path) -> str:
    """Compare some labels of the file with plain loops over the events of their keys. Raises DifferentAnswersError."""
    file = pq.ParquetFile(folder / "training.parquet")
    labels = pq.ParquetFile(folder / "labels.parquet")
    if file.metadata.num_rows != labels.metadata.num_rows:
        raise DifferentAnswersError(f"{file.metadata.num_rows} rows came out for {labels.metadata.num_rows} labels.")
    rng = np.random.default_rng(3)
    group = int(rng.integers(0, file.num_row_groups))
    rows = file.read_row_group(group).to_pylist()
    first = sum(file.metadata.row_group(number).num_rows for number in range(group))
    if [row["id"] for row in rows] != list(range(first, first + len(rows))):
        raise DifferentAnswersError("The rows are not in the order of the labels.")
    chosen = [rows[place] for place in rng.choice(len(rows), min(LOOKED_AT, len(rows)), replace=False).tolist()]
    table = open_table(str(folder / "offline"), SOURCE.name)
    assert table is not None, "it was written"
    keys = pa.array(sorted({row[KEY.name] for row in chosen}))
    found = table.to_pyarrow_dataset().to_table(
        columns=[KEY.name, AT.name, AMOUNT.name], filter=ds.field(KEY.name).isin(keys)
    )
    key, amount = found.column(KEY.name).to_numpy(), found.column(AMOUNT.name).to_numpy()
    at = found.column(AT.name).cast(pa.int64()).to_numpy()
    for row in chosen:
        as_of = pa.scalar(row["event_timestamp"], INSTANT).cast(pa.int64()).as_py()
        for aggregation in VIEW.aggregations:
            inside = amount[(key == row[KEY.name]) & (at >= aggregation.window.lower(as_of)) & (at <= as_of)].tolist()
            expected: Any = len(inside)
            if aggregation.function != "count":
                expected = None if not inside else math.fsum(inside) if aggregation.function == "sum" else max(inside)
            if row[aggregation.feature] != expected:
                raise DifferentAnswersError(f"{aggregation.feature} of label {row['id']} is not {expected!r}.")
    return f"{len(chosen)} labels x {len(VIEW.fields)} windows are those of plain loops over their events, by bits."


def on_workers(folder: Path, workers: int) -> tuple[float, str]:
    """(seconds, digest of the rows) of the export on a Dask cluster of so many worker processes with a thread each."""
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(_imported)
        began = time.perf_counter()
        built = training_set(
            PLAN, folder / "labels.parquet", service="all", offline_uri=str(folder / "offline"), client=client
        )
        built.to_arrow()
        return time.perf_counter() - began, built.rows_digest()


def here(folder: Path) -> tuple[float, str]:
    """As `on_workers`, on threads of this process."""
    began = time.perf_counter()
    built = training_set(PLAN, folder / "labels.parquet", service="all", offline_uri=str(folder / "offline"))
    built.to_arrow()
    return time.perf_counter() - began, built.rows_digest()


def _imported() -> None:
    importlib.import_module("training.cluster")  # workers are there before the clock starts, with what they need


def run(*, quick: bool, events: int = 10_000_000) -> Report:
    """Exports of rising size up to `events`, each from files to a file; and one on one and on two workers. Raises DifferentAnswersError."""
    sizes = [100_000, 200_000] if quick else [size for size in (1_000_000, 10_000_000) if size < events] + [events]
    found: list[Result] = []
    notes: list[str] = []
    per_row: list[float] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            alone(write_inputs, folder, size)
            (seconds, _), peak = alone(export, folder, MEMORY)
            notes.append(f"export of {size:,} events: {alone(check, folder)[0]}")
            if size == sizes[0]:
                found += _workers(folder, size)
        per_row.append(seconds / size * 1e6)
        what = f"growth: export, {size // EVENTS_PER_LABEL:,} labels x {size:,} events"
        found.append(Result(f"{what}, peak memory with --memory {MEMORY}", peak, None, "GB", Target("ours", "<=", 4.0)))
        grown = Target("ratio", "<=", 1.5) if len(per_row) > 1 else None
        found.append(Result(f"{what}, per event, beside the smallest", per_row[-1], per_row[0], "us", grown))
    return Report(found, (*notes, "Exports go from a Delta table and a Parquet file of labels to a Parquet file."))


def _workers(folder: Path, size: int) -> list[Result]:
    (alone_seconds, digest), _ = alone(here, folder)
    found = []
    for workers in (1, 2):
        (seconds, its), _ = alone(on_workers, folder, workers)
        if its != digest:
            raise DifferentAnswersError(f"{workers} Dask workers do not answer what local threads do.")
        what = f"growth: {size:,} events on {workers} Dask worker{'s' if workers > 1 else ''}, beside local threads"
        found.append(Result(what, seconds, alone_seconds, "s"))
    return found
