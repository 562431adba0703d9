"""What is written to Redis, and how: plans, marks, progress, and the atomic writes of `redis_functions.lua`.

Every function takes a connected client, standalone or cluster, that returns bytes. A Redis that cannot be reached, or that
refuses us, raises UnavailableError; one that lost its functions (a flush, a failover, a new server) gets them again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from redis import RedisCluster
from redis import exceptions as errors

from connections import Client, explained, reaching
from tally.errors import DataError, DefinitionMismatchError, StoredBytesError, UnavailableError
from tally.layout import plan_key, progress_key, services_key, version_key, views_key
from tally.plan import Plan, View

Patience = Callable[[UnavailableError], None]
"""What to do when Redis is away: return to try the same calls again, raise to give up."""

EXTENT: Final = np.dtype([("partition", "<u4"), ("first", "<i8"), ("last", "<i8")])
"""What a delta covers of one partition: from its first offset to its last."""

APPLIED: Final = 1
BEHIND: Final = 0
Reply = int | list[int]
"""What became of a delta: APPLIED; or APPLIED and the positions of its records that were older than every window as of the
newest event stored before; or BEHIND, when some of it was applied before, and for each extent the stored fence (-1: none):
nothing was applied, send again the events beyond the fences."""

_CHUNK: Final = 1000


def load_library(redis: Client) -> None:
    """Load the function library, on every primary, replacing an older one. Raises UnavailableError."""
    source = resources.files("ingestion").joinpath("redis_functions.lua").read_text()
    with reaching(redis):
        redis.function_load(source, replace=True)


def publish_plan(redis: Client, plan: Plan) -> None:
    """Publish one plan per feature service, and the list of services; those that are gone are removed.

    One transaction, except on a cluster, where the plans come before the list that names them.
    """
    services = {service.name: service.hash for service in plan.services}
    names = services_key(plan.project)
    with reaching(redis):
        published = cast(list[bytes], redis.hkeys(names))
        gone = [name.decode() for name in published if name.decode() not in services]
        with redis.pipeline(transaction=not isinstance(redis, RedisCluster)) as pipe:
            for service in services:
                pipe.set(plan_key(plan.project, service), plan.for_service(service).to_json())
            if services:
                pipe.hset(names, mapping=cast(Any, services))
            for service in gone:
                pipe.hdel(names, service)
                pipe.delete(version_key(plan.project, service))
                pipe.delete(plan_key(plan.project, service))
            pipe.execute()
        with redis.pipeline(transaction=False) as pipe:  # last: workers load the plan when they see its version
            for service, version in services.items():
                pipe.set(version_key(plan.project, service), version)
            pipe.execute()


def mark_view(redis: Client, project: str, view: View, how: Mapping[str, Any]) -> None:
    """Say that this definition's data is there, and how it came (any JSON object). An earlier mark is replaced."""
    with reaching(redis):
        redis.hset(views_key(project), _name(view), json.dumps(how, sort_keys=True))


def view_mark(redis: Client, project: str, view: View) -> dict[str, Any] | None:
    """How this definition's data came to Redis; None when nothing was ever loaded."""
    with reaching(redis):
        stored = cast(bytes | None, redis.hget(views_key(project), _name(view)))
    return None if stored is None else cast(dict[str, Any], json.loads(stored))


def progress(redis: Client, project: str, view: View) -> dict[tuple[str, int], int]:
    """(topic, partition) -> the offset after the last message whose effects on this view are all in Redis."""
    with reaching(redis):
        stored = cast(dict[bytes, bytes], redis.hgetall(progress_key(project)))
    result = {}
    for field, offset in stored.items():
        name, topic, partition = field.decode().rsplit(":", 2)
        if name == _name(view):
            result[topic, int(partition)] = int(offset)
    return result


def advance_progress(
    redis: Client,
    project: str,
    views: Sequence[View],
    positions: Mapping[tuple[str, int], int],
    patience: Patience | None = None,
) -> None:
    """Raise the progress of these views to `positions` ((topic, partition) -> next offset); never lowers one."""
    fields: list[Any] = []
    for view in views:
        for (topic, partition), offset in positions.items():
            fields += [f"{_name(view)}:{topic}:{partition}", offset]
    if fields:
        _calls(redis, [("FCALL", "tally_advance", 1, progress_key(project), *fields)], patience)


def _name(view: View) -> str:
    return f"{view.name}@{view.hash}"


