"""Instants: int64 microseconds since the Unix epoch, UTC. Naive input is UTC; finer input is floored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tally.errors import DataError

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
MILLISECOND: Final = 1_000
SECOND: Final = 1_000 * MILLISECOND
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

_NULL: Final = "An instant is null (NaT); give a datetime or an integer of microseconds UTC."
_LEAST: Final = -(2**63)
_GREATEST: Final = 2**63 - 1
_PER_UNIT: Final = {"ns": 1_000, "ps": 1_000_000, "fs": 1_000_000_000, "as": 1_000_000_000_000}


def from_datetime(moment: datetime) -> int:
    """Microseconds UTC of `moment`; a naive one is UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // MICROSECOND


def to_datetime(micros: int) -> datetime:
    """The aware UTC datetime of `micros`. Raises DataError outside the years 1 to 9999, which datetimes hold."""
    try:
        return EPOCH + timedelta(microseconds=int(micros))
    except OverflowError as error:
        raise DataError(
            f"The instant {micros} (microseconds UTC) lies outside the years 1 to 9999 that Python's datetimes hold; "
            "read it as an array or fix the row that holds it."
        ) from error


def to_datetimes(micros: NDArray[np.int64]) -> list[datetime]:
    """As `to_datetime`, of each of `micros`."""
    moments = micros.view("datetime64[us]").tolist()  # years that datetimes do not hold come as integers
    if set(map(type, moments)) <= {datetime}:
        return [moment.replace(tzinfo=UTC) for moment in moments]
    return [to_datetime(one) for one in micros.tolist()]


def from_datetime64(values: NDArray[Any]) -> NDArray[np.int64]:
    """Microseconds UTC of a datetime64 array of any unit. Finer units are floored, also before 1970.

    NaT must have been masked by the caller: it becomes an arbitrary number here.
    Raises DataError when a value lies outside what int64 microseconds can hold.
    """
    unit, _ = np.datetime_data(values.dtype)
    if unit in _PER_UNIT:
        return np.floor_divide(_converted(values, unit).view(np.int64), _PER_UNIT[unit])
    return _converted(values, "us").view(np.int64)


def _converted(values: NDArray[Any], unit: str) -> NDArray[Any]:
    """`values` in a unit that is no coarser than their own."""
    converted = values.astype(f"datetime64[{unit}]", copy=False)
    if converted.dtype != values.dtype and not np.array_equal(converted.astype(values.dtype), values, equal_nan=True):
        raise DataError("A timestamp lies outside the years that int64 microseconds can hold; drop or clip it.")
    return converted


def instant(moment: Any) -> int:
    """Microseconds UTC of a datetime, a NumPy datetime64, a pandas Timestamp or an int (already microseconds).

    Raises DataError for anything else, for NaT, and for an int outside int64.
    """
    if isinstance(moment, int | np.integer) and not isinstance(moment, bool | np.timedelta64):
        if not _LEAST <= moment <= _GREATEST:
            raise DataError(f"The instant {moment} does not fit int64 microseconds; is it in nanoseconds?")
        return int(moment)
    if isinstance(moment, np.datetime64):
        if np.isnat(moment):
            raise DataError(_NULL)
        return int(from_datetime64(np.array([moment]))[0])
    if isinstance(moment, datetime):
        if moment != moment:  # noqa: PLR0124 pandas.NaT is a datetime
            raise DataError(_NULL)
        return from_datetime(moment)
    raise DataError(
        f"An instant must be a datetime or an integer of microseconds UTC, not {type(moment).__name__} {moment!r}."
    )


def instants(moments: Any, count: int) -> NDArray[np.int64]:
    """`count` instants from one instant (repeated) or from a list, tuple or array of them. Raises DataError."""
    if not isinstance(moments, np.ndarray | list | tuple):
        return np.full(count, instant(moments), np.int64)
    if isinstance(moments, np.ndarray) and moments.dtype.kind == "M":
        if np.isnat(moments).any():
            raise DataError(_NULL)
        array = from_datetime64(moments)
    elif isinstance(moments, np.ndarray) and moments.dtype.kind == "i":
        array = moments.astype(np.int64)
    else:
        items = moments.ravel().tolist() if isinstance(moments, np.ndarray) else moments
        array = np.fromiter((instant(item) for item in items), np.int64, len(items))
    if array.shape != (count,):
        raise DataError(f"as_of has {array.size} instants for {count} rows; give one instant, or one for each row.")
    return array


def floor(micros: NDArray[np.int64] | int, interval: int) -> Any:
    """The greatest multiple of `interval` (since the epoch) that is not after `micros`."""
    return micros - micros % interval
