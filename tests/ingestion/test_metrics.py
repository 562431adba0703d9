"""What Prometheus and probes are told of a worker."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import generate_latest

from ingestion.health import SILENCE_SECONDS, serving
from ingestion.metrics import MOST_REASONS, Metrics
from ingestion.report import Progress, State, Summary, TopicCounts
from ingestion.stream import Counts
from tally.errors import UnavailableError
from tests.ingestion.test_kafka import Topic, eventually, servers, topic

__all__ = ["servers", "topic"]


def fetch(port: int, path: str) -> tuple[int, str]:
    """Status and body of a page."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(text: str) -> dict[str, float]:
    """Metric with labels -> value."""
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_every_count_is_shown() -> None:
    """Messages, outcomes, reasons, conflicts, lag, errors, and the batches' sizes, durations and ages."""
    counts = Counts(applied=5, duplicate=2, too_late=1, refused=Counter({"not JSON": 3}), conflicts=4)
    state = State(
        Summary({"t": TopicCounts(11, 3, 7)}, {"v": counts}),
        lag={("t", 0): 8, ("t", 1): 0},
        redis_errors=Counter(LoadingError=2),
        kafka_errors=Counter(_TRANSPORT=1),
        read_again=Counter(t=6),
        away={"Redis": "away"},
    )
    metrics = Metrics(state)
    metrics.on_batch(Progress(100, 0.03, 1.5, 100, {}, 8))
    metrics.on_batch(Progress(1, 0.001, None, 101, {}, 8))

    shown = samples(generate_latest(metrics.registry).decode())

    expected = {
        'tally_stream_messages_total{topic="t"}': 11,
        'tally_stream_dead_letters_total{topic="t"}': 3,
        'tally_stream_expired_total{topic="t"}': 7,
        'tally_stream_events_total{outcome="applied",view="v"}': 5,
        'tally_stream_events_total{outcome="duplicate",view="v"}': 2,
        'tally_stream_events_total{outcome="too_late",view="v"}': 1,
        'tally_stream_events_total{outcome="refused",view="v"}': 3,
        'tally_stream_refused_total{reason="not JSON",view="v"}': 3,
        'tally_stream_fence_conflicts_total{view="v"}': 4,
        'tally_stream_lag_messages{partition="0",topic="t"}': 8,
        "tally_stream_partitions": 2,
        "tally_stream_redis_up": 0,
        'tally_stream_redis_errors_total{kind="LoadingError"}': 2,
        'tally_stream_kafka_errors_total{code="_TRANSPORT"}': 1,
        'tally_stream_read_again_total{topic="t"}': 6,
        "tally_stream_batch_messages_sum": 101,
        "tally_stream_batch_seconds_count": 2,
        "tally_stream_freshness_seconds_count": 1,
        "tally_stream_freshness_seconds_sum": 1.5,
    }
    found = {
        re.sub(r"\{(.*)\}", lambda m: "{" + ",".join(sorted(m[1].split(","))) + "}", k): v for k, v in shown.items()
    }
    assert {name: found.get(name) for name in expected} == expected


def test_reasons_are_bounded() -> None:
    """However many there are, Prometheus gets a fixed number of series, and the sum is kept."""
    reasons = Counter({f"reason {i}": i + 1 for i in range(200)})
    state = State(Summary({}, {"v": Counts(refused=reasons)}))

    text = generate_latest(Metrics(state).registry).decode()

    shown = [value for name, value in samples(text).items() if name.startswith("tally_stream_refused_total")]
    assert len(shown) == MOST_REASONS + 1
    assert sum(shown) == reasons.total()


def test_probes_say_why() -> None:
    """Ready once the group has given partitions and while Redis takes writes; alive unless the loop stands still."""
    state = State()
    with serving(state, Metrics(state), 0) as port:
        assert fetch(port, "/health")[0] == 200
        code, body = fetch(port, "/ready")
        assert code == 503
        assert json.loads(body)["reasons"] == ["the consumer group has not given it partitions yet"]
        state.joined = True
        assert fetch(port, "/ready") == (200, '{"ok": true, "reasons": [], "lag": 0}')
        state.away["Redis"] = "Redis at a:1 did not answer"
        assert json.loads(fetch(port, "/ready")[1])["reasons"] == ["Redis at a:1 did not answer"]
        assert fetch(port, "/health")[0] == 200
        state.ticked = time.monotonic() - SILENCE_SECONDS - 1
        assert "has not gone round for 61 s" in fetch(port, "/health")[1]
        assert fetch(port, "/")[0] == 404
        with (
            pytest.raises(UnavailableError, match=rf"Port {port} cannot be opened"),
            serving(state, Metrics(state), port),
        ):
            pass


@pytest.mark.apache_kafka
def test_a_running_worker_is_observed(topic: Topic) -> None:
    """Ready while it runs, its counts are there while it goes on, and its port is closed after it."""
    state, stop = State(), threading.Event()
    metrics = Metrics(state)
    topic.send(10)
    with ThreadPoolExecutor(1) as pool, serving(state, metrics, 0) as port:
        worker = pool.submit(topic.run, until_end=False, stop=stop, state=state, on_batch=metrics.on_batch)
        try:
            eventually(lambda: fetch(port, "/ready")[0] == 200)
            eventually(
                lambda: 'tally_stream_events_total{outcome="applied",view="cells"} 10.0' in fetch(port, "/metrics")[1]
            )
            shown = samples(fetch(port, "/metrics")[1])
        finally:
            stop.set()
        worker.result()

    assert shown["tally_stream_freshness_seconds_count"] == shown["tally_stream_batch_seconds_count"] > 0
    assert shown["tally_stream_freshness_seconds_sum"] > 0
    assert shown[f'tally_stream_lag_messages{{partition="0",topic="{topic.name}"}}'] == 0
