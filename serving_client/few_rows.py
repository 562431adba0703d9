"""The lookup of few rows, in Python scalars: the same answers as `serving_client.lookup`, without arrays on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, reduce
from math import isnan
from operator import itemgetter
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from serving_client.commands import mget
from serving_client.rows import FeatureRows, Read
from serving_client.status import Status
from tally import functions
from tally.columns import Column
from tally.dtypes import STORAGE, VARIABLE_WIDTH, Dtype
from tally.layout import escaped, fences_of, row_check
from tally.plan import Field, Plan, RequestFunction, Service, View, ViewUse
from tally.single import RowReader, WindowReader
from tally.time import from_datetime, to_datetime

FEW: Final = 12
"""Up to how many rows are looked up in scalars, which take time for each row, where arrays take most of theirs for each call.

Whole lookups beside those of arrays, in turns: 0.89 of their time for 12 rows of windows and 1.03 for 14; of plain views 0.59
for 12 and 1.03 for 32; of flights 0.64 for 12 and 1.02 for 32.
"""
_PRESENT, _MISSING, _EXPIRED, _AHEAD = map(int, (Status.PRESENT, Status.MISSING, Status.EXPIRED, Status.AHEAD))
_BOUNDS: Final[dict[Dtype, int]] = {"Int64": 1 << 63, "Int32": 1 << 31}
_EXACT: Final[dict[Dtype, type]] = {"Bool": bool, "String": str, "Bytes": bytes}


_Stored = tuple[int, tuple[int, int, int] | None, list[Any], bytes | None]
"""What a use of a view found: status, version (event timestamp, a, b; the newest event's timestamp in tiles), features, bytes."""


@dataclass(frozen=True, slots=True)
class FewRequest:
    """Few rows: the `values` of each by column, the distinct `keys` to read, for each use of a view which key each row reads."""

    values: list[list[Any]]
    keys: list[bytes]
    slots: list[list[int]]

    @property
    def count(self) -> int:
        """How many rows."""
        return len(self.values)

    def command(self, *more: bytes) -> bytes:
        """What to send to Redis for the values of `keys`, and of `more` after them."""
        return mget([*self.keys, *more])


@dataclass(frozen=True, slots=True)
class Call:
    """A request function, ready to run.

    `inputs` say where each parameter comes from: (parameter, use of a view, feature), or use -1 and a request field;
    `sources` are the uses among them.
    `features` are (output, name in the answer).
    """

    definition: RequestFunction
    function: functions.Transformation
    inputs: tuple[tuple[str, int, str], ...]
    sources: tuple[int, ...]
    features: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Use:
    """How to read one use of a view. Its keys are at `columns` of the request; `nothing` are the features of no entity."""

    name: str
    prefix: bytes
    columns: tuple[tuple[int, Dtype], ...]
    ttl: int
    row: RowReader | None
    window: WindowReader | None
    nothing: list[Any]

    def key(self, values: Sequence[Any]) -> bytes:
        """The key that a row of the request reads."""
        if len(self.columns) == 1:
            position, dtype = self.columns[0]
            return self.prefix + _text(values[position], dtype)
        return self.prefix + b"|".join([_text(values[position], dtype) for position, dtype in self.columns])

    def read(self, value: bytes | None, as_of: int) -> _Stored | None:
        """What these bytes say as of an instant; None when the general lookup must look at them."""
        if value is None:
            return _MISSING, None, self.nothing, value
        if self.window is not None:
            windows = self.window.read(value, as_of)
            if windows is None:
                return None
            newest, features = windows
            return _AHEAD if newest > as_of else _PRESENT, (newest, 0, 0), features, value
        assert self.row is not None
        row = self.row.read(value)
        if row is None:
            return None
        timestamp, a, b, stored = row
        if timestamp > as_of:
            return _AHEAD, (timestamp, a, b), self.nothing, value
        if self.ttl and as_of - timestamp > self.ttl:
            return _EXPIRED, (timestamp, a, b), self.nothing, value
        return _PRESENT, (timestamp, a, b), stored, value


@dataclass(frozen=True, slots=True)
class Shape:
    """What every answer of a service has in common: `pick` takes the outputs from a pool of values, in order."""

    service: Service
    pick: Callable[[list[Any]], tuple[Any, ...]]
    names: tuple[str, ...]
    moments: tuple[int, ...]
    uses: tuple[_Use, ...]
    sources: tuple[tuple[int, ...], ...]
    """For each output, the uses of views that it was made from."""


class FewRowsLookup:
    """The lookup of few rows of the service of `plan`. Whatever is out of the ordinary is left to the general lookup."""

    def __init__(self, plan: Plan, calls: Sequence[Call]) -> None:
        service = plan.services[0]
        fields = (*service.keys, *service.request)
        places = {field.name: position for position, field in enumerate(fields)}
        self._fields = tuple((field.name, field.dtype) for field in fields)
        self._keys = len(service.keys)
        self._uses = tuple(_use(plan, use, places, fields) for use in service.views)
        pool: dict[tuple[int, str], int] = {(-1, field.name): position for position, field in enumerate(fields)}
        origin: dict[str, tuple[int, tuple[int, ...]]] = {}
        dtypes: list[Dtype] = [field.dtype for field in fields]
        for position, use in enumerate(service.views):
            for name, dtype in _stored_fields(plan.view(use.view)):
                pool[position, name] = len(pool)
                dtypes.append(dtype)
            for feature, name in use.features:
                origin[name] = (pool[position, feature], (position,))
        size = len(pool)
        self._calls = []
        for call in calls:
            inputs = tuple(
                (parameter, pool[source, name], dtypes[pool[source, name]]) for parameter, source, name in call.inputs
            )
            self._calls.append((call, inputs))
            outputs = [field.name for field in call.definition.outputs]
            for output, name in call.features:
                origin[name] = (size + outputs.index(output), call.sources)
            size += len(outputs)
        picked = [origin[output.name] for output in service.outputs]
        self._shape = Shape(
            service,
            _picker([position for position, _ in picked]),
            tuple(output.name for output in service.outputs),
            tuple(i for i, output in enumerate(service.outputs) if output.dtype == "UnixTimestamp"),
            self._uses,
            tuple(sources for _, sources in picked),
        )

    def request(self, rows: Sequence[Mapping[str, Any]]) -> FewRequest | None:
        """What to read for `rows`; None when the general lookup must look at them (to convert a value, or to refuse it)."""
        try:
            values = [self._checked(row) for row in rows]
            if None in values:
                return None
            return self._addressed(cast(list[list[Any]], values))
        except (KeyError, TypeError, IndexError, OverflowError, UnicodeEncodeError):
            return None

    def _checked(self, row: Mapping[str, Any]) -> list[Any] | None:
        values = []
        for name, dtype in self._fields:
            item = row[name]
            kind = type(item)
            if dtype in _BOUNDS:
                if item is not None and (kind is not int or not -_BOUNDS[dtype] <= item < _BOUNDS[dtype]):
                    return None
            elif dtype == "Float64":
                if kind is int:
                    item = float(item)
                elif item is not None and (kind is not float or isnan(item)):
                    return None
            elif dtype == "UnixTimestamp":
                if kind is datetime:
                    item = from_datetime(item)
                elif item is not None:
                    return None
            elif item is not None and kind is not _EXACT.get(dtype):
                return None
            values.append(item)
        return None if None in values[: self._keys] else values

    def _addressed(self, values: list[list[Any]]) -> FewRequest:
        known: dict[bytes, int] = {}
        slots: list[list[int]] = []
        for use in self._uses:
            own = []
            for row in values:
                own.append(known.setdefault(use.key(row), len(known)))  # noqa: PERF401 a comprehension costs a call
            slots.append(own)
        return FewRequest(values, list(known), slots)

    def decode(self, request: FewRequest, values: Sequence[bytes | None], as_of: Sequence[int]) -> FeatureRows | None:
        """The answer; None when the general lookup must look at the bytes (to say what is wrong with them)."""
        found = self._one_found(request, values, as_of) if len(as_of) == 1 else self._found(request, values, as_of)
        if found is None:
            return None
        pools = []
        for position, row in enumerate(request.values):
            pool = [*row]
            for own in found:
                pool += own[position][2]
            pools.append(pool)
        if self._calls:
            with np.errstate(all="ignore"):
                for call, inputs in self._calls:
                    given = [(parameter, dtype, [pool[at] for pool in pools]) for parameter, at, dtype in inputs]
                    for items in functions.run_on_few(call.function, given, call.definition.outputs, len(pools)):
                        for pool, item in zip(pools, items, strict=True):
                            pool.append(item)
        return FewRows(self._shape, [self._shape.pick(pool) for pool in pools], found, as_of)

    def _found(
        self, request: FewRequest, values: Sequence[bytes | None], as_of: Sequence[int]
    ) -> list[list[_Stored]] | None:
        """What each use of a view found for each row; None when the general lookup must look at the bytes."""
        found = []
        known: dict[tuple[int, int], _Stored] = {}
        for use, slots in zip(self._uses, request.slots, strict=True):
            own = []
            for slot, moment in zip(slots, as_of, strict=True):
                stored = known.get((slot, moment)) or use.read(values[slot], moment)
                if stored is None:
                    return None
                known[slot, moment] = stored
                own.append(stored)
            found.append(own)
        return found

    def _one_found(
        self, request: FewRequest, values: Sequence[bytes | None], as_of: Sequence[int]
    ) -> list[list[_Stored]] | None:
        """As `_found`, for one row, which shares nothing with others."""
        found = []
        (moment,) = as_of
        for use, slots in zip(self._uses, request.slots, strict=True):
            stored = use.read(values[slots[0]], moment)
            if stored is None:
                return None
            found.append([stored])
        return found


def _use(plan: Plan, use: ViewUse, places: Mapping[str, int], fields: Sequence[Field]) -> _Use:
    view = plan.view(use.view)
    row = None if view.kind == "window" else RowReader(view.row_layout)
    window = WindowReader(view.tile_layout, view.tag) if view.kind == "window" else None
    nothing = [None] * len(view.fields) if window is None else window.nothing()
    columns = tuple((places[key], fields[places[key]].dtype) for key in use.keys)
    return _Use(use.name, view.prefix(plan.project), columns, view.ttl, row, window, nothing)


def _stored_fields(view: View) -> list[tuple[str, Dtype]]:
    if view.kind == "window":
        return [(a.feature, a.output) for a in view.aggregations]
    return [(field.name, field.dtype) for field in view.fields]


def _picker(positions: list[int]) -> Callable[[list[Any]], tuple[Any, ...]]:
    if len(positions) == 1:
        (only,) = positions
        return lambda pool: (pool[only],)
    return itemgetter(*positions)


def _text(item: Any, dtype: Dtype) -> bytes:
    """As `tally.layout.entity_texts`, for one value."""
    if dtype == "String":
        return escaped(item.encode())
    return escaped(item) if dtype == "Bytes" else b"%d" % item


def column_of(dtype: Dtype, items: Sequence[Any]) -> Column:
    """The column of few values of its dtype, None being null."""
    if None not in items:
        valid = np.ones(len(items), np.bool_)
    else:
        valid = np.array([item is not None for item in items])
        if dtype not in VARIABLE_WIDTH:
            items = [0 if item is None else item for item in items]
    values = np.empty(len(items), STORAGE[dtype])
    values[:] = items
    return Column(dtype, values, valid)


class FewRows(FeatureRows):
    """The answer for few rows: of each, its `scalars`; of each use of a view, what each row `found`. Arrays are made when asked for."""

    def __init__(
        self, shape: Shape, scalars: list[tuple[Any, ...]], found: list[list[_Stored]], moments: Sequence[int]
    ) -> None:
        self._outputs = shape.service.outputs
        self.definition = shape.service.hash
        self._shape = shape
        self._scalars = scalars
        self._found = found
        self._moments = moments

    def __len__(self) -> int:
        return len(self._scalars)

    @cached_property
    def columns(self) -> Mapping[str, Column]:  # type: ignore[override]
        """As `FeatureRows.columns`."""
        together = zip(self._outputs, zip(*self._scalars, strict=True), strict=True)
        return {output.name: column_of(output.dtype, items) for output, items in together}

    @cached_property
    def status(self) -> Mapping[str, NDArray[np.uint8]]:  # type: ignore[override]
        """As `FeatureRows.status`."""
        own = [read.status for read in self._reads]
        nothing = np.full(len(self), _PRESENT, np.uint8)
        worst = {uses: reduce(np.maximum, [own[use] for use in uses], nothing) for uses in set(self._shape.sources)}
        return {name: worst[uses] for name, uses in zip(self._shape.names, self._shape.sources, strict=True)}

    @cached_property
    def as_of(self) -> NDArray[np.int64]:  # type: ignore[override]
        """As `FeatureRows.as_of`."""
        return np.array(self._moments, np.int64)

    @cached_property
    def _reads(self) -> Sequence[Read]:  # type: ignore[override]
        return [
            Read(
                use.name,
                np.array([status for status, _, _, _ in found], np.uint8),
                np.array([version is not None for _, version, _, _ in found]),
                np.array([version[0] if version else 0 for _, version, _, _ in found], np.int64),
                [_evidence(use, version, value) for _, version, _, value in found],
            )
            for use, found in zip(self._shape.uses, self._found, strict=True)
        ]

    def items(self) -> dict[str, list[Any]]:
        """As `FeatureRows.items`."""
        return dict(zip(self._shape.names, map(list, zip(*self._scalars, strict=True)), strict=True))

    def to_dict(self) -> dict[str, list[Any]]:
        """As `FeatureRows.to_dict`."""
        answer = self.items()
        for position in self._shape.moments:
            name = self._shape.names[position]
            answer[name] = [None if item is None else to_datetime(item) for item in answer[name]]
        return answer

    def _matrix(self, names: Sequence[str]) -> NDArray[np.float64]:
        chosen = [self._shape.names.index(name) for name in names]
        rows = [[row[position] for position in chosen] for row in self._scalars]
        matrix = [[np.nan if item is None else item for item in row] for row in rows]
        return np.array(matrix, np.float64).reshape(len(rows), len(chosen))


def _evidence(use: _Use, version: tuple[int, int, int] | None, value: bytes | None) -> dict[str, Any] | None:
    if version is None or value is None:
        return None
    return {"version": [*version, row_check(value)]} if use.window is None else {"fences": fences_of(value)}
