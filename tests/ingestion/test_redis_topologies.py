"""The consumer on a Redis Cluster and behind Sentinels: every write goes where it belongs, and nothing is lost with a server."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from redis.crc import key_slot

from connections import Client, open_client
from ingestion.progress import _marks, advance_progress, progress, witness, writer_name
from ingestion.redis_calls import ReplacedError, _look_around, load_library, primaries
from ingestion.redis_store import TileWriter, publish_plan, view_mark
from ingestion.report import State, Summary
from tally.errors import NotReadyError
from tally.layout import progress_key
from tally.plan import View
from tests import redis_servers
from tests.ingestion import plans
from tests.ingestion.streams import difference
from tests.ingestion.test_kafka import DEADLINE_S, Topic, eventually, latest_by_number, make_topic, servers

__all__ = ["servers"]

pytestmark = pytest.mark.apache_kafka


@pytest.fixture
def redis_on(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Client]]:
    """An empty store of a topology, by its name."""
    clients = []

    def opened(topology: str) -> Client:
        found = request.getfixturevalue(f"redis_{topology}")
        found.settle()
        found.flush()
        clients.append(open_client(found.url))
        return clients[-1]

    yield opened
    for client in clients:
        client.close()


def stored(topic: Topic, client: Client) -> dict[bytes, Any]:
    """Entity -> tiles, from wherever they are."""
    prefix = topic.view.prefix(topic.plan.project)
    return {key.removeprefix(prefix): client.get(key) for key in client.scan_iter(prefix + b"*")}


@contextmanager
def working(topic: Topic) -> Iterator[Future[Summary]]:
    """A worker that runs until the end of the block. If that fails, its error says how the worker fares."""
    stop, state = threading.Event(), State()
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(topic.run, until_end=False, stop=stop, state=state)
        try:
            with explained(topic):
                yield worker
        except AssertionError as error:
            ended = worker.exception() or worker.result() if worker.done() else "at work"
            error.add_note(f"the worker: {ended!r}, {state}")
            raise
        finally:
            stop.set()


@contextmanager
def explained(topic: Topic) -> Iterator[None]:
    """If the block fails, its error says where the windows in Redis differ from the truth, and how far progress is there."""
    try:
        yield
    except AssertionError as error:
        found = quietly(lambda: stored(topic, topic.redis))
        error.add_note(f"sent: {dict(Counter(message.partition for message in topic.sent))} by partition")
        error.add_note(f"marks of progress: {quietly(lambda: _marks(topic.redis, topic.plan.project))}")
        error.add_note("Redis does not answer" if found is None else differences(topic.view, found, topic.expected()))
        raise


def differences(view: View, found: dict[bytes, Any], expected: dict[bytes, bytes]) -> str:
    """Each key whose value is another than expected."""
    found = {entity: value for entity, value in found.items() if value is not None}
    lines = [f"{entity!r} is missing" for entity in sorted(expected.keys() - found.keys())]
    lines += [f"{entity!r} should not be there" for entity in sorted(found.keys() - expected.keys())]
    for entity in sorted(found.keys() & expected.keys()):
        if found[entity] != expected[entity]:
            lines.append(difference(view, entity, found[entity], expected[entity]))
    return "\n".join(lines) or "all windows are right"


@pytest.mark.parametrize("topology", ["cluster", "sentinels"])
def test_a_stream_fills_every_server(
    topology: str, redis_on: Callable[[str], Client], servers: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Windows and latest rows are on the servers of their keys, progress on each, and a second run finds it."""
    caplog.set_level(logging.DEBUG, "ingestion")  # a failure shows what the worker said
    client = redis_on(topology)
    topic = make_topic(servers, client, latest_by_number())  # type: ignore[arg-type]
    publish_plan(client, topic.plan)
    topic.send(600)

    with explained(topic):
        summary = topic.run()

        assert stored(topic, client) == topic.expected()
        assert summary.views["cells"].applied == 600
        assert progress(client, topic.plan.project, topic.view) == {(topic.name, 0): 300, (topic.name, 1): 300}
        assert view_mark(client, topic.plan.project, topic.view) == {"by": "stream", "topic": topic.name}
        assert topic.run().consumed == 0
        for server in primaries(client):
            assert server.dbsize() > 0


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["cluster", "sentinels"])
def test_a_master_lost_under_load_loses_nothing(
    topology: str,
    redis_on: Callable[[str], Client],
    servers: str,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A replica takes over in mid-run, with or without the last writes: in the end every event counts once."""
    caplog.set_level(logging.DEBUG, "ingestion")  # a failure shows what the worker said
    client = redis_on(topology)
    found = request.getfixturevalue(f"redis_{topology}")
    topic = make_topic(servers, client)  # type: ignore[arg-type]
    topic.send(2_000)
    with working(topic) as worker:
        eventually(lambda: len(stored(topic, client)) > 0)
        key = topic.view.prefix(topic.plan.project) + b"a"
        (found.master_of(key) if topology == "cluster" else found.master()).kill()
        topic.send(2_000)
        expected = topic.expected()
        redis_servers.eventually(lambda: quietly(lambda: stored(topic, client)) == expected, "the windows")

    assert worker.result().consumed >= 4_000
    found.settle()
    with explained(topic):
        assert stored(topic, client) == expected


def quietly(ask: Callable[[], Any]) -> Any:
    """The answer of a client whose servers may be changing, or None."""
    from redis.exceptions import RedisClusterException, RedisError

    try:
        return ask()
    except (RedisError, RedisClusterException):
        return None


def test_slots_move_under_a_running_worker(
    redis_on: Callable[[str], Client], servers: str, redis_cluster: redis_servers.ClusterServers
) -> None:
    """Those of windows and those of progress, from master to master: each event counts once, and the worker goes on."""
    client = redis_on("cluster")
    topic = make_topic(servers, client, latest_by_number())  # type: ignore[arg-type]
    topic.send(100)
    prefix = topic.view.prefix(topic.plan.project)

    def arrives() -> None:
        redis_servers.eventually(lambda: quietly(lambda: stored(topic, client)) == topic.expected(), "the windows")

    with working(topic) as worker:
        arrives()
        marks = [progress_key(topic.plan.project, shard).encode() for shard in _marks(client, topic.plan.project)]
        for key in (prefix + b"a", *marks, prefix + b"b", *marks, prefix + b"c", *marks):
            with redis_cluster.moving(key_slot(key)):
                topic.send(50)
                arrives()
            topic.send(50)
            arrives()
            assert not worker.done(), worker.result()
    assert worker.result().views["cells"].applied == len(topic.sent)
    assert topic.run().consumed == 0


@pytest.mark.slow
def test_a_replica_that_lags_takes_over(
    redis_on: Callable[[str], Client],
    servers: str,
    redis_sentinels: redis_servers.SentinelServers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Writes that were answered and then lost with the master are seen to be missing, and are made again."""
    caplog.set_level(logging.WARNING, "ingestion")
    client = redis_on("sentinels")
    topic = make_topic(servers, client)  # type: ignore[arg-type]
    topic.send(100)
    with working(topic):
        eventually(lambda: stored(topic, client) == topic.expected())
        master = redis_sentinels.master()
        for replica in redis_sentinels.replicas():
            replica.freeze()
        master.client().client_kill_filter(_type="slave")  # what is in a socket would be read after all
        topic.send(100)
        eventually(lambda: stored(topic, client) == topic.expected())
        master.kill()
        for replica in redis_sentinels.replicas_of(master):
            replica.thaw()
        topic.send(100)
        redis_servers.eventually(lambda: quietly(lambda: stored(topic, client)) == topic.expected(), "the windows")

    assert "Redis lost the effects of" in caplog.text
    redis_sentinels.settle()
    assert stored(topic, client) == topic.expected()


def test_an_older_snapshot_is_noticed_at_the_start(topic_on_one: tuple[Topic, redis_servers.Server]) -> None:
    """Redis is behind the group's offsets: what it lacks is read again."""
    topic, server = topic_on_one
    topic.send(100)
    topic.run()
    server.client().save()
    topic.send(100)
    topic.run()
    server.restart()

    again = topic.run()

    assert again.views["cells"].applied == 100
    assert topic.stored() == topic.expected()


def test_an_older_snapshot_is_noticed_while_running(
    topic_on_one: tuple[Topic, redis_servers.Server], caplog: pytest.LogCaptureFixture
) -> None:
    """The server is exchanged for one with older data under the worker's hands, even if no message comes after that."""
    caplog.set_level(logging.WARNING, "ingestion")
    topic, server = topic_on_one
    topic.send(100)
    with working(topic) as worker:
        eventually(lambda: topic.stored() == topic.expected())
        eventually(lambda: sum(progress(topic.redis, topic.plan.project, topic.view).values()) == 100)
        server.client().save()
        topic.send(100)
        eventually(lambda: sum(progress(topic.redis, topic.plan.project, topic.view).values()) == 200)
        server.restart()
        eventually(lambda: "Redis lost the effects of 50 messages; reading them again" in caplog.text)
        eventually(lambda: topic.stored() == topic.expected())

    assert worker.result().views["cells"].applied == 300


def test_data_removed_under_a_running_worker_end_it(topic_on_one: tuple[Topic, redis_servers.Server]) -> None:
    """What it wrote after that cannot be told from what is whole: it says so, and what to do."""
    topic, server = topic_on_one
    topic.send(100)
    with working(topic) as worker:
        eventually(lambda: topic.stored() == topic.expected())
        server.client().flushall()
        with pytest.raises(NotReadyError, match="was removed from Redis while workers were writing"):
            worker.result(DEADLINE_S)


@pytest.fixture
def topic_on_one(servers: str, tmp_path: Any) -> Iterator[tuple[Topic, redis_servers.Server]]:
    """A topic whose windows are on a server of its own."""
    with redis_servers.standalone(tmp_path) as server, open_client(server.url()) as client:
        yield make_topic(servers, client), server  # type: ignore[arg-type]


def test_a_primary_that_joins_is_trusted_with_what_it_was_given(redis_on: Callable[[str], Client]) -> None:
    """A mark that exists nowhere yet takes no progress away; one that others know of, and that is gone, does."""
    client = redis_on("cluster")
    load_library(client)
    view = plans.window_view()
    advance_progress(client, "p", [view], {("t", 0): 5})
    assert progress(client, "p", view) == {("t", 0): 5}
    marks = sorted(client.scan_iter("tally:p:progress*"))
    assert len(marks) == 3

    client.delete(marks[0])
    assert progress(client, "p", view) == {("t", 0): 0}

    for mark in marks[1:]:
        shard = marks[0].decode().partition("{")[2].rstrip("}")
        client.hdel(mark, f"shards:{shard}:0")
    assert progress(client, "p", view) == {("t", 0): 5}


def test_a_mark_whose_slot_moves_is_no_loss(
    redis_on: Callable[[str], Client], redis_cluster: redis_servers.ClusterServers
) -> None:
    """Its primary gets another mark, which says what the others say: a worker that is idle stays witnessed."""
    client, view, name = redis_on("cluster"), plans.window_view(), writer_name()
    load_library(client)
    assert witness(client, "p", (), {}, name)
    advance_progress(client, "p", [view], {("t", 0): 5}, writer=name)
    before = _marks(client, "p")
    with redis_cluster.moving(key_slot(progress_key("p", min(before)).encode())):
        pass
    _look_around(client)
    assert _marks(client, "p").keys() != before.keys()

    assert witness(client, "p", [view], {("t", 0): 5}, name)
    assert progress(client, "p", view) == {("t", 0): 5}
    new = next(shard for shard in _marks(client, "p") if shard not in before)
    client.delete(progress_key("p", new))
    assert progress(client, "p", view) == {("t", 0): 0}


def test_a_new_mark_is_no_loss_where_a_batch_has_some_partitions_only(
    redis_on: Callable[[str], Client], redis_cluster: redis_servers.ClusterServers
) -> None:
    """A primary's new mark knows all partitions, topics and views from the first write on, whatever that was about."""
    client, view, name = redis_on("cluster"), plans.window_view(), writer_name()
    load_library(client)
    assert witness(client, "p", (), {}, name)
    advance_progress(client, "p", [view], {("t", 0): 5, ("t", 1): 8}, writer=name)
    with redis_cluster.moving(key_slot(progress_key("p", min(_marks(client, "p"))).encode())):
        pass
    _look_around(client)

    advance_progress(client, "p", [view], {("t", 0): 6}, writer=name)

    assert progress(client, "p", view) == {("t", 0): 6, ("t", 1): 8}
    assert witness(client, "p", [view], {("t", 0): 6, ("t", 1): 8}, name)


def test_a_mark_that_lags_is_looked_at_again_where_it_was_never_shown(redis_on: Callable[[str], Client]) -> None:
    """Another worker made it from what it knew: the writer reads again. Only what was shown, and went back, was removed."""
    client, view, name = redis_on("cluster"), plans.window_view(), writer_name()
    load_library(client)
    assert witness(client, "p", (), {}, name)
    advance_progress(client, "p", [view], {("t", 0): 5}, writer=name)
    client.hset(progress_key("p", "1000"), f"{view.name}@{view.hash}:t:0", "4")
    client.hset(progress_key("p", min(_marks(client, "p"))), "shards:1000:0", "1")

    assert not witness(client, "p", [view], {("t", 0): 5}, name)

    advance_progress(client, "p", [view], {("t", 0): 5}, writer=name)
    assert witness(client, "p", [view], {("t", 0): 5}, name)
    client.delete(progress_key("p", "1000"))
    with pytest.raises(NotReadyError, match="was removed from Redis"):
        witness(client, "p", [view], {("t", 0): 5}, name)


def test_a_server_that_knows_nothing_of_a_writer_takes_nothing(
    topic_on_one: tuple[Topic, redis_servers.Server],
) -> None:
    """After a restart a writer is refused until it has looked, and is not trusted when progress went back."""
    topic, server = topic_on_one
    client, view, name = topic.redis, topic.view, writer_name()
    load_library(client)
    assert witness(client, "p", (), {}, name)
    advance_progress(client, "p", [view], {("t", 0): 7}, writer=name)
    server.client().save()
    advance_progress(client, "p", [view], {("t", 0): 9}, writer=name)
    assert witness(client, "p", [view], {("t", 0): 9}, name)
    server.restart()

    with pytest.raises(ReplacedError, match="run the command again"):
        TileWriter(client, "p", view, writer=name).load([b"a"], [b"anything"])
    with pytest.raises(ReplacedError):
        advance_progress(client, "p", [view], {("t", 0): 10}, writer=name)
    assert not witness(client, "p", [view], {("t", 0): 9}, name)
    assert witness(client, "p", [view], {("t", 0): 7}, name)
    advance_progress(client, "p", [view], {("t", 0): 10}, writer=name)
    assert progress(client, "p", view) == {("t", 0): 10}
