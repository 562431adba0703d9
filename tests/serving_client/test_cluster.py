"""Connections to the nodes of a cluster: none goes back into its pool with a reply that nobody has read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import AskError, MovedError, TryAgainError
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import TimeoutError as TimedOutError

from serving_client import cluster
from serving_client.cluster import AsyncClusterReads, ClusterReads, _Replies

NO_CLUSTER: Any = None
GIVEN_UP = ["asked", "disconnected", "released"]


class Node:
    """A node, its pool and its one connection, which says `replies`; `log` is what became of the connection."""

    def __init__(self, *replies: Any, refuses: bool = False) -> None:
        self.replies = list(replies)
        self.refuses = refuses
        self.log: list[str] = []

    def get_connection(self) -> Node:
        """The connection."""
        return self

    def release(self, connection: Any) -> None:
        """It is back in the pool."""
        assert connection is self
        self.log.append("released")

    def pack_commands(self, commands: Sequence[Any]) -> Sequence[Any]:
        """They are looked at as they are."""
        return commands

    def send_packed_command(self, commands: Sequence[Any]) -> None:
        """The node has them, unless it refuses."""
        self.log.append("asked")
        assert self.refuses or len(commands) == len(self.replies)
        if self.refuses:
            raise LostError

    def read_response(self) -> Any:
        """The next reply."""
        reply = self.replies.pop(0)
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def disconnect(self) -> None:
        """What comes later is nobody's."""
        self.log.append("disconnected")


class AsyncNode(Node):
    """As `Node`, of an event loop."""

    acquire_connection = Node.get_connection

    async def send_packed_command(self, commands: Sequence[Any]) -> None:
        """As `Node`."""
        super().send_packed_command(commands)

    async def read_response(self) -> Any:
        """As `Node`."""
        return super().read_response()

    async def disconnect(self, *, nowait: bool) -> None:
        """As `Node`, without a wait."""
        assert nowait
        super().disconnect()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> ClusterReads:
    """Reads of nodes that are pools."""
    monkeypatch.setattr(cluster, "punctual", lambda client: client)
    clients: Any = SimpleNamespace(get_redis_connection=lambda node: SimpleNamespace(connection_pool=node))
    return ClusterReads(clients)


def ask(reads: ClusterReads, *nodes: Node) -> list[bytes | None]:
    """Ask each node for one key."""
    replies = _Replies([b"%d" % number for number in range(len(nodes))], [None] * len(nodes))
    reads._ask([(node, [number]) for number, node in enumerate(nodes)], replies)
    return replies.values


def test_connections_that_were_read_stay_open(reads: ClusterReads) -> None:
    """Each goes back as it is."""
    nodes = [Node(b"a"), Node(None), Node(b"c")]
    assert ask(reads, *nodes) == [b"a", None, b"c"]
    assert [node.log for node in nodes] == [["asked", "released"]] * 3


def test_a_node_that_does_not_answer(reads: ClusterReads) -> None:
    """Its connection is given up, and so are those that were asked and not read yet."""
    nodes = [Node(b"a"), Node(TimedOutError()), Node(b"c")]
    with pytest.raises(TimedOutError):
        ask(reads, *nodes)
    assert [node.log for node in nodes] == [["asked", "released"], GIVEN_UP, GIVEN_UP]


def test_a_node_that_is_not_reached(reads: ClusterReads) -> None:
    """Who was asked before is not read any more, who comes after is not asked."""
    nodes = [Node(b"a"), Node(refuses=True), Node(b"c")]
    with pytest.raises(LostError):
        ask(reads, *nodes)
    assert [node.log for node in nodes] == [GIVEN_UP, GIVEN_UP, []]


def test_an_asynchronous_node_that_answers() -> None:
    """Its connection goes back as it is."""
    node, found = AsyncNode(b"a", b"b"), _Replies([b"0", b"1"], [None] * 2)
    asyncio.run(AsyncClusterReads(NO_CLUSTER)._ask(node, [0, 1], found))
    assert found.values == [b"a", b"b"]
    assert node.log == ["asked", "released"]


@pytest.mark.parametrize("error", [TimedOutError, asyncio.CancelledError])
def test_an_asynchronous_node_that_does_not_answer(error: type[BaseException]) -> None:
    """Its connection is given up; also where the task that reads is cancelled."""
    node = AsyncNode(b"a", error())
    with pytest.raises(error):
        asyncio.run(AsyncClusterReads(NO_CLUSTER)._ask(node, [0, 1], _Replies([b"0", b"1"], [None] * 2)))
    assert node.log == GIVEN_UP


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_key_that_is_asked_for_elsewhere(reads: ClusterReads, *, asynchronous: bool) -> None:
    """The last reply of the node that was named is the value; without one the connection is given up."""

    def follow(node: Node, error: AskError) -> Any:
        manager = SimpleNamespace(get_node=lambda host, port: node if (host, port) == ("10.0.0.7", 7001) else None)
        if asynchronous:
            return asyncio.run(AsyncClusterReads(NO_CLUSTER)._follow(manager, b"k", error))
        return reads._follow(manager, b"k", error)

    made = AsyncNode if asynchronous else Node
    for error, replies in ((AskError, [b"OK", b"v"]), (MovedError, [b"v"])):
        node = made(*replies)
        assert follow(node, error("3999 10.0.0.7:7001")) == b"v"
        assert node.log == ["asked", "released"]
        node = made(*replies[:-1], LostError())
        with pytest.raises(LostError):
            follow(node, error("3999 10.0.0.7:7001"))
        assert node.log == GIVEN_UP
    with pytest.raises(TryAgainError, match=r"10\.0\.0\.8:7001"):
        follow(made(), MovedError("3999 10.0.0.8:7001"))
