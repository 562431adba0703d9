"""A service's lookup, compiled once from its plan: which keys to read, what the bytes read mean. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving_client.commands import Keys
from serving_client.few_rows import FEW, Call, FewRequest, FewRowsLookup
from serving_client.request import Rows, columns_of, require_keys
from serving_client.rows import FeatureRows, Read
from serving_client.status import Status
from tally import functions
from tally.aggregates import finalize_all
from tally.columns import Column, canonical, nulls
from tally.errors import DataError, UnknownServiceError
from tally.layout import LatestRows, TileRows, entity_texts, fences_of, row_check, unpack_tiles
from tally.merging import Tiles, Windows
from tally.plan import FunctionUse, Plan, View, ViewUse

Positions = NDArray[np.int64]
Instants = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Request:
    """`count` rows as checked `columns`, and the distinct `keys` to read for them.

    `blocks` says for each view which of `keys` are its own; `positions` for each use of a view which key of that block
    each row reads (None: row i reads key i).
    """

    count: int
    columns: Mapping[str, Column]
    keys: Keys
    blocks: list[slice]
    positions: list[Positions | None]

    def command(self, *more: bytes) -> bytes:
        """What to send to Redis for the values of `keys`, and of `more` after them."""
        return self.keys.mget(more)


@dataclass(frozen=True, slots=True)
class _Use:
    """A use of the view at `block`. `wanted` are the features that outputs or request functions read."""

    definition: ViewUse
    view: View
    block: int
    wanted: tuple[str, ...]


class Lookup:
    """The lookup of the one service of `plan`.

    Raises UnknownServiceError when the plan has not exactly one service, DefinitionMismatchError when a request
    function is missing here or is another version.
    """

    def __init__(self, plan: Plan) -> None:
        if len(plan.services) != 1:
            raise UnknownServiceError(
                f"A lookup is for one service, this plan of {plan.project} has {len(plan.services)}; "
                "give plan.for_service(name)."
            )
        self.plan = plan
        self.service = plan.services[0]
        self._fields = (*self.service.keys, *self.service.request)
        self._views = [plan.view(name) for name in dict.fromkeys(use.view for use in self.service.views)]
        self._calls = [self._call(use) for use in self.service.functions]
        self._uses = [self._use(position, use) for position, use in enumerate(self.service.views)]
        self._blocks = [
            (view.prefix(plan.project), [i for i, use in enumerate(self._uses) if use.block == block])
            for block, view in enumerate(self._views)
        ]
        self._windowed = [position for position, use in enumerate(self._uses) if use.view.kind == "window"]
        self._windows = Windows([(use.view.tile_layout, use.wanted) for use in self._uses if use.view.kind == "window"])
        self._few_rows = FewRowsLookup(plan, self._calls)

    def _call(self, use: FunctionUse) -> Call:
        definition = self.plan.function(use.function)
        inputs = tuple((i.parameter, self.service.origin(i), i.feature) for i in definition.inputs)
        sources = tuple(dict.fromkeys(source for _, source, _ in inputs if source >= 0))
        return Call(definition, functions.load(definition.function), inputs, sources, use.features)

    def _use(self, position: int, use: ViewUse) -> _Use:
        view = self.plan.view(use.view)
        read = [feature for call in self._calls for _, source, feature in call.inputs if source == position]
        wanted = tuple(dict.fromkeys([feature for feature, _ in use.features] + read))
        return _Use(use, view, self._views.index(view), wanted)

    def request(self, rows: Rows) -> Request | FewRequest:
        """The keys that `rows` need. Raises DataError, naming column and row, for what is missing, null or mistyped."""
        few = self._few_rows.request(rows) if type(rows) is list and 0 < len(rows) <= FEW else None
        return self._request(rows) if few is None else few

    def _request(self, rows: Rows) -> Request:
        count, columns = columns_of(rows, self._fields)
        require_keys(self.service.keys, columns)
        texts: dict[tuple[str, ...], list[bytes]] = {}
        for names in dict.fromkeys(use.definition.keys for use in self._uses):
            texts[names] = _texts(names, columns)
        known: dict[tuple[tuple[str, ...], ...], tuple[Sequence[bytes], list[Positions | None]]] = {}
        keys: list[tuple[bytes, Sequence[bytes]]] = []
        blocks: list[slice] = []
        positions: list[Positions | None] = [None] * len(self._uses)
        start = 0
        for prefix, uses in self._blocks:
            together = tuple(self._uses[use].definition.keys for use in uses)
            if together not in known:
                known[together] = _distinct([texts[names] for names in together])
            distinct, places = known[together]
            keys.append((prefix, distinct))
            blocks.append(slice(start, start + len(distinct)))
            start += len(distinct)
            for use, place in zip(uses, places, strict=True):
                positions[use] = place
        return Request(count, columns, Keys(keys), blocks, positions)

    def decode(
        self, request: Request | FewRequest, values: Sequence[bytes | None], as_of: Instants | int
    ) -> FeatureRows:
        """The answer, from the `values` of `request.keys` and an instant (µs) for all rows or for each (int64).

        Raises StoredBytesError or DefinitionMismatchError, naming the key, for bytes that this plan cannot read.
        """
        if isinstance(request, FewRequest):
            moments = [as_of] * request.count if isinstance(as_of, int) else as_of.tolist()
            answer = self._few_rows.decode(request, values, moments)
            return self._in_general(request, values, as_of) if answer is None else answer
        return self._decode(request, values, as_of) if request.count else self._empty()

    def _in_general(self, few: FewRequest, values: Sequence[bytes | None], as_of: Instants | int) -> FeatureRows:
        names = [field.name for field in self._fields]
        request = self._request([dict(zip(names, row, strict=True)) for row in few.values])
        by_key = dict(zip(few.keys, values, strict=True))
        return self._decode(request, [by_key[key] for key in request.keys], as_of)

    def _decode(self, request: Request, values: Sequence[bytes | None], moments: Instants | int) -> FeatureRows:
        as_of = np.full(request.count, moments, np.int64) if isinstance(moments, int) else moments
        alike = isinstance(moments, int) or bool((as_of == as_of[0]).all())
        stored = [
            self._stored(view, values[block], keys)
            for view, block, keys in zip(self._views, request.blocks, request.keys.blocks, strict=True)
        ]
        reads: list[Read] = []
        features: list[Mapping[str, Column]] = []
        windows: list[Tiles] = []
        for use, positions in zip(self._uses, request.positions, strict=True):
            rows = stored[use.block]
            columns: dict[str, Column] = {}
            if isinstance(rows, TileRows):
                read = _read_of(use, rows, positions, as_of)
                windows.append(_tiles(rows, positions, as_of, alike=alike))
            else:
                read, columns = _latest(use, rows, positions, as_of)
            reads.append(read)
            features.append(columns)
        for position, columns in zip(self._windowed, self._finished(windows), strict=True):
            places = request.positions[position] if alike else None
            features[position] = (
                columns if places is None else {feature: values.take(places) for feature, values in columns.items()}
            )
        return self._answer(request, as_of, reads, features)

    def _finished(self, windows: Sequence[Tiles]) -> list[dict[str, Column]]:
        """The features of each windowed use: one call for all, since a call costs as much as a hundred values."""
        wanted = self._windows.states(windows)
        values = iter(finalize_all([one for found in wanted for one in found.values()]))
        return [{feature: next(values) for feature in found} for found in wanted]

    def _stored(self, view: View, values: Sequence[bytes | None], keys: Sequence[bytes]) -> LatestRows | TileRows:
        if view.kind == "window":
            return unpack_tiles(view.tile_layout, view.tag, values, keys)
        return view.row_layout.unpack(values, keys)

    def _answer(
        self, request: Request, as_of: Instants, reads: list[Read], features: list[Mapping[str, Column]]
    ) -> FeatureRows:
        columns: dict[str, Column] = {}
        status: dict[str, NDArray[np.uint8]] = {}
        for use, read, found in zip(self._uses, reads, features, strict=True):
            for feature, name in use.definition.features:
                columns[name], status[name] = found[feature], read.status
        for call in self._calls:
            inputs = {
                parameter: request.columns[feature] if source < 0 else features[source][feature]
                for parameter, source, feature in call.inputs
            }
            outputs = functions.run(call.function, inputs, call.definition.outputs, request.count)
            statuses = [reads[source].status for source in call.sources]
            worst = reduce(np.maximum, statuses) if statuses else np.zeros(request.count, np.uint8)
            for output, name in call.features:
                columns[name], status[name] = outputs[output], worst
        names = [output.name for output in self.service.outputs]
        return FeatureRows(
            self.service, {name: columns[name] for name in names}, {name: status[name] for name in names}, as_of, reads
        )

    def _empty(self) -> FeatureRows:
        none = np.zeros(0, np.uint8)
        when = np.zeros(0, np.int64)
        outputs = self.service.outputs
        reads = [Read(use.name, none, none.astype(np.bool_), when, ()) for use in self.service.views]
        columns = {output.name: nulls(output.dtype, 0) for output in outputs}
        return FeatureRows(self.service, columns, {output.name: none for output in outputs}, when, reads)


def _texts(names: Sequence[str], columns: Mapping[str, Column]) -> list[bytes]:
    try:
        return entity_texts([columns[name] for name in names])
    except UnicodeEncodeError as error:
        raise DataError(f"Entity key {', '.join(names)}: {error.object!r} is not valid Unicode text.") from error


def _distinct(parts: Sequence[Sequence[bytes]]) -> tuple[Sequence[bytes], list[Positions | None]]:
    """(each different text once, which of them each text of each part is: None where they are the part itself)."""
    if len(parts) == 1 and len(set(parts[0])) == len(parts[0]):
        return parts[0], [None]
    distinct = {text: position for position, text in enumerate(dict.fromkeys(chain.from_iterable(parts)))}
    return list(distinct), [np.fromiter(map(distinct.__getitem__, part), np.int64, len(part)) for part in parts]


def _latest(
    use: _Use, stored: LatestRows, positions: Positions | None, as_of: Instants
) -> tuple[Read, dict[str, Column]]:
    found, timestamp = stored.found, stored.timestamp
    if positions is not None:
        found, timestamp = found[positions], timestamp[positions]
    status = np.zeros(len(as_of), np.uint8)
    if use.view.ttl:
        status[as_of - timestamp > use.view.ttl] = Status.EXPIRED
    status[timestamp > as_of] = Status.AHEAD
    status[~found] = Status.MISSING
    visible = None if b"\0" * len(status) == status.tobytes() else status == Status.PRESENT
    columns = {}
    for feature in use.wanted:
        values = stored.columns[feature] if positions is None else stored.columns[feature].take(positions)
        columns[feature] = values if visible is None else canonical(values.dtype, values.values, values.valid & visible)
    return Read(use.definition.name, status, found, timestamp, _Versions(stored, positions)), columns


def _read_of(use: _Use, stored: TileRows, positions: Positions | None, as_of: Instants) -> Read:
    found, newest = stored.found, stored.newest
    if positions is not None:
        found, newest = found[positions], newest[positions]
    status = np.zeros(len(as_of), np.uint8)
    status[newest > as_of] = Status.AHEAD
    status[~found] = Status.MISSING
    return Read(use.definition.name, status, found, newest, _Fences(stored, positions))


def _tiles(stored: TileRows, positions: Positions | None, as_of: Instants, *, alike: bool) -> Tiles:
    """What each row sees; what each entity sees where all instants are alike, so that its tiles are merged once."""
    if alike or positions is None:
        return Tiles(stored.records, stored.sizes, as_of if positions is None else np.full(len(stored.found), as_of[0]))
    chosen, sizes = _spread(stored.sizes, positions)
    return Tiles(stored.records[chosen], sizes, as_of)


def _spread(sizes: Positions, positions: Positions) -> tuple[Positions, Positions]:
    """(records of each row, how many they are), where row i has those of entity `positions[i]` and entities have `sizes`."""
    before, own = np.cumsum(sizes) - sizes, sizes[positions]
    starts = np.cumsum(own) - own
    return np.arange(own.sum()) + np.repeat(before[positions] - starts, own), own


@dataclass(frozen=True, slots=True)
class _Versions(Sequence[Any]):
    """Evidence of latest rows, made when asked for."""

    stored: LatestRows
    positions: Positions | None

    def __len__(self) -> int:
        return len(self.stored.found if self.positions is None else self.positions)

    def __getitem__(self, row: Any) -> Any:
        stored, entity = self.stored, row if self.positions is None else self.positions[row]
        value = stored.values[entity]
        if value is None:
            return None
        version = [int(stored.timestamp[entity]), int(stored.a[entity]), int(stored.b[entity])]
        return {"version": [*version, row_check(value)]}


@dataclass(frozen=True, slots=True)
class _Fences(Sequence[Any]):
    """Evidence of tiles, made when asked for."""

    stored: TileRows
    positions: Positions | None

    def __len__(self) -> int:
        return len(self.stored.found if self.positions is None else self.positions)

    def __getitem__(self, row: Any) -> Any:
        entity = row if self.positions is None else self.positions[row]
        value = self.stored.values[entity]
        return None if value is None else {"fences": fences_of(value)}
