"""The plan: what `feast apply` compiled from the registry, as one immutable document that every worker reads.

Everything that decides a value is in here, with a hash: a view's hash covers its source, keys, fields, time to live, windows
and the source code of its event function; a service's hash covers the views and request functions that it uses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from tally.dtypes import Dtype
from tally.errors import DefinitionError, NotReadyError, UnknownServiceError
from tally.layout import RowLayout, key_prefix
from tally.tiles import Aggregation, TileLayout
from tally.time import MINUTE

PLAN_FORMAT: Final = 1
FUTURE_TOLERANCE: Final = 10 * MINUTE
"""How far ahead of its CreateTime an event's timestamp may lie where its view says nothing else. Clocks differ by seconds;
a local time that was taken for UTC is off by half an hour at least."""
Kind = Literal["latest", "window"]
Format = Literal["json", "avro", "protobuf"]


@dataclass(frozen=True, slots=True)
class Field:
    """A name and its dtype."""

    name: str
    dtype: Dtype


@dataclass(frozen=True, slots=True)
class Function:
    """A transformation: where to import it from (``module:name``), and the hash of its source."""

    reference: str
    source_hash: str


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the messages of a topic are written.

    `schema` is empty for JSON, the schema's own JSON for Avro, and for Protobuf a JSON object with the full name of the
    message and the base64 of a FileDescriptorSet that defines it. A worker needs nothing else to decode them.
    """

    format: Format = "json"
    schema: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A table in Snowflake and its copy in the offline store, which has the source's name.

    `topic`, `message` (the fields that are read of a message) and `encoding` are set for landing tables of a Kafka topic,
    else empty. `database` and `schema` are empty for the connection's own. `created` is empty where the source names no
    such column.
    """

    name: str
    table: str
    database: str
    schema: str
    timestamp: str
    created: str
    topic: str
    message: tuple[Field, ...]
    encoding: Encoding = Encoding()


@dataclass(frozen=True)
class View:
    """A feature view. `columns` are what its rows have after the event function, keys and timestamp included.

    `future_tolerance` (µs) is for stream views: an event whose timestamp is later than its CreateTime by more is refused.
    """

    name: str
    kind: Kind
    source: str
    keys: tuple[Field, ...]
    fields: tuple[Field, ...]
    columns: tuple[Field, ...]
    timestamp: str
    created: str
    ttl: int
    online: bool
    stream: bool
    function: Function | None
    aggregations: tuple[Aggregation, ...]
    hash: str = ""
    future_tolerance: int = FUTURE_TOLERANCE

    @cached_property
    def tag(self) -> bytes:
        """The hash as stored in each value."""
        return self.row_layout.tag

    @cached_property
    def row_layout(self) -> RowLayout:
        """Bytes of a latest row of this view."""
        return RowLayout(tuple((f.name, f.dtype) for f in self.fields), self.hash)

    @cached_property
    def tile_layout(self) -> TileLayout:
        """Bytes of a tile of this view."""
        return TileLayout(self.aggregations)

    @cached_property
    def kept(self) -> int:
        """Microseconds for which a key must stay after its last write; 0: for ever.

        A lookup sees an event for its TTL, or for the longest window and its hop. An event of a stream may lie ahead of the
        moment in which it is written, so it is seen for longer after that.
        """
        if self.kind == "latest" and not self.ttl:
            return 0
        seen = self.ttl if self.kind == "latest" else self.tile_layout.longest
        return seen + (self.future_tolerance if self.stream else 0)

    def prefix(self, project: str) -> bytes:
        """What this view's Redis keys begin with."""
        return key_prefix(project, self.name, self.hash)


@dataclass(frozen=True, slots=True)
class Input:
    """A parameter of a request function: a feature of a view, or, where `view` is empty, a field of the request.

    `view` is the name under which a service uses the view (`ViewUse.name`), which is its own name unless it has an alias.
    """

    parameter: str
    dtype: Dtype
    view: str
    feature: str


@dataclass(frozen=True, slots=True)
class RequestFunction:
    """An on-demand view: a function of stored features and request fields, run when they are asked for."""

    name: str
    function: Function
    inputs: tuple[Input, ...]
    outputs: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class ViewUse:
    """How a service uses a view: under which name, with which request columns as its keys, and which features it returns.

    `keys` are the request columns that hold the view's join keys, in the order of `View.keys`. `features` are
    (feature of the view, name in the answer); there may be none where only a request function needs the view.
    """

    view: str
    name: str
    keys: tuple[str, ...]
    features: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class FunctionUse:
    """Which outputs of a request function a service returns: (output, name in the answer)."""

    function: str
    features: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Service:
    """A feature service. `outputs` names its features in the order in which they are answered."""

    name: str
    views: tuple[ViewUse, ...]
    functions: tuple[FunctionUse, ...]
    keys: tuple[Field, ...]
    request: tuple[Field, ...]
    outputs: tuple[Field, ...]
    hash: str = ""

    def origin(self, one: Input) -> int:
        """Position in `views` of the use that an input reads, -1 for a field of the request. Raises DefinitionError."""
        if not one.view:
            return -1
        for position, use in enumerate(self.views):
            if use.name == one.view:
                return position
        raise DefinitionError(f"Service {self.name} has no view {one.view} to read {one.feature} of; run feast apply.")


