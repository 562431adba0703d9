"""Point-in-time joins beside DuckDB and Polars, each side in a process of its own.

The inputs are Parquet files that every side first reads into its own memory; what is timed is the join alone, from there to
an answer in the side's own columns.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray

from benchmarks import feast_stores
from benchmarks.definitions import AMOUNT, AT, KEY, latest_view, rows_of, topic_source, windowed_view
from benchmarks.measure import DifferentAnswersError, Report, Result, Target, alone, alone_within, seconds_of
from ingestion.arrow import to_columns
from ingestion.reading import Rows
from tally.columns import Column
from tally.plan import View
from tally.time import DAY, HOUR, MINUTE
from training.join import Ask, join

Answer = NDArray[np.float64]
Side = Callable[[Path], float]

SPAN: Final = 30 * DAY
LATEST: Final = latest_view("x")
FUNCTIONS: Final = ("count", "sum", "max")
WINDOWED: Final = windowed_view(
    "w", [(function, window) for window in ("1h", "24h") for function in FUNCTIONS], topic_source("events")
)
ROUNDS: Final = 3
FEAST_SECONDS: Final = 300.0
FEAST_GB: Final = 22.0
"""What Feast's stores may take; beyond it they are ended, and the table says so."""
FULL: Final = 200_000
LOOKED_AT: Final = 100

BOUNDS_SQL: Final = f"""
    SELECT id, k, ts, (ts - {HOUR}) // {5 * MINUTE} * {5 * MINUTE} AS low_1h,
           (ts - {DAY}) // {2 * HOUR} * {2 * HOUR} AS low_24h
    FROM labels
"""
RANGE_JOIN_SQL: Final = f"""
    SELECT l.id,
           count(e.amount) FILTER (e.ts >= l.low_1h) AS w_count_1h,
           sum(e.amount) FILTER (e.ts >= l.low_1h) AS w_sum_1h,
           max(e.amount) FILTER (e.ts >= l.low_1h) AS w_max_1h,
           count(e.amount) AS w_count_24h, sum(e.amount) AS w_sum_24h, max(e.amount) AS w_max_24h
    FROM ({BOUNDS_SQL}) l
    LEFT JOIN rows e ON e.k = l.k AND e.ts <= l.ts AND e.ts >= l.low_24h
    GROUP BY l.id
"""
FRAMES_SQL: Final = f"""
    SELECT id, w_count_1h, w_sum_1h, w_max_1h, w_count_24h, w_sum_24h, w_max_24h
    FROM (
        SELECT id,
               count(amount) OVER one AS w_count_1h, sum(amount) OVER one AS w_sum_1h, max(amount) OVER one AS w_max_1h,
               count(amount) OVER day AS w_count_24h, sum(amount) OVER day AS w_sum_24h, max(amount) OVER day AS w_max_24h
        FROM (
            SELECT id, k, ts, NULL AS amount, low_1h, low_24h FROM ({BOUNDS_SQL})
            UNION ALL
            SELECT -1, k, ts, amount, ts, ts FROM rows
        )
        WINDOW one AS (PARTITION BY k ORDER BY ts RANGE BETWEEN ts - low_1h PRECEDING AND CURRENT ROW),
               day AS (PARTITION BY k ORDER BY ts RANGE BETWEEN ts - low_24h PRECEDING AND CURRENT ROW)
    )
    WHERE id >= 0
"""
"""The same windows without a join: labels and events in one sequence, a frame from each label back to its bound."""
ASOF_SQL: Final = f"""
    SELECT l.id, {", ".join(f"r.{field.name}" for field in LATEST.fields)}
    FROM labels l ASOF LEFT JOIN rows r ON l.k = r.k AND l.ts >= r.ts
"""


