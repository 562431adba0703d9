"""Laws 2 to 5 on random worlds: the oracle against the offline engine, Dask, Redis after the stream worker, the client."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client, LocalCluster
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from redis import Redis

from ingestion import stream
from ingestion.arrow import from_columns, to_columns
from ingestion.materialize import bootstrap_view
from ingestion.redis_calls import load_library
from ingestion.redis_store import LatestWriter, TileWriter
from serving_client import FeatureClient
from tally.columns import Column, concatenate
from tally.errors import DataError
from tests.ingestion.streams import deliveries
from tests.laws.worlds import KEYS, WINDOWS, World, columns_of, differences, land, worlds
from tests.oracle import Event
from training import TrainingSet, build
from training.cluster import Cluster
from training.partitioned import Local

OVERFLOW = r"a sum of integers is outside int64"
Answer = dict[str, Column]


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """A new offline store each time, gone after its block."""
    base, number = tmp_path_factory.mktemp("offline"), itertools.count()

    @contextmanager
    def made() -> Iterator[str]:
        folder = base / str(next(number))
        yield str(folder)
        shutil.rmtree(folder, ignore_errors=True)

    return made


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    """A small Dask cluster in this process."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


def check(world: World, answer: Callable[[], Answer], path: str) -> None:
    """The answer is the oracle's to the bit; where that has a sum beyond int64, it is refused."""
    if world.overflows:
        with pytest.raises(DataError, match=OVERFLOW):
            answer()
        return
    wrong = differences(world, world.labels, answer())
    assert not wrong, "\n".join([f"{path}:", *wrong, repr(world)])


def _reached(world: World) -> Iterator[str]:
    """The edges of the laws that a world's labels stand on."""
    yield from (f"a key of {dtype}" for dtype in world.keys)
    names = [f"k{n}" for n in range(len(world.keys))]
    for entity, as_of in world.labels:
        own = [e for e in world.events if tuple(e.values[name] for name in names) == entity]
        seen = sorted((e for e in own if e.timestamp <= as_of), key=lambda e: (e.timestamp, e.a, e.b))
        if len(world.keys) > 1 and seen:
            yield "a composite key with rows"
        if "" in entity and seen:
            yield "an empty text as key"
        if any(e.timestamp == as_of for e in own):
            yield "an event of the very instant"
        if len({e.timestamp for e in seen}) < len(seen):
            yield "equal instants"
        if seen and seen[0].timestamp < 0:
            yield "an event before 1970"
        if seen and world.ttl and as_of - seen[-1].timestamp - world.ttl in (0, 1):
            yield "a time to live at its edge"
        for name, _, _, window in world.windows:
            since = [e.timestamp - WINDOWS[window].lower(as_of) for e in seen]
            yield from (said for at, said in ((0, "a window's first instant"), (-1, "one before it")) if at in since)
            values = [e.values[name] for e in own]
            if None in values and 2**60 + 1 in values:
                yield "a null beside 2**60 + 1"


EDGES = {f"a key of {dtype}" for dtype in KEYS} | {
    "a composite key with rows", "an empty text as key", "an event of the very instant", "equal instants",
    "an event before 1970", "a time to live at its edge", "a window's first instant", "one before it", "a null beside 2**60 + 1",
}  # fmt: skip


def test_random_worlds_reach_the_edges() -> None:
    """Among worlds that are always the same ones, each edge is met: what follows tests more than the easy middle."""
    reached: set[str] = set()

    @settings(max_examples=300, derandomize=True, database=None, phases=[Phase.generate])
    @given(worlds())
    def look(world: World) -> None:
        reached.update(_reached(world))

    look()
    assert reached == EDGES


def _parquet(labels: pa.Table, folder: Path) -> Path:
    pq.write_table(labels, folder / "labels.parquet", row_group_size=1)
    return folder / "labels.parquet"


def _folder(labels: pa.Table, folder: Path) -> Path:
    parts = folder / "labels"
    parts.mkdir()
    for number in range(len(labels)):
        pq.write_table(labels.slice(number, 1), parts / f"{number}.parquet")
    return parts


def _pandas(labels: pa.Table, folder: Path) -> pd.DataFrame:
    del folder
    return TrainingSet.frame(labels)


def _dask(labels: pa.Table, folder: Path) -> Any:
    with dask.config.set({"dataframe.convert-string": False}):  # else Dask makes texts of bytes
        return dd.from_pandas(_pandas(labels, folder), npartitions=2)


FORMS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "Arrow": lambda labels, _: labels, "pandas": _pandas, "a file": _parquet, "a folder": _folder, "Dask": _dask
}  # fmt: skip


