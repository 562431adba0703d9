"""Law 5 under every fault that we can inject: after each, every key of every view equals the oracle, bit for bit.

`make test-faults ARGS="--rounds 100"` is the long run. Messages are accounted for by facts, since the counts of a worker die
with it: what a view refuses must be in the dead-letter topic, and what it accepts must be in its stored bytes, which hold a
count of each tile and the last offset of each partition; both together are what was produced. Reports of workers that lived
must not add up to more than that.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.conftest import Servers
from tests.faults.stage import Stage

pytestmark = [pytest.mark.apache_kafka, pytest.mark.faults]

WAVE = 600
"""Messages that are sent at once."""
BATCH_BYTES = 700_000
"""About what a wave costs between workers and Redis."""


def end(stage: Stage, *, all_left: bool = False) -> None:
    """Everyone leaves in good order; nothing changes any more, and the reports agree."""
    for worker in list(stage.workers):
        stage.leave(worker)
    stage.check()
    stage.check_reports(all_left=all_left)


def test_workers_killed_at_any_moment(on_stage: Stage, rounds: int) -> None:
    """`kill -9` with one to four workers, each time somewhere in the writes of a batch."""
    for _ in range(rounds):
        on_stage.keep(on_stage.random.randint(1, 4))
        for _ in range(2):
            on_stage.send(WAVE)
            on_stage.somewhere(BATCH_BYTES)
            on_stage.kill(on_stage.any_worker())
            on_stage.keep(1)
        on_stage.drain()
        on_stage.check()
    end(on_stage)


def test_zombies_write_late(on_stage: Stage, rounds: int) -> None:
    """Workers frozen in mid-batch, whose partitions go to others; woken when everything was applied without them."""
    for _ in range(rounds):
        on_stage.keep(on_stage.random.randint(2, 4))
        on_stage.send(WAVE)
        on_stage.somewhere(BATCH_BYTES)
        frozen = [on_stage.any_worker() for _ in range(len(on_stage.workers) // 2)]
        for worker in frozen:
            on_stage.freeze(worker)
        on_stage.send(WAVE)
        on_stage.drain()
        on_stage.check()
        for worker in frozen:
            on_stage.thaw(worker)
        on_stage.send(WAVE)
        on_stage.drain()
        on_stage.check()
    end(on_stage, all_left=True)


def test_rebalances_under_load(on_stage: Stage, rounds: int) -> None:
    """Workers come and go in good order, one to four of them, while there is work."""
    for _ in range(rounds):
        for _ in range(3):
            on_stage.keep(on_stage.random.randint(1, 4))
            on_stage.send(WAVE)
            on_stage.somewhere(BATCH_BYTES)
            if len(on_stage.workers) > 1:
                on_stage.leave(on_stage.any_worker())
        on_stage.drain()
        on_stage.check()
    end(on_stage, all_left=True)


def test_connections_to_redis_cut(on_stage: Stage, rounds: int) -> None:
    """In mid-pipeline, within a request or an answer; and a network that swallows everything for a while."""
    on_stage.patience_s = 1
    for number in range(rounds):
        on_stage.keep(2)
        on_stage.send(WAVE)
        for _ in range(3):
            on_stage.cut(on_stage.to_redis, BATCH_BYTES // 4)
        if number % 4 == 0:
            on_stage.silence(on_stage.to_redis)
        on_stage.drain()
        on_stage.check()
    end(on_stage)


def test_connections_to_kafka_cut(on_stage: Stage, rounds: int) -> None:
    """Within a fetch, a commit, a heartbeat or a dead letter."""
    for _ in range(rounds):
        on_stage.keep(2)
        on_stage.send(WAVE)
        for _ in range(3):
            on_stage.cut(on_stage.to_kafka, 40_000)
        on_stage.drain()
        on_stage.check()
    end(on_stage)


def test_redis_restarted(on_stage: Stage, servers: Servers, rounds: int) -> None:
    """Killed in mid-batch; it has written down what it acknowledged before it did so."""
    for _ in range(rounds):
        on_stage.keep(2)
        on_stage.send(WAVE)
        on_stage.somewhere(BATCH_BYTES)
        servers.redis.restart()
        on_stage.note("redis restarted")
        on_stage.drain()
        on_stage.check()
    end(on_stage)


def test_broker_restarted(on_stage: Stage, servers: Servers, rounds: int) -> None:
    """Killed in mid-batch. Workers wait until it is back."""
    for _ in range(-(-rounds // 5)):
        on_stage.keep(2)
        on_stage.send(WAVE)
        on_stage.somewhere(BATCH_BYTES)
        servers.broker.kill()
        servers.broker.start()
        on_stage.note("broker restarted")
        on_stage.send(WAVE)
        on_stage.drain()
        on_stage.check()
    end(on_stage)


def test_everything_at_once(on_stage: Stage, servers: Servers, rounds: int) -> None:
    """One fault after the other, before anything has recovered from the one before."""
    stage = on_stage

    def freeze() -> None:
        stage.freeze(stage.any_worker())
        stage.keep(1)

    def restart_redis() -> None:
        servers.redis.restart()
        stage.note("redis restarted")

    faults: list[Callable[[], object]] = [
        lambda: stage.kill(stage.any_worker()),
        lambda: stage.leave(stage.any_worker()),
        freeze,
        lambda: stage.cut(stage.to_redis, BATCH_BYTES // 4),
        lambda: stage.cut(stage.to_kafka, 40_000),
        restart_redis,
    ]
    for _ in range(rounds):
        stage.keep(stage.random.randint(1, 4))
        for _ in range(4):
            stage.send(WAVE // 2)
            stage.somewhere(BATCH_BYTES // 2)
            stage.random.choice(faults)()
            stage.keep(1)
        stage.drain()
        for worker in stage.workers:
            if worker.is_frozen:
                stage.thaw(worker)
        stage.send(WAVE // 2)
        stage.drain()
        stage.check()
    end(stage)