@dataclass(frozen=True, slots=True)
class Size:
    """How much to join: entities, rows and labels."""

    keys: int
    rows: int
    labels: int

    def __str__(self) -> str:
        return f"{self.labels:,} labels x {self.rows:,} rows x {self.keys:,} keys"


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds (the median of the rounds) and peak memory (GB, the greatest) of a side."""

    seconds: float
    peak: float


def run(*, quick: bool) -> Report:
    """Time every join; answers are compared. Raises DifferentAnswersError."""
    results: list[Result] = []
    notes: list[str] = []
    _latest(results, notes, quick=quick)
    _feast(results, notes, quick=quick)
    _windows(results, notes, quick=quick)
    return Report(results, [*notes, *_NOTES])


_NOTES: Final = (
    "Seconds are the join alone, from each side's own memory to its own columns; the median of the rounds.",
    "Ours keeps the labels' order; theirs return an id and are put in order after the clock has stopped.",
    "GB are the peak of a side's whole process: the libraries of both sides (about 0.2 GB), inputs and answer.",
    "Every side runs on all processors that it finds; ours sorts windows and latest rows on them, and adds on one.",
    "Beside Feast, both sides read their own files and end with a pandas frame.",
)


def _latest(results: list[Result], notes: list[str], *, quick: bool) -> None:
    size = Size(10_000, 500_000, 100_000) if quick else Size(100_000, 5_000_000, 1_000_000)
    sides = {"ours": ours_latest, "DuckDB ASOF": duckdb_latest, "Polars join_asof": polars_latest}
    taken = _all(size, write_latest_inputs, sides, ROUNDS, f"latest, {size}", notes)
    for peer, bound in (("DuckDB ASOF", 1.3), ("Polars join_asof", None)):
        results += _beside(f"latest, {size} x 8 fields", taken, peer, bound, 3.0)


def _feast(results: list[Result], notes: list[str], *, quick: bool) -> None:
    both, duckdb = (feast_stores.feast_dask, feast_stores.feast_duckdb), (feast_stores.feast_duckdb,)
    # Feast on DuckDB pairs each label with all earlier rows of its key before it keeps one, so the fewer the keys, the more it
    # takes; with 10,000 of them it wants more memory than it may have.
    full: tuple[tuple[Size, tuple[Side, ...]], ...] = (
        (Size(20_000, 1_000_000, 200_000), both),
        (Size(100_000, 5_000_000, 1_000_000), both),
        (Size(15_000, 5_000_000, 1_000_000), duckdb),
    )
    for size, sides in ((Size(1_000, 20_000, 5_000), both),) if quick else full:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            alone(write_latest_inputs, folder, size)
            alone(feast_stores.write_stores, folder)
            seconds, peak = alone(feast_stores.ours, folder)
            for side in sides:
                what = f"point_in_time: {size}, files to frame, beside Feast ({side.__name__.removeprefix('feast_')})"
                its = alone_within(FEAST_SECONDS, FEAST_GB, side, folder)
                if isinstance(its, str):  # then its answer would have come later than this
                    notes.append(
                        f"{size}: {side.__name__} was ended, {its}; ours took {seconds:.2f} s and {peak:.2f} GB."
                    )
                    results.append(Result(f"{what}, ended {its}", seconds, None, "s"))
                    continue
                notes.append(f"{size}: {side.__name__} {alone(feast_stores.compare, folder, side.__name__)[0]}")
                results.append(Result(what, seconds, its[0], "s", None if quick else Target("ratio", "<=", 1 / 50)))
                results.append(Result(f"{what}, peak memory", peak, its[1], "GB"))


def _windows(results: list[Result], notes: list[str], *, quick: bool) -> None:
    rows, labels = (100_000, 10_000) if quick else (2_000_000, FULL)
    # On hot keys the range join takes more than a minute: once is enough.
    for keys, rounds, bound in ((16, 1, 1 / 30), (4_000, ROUNDS, 3.0)):
        size = Size(keys, rows, labels)
        sides = {"ours": ours_windows, "DuckDB range join": duckdb_range_join}
        taken = _all(size, write_window_inputs, sides, rounds, f"windows, {size}", notes)
        results += _beside(f"windows, {size}", taken, "DuckDB range join", bound, None)
    for keys in (16, 4_000):
        size = Size(keys, rows, labels)
        sides = {"ours": ours_windows, "DuckDB frames": duckdb_frames}
        taken = _all(size, write_window_inputs, sides, ROUNDS, f"windows, {size}", notes)
        results += _beside(f"windows, {size}", taken, "DuckDB frames", None, None)
    notes.append(
        "DuckDB frames: the same windows as window functions over labels and events together, instead of a range join."
    )


def _beside(
    what: str, taken: dict[str, Taken], peer: str, time_bound: float | None, memory_bound: float | None
) -> list[Result]:
    ours, theirs = taken["ours"], taken[peer]
    faster = None if time_bound is None else Target("ratio", "<=", time_bound)
    smaller = None if memory_bound is None else Target("ours", "<=", memory_bound)
    return [
        Result(f"point_in_time: {what}, beside {peer}", ours.seconds, theirs.seconds, "s", faster),
        Result(f"point_in_time: {what}, peak memory, beside {peer}", ours.peak, theirs.peak, "GB", smaller),
    ]


def _all(
    size: Size,
    write: Callable[[Path, Size], None],
    sides: Mapping[str, Side],
    rounds: int,
    what: str,
    notes: list[str],
) -> dict[str, Taken]:
    """Every side in turns, `rounds` times each; a note says how their answers compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone(write, folder, size)
        runs: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, function in sides.items():
                runs[side].append(alone(function, folder))
        for side, function in sides.items():
            if side != "ours":
                said, _ = alone(compare, folder, ours_of(function), function.__name__)
                notes.append(f"{what}: {side} {said}")
    return {
        side: Taken(median(seconds for seconds, _ in one), max(peak for _, peak in one)) for side, one in runs.items()
    }


