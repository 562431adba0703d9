"""Calls of `redis_functions.lua`: pipelined, each to the server that has its key, asked again where nobody answered.

Every function is safe to call again: what was applied before is not applied twice.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any, Final, cast

from hiredis import pack_command
from redis import Redis, RedisCluster
from redis import exceptions as errors
from redis.cluster import ClusterNode
from redis.crc import key_slot

from connections import Client, explained, next_reply, reaching
from connections.errors import RAISED
from tally.errors import DataError, DefinitionMismatchError, StoredBytesError, TallyError, UnavailableError

Command = tuple[Any, ...]
"""`FCALL`, the function, the number of keys, the keys, the arguments."""
Patience = Callable[[UnavailableError], None]
"""What to do when Redis is away: return to try the same calls again, raise to give up."""

_KEYS: Final = 16
"""Keys that are sent at a time. Redis does them all before it answers anybody else: a lookup waits as long."""
_UNANSWERED: Final = 3
"""How often that is sent before the first is answered, so that Redis finds the next when it has done one."""
_LIBRARY: Final = "tally"
_NODES: Final = ThreadPoolExecutor(32, "tally-node")
"""Threads that wait for the nodes of a cluster; they start with the first calls."""


class ReplacedError(TallyError):
    """The server that answers now has not shown that it holds what this writer wrote: it started anew or took over."""


def load_library(redis: Client) -> None:
    """Load the function library on every primary that has none or another version. Raises UnavailableError.

    One that is there is left alone: to load it again would make running writers look again (`witness`).
    """
    source = resources.files("ingestion").joinpath("redis_functions.lua").read_bytes()
    with reaching(redis):
        for server in primaries(redis):
            if not _holds(server.function_list(_LIBRARY, withcode=True), source):
                server.function_load(source.decode(), replace=True)


def primaries(redis: Client) -> list[Redis]:
    """A client of each server that takes writes, as far as is known now."""
    if isinstance(redis, RedisCluster):
        return [redis.get_redis_connection(node) for node in cast(Any, redis).get_primaries()]
    return [redis]


def _holds(reply: Any, text: bytes) -> bool:
    """Whether a text is somewhere in a reply, whose form differs between versions of the protocol."""
    if isinstance(reply, dict):
        reply = list(reply.values())
    return any(_holds(part, text) for part in reply) if isinstance(reply, list) else reply in (text, text.decode())


def keys_of_a_call(redis: Client) -> int:
    """How many keys one call may have: on a cluster each may be on another server."""
    return 1 if isinstance(redis, RedisCluster) else _KEYS


def call(redis: Client, commands: Sequence[Command], patience: Patience | None = None) -> list[Any]:
    """The replies of function calls. Those without an answer are asked again as long as `patience` lets.

    Raises UnavailableError without `patience`, ReplacedError, DefinitionMismatchError, StoredBytesError, DataError.
    """
    replies: list[Any] = [None] * len(commands)
    pending = list(range(len(commands)))
    moved = False
    while pending:
        failed: dict[int, Exception] = {}
        for number, reply in zip(pending, _pipelined(redis, [commands[number] for number in pending]), strict=True):
            if isinstance(reply, Exception):
                failed[number] = reply
            else:
                replies[number] = reply
        pending = list(failed)
        if not failed:
            break
        trouble = _trouble(redis, commands, failed)
        _look_around(redis)
        if all(isinstance(error, errors.MovedError) for error in failed.values()) and not moved:
            moved = True
        elif any(_is_missing(error) for error in failed.values()):
            load_library(redis)
        elif patience is None:
            raise trouble
        else:
            patience(trouble)
    return replies


def _trouble(redis: Client, commands: Sequence[Command], failed: Mapping[int, Exception]) -> UnavailableError:
    """Why calls have no answer yet. Raises what no patience mends."""
    problems = []
    for number, error in failed.items():
        problem = _explain(redis, commands[number], error)
        if not isinstance(problem, UnavailableError):
            raise problem from error
        problems.append(problem)
    return problems[0]


def _pipelined(redis: Client, commands: Sequence[Command]) -> list[Any]:
    """The reply of each command, or the error instead of it. All have as many keys as the first, or fewer."""
    if isinstance(redis, RedisCluster):
        return _by_node(redis, commands)
    return _ask(redis, commands, max(_KEYS // commands[0][2], 1))


def _ask(redis: Redis, commands: Sequence[Command], at_a_time: int) -> list[Any]:
    # What redis-py's own pipeline does, without its 5 us of bookkeeping for each command, and without its pause between
    # what is sent and what is sent next.
    pool: Any = redis.connection_pool
    replies: list[Any] = []
    try:
        connection: Any = pool.get_connection()
    except RAISED as error:
        return [error] * len(commands)

    def ask() -> None:
        unanswered = deque[int]()
        for begin in range(len(replies), len(commands), at_a_time):
            if len(unanswered) == _UNANSWERED:
                read(unanswered.popleft())
            part = commands[begin : begin + at_a_time]
            connection.send_packed_command([b"".join(map(pack_command, part))])
            unanswered.append(len(part))
        for count in unanswered:
            read(count)

    def read(count: int) -> None:
        for _ in range(count):
            replies.append(next_reply(connection))  # noqa: PERF401 - what was read counts, if the next is not

    try:
        # Replies that nobody has read must not answer the next question.
        connection.retry.call_with_retry(ask, lambda _: connection.disconnect())
    except RAISED as error:
        connection.disconnect()
        replies.extend([error] * (len(commands) - len(replies)))
    except BaseException:
        connection.disconnect()
        raise
    finally:
        pool.release(connection)
    return replies


def _by_node(redis: RedisCluster, commands: Sequence[Command]) -> list[Any]:
    # redis-py's own pipeline asks the server for the keys of every call, and repeats failed ones one by one.
    replies: list[Any] = [None] * len(commands)
    of_node: dict[str, list[int]] = {}
    nodes: dict[str, ClusterNode] = {}
    for number, command in enumerate(commands):
        try:
            node = _node(redis, command[3])
        except errors.RedisClusterException as error:  # its slot is not covered
            replies[number] = error
            continue
        nodes[node.name] = node
        of_node.setdefault(node.name, []).append(number)

    def ask(name: str) -> list[Any]:
        return _pipelined(redis.get_redis_connection(nodes[name]), [commands[number] for number in of_node[name]])

    found = _NODES.map(ask, of_node) if len(of_node) > 1 else map(ask, of_node)
    for numbers, answers in zip(of_node.values(), found, strict=True):
        for number, answer in zip(numbers, answers, strict=True):
            replies[number] = answer
    for number, reply in enumerate(replies):
        if isinstance(reply, errors.AskError) and not isinstance(reply, errors.MovedError):  # its slot is on the move
            target = cast(Any, redis).get_node(reply.host, reply.port)
            if target is not None:  # else the cluster is asked for its nodes, and then this again
                asked, answer = _ask(redis.get_redis_connection(target), [("ASKING",), commands[number]], 2)
                replies[number] = asked if isinstance(asked, Exception) else answer
    return replies


def _node(redis: RedisCluster, key: bytes | str) -> ClusterNode:
    slot = key_slot(key.encode() if isinstance(key, str) else key)
    return cast(ClusterNode, cast(Any, redis.nodes_manager).get_node_from_slot(slot))


def _look_around(redis: Client) -> None:
    """Ask a cluster for its nodes again: they may have changed while it was away."""
    if isinstance(redis, RedisCluster):
        try:
            cast(Any, redis.nodes_manager).initialize()
        except RAISED:
            return  # nobody answers yet; the next calls will say so


def _is_missing(reply: Any) -> bool:
    return isinstance(reply, errors.ResponseError) and "Function not found" in str(reply)


def _explain(redis: Client, command: Command, error: Exception) -> TallyError:
    text = str(error)
    if "TALLYWITNESS" in text:
        return ReplacedError(
            "Redis was started anew, restored or failed over while it was being written to, and may have lost what was "
            "written last; run the command again."
        )
    if found := re.search(r"TALLYTAG (\d+) (\w+)", text):
        key, stored = _key(command, found), found[2]
        return DefinitionMismatchError(
            f"{key!r} in Redis was written under definition {stored}; delete the key, or materialize the view again."
        )
    if found := re.search(r"TALLYFORMAT (\d+)", text):
        return StoredBytesError(
            f"{_key(command, found)!r} in Redis was not written by Tally in this form; delete the key and load it again."
        )
    if found := re.search(r"TALLYRANGE (\d+)", text):
        return DataError(
            f"{_key(command, found)!r}: a sum has grown beyond what a tile can hold; aggregate a smaller quantity."
        )
    return explained(redis, error)


def _key(command: Command, found: re.Match[str]) -> Any:
    """The key of a call that its error is about."""
    return command[2 + int(found[1])]
