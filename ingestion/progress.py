"""How far each definition has come, and whether Redis still holds what it held.

Progress is in Redis beside the data, as a *mark*: a hash of next offsets. A mark is raised after the effects are in, on the
same server, so whatever a server forgets (a crash, a failover to a replica that lags, an older snapshot), it forgets of the
mark at least as much as of the data. A cluster has a mark on each primary, for each of them can forget on its own.

Fences cannot notice that loss: a delta that lies beyond a gap would be merged as if nothing was missing, and the gap would be
behind the fence for ever. So a server takes the deltas of a named writer only after it has shown that its mark is where the
writer left it (`witness`); the functions keep that in memory, and it is gone exactly when the data may be.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import chain, count
from typing import Any, Final, cast

from redis import RedisCluster
from redis.crc import key_slot

from connections import Client, reaching
from ingestion.redis_calls import Patience, call
from tally.errors import NotReadyError, UnavailableError
from tally.layout import progress_key
from tally.plan import View

Place = tuple[str, int]
"""(topic, partition)."""

NAMELESS: Final = b""
"""The writer that relies on nothing it wrote before."""

_SHARDS: Final = "shards"


def definition(view: View) -> str:
    """A view and its hash, as fields of hashes in Redis name it."""
    return f"{view.name}@{view.hash}"


def progress(redis: Client, project: str, view: View) -> dict[Place, int]:
    """(topic, partition) -> the offset after the last message whose effects on this view are all in Redis."""
    return progress_of_each(redis, project, [view])[view.name]


def progress_of_each(redis: Client, project: str, views: Sequence[View]) -> dict[str, dict[Place, int]]:
    """View -> its `progress`, all as of one look."""
    marks = _reached(redis, project, None)
    return {view.name: _come_to(marks, view) for view in views}


def _come_to(marks: Mapping[str, Mapping[str, int]], view: View) -> dict[Place, int]:
    known = _heard_of(marks)
    begin = f"{definition(view)}:"
    result: dict[Place, int] = {}
    for field in {text for fields in marks.values() for text in fields if text.startswith(begin)}:
        _, topic, partition = field.rsplit(":", 2)
        # A mark that no other has heard of is that of a primary which got its slots, with their data, from the others.
        offsets = [fields.get(field, 0) for shard, fields in marks.items() if field in fields or shard in known]
        result[topic, int(partition)] = min(offsets)
    return result


def advance_progress(
    redis: Client,
    project: str,
    views: Sequence[View],
    positions: Mapping[Place, int],
    patience: Patience | None = None,
    writer: bytes = NAMELESS,
) -> None:
    """Raise the progress of these views to `positions` ((topic, partition) -> next offset); never lowers one."""
    if views and positions:
        _on_each(redis, project, "tally_advance", views, positions, patience, writer)


def begin_progress(
    redis: Client,
    project: str,
    views: Sequence[View],
    positions: Mapping[Place, int],
    patience: Patience | None = None,
) -> None:
    """Set the progress of these views to `positions` where they have none; for views that had none when it was read.

    What is there stays, even if it lies before: a server that lost writes after its progress was read must not be told that
    it has them.
    """
    if views and positions:
        _on_each(redis, project, "tally_begin", views, positions, patience, NAMELESS)


def is_empty(redis: Client, project: str) -> bool:
    """Whether Redis holds no progress of any definition of the project."""
    with reaching(redis):
        return not any(_marks(redis, project).values())


def writer_name() -> bytes:
    """The name of a new writer; `witness` makes it known to the servers."""
    return os.urandom(8).hex().encode()


def witness(
    redis: Client,
    project: str,
    views: Sequence[View],
    positions: Mapping[Place, int],
    writer: bytes,
    patience: Patience | None = None,
) -> bool:
    """Whether every server still holds these views' progress up to `positions`; if so they take the writer's deltas.

    Raises NotReadyError when a server that had shown it before has lost it since, without having been away.
    """
    replies = _on_each(redis, project, "tally_witness", views, positions, patience, writer)
    if -1 in replies:
        raise NotReadyError(
            f"tally:{project}:progress was removed from Redis while workers were writing (FLUSHALL, DEL, or an eviction): what "
            "they wrote since then may lack what was there before. Stop all workers, remove the project's keys (feast "
            "teardown does), then run feast apply, tally bootstrap and tally stream."
        )
    return all(reply == 1 for reply in replies)


def _on_each(
    redis: Client,
    project: str,
    function: str,
    views: Sequence[View],
    positions: Mapping[Place, int],
    patience: Patience | None,
    writer: bytes,
) -> list[Any]:
    """Replies of a function that is called on every mark, with a field for each of `views` and `positions`."""
    shards = _shards(redis, project, patience)
    fields: list[Any] = []
    for view in views:
        for (topic, partition), offset in positions.items():
            fields += [f"{definition(view)}:{topic}:{partition}", offset]
    if isinstance(redis, RedisCluster) and function != "tally_witness":
        for shard in shards:
            fields += [f"{_SHARDS}:{shard}:0", 1]
    keys = [progress_key(project, shard) for shard in shards]
    return call(redis, [("FCALL", function, 1, key, *fields, writer) for key in keys], patience)


def _shards(redis: Client, project: str, patience: Patience | None) -> list[str]:
    """Those that have marks. A mark that no other has heard of says what the others say, before anything is written to it.

    Its primary got its slots, with their data, from the others; or the slot of the mark that it had has moved away from it.
    """
    if not isinstance(redis, RedisCluster):
        return [""]
    stored = _reached(redis, project, patience)
    known = _heard_of(stored)
    new = stored.keys() - known
    others = [fields for shard, fields in stored.items() if shard in known]
    if new and others:
        names = {name for fields in others for name in fields if not name.startswith(f"{_SHARDS}:")}
        come = {name: min(fields.get(name, 0) for fields in others) for name in names}
        heard = {f"{_SHARDS}:{shard}:0": 1 for shard in stored}
        for some, said in ((new, come | heard), (known, heard)):  # nobody hears of a mark before it is made
            keys = [progress_key(project, shard) for shard in some]
            call(redis, [("FCALL", "tally_begin", 1, key, *chain(*said.items()), NAMELESS) for key in keys], patience)
    return list(stored)


def _reached(redis: Client, project: str, patience: Patience | None) -> dict[str, dict[str, int]]:
    while True:
        try:
            with reaching(redis):
                return _marks(redis, project)
        except UnavailableError as error:
            if patience is None:
                raise
            patience(error)


def _fields(redis: Client, key: str) -> dict[str, int]:
    stored = cast(dict[bytes, bytes], redis.hgetall(key))
    return {field.decode(): int(offset) for field, offset in stored.items()}


def _marks(redis: Client, project: str) -> dict[str, dict[str, int]]:
    """Shard -> what its mark says. A primary's shard is the least number whose hash slot it has; a single server's is ``""``.

    Those that were marks before slots moved still are: their slots may move back.
    """
    shards = _least(redis) if isinstance(redis, RedisCluster) else [""]
    marks = {shard: _fields(redis, progress_key(project, shard)) for shard in shards}
    before = _heard_of(marks) - marks.keys()
    return marks | {shard: _fields(redis, progress_key(project, shard)) for shard in before}


def _heard_of(marks: Mapping[str, Mapping[str, int]]) -> set[str]:
    """The shards that any mark names as one that has a mark."""
    return {name.split(":")[1] for fields in marks.values() for name in fields if name.startswith(f"{_SHARDS}:")}


def _least(redis: RedisCluster) -> list[str]:
    owners = cast(Mapping[int, Sequence[Any]], redis.nodes_manager.slots_cache)
    without = {found[0].name for found in owners.values()}
    shards: list[str] = []
    for number in map(str, count()):
        if not without:
            return shards
        owner = owners[key_slot(number.encode())][0].name if key_slot(number.encode()) in owners else ""
        if owner in without:
            without.remove(owner)
            shards.append(number)
    raise AssertionError("unreachable")