def ours_of(side: Side) -> str:
    """The name of our answer to what a side answers."""
    return ours_latest.__name__ if side in (duckdb_latest, polars_latest) else ours_windows.__name__


# Inputs


def write_latest_inputs(folder: Path, size: Size) -> None:
    """Rows as they landed, by time with some disorder, no two at one instant; labels in any order."""
    rng = np.random.default_rng(0)
    columns = _keys_and_times(rng, size)
    for field in LATEST.fields:
        floats = field.dtype == "Float64"
        columns[field.name] = rng.normal(size=size.rows) if floats else rng.integers(0, 1000, size.rows)
    _write(folder, rng, size, columns)


def write_window_inputs(folder: Path, size: Size) -> None:
    """As the rows of a latest view, with one amount of two decimals."""
    rng = np.random.default_rng(1)
    columns = _keys_and_times(rng, size)
    columns[AMOUNT.name] = np.round(rng.gamma(2.0, 30.0, size.rows), 2)
    _write(folder, rng, size, columns)


def _keys_and_times(rng: np.random.Generator, size: Size) -> dict[str, NDArray[Any]]:
    step = SPAN // size.rows
    times = np.arange(size.rows) * step + rng.integers(0, step, size.rows)
    landed = np.argsort(times + rng.integers(0, MINUTE, size.rows))
    return {KEY.name: rng.integers(0, size.keys, size.rows), AT.name: times[landed]}


def _write(folder: Path, rng: np.random.Generator, size: Size, columns: dict[str, NDArray[Any]]) -> None:
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    labels = {
        "id": np.arange(size.labels),
        KEY.name: rng.integers(0, size.keys, size.labels),
        AT.name: rng.integers(0, SPAN, size.labels),
    }
    pq.write_table(pa.table(labels), folder / "labels.parquet")


# The sides: each reads the inputs, joins, keeps its answer in `<its name>.npy`, and returns the seconds of the join.


def ours_latest(folder: Path) -> float:
    """`training.join` on a latest view."""
    return _ours(folder, LATEST, ours_latest.__name__)


def ours_windows(folder: Path) -> float:
    """`training.join` on a windowed view."""
    return _ours(folder, WINDOWED, ours_windows.__name__)


def _ours(folder: Path, view: View, name: str) -> float:
    rows, ask = _rows(folder, view), _ask(folder, view)
    seconds, answers = seconds_of(lambda: join(view, rows, [ask])[0])
    _keep(folder, name, [_with_nan(answers[field.name]) for field in view.fields])
    return seconds


def _rows(folder: Path, view: View) -> Rows:
    table = pq.read_table(folder / "rows.parquet")
    stamps = table.column(AT.name).cast(pa.timestamp("us", tz="UTC"))
    table = table.set_column(table.column_names.index(AT.name), AT.name, stamps).select([f.name for f in view.columns])
    return rows_of(view, to_columns(view.columns, table))


def _ask(folder: Path, view: View) -> Ask:
    table = pq.read_table(folder / "labels.parquet")
    keys = table.column(KEY.name).to_numpy()
    wanted = tuple(field.name for field in view.fields)
    as_of = table.column(AT.name).to_numpy()
    return Ask([Column("Int64", keys, np.ones(len(keys), np.bool_))], as_of, wanted, "event_time", None)


