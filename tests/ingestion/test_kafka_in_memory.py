"""A worker on librdkafka's in-memory cluster, which stands in where Apache Kafka cannot run, and answers less."""

from __future__ import annotations

import json
from dataclasses import replace

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from redis import Redis

from ingestion.worker import run
from tally.plan import Plan, hashed_view
from tests.ingestion import streams


def test_a_worker_reads_from_a_cluster_that_knows_no_ids_of_topics(redis: Redis) -> None:
    """It asks for them, gets no answer, and goes on."""
    cluster = AdminClient({"test.mock.num.brokers": 1})
    (broker,) = cluster.list_topics(timeout=30).brokers.values()
    config = {"bootstrap.servers": f"{broker.host}:{broker.port}"}
    source = replace(streams.SOURCE, topic="in-memory")
    view = hashed_view(streams.view_with_every_cell(texts=True), source)
    producer = Producer(config)
    for number in range(10):
        producer.produce(source.topic, json.dumps({"at": "2013-01-01T00:00:00Z", "who": "a", "f": number}))
    producer.flush()

    summary = run(Plan("in-memory", (source,), (view,), (), ()), None, config, redis, until_end=True)

    assert summary.views["cells"].applied == 10