@dataclass(frozen=True)
class Plan:
    """The compiled definitions of one project."""

    project: str
    sources: tuple[Source, ...]
    views: tuple[View, ...]
    functions: tuple[RequestFunction, ...]
    services: tuple[Service, ...]
    format: int = field(default=PLAN_FORMAT)

    @cached_property
    def hash(self) -> str:
        """Hash of the whole document."""
        return digest(_encode(self))

    def view(self, name: str) -> View:
        """The view called `name`. Raises NotReadyError, listing those that exist."""
        return _named(self.views, name, "feature view", self.project)

    def source(self, name: str) -> Source:
        """The source called `name`. Raises NotReadyError, listing those that exist."""
        return _named(self.sources, name, "source", self.project)

    def function(self, name: str) -> RequestFunction:
        """The request function called `name`. Raises NotReadyError, listing those that exist."""
        return _named(self.functions, name, "on-demand view", self.project)

    def service(self, name: str) -> Service:
        """The service called `name`. Raises UnknownServiceError, listing those that exist."""
        for service in self.services:
            if service.name == name:
                return service
        existing = ", ".join(sorted(s.name for s in self.services)) or "none"
        raise UnknownServiceError(f"Project {self.project} has no feature service {name!r}. It has: {existing}.")

    def for_service(self, name: str) -> Plan:
        """The part of the plan that a lookup of one service needs."""
        service = self.service(name)
        views = {use.view for use in service.views}
        functions = {use.function for use in service.functions}
        kept = tuple(v for v in self.views if v.name in views)
        sources = {v.source for v in kept}
        return Plan(
            self.project,
            tuple(s for s in self.sources if s.name in sources),
            kept,
            tuple(f for f in self.functions if f.name in functions),
            (service,),
        )

    def to_json(self) -> str:
        """The document as canonical JSON: equal plans are equal texts."""
        return json.dumps(_encode(self), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | bytes) -> Plan:
        """The plan of a document. Raises NotReadyError when it is of another format, or damaged."""
        try:
            document = json.loads(text)
            written = document["format"]
            decoded = _decode(Plan, document) if written == PLAN_FORMAT else None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise NotReadyError(
                f"The plan is damaged ({type(error).__name__}: {error}); run feast apply to write it again."
            ) from error
        if decoded is None:
            raise NotReadyError(
                f"The plan has format {written!r}, this version of Tally reads {PLAN_FORMAT}; run feast apply."
            )
        return cast(Plan, decoded)


def hashed_view(view: View, source: Source) -> View:
    """`view` with its hash. The table's address is left out: the same rows may be kept elsewhere."""
    parts = _encode(dataclasses.replace(view, hash="", online=True))
    message = [_encode(source.message), _encode(source.encoding), source.topic]
    return dataclasses.replace(view, hash=digest([PLAN_FORMAT, parts, *message]))


def hashed_service(service: Service, plan: Plan) -> Service:
    """`service` with its hash, over all that decides its answers."""
    parts = [
        _encode(dataclasses.replace(service, hash="")),
        [plan.view(use.view).hash for use in service.views],
        [_encode(plan.function(use.function)) for use in service.functions],
    ]
    return dataclasses.replace(service, hash=digest(parts))


def digest(document: Any) -> str:
    """32 hex digits of the SHA-256 of a JSON document."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


_Named = TypeVar("_Named", View, Source, RequestFunction)


def _named(items: tuple[_Named, ...], name: str, what: str, project: str) -> _Named:
    for item in items:
        if item.name == name:
            return item
    existing = ", ".join(sorted(item.name for item in items)) or "none"
    raise NotReadyError(f"Project {project} has no {what} {name!r}. It has: {existing}.")


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_encode(item) for item in value] if isinstance(value, tuple | list) else value


def _decode(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        if absent := hints.keys() - value.keys() - {"hash"}:
            raise KeyError(min(absent))
        return kind(**{name: _decode(hints[name], item) for name, item in value.items()})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_decode(inner[0], item) for item in value)
        return tuple(_decode(one, item) for one, item in zip(inner, value, strict=True))
    options = [option for option in get_args(kind) if dataclasses.is_dataclass(option)]
    if options and value is not None:
        return _decode(options[0], value)
    return value
