"""Instants: int64 microseconds since the Unix epoch, UTC. Naive input is UTC; finer input is floored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tally.errors import DataError

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

_PER_UNIT: Final = {"ns": 1_000, "ps": 1_000_000, "fs": 1_000_000_000, "as": 1_000_000_000_000}


def from_datetime(moment: datetime) -> int:
    """Microseconds UTC of `moment`; a naive one is UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // MICROSECOND


def to_datetime(micros: int) -> datetime:
    """The aware UTC datetime of `micros`."""
    return EPOCH + timedelta(microseconds=int(micros))


def from_datetime64(values: NDArray[Any]) -> NDArray[np.int64]:
    """Microseconds UTC of a datetime64 array of any unit. Finer units are floored, also before 1970.

    NaT must have been masked by the caller: it becomes an arbitrary number here.
    Raises DataError when a value lies outside what int64 microseconds can hold.
    """
    unit, step = np.datetime_data(values.dtype)
    if unit in _PER_UNIT:
        per = _PER_UNIT[unit]
        return np.floor_divide(values.view(np.int64) * step, per) if per else values.view(np.int64)
    converted = values.astype("datetime64[us]")
    if not np.array_equal(converted.astype(values.dtype), values, equal_nan=True):
        raise DataError("A timestamp lies outside the years that int64 microseconds can hold; drop or clip it.")
    return converted.view(np.int64)


def instant(moment: Any) -> int:
    """Microseconds UTC of a datetime, a NumPy datetime64, a pandas Timestamp or an int (already microseconds)."""
    if isinstance(moment, bool):
        raise DataError("An instant must be a datetime or an integer of microseconds UTC, not a bool.")
    if isinstance(moment, int | np.integer):
        return int(moment)
    if isinstance(moment, np.datetime64):
        if np.isnat(moment):
            raise DataError("An instant is null (NaT); give a datetime or an integer of microseconds UTC.")
        return int(from_datetime64(np.array([moment]))[0])
    if isinstance(moment, datetime):
        return from_datetime(moment)
    raise DataError(
        f"An instant must be a datetime or an integer of microseconds UTC, not {type(moment).__name__} {moment!r}."
    )


def instants(moments: Any, count: int) -> NDArray[np.int64]:
    """`count` instants from one instant (repeated) or from a sequence or array of them."""
    if isinstance(moments, np.ndarray):
        array = from_datetime64(moments) if moments.dtype.kind == "M" else moments.astype(np.int64, casting="safe")
    elif isinstance(moments, list | tuple):
        array = np.fromiter((instant(m) for m in moments), np.int64, len(moments))
    else:
        return np.full(count, instant(moments), np.int64)
    if array.shape != (count,):
        raise DataError(f"as_of has {array.size} instants for {count} rows; give one instant, or one for each row.")
    return array


def floor(micros: NDArray[np.int64] | int, interval: int) -> Any:
    """The greatest multiple of `interval` (since the epoch) that is not after `micros`."""
    return micros - micros % interval
