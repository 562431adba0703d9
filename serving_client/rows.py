"""What a lookup answers: values, how each came about, and the evidence of what was read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from serving_client.status import Status
from tally.columns import Column
from tally.dtypes import VARIABLE_WIDTH
from tally.errors import DataError
from tally.plan import Service

if TYPE_CHECKING:
    import pandas
    import pyarrow

__all__ = ["FeatureRows", "Read", "Status"]


@dataclass(frozen=True, slots=True)
class Read:
    """What one use of a view found in the store, for n rows.

    `status` uint8 (n,) of `Status`; `found` (n,); `timestamp` int64 (n,): the latest row's event timestamp, or the
    newest one in the tiles (meaningless where not found). `evidence` has n entries: what was read, None for nothing.
    """

    name: str
    status: NDArray[np.uint8]
    found: NDArray[np.bool_]
    timestamp: NDArray[np.int64]
    evidence: Sequence[dict[str, Any] | None]


class FeatureRows:
    """The features of n rows, in the order in which they were asked for.

    `columns` maps the service's outputs, in order, to columns; `status` the same names to uint8 (n,) of `Status`;
    `as_of` is int64 µs UTC (n,); `definition` is the service's hash. `superseded`: a newer definition was applied, which
    this worker cannot serve yet.
    """

    superseded = False

    def __init__(
        self,
        service: Service,
        columns: Mapping[str, Column],
        status: Mapping[str, NDArray[np.uint8]],
        as_of: NDArray[np.int64],
        reads: Sequence[Read],
    ) -> None:
        self.definition = service.hash
        self.columns = columns
        self.status = status
        self.as_of = as_of
        self._outputs = service.outputs
        self._reads = reads

    def __len__(self) -> int:
        return len(self.as_of)

    def __repr__(self) -> str:
        return f"<FeatureRows: {len(self)} rows x {len(self._outputs)} features, definition {self.definition[:8]}>"

    @property
    def names(self) -> list[str]:
        """Names of all features, in order."""
        return [output.name for output in self._outputs]

    @property
    def numeric_names(self) -> list[str]:
        """Names of the features that `to_numpy` can hold: all but strings and bytes."""
        return [output.name for output in self._outputs if output.dtype not in VARIABLE_WIDTH]

    @property
    def reads(self) -> Sequence[Read]:
        """What each use of a view found, in the order of the service."""
        return self._reads

    @cached_property
    def ahead(self) -> NDArray[np.bool_]:
        """Which rows read something that the store already had beyond `as_of` (see `Status.AHEAD`)."""
        ahead = np.zeros(len(self), np.bool_)
        for read in self._reads:
            ahead |= read.status == Status.AHEAD
        return ahead

    @property
    def event_timestamps(self) -> dict[str, Column]:
        """For each use of a view, by name: when the stored row (or the newest row in its tiles) happened."""
        return {
            read.name: Column("UnixTimestamp", np.where(read.found, read.timestamp, 0), read.found)
            for read in self._reads
        }

    @cached_property
    def evidence(self) -> list[dict[str, dict[str, Any] | None]]:
        """For each row, what was read from each view by name: enough to replay the answer offline.

        ``{"fences": {partition: last offset}}`` for windows, ``{"version": [event_timestamp, a, b, check]}`` for a
        latest row (see `tally.layout`), None where nothing is stored.
        """
        names = [read.name for read in self._reads]
        pieces = [read.evidence for read in self._reads]
        return [dict(zip(names, [piece[row] for piece in pieces], strict=True)) for row in range(len(self))]

    def evidence_json(self) -> list[str]:
        """`evidence` as JSON texts, for a column named `tally.served.EVIDENCE_COLUMN` in a log of served rows."""
        return [json.dumps(one, separators=(",", ":")) for one in self.evidence]

    def items(self) -> dict[str, list[Any]]:
        """Feature name -> Python values, None where null; timestamps are int µs UTC. Makes no arrays for few rows."""
        return {name: values.items() for name, values in self.columns.items()}

    def to_dict(self) -> dict[str, list[Any]]:
        """Feature name -> Python values, None where null; timestamps are aware UTC datetimes."""
        return {name: values.to_list() for name, values in self.columns.items()}

    def to_numpy(self, names: Sequence[str] | None = None) -> NDArray[np.float64]:
        """A C-contiguous float64 matrix (rows, features) of `names`, NaN where null. None: all features.

        Booleans are 0 and 1, timestamps microseconds UTC. Integers beyond 2^53 are rounded to the nearest float64: take
        `columns` for those. Raises DataError for features of strings or bytes, and for unknown names.
        """
        chosen = self.names if names is None else list(names)
        dtypes = {output.name: output.dtype for output in self._outputs}
        unknown = [name for name in chosen if name not in dtypes]
        if unknown:
            raise DataError(f"This service has no features {unknown}; it has {self.names}.")
        texts = [name for name in chosen if dtypes[name] in VARIABLE_WIDTH]
        if texts:
            raise DataError(
                f"The features {texts} are not numbers; name those that you want, "
                "as in rows.to_numpy(rows.numeric_names)."
            )
        return self._matrix(chosen)

    def _matrix(self, names: Sequence[str]) -> NDArray[np.float64]:
        matrix = np.empty((len(self), len(names)), np.float64)
        for position, name in enumerate(names):
            values = self.columns[name]
            matrix[:, position] = values.values
            if not values.valid.all():
                matrix[~values.valid, position] = np.nan
        return matrix

    def to_arrow(self) -> pyarrow.Table:
        """A pyarrow Table; timestamps are ``timestamp[us, tz=UTC]``."""
        from serving_client.frames import to_arrow

        return to_arrow(self.columns)

    def to_pandas(self) -> pandas.DataFrame:
        """A DataFrame whose dtypes do not depend on nulls: Int64, boolean, string, float64, datetime64[us, UTC]."""
        from serving_client.frames import to_pandas

        return to_pandas(self.columns)
