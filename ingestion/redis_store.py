"""What is written to Redis, and how: plans, marks, progress, and the atomic writes of `redis_functions.lua`.

Every function takes a connected client, standalone or cluster, that returns bytes. A Redis that cannot be reached, or that
refuses us, raises UnavailableError; one that lost its functions (a flush, a failover, a new server) gets them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from redis import RedisCluster

from connections import Client, reaching
from ingestion.progress import NAMELESS, definition
from ingestion.redis_calls import Patience, call, keys_of_a_call
from tally.layout import plan_key, services_key, version_key, views_key
from tally.plan import Plan, View

EXTENT: Final = np.dtype([("partition", "<u4"), ("first", "<i8"), ("last", "<i8")])
"""What a delta covers of one partition: from its first offset to its last."""

APPLIED: Final = 1
BEHIND: Final = 0
Reply = int | list[int]
"""What became of a delta: APPLIED; or APPLIED and the positions of its records that were older than every window as of the
newest event stored before; or BEHIND, when some of it was applied before, and for each extent the stored fence (-1: none):
nothing was applied, send again the events beyond the fences."""


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
        redis.hset(views_key(project), definition(view), json.dumps(how, sort_keys=True))


def view_mark(redis: Client, project: str, view: View) -> dict[str, Any] | None:
    """How this definition's data came to Redis; None when nothing was ever loaded."""
    with reaching(redis):
        stored = cast(bytes | None, redis.hget(views_key(project), definition(view)))
    return None if stored is None else cast(dict[str, Any], json.loads(stored))


@dataclass(frozen=True)
class LatestWriter:
    """Writes packed rows (`RowLayout.pack`) of one latest view."""

    redis: Client
    project: str
    view: View
    patience: Patience | None = None
    writer: bytes = NAMELESS

    @cached_property
    def _prefix(self) -> bytes:
        return self.view.prefix(self.project)

    def put(self, entities: Sequence[bytes], values: Sequence[bytes]) -> NDArray[np.bool_]:
        """Store each row where it is greater than the stored one; shape (n,): which were. Keys expire (`View.kept`)."""
        ttl = _milliseconds(self.view.kept)
        commands = [
            (b"FCALL", b"tally_put_latest", 1, self._prefix + entity, value, ttl, self.writer)
            for entity, value in zip(entities, values, strict=True)
        ]
        return np.array(call(self.redis, commands, self.patience), np.bool_)


class Delta(NamedTuple):
    """Tiles of one entity's events: packed EXTENTs by rising partition, newest timestamp (i64 µs), sorted records."""

    entity: bytes
    newest: bytes
    extents: bytes
    records: bytes


_PIECES: Final = itemgetter(slice(1, None))
"""What of a delta goes to Redis beside its key."""


@dataclass(frozen=True)
class TileWriter:
    """Writes tiles of one windowed view. Keys expire (`View.kept`)."""

    redis: Client
    project: str
    view: View
    patience: Patience | None = None
    writer: bytes = NAMELESS

    @cached_property
    def _prefix(self) -> bytes:
        return self.view.prefix(self.project)

    @cached_property
    def _ttl(self) -> bytes:
        return _milliseconds(self.view.kept)

    def merge(self, deltas: Sequence[Delta]) -> list[Reply]:
        """Merge each delta into what is stored, once (law 5). One reply per delta."""
        arguments = self.view.tile_layout.merge_program.encode(), self.view.tag, self._ttl
        prefix, most = self._prefix, keys_of_a_call(self.redis)
        commands = []
        for begin in range(0, len(deltas), most):
            part = deltas[begin : begin + most]
            keys = [prefix + delta.entity for delta in part]
            pieces = chain.from_iterable(map(_PIECES, part))
            commands.append((b"FCALL", b"tally_merge", len(part), *keys, *arguments, *pieces, self.writer))
        return list(chain.from_iterable(call(self.redis, commands, self.patience)))

    def load(self, entities: Sequence[bytes], values: Sequence[bytes]) -> NDArray[np.bool_]:
        """Store each value (`pack_tiles`) unless what is stored holds events beyond its fences; shape (n,): which were."""
        commands = [
            (b"FCALL", b"tally_load_tiles", 1, self._prefix + entity, value, self._ttl, self.writer)
            for entity, value in zip(entities, values, strict=True)
        ]
        return np.array(call(self.redis, commands, self.patience), np.bool_)


def _milliseconds(micros: int) -> bytes:
    """Rounded up, as Redis takes it."""
    return str(-(-micros // 1000)).encode()
