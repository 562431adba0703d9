"""A new definition takes over from an old one: bootstrap and stream beside it, no gap, nothing twice, no pause for readers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from ingestion.materialize import bootstrap_view
from ingestion.progress import progress
from ingestion.redis_store import publish_plan
from ingestion.report import Summary
from serving_client import FeatureClient
from tally.plan import Field, Plan, Service, View, ViewUse, hashed_service, hashed_view
from tally.time import to_datetime
from tests.ingestion import stored
from tests.ingestion.plans import FOR_EVER
from tests.ingestion.streams import Message, expected_values
from tests.ingestion.test_kafka import Topic, eventually, make_topic, servers
from tests.ingestion.test_kafka_changes import shorten

__all__ = ["servers"]

pytestmark = pytest.mark.apache_kafka


def with_service(plan: Plan) -> Plan:
    """The plan with a service of one of its windows."""
    (view,) = plan.views
    name = view.aggregations[0].feature
    use = ViewUse(view.name, view.name, ("who",), ((name, name),))
    outputs = (Field(name, view.aggregations[0].output),)
    return replace(plan, services=(hashed_service(Service("s", (use,), (), view.keys, (), outputs), plan),))


def changed(view: View, topic: Topic) -> View:
    """The view with one window less: another definition."""
    return hashed_view(replace(view, aggregations=view.aggregations[:-1]), topic.plan.sources[0])


@contextmanager
def streaming(topic: Topic, group: str) -> Iterator[Future[Summary]]:
    """A worker of a group, until the end of the block."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(topic.run, until_end=False, stop=stop, group=group)
        try:
            yield worker
        finally:
            stop.set()


def landed(messages: Sequence[Message]) -> list[stored.Message]:
    """Messages as the landing table has them."""
    return [
        stored.message(m.partition, m.offset, **(m.fields | {"at": to_datetime(m.fields["at"]).isoformat()}))
        for m in messages
    ]


def test_a_bootstrap_comes_after_a_stream_that_began_late(
    servers: str, redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The topic has lost its beginning: the stream says what is missing, the bootstrap that it left keys so; a second one heals."""
    topic = make_topic(servers, redis)
    view = hashed_view(replace(topic.view, future_tolerance=FOR_EVER), topic.plan.sources[0])
    topic = replace(topic, plan=replace(topic.plan, views=(view,)))
    source = topic.plan.sources[0]
    topic.send(300)
    shorten(topic, 100)

    topic.run()

    for partition in (0, 1):
        assert f"cells begins with offset 100 of {topic.name}[{partition}], the first that is there" in caplog.text
    stored.put_messages(topic.plan, source, str(tmp_path), landed(topic.sent[:250]))
    assert bootstrap_view(topic.plan, topic.view, str(tmp_path), redis).kept == 3
    assert "cells: 3 keys stay as they are" in caplog.text
    assert topic.stored() != topic.expected()

    stored.put_messages(topic.plan, source, str(tmp_path), landed(topic.sent[250:]))
    assert bootstrap_view(topic.plan, topic.view, str(tmp_path), redis).kept == 0
    assert topic.run().consumed == 0
    assert topic.stored() == expected_values(topic.view, topic.sent, {0: 149, 1: 149})


def test_a_new_definition_is_bootstrapped_while_the_old_one_serves(
    servers: str, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    """Each of them ends with every event counted once; at no time does the old one miss one that it should have."""
    old = make_topic(servers, redis)
    # CreateTimes in the offline store of these tests are of 1970.
    view = hashed_view(replace(old.view, future_tolerance=FOR_EVER), old.plan.sources[0])
    old = replace(old, plan=with_service(replace(old.plan, views=(view,))))
    new = replace(old, plan=with_service(replace(old.plan, views=(changed(old.view, old),))))
    assert old.view.prefix(old.plan.project) != new.view.prefix(new.plan.project)
    publish_plan(redis, old.plan)
    with streaming(old, "old") as worker:
        old.send(400)
        eventually(lambda: old.stored() == old.expected())
        client = FeatureClient.connect(redis_url, project=old.plan.project, service="s", timeout=60)
        stored.put_messages(new.plan, new.plan.sources[0], str(tmp_path), landed(old.sent[:300]))
        old.send(50)

        written = bootstrap_view(new.plan, new.view, str(tmp_path), redis)

        assert (written.rows, written.kept) == (300, 0)
        assert progress(redis, new.plan.project, new.view) == {(new.name, 0): 150, (new.name, 1): 150}
        old.send(50)
        eventually(lambda: old.stored() == old.expected())
        who = old.plan.services[0].outputs[0].name
        assert client.get([{"who": "a"}], old.sent[-1].fields["at"]).columns[who].to_list()[0] is not None
        with streaming(new, "new") as successor:
            eventually(lambda: new.stored() == new.expected())
            old.send(100)
            eventually(lambda: new.stored() == new.expected() and old.stored() == old.expected())
        publish_plan(redis, new.plan)
        with FeatureClient.connect(redis_url, project=new.plan.project, service="s", timeout=60) as switched:
            assert switched.plan.views[0].hash == new.view.hash
        client.close()

    assert successor.result().views["cells"].applied == 600 - 300
    assert worker.result().views["cells"].applied == 600