@dataclass(frozen=True)
class LatestWriter:
    """Writes packed rows (`RowLayout.pack`) of one latest view."""

    redis: Client
    project: str
    view: View
    patience: Patience | None = None

    @cached_property
    def _prefix(self) -> bytes:
        return self.view.prefix(self.project)

    def put(self, entities: Sequence[bytes], values: Sequence[bytes]) -> NDArray[np.bool_]:
        """Store each row where it is greater than the stored one; shape (n,): which were. Keys expire with the view's TTL."""
        ttl = str(-(-self.view.ttl // 1000)).encode()
        commands = [
            (b"FCALL", b"tally_put_latest", b"1", self._prefix + entity, value, ttl)
            for entity, value in zip(entities, values, strict=True)
        ]
        return np.array(_calls(self.redis, commands, self.patience), np.bool_)


@dataclass(frozen=True, slots=True)
class Delta:
    """Tiles of one entity's events: packed EXTENTs by rising partition, newest timestamp (i64 µs), sorted records."""

    entity: bytes
    newest: bytes
    extents: bytes
    records: bytes


@dataclass(frozen=True)
class TileWriter:
    """Writes tiles of one windowed view. Keys expire when the last window has passed since their last write."""

    redis: Client
    project: str
    view: View
    patience: Patience | None = None

    @cached_property
    def _prefix(self) -> bytes:
        return self.view.prefix(self.project)

    @cached_property
    def _ttl(self) -> bytes:
        return str(-(-self.view.tile_layout.longest // 1000)).encode()

    def merge(self, deltas: Sequence[Delta]) -> list[Reply]:
        """Merge each delta into what is stored, once (law 5). One reply per delta."""
        program, tag, ttl = self.view.tile_layout.merge_program.encode(), self.view.tag, self._ttl
        head, prefix = (b"FCALL", b"tally_merge_tiles", b"1"), self._prefix
        commands = [(*head, prefix + d.entity, program, tag, d.newest, d.extents, d.records, ttl) for d in deltas]
        return _calls(self.redis, commands, self.patience)

    def load(self, entities: Sequence[bytes], values: Sequence[bytes]) -> NDArray[np.bool_]:
        """Store each value (`pack_tiles`) unless what is stored holds events beyond its fences; shape (n,): which were."""
        commands = [
            (b"FCALL", b"tally_load_tiles", b"1", self._prefix + entity, value, self._ttl)
            for entity, value in zip(entities, values, strict=True)
        ]
        return np.array(_calls(self.redis, commands, self.patience), np.bool_)


def _calls(redis: Client, commands: Sequence[tuple[Any, ...]], patience: Patience | None) -> list[Any]:
    """The replies of function calls, pipelined; what a lost connection left unanswered is asked again if `patience` lets."""
    replies: list[Any] = []
    while len(replies) < len(commands):
        chunk = commands[len(replies) : len(replies) + _CHUNK]
        try:
            replies += _chunk(redis, chunk)
        except UnavailableError as error:
            if patience is None:
                raise
            patience(error)
    return replies


def _chunk(redis: Client, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    replies = _pipelined(redis, commands)
    unknown = [i for i, reply in enumerate(replies) if _is_missing(reply)]
    if unknown:
        load_library(redis)
        again = _pipelined(redis, [commands[i] for i in unknown])
        for i, reply in zip(unknown, again, strict=True):
            replies[i] = reply
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, Exception):
            raise _explain(redis, command[3], reply) from reply
    return replies


def _pipelined(redis: Client, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    with reaching(redis), redis.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return pipe.execute(raise_on_error=False)


def _is_missing(reply: Any) -> bool:
    return isinstance(reply, errors.ResponseError) and "Function not found" in str(reply)


def _explain(redis: Client, key: Any, error: Exception) -> Exception:
    text = str(error)
    if "TALLYTAG" in text:
        stored = text.split("TALLYTAG ", 1)[1].split(maxsplit=1)[0]
        return DefinitionMismatchError(
            f"{key!r} in Redis was written under definition {stored}; delete the key, or materialize the view again."
        )
    if "TALLYFORMAT" in text:
        return StoredBytesError(
            f"{key!r} in Redis was not written by Tally in this form; delete the key and load it again."
        )
    if "TALLYRANGE" in text:
        return DataError(f"{key!r}: a sum has grown beyond what a tile can hold; aggregate a smaller quantity.")
    return explained(redis, error)
