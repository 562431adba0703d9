"""The lookup of one row, in Python scalars: the same answers as `serving_client.lookup`, without arrays on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from math import isnan
from operator import itemgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serving_client.commands import mget
from serving_client.rows import FeatureRows, Read
from serving_client.status import Status
from tally import functions
from tally.columns import Column, nulls
from tally.dtypes import STORAGE, Dtype
from tally.layout import escaped, fences_of, row_check
from tally.plan import Field, Plan, RequestFunction, Service, View, ViewUse
from tally.single import RowReader, WindowReader
from tally.time import from_datetime, to_datetime

_YES: Final = np.ones(1, np.bool_)
_YES.flags.writeable = False  # every one-row column shares it
_PRESENT, _MISSING, _EXPIRED, _AHEAD = map(int, (Status.PRESENT, Status.MISSING, Status.EXPIRED, Status.AHEAD))
_BOUNDS: Final[dict[Dtype, int]] = {"Int64": 1 << 63, "Int32": 1 << 31}
_EXACT: Final[dict[Dtype, type]] = {"Bool": bool, "String": str, "Bytes": bytes}


@dataclass(frozen=True, slots=True)
class OneRequest:
    """One row: its `values` by column, the distinct `keys` to read, and for each use of a view the key that it reads."""

    values: list[Any]
    keys: list[bytes]
    slots: Sequence[int]
    count: int = 1

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
    """How to read one use of a view. Its keys are at `columns` of the request; `twins` are earlier uses of the view."""

    name: str
    prefix: bytes
    columns: tuple[tuple[int, Dtype], ...]
    twins: tuple[int, ...]
    ttl: int
    row: RowReader | None
    window: WindowReader | None
    nothing: list[Any]


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


class OneRowLookup:
    """The lookup of one row of the service of `plan`. Whatever is out of the ordinary is left to the general lookup."""

    def __init__(self, plan: Plan, calls: Sequence[Call]) -> None:
        service = plan.services[0]
        fields = (*service.keys, *service.request)
        places = {field.name: position for position, field in enumerate(fields)}
        self._fields = tuple((field.name, field.dtype) for field in fields)
        self._keys = len(service.keys)
        views = [use.view for use in service.views]
        self._uses = tuple(
            _use(plan, use, places, fields, tuple(i for i in range(position) if views[i] == use.view))
            for position, use in enumerate(service.views)
        )
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

    def request(self, row: Mapping[str, Any]) -> OneRequest | None:
        """What to read for `row`; None when the general lookup must look at it (to convert a value, or to refuse it)."""
        values = []
        try:
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
            if None in values[: self._keys]:
                return None
            return self._addressed(values)
        except (KeyError, TypeError, IndexError, OverflowError, UnicodeEncodeError):
            return None

    def _addressed(self, values: list[Any]) -> OneRequest:
        keys: list[bytes] = []
        slots: list[int] = []
        for use in self._uses:
            if len(use.columns) == 1:
                position, dtype = use.columns[0]
                key = use.prefix + _text(values[position], dtype)
            else:
                key = use.prefix + b"|".join([_text(values[position], dtype) for position, dtype in use.columns])
            slot = next((slots[twin] for twin in use.twins if keys[slots[twin]] == key), len(keys))
            if slot == len(keys):
                keys.append(key)
            slots.append(slot)
        return OneRequest(values, keys, slots)

    def decode(self, request: OneRequest, values: Sequence[bytes | None], as_of: int) -> FeatureRows | None:
        """The answer; None when the general lookup must look at the bytes (to say what is wrong with them)."""
        pool = list(request.values)
        statuses = []
        found: list[tuple[int, int, int] | None] = []
        for use, slot in zip(self._uses, request.slots, strict=True):
            value = values[slot]
            version: tuple[int, int, int] | None = None
            features = use.nothing
            if value is None:
                status = _MISSING
            elif use.window is not None:
                windows = use.window.read(value, as_of)
                if windows is None:
                    return None
                newest, features = windows
                version = (newest, 0, 0)
                status = _AHEAD if newest > as_of else _PRESENT
            else:
                assert use.row is not None
                row = use.row.read(value)
                if row is None:
                    return None
                timestamp, a, b, stored = row
                version = (timestamp, a, b)
                if timestamp > as_of:
                    status = _AHEAD
                elif use.ttl and as_of - timestamp > use.ttl:
                    status = _EXPIRED
                else:
                    status, features = _PRESENT, stored
            pool += features
            statuses.append(status)
            found.append(version)
        if self._calls:
            with np.errstate(all="ignore"):
                for call, inputs in self._calls:
                    given = [(parameter, dtype, pool[position]) for parameter, position, dtype in inputs]
                    pool += functions.run_on_one(call.function, given, call.definition.outputs)
        raw = [values[slot] for slot in request.slots]
        return OneRow(self._shape, self._shape.pick(pool), statuses, found, raw, as_of)


def _use(plan: Plan, use: ViewUse, places: Mapping[str, int], fields: Sequence[Field], twins: tuple[int, ...]) -> _Use:
    view = plan.view(use.view)
    row = None if view.kind == "window" else RowReader(view.row_layout)
    window = WindowReader(view.tile_layout, view.tag) if view.kind == "window" else None
    nothing = [None] * len(view.fields) if window is None else window.nothing()
    columns = tuple((places[key], fields[places[key]].dtype) for key in use.keys)
    return _Use(use.name, view.prefix(plan.project), columns, twins, view.ttl, row, window, nothing)


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


def one(dtype: Dtype, item: Any) -> Column:
    """The column of one value."""
    if item is None:
        return nulls(dtype, 1)
    values = np.empty(1, STORAGE[dtype])
    values[0] = item
    return Column(dtype, values, _YES)


class OneRow(FeatureRows):
    """The answer for one row. Arrays are made when asked for."""

    def __init__(
        self,
        shape: Shape,
        scalars: tuple[Any, ...],
        statuses: list[int],
        found: list[tuple[int, int, int] | None],
        raw: list[bytes | None],
        moment: int,
    ) -> None:
        self._outputs = shape.service.outputs
        self.definition = shape.service.hash
        self._shape = shape
        self._scalars = scalars
        self._statuses = statuses
        self._found = found
        self._raw = raw
        self._moment = moment

    def __len__(self) -> int:
        return 1

    @cached_property
    def columns(self) -> Mapping[str, Column]:  # type: ignore[override]
        """As `FeatureRows.columns`."""
        return {o.name: one(o.dtype, item) for o, item in zip(self._outputs, self._scalars, strict=True)}

    @cached_property
    def status(self) -> Mapping[str, NDArray[np.uint8]]:  # type: ignore[override]
        """As `FeatureRows.status`."""
        own = self._statuses
        return {
            name: np.array([max([own[use] for use in uses], default=_PRESENT)], np.uint8)
            for name, uses in zip(self._shape.names, self._shape.sources, strict=True)
        }

    @cached_property
    def as_of(self) -> NDArray[np.int64]:  # type: ignore[override]
        """As `FeatureRows.as_of`."""
        return np.array([self._moment], np.int64)

    @cached_property
    def _reads(self) -> Sequence[Read]:  # type: ignore[override]
        return [
            Read(
                use.name,
                np.array([status], np.uint8),
                np.array([version is not None]),
                np.array([version[0] if version else 0], np.int64),
                [_evidence(use, version, value)],
            )
            for use, status, version, value in zip(
                self._shape.uses, self._statuses, self._found, self._raw, strict=True
            )
        ]

    @cached_property
    def evidence(self) -> list[dict[str, dict[str, Any] | None]]:
        """As `FeatureRows.evidence`."""
        together = zip(self._shape.uses, self._found, self._raw, strict=True)
        return [{use.name: _evidence(use, version, value) for use, version, value in together}]

    def to_dict(self) -> dict[str, list[Any]]:
        """As `FeatureRows.to_dict`."""
        answer = dict(zip(self._shape.names, [[item] for item in self._scalars], strict=True))
        for position in self._shape.moments:
            item = self._scalars[position]
            if item is not None:
                answer[self._shape.names[position]] = [to_datetime(item)]
        return answer

    def _matrix(self, names: Sequence[str]) -> NDArray[np.float64]:
        by_name = dict(zip(self._shape.names, self._scalars, strict=True))
        chosen = [by_name[name] for name in names]
        return np.array([[np.nan if item is None else item for item in chosen]], np.float64)


def _evidence(use: _Use, version: tuple[int, int, int] | None, value: bytes | None) -> dict[str, Any] | None:
    if version is None or value is None:
        return None
    return {"version": [*version, row_check(value)]} if use.window is None else {"fences": fences_of(value)}