def _with_nan(column: Column) -> Answer:
    return np.where(column.valid, column.values.astype(np.float64), np.nan)


def duckdb_latest(folder: Path) -> float:
    """DuckDB's ASOF join."""
    return _duckdb(folder, ASOF_SQL, LATEST, duckdb_latest.__name__)


def duckdb_range_join(folder: Path) -> float:
    """DuckDB's join on a key and a range of time, then GROUP BY; both windows in one join."""
    return _duckdb(folder, RANGE_JOIN_SQL, WINDOWED, duckdb_range_join.__name__)


def duckdb_frames(folder: Path) -> float:
    """DuckDB's window functions."""
    return _duckdb(folder, FRAMES_SQL, WINDOWED, duckdb_frames.__name__)


def _duckdb(folder: Path, query: str, view: View, name: str) -> float:
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        for table in ("rows", "labels"):
            connection.read_parquet(str(folder / f"{table}.parquet")).create(table)
        seconds, answer = seconds_of(lambda: connection.sql(query).to_arrow_table())
    order = np.argsort(answer.column("id").to_numpy())
    _keep(folder, name, [answer.column(field.name).to_numpy()[order].astype(np.float64) for field in view.fields])
    return seconds


def polars_latest(folder: Path) -> float:
    """Polars' join_asof, with the sorting that it asks for."""
    import polars as pl

    rows, labels = pl.read_parquet(folder / "rows.parquet"), pl.read_parquet(folder / "labels.parquet")
    seconds, answer = seconds_of(
        lambda: labels.sort(AT.name).join_asof(
            rows.sort(AT.name), on=AT.name, by=KEY.name, strategy="backward", check_sortedness=False
        )
    )
    answer = answer.sort("id")
    _keep(
        folder,
        polars_latest.__name__,
        [answer[f.name].cast(pl.Float64).fill_null(np.nan).to_numpy() for f in LATEST.fields],
    )
    return seconds


def _keep(folder: Path, name: str, columns: Sequence[Answer]) -> None:
    np.save(folder / f"{name}.npy", np.stack(columns))


# Do they say the same?


def compare(folder: Path, ours: str, theirs: str) -> str:
    """How an answer compares to ours, feature by feature, label by label, by bits.

    Sums of floats may differ where the other side adds with rounding: then `math.fsum` decides, for some of the labels.
    Raises DifferentAnswersError when anything else differs, or where it says that ours is wrong.
    """
    one, other = np.load(folder / f"{ours}.npy"), np.load(folder / f"{theirs}.npy")
    fields = (LATEST if ours == ours_latest.__name__ else WINDOWED).fields
    differing = 0
    for field, mine, its in zip(fields, one, other, strict=True):
        differs = np.flatnonzero((mine.view(np.int64) != its.view(np.int64)) & ~(np.isnan(mine) & np.isnan(its)))
        if len(differs) and "_sum_" not in field.name:
            raise DifferentAnswersError(f"{theirs} differs from ours in {len(differs)} values of {field.name}.")
        differing += len(differs)
        _check_sums(folder, field.name, differs[:LOOKED_AT], mine)
    if not differing:
        return f"gives the same {one.size:,} values, by bits."
    return (
        f"gives the same counts and greatest values; {differing:,} of its {one.size // 3:,} sums are off by rounding "
        f"(math.fsum gives ours for every one of the {LOOKED_AT} looked at in each window)."
    )


def _check_sums(folder: Path, feature: str, labels: NDArray[np.int64], ours: Answer) -> None:
    if not len(labels):
        return
    rows, ask = _rows(folder, WINDOWED), _ask(folder, WINDOWED)
    window = next(a.window for a in WINDOWED.aggregations if a.feature == feature)
    keys, amounts = rows.columns[KEY.name].values, rows.columns[AMOUNT.name].values
    for label in labels.tolist():
        as_of = int(ask.as_of[label])
        inside = (
            (rows.timestamp >= window.lower(as_of)) & (rows.timestamp <= as_of) & (keys == ask.keys[0].values[label])
        )
        if math.fsum(amounts[inside].tolist()) != ours[label]:
            raise DifferentAnswersError(f"{feature} of label {label} is not what math.fsum gives.")
