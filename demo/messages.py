"""What is sent to Kafka: one message when a flight leaves, one when it lands; and how they arrive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

DEPARTURES = "flights.departures"
ARRIVALS = "flights.arrivals"

_BATCH = 8192

_DEPARTURE_FIELDS = ["flight_key", "carrier", "flight", "tailnum", "origin", "dest", "dep_delay", "distance"]
_ARRIVAL_FIELDS = ["flight_key", "carrier", "tailnum", "origin", "dest", "arr_delay", "air_time", "distance"]


def departure_messages(flights: pd.DataFrame) -> pa.Table:
    """The messages of topic flights.departures, one per flight that left, in order of (event time, key).

    Columns: key (binary: the flight_key), value (binary: JSON text), event_time_us (int64: when it left).
    """
    return _messages(flights, "departure", _DEPARTURE_FIELDS)


def arrival_messages(flights: pd.DataFrame) -> pa.Table:
    """The messages of topic flights.arrivals, one per flight that landed where it was bound, likewise."""
    return _messages(flights, "arrival", _ARRIVAL_FIELDS)


def arrival_times(
    messages: pa.Table,
    seed: int,
    share_late: float = 0.05,
    max_delay: timedelta = timedelta(minutes=10),
    share_twice: float = 0.05,
) -> pa.Table:
    """The messages as a transport would deliver them: some late, some twice. Same seed, same answer.

    Adds arrival_us (int64) and sorts by it, stably. A message arrives at its event time or, with probability
    `share_late`, up to `max_delay` after it. With probability `share_twice` a copy of it follows, up to
    `max_delay` after the first. Delays are uniform in whole microseconds.
    """
    random = np.random.default_rng(seed)
    count = messages.num_rows
    longest = max_delay // timedelta(microseconds=1)
    late = random.random(count) < share_late
    delay = random.integers(0, longest, count, endpoint=True)
    first = messages["event_time_us"].to_numpy() + np.where(late, delay, 0)
    twice = np.flatnonzero(random.random(count) < share_twice)
    second = first[twice] + random.integers(0, longest, len(twice), endpoint=True)

    which = np.concatenate([np.arange(count), twice])
    when = np.concatenate([first, second])
    order = np.argsort(when, kind="stable")
    arrived = pa.array(when[order], pa.int64())
    return messages.take(pa.array(which[order])).append_column("arrival_us", arrived)


def _messages(flights: pd.DataFrame, instant: str, fields: list[str]) -> pa.Table:
    happened = flights[flights[instant].notna()]
    happened = happened.sort_values([instant, "flight_key"], kind="stable")
    instants = happened[instant].dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    names = ["event_timestamp", *fields]
    columns = [_iso_seconds(instants), *(_values(happened[field]) for field in fields)]
    rows = zip(*columns, strict=True)
    return pa.table(
        {
            "key": pa.array(happened["flight_key"], pa.string()).cast(pa.binary()),
            "value": _json(names, rows),
            "event_time_us": pa.array(instants.astype("int64")),
        }
    )


def _json(names: list[str], rows: Iterator[tuple[object, ...]]) -> pa.ChunkedArray:
    """Each row as a JSON object with these names."""
    # In batches: holding every encoded message as an object costs more time than encoding it.
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    chunks = []
    while batch := [encode(dict(zip(names, row, strict=True))) for row in islice(rows, _BATCH)]:
        chunks.append(pa.array(batch, pa.string()).cast(pa.binary()))
    return pa.chunked_array(chunks, pa.binary())


def _iso_seconds(instants: np.ndarray[tuple[int], np.dtype[np.datetime64]]) -> list[str]:
    return [f"{text}Z" for text in np.datetime_as_string(instants, unit="s").tolist()]


def _values(column: pd.Series) -> list[object]:
    """Python values; a NaN becomes None."""
    values: list[object] = pa.Array.from_pandas(column).to_pylist()
    return values