@given(
    world=worlds(),
    order=st.randoms(use_true_random=False),
    cut=st.integers(0, 10),
    form=st.sampled_from(sorted(FORMS)),
)
def test_the_offline_engine_is_the_oracle(fresh: Any, world: World, order: Any, cut: int, form: str) -> None:
    """Rows landed in any order and batching give the oracle's bits for every label, in whatever form the labels come."""
    shuffled = order.sample(world.events, len(world.events))
    with _landed(fresh, world, shuffled, cut) as uri, TemporaryDirectory() as folder:
        labels = FORMS[form](_labels(world), Path(folder))
        check(world, lambda: _built(world, uri, labels), f"in memory, labels as {form}")


@given(world=worlds(), parts=st.integers(1, 5), cut=st.integers(0, 10))
def test_the_partitioned_join_is_the_oracle(fresh: Any, world: World, parts: int, cut: int) -> None:
    """The same with keys divided into parts on disk, as where they do not fit into memory."""
    with _landed(fresh, world, world.events, cut) as uri, pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "peak", lambda *_: 1 << 62)
        patch.setattr(Local, "parts", lambda *_: parts)
        check(world, lambda: _built(world, uri), f"{parts} parts")


@given(world=worlds(), parts=st.sampled_from([1, 2, 3, 7]), cut=st.integers(0, 10))
def test_a_cluster_is_the_oracle(fresh: Any, cluster: Client, world: World, parts: int, cut: int) -> None:
    """The same on a Dask cluster, with several partition counts."""
    with _landed(fresh, world, world.events, cut) as uri, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cluster, "parts", lambda *_: parts)
        check(world, lambda: _built(world, uri, client=cluster), f"{parts} parts on a cluster")


@contextmanager
def _landed(fresh: Any, world: World, events: Sequence[Event], cut: int) -> Iterator[str]:
    with fresh() as uri:
        land(world, uri, events[:cut])
        land(world, uri, [*events[cut:], *events[max(cut - 1, 0) : cut + 1]])  # one or two landed twice
        yield uri


def _labels(world: World) -> pa.Table:
    keys, as_of = world.label_columns
    return from_columns({**keys, "asked at": Column("UnixTimestamp", as_of, np.ones(len(as_of), np.bool_))})


def _built(world: World, uri: str, labels: Any = None, **how: Any) -> Answer:
    asked = _labels(world) if labels is None else labels
    found = build.training_set(world.plan, asked, service="all", offline_uri=uri, timestamp="asked at", **how)
    return to_columns(world.plan.service("all").outputs, found.to_arrow())


@given(world=worlds(online=True), data=st.data())
def test_redis_after_the_stream_is_the_oracle(redis_url: str, world: World, data: st.DataObject) -> None:
    """However the topic is cut, repeated and interleaved: many rows at once, and one at a time, are the oracle's bits."""
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
        load_library(redis)
        _deliver(world, redis, data)
        _ask(world, redis)


@given(world=worlds(online=True), data=st.data())
def test_redis_after_a_bootstrap_is_the_oracle(redis_url: str, fresh: Any, world: World, data: st.DataObject) -> None:
    """Half from the offline store, then the stream from its beginning: no event counts twice, none is lost."""
    with Redis.from_url(redis_url) as redis, fresh() as uri:
        redis.flushall()
        ends = [data.draw(st.integers(0, 10), label=f"landed of partition {partition}") for partition in range(3)]
        land(world, uri, [e for e in world.events if e.b < ends[e.a]])
        for view in world.plan.views:
            bootstrap_view(world.plan, view, uri, redis)
        _deliver(world, redis, data)
        _ask(world, redis)


def _deliver(world: World, redis: Redis, data: st.DataObject) -> None:
    """What the worker does with each micro-batch."""
    latest, window = world.plan.views
    rows, tiles = LatestWriter(redis, world.plan.project, latest), TileWriter(redis, world.plan.project, window)
    topic = [[e for e in world.events if e.a == partition] for partition in range(3)]
    for batch in data.draw(deliveries(topic)):  # type: ignore[arg-type]
        for stretch in stream.rising(_ints(batch, "a"), _ints(batch, "b")):
            some: Sequence[Any] = batch[stretch]
            if not some:
                continue
            columns, partition, offset = columns_of(world, some), _ints(some, "a"), _ints(some, "b")
            rows.put(*stream.latest_rows(stream.events_of(latest, None, columns, partition, offset)[0]))
            stream.merge(stream.events_of(window, None, columns, partition, offset)[0], tiles.merge)


def _ints(events: Sequence[Any], name: str) -> Any:
    return np.array([getattr(event, name) for event in events], np.int64)


def _ask(world: World, redis: Redis) -> None:
    plan = world.plan.for_service("all")
    asked = [{f"k{n}": part for n, part in enumerate(entity)} for entity, _ in world.labels]
    as_of = [moment for _, moment in world.labels]
    client = FeatureClient(redis, plan)
    check(world, lambda: dict(client.get(asked, as_of).columns), "client")

    def one_by_one() -> Answer:
        rows = [client.get([row], moment).columns for row, moment in zip(asked, as_of, strict=True)]
        return {name: concatenate([row[name] for row in rows]) for name in rows[0]}

    check(world, one_by_one, "client, one by one")
