"""Prometheus metrics of a worker: collected from its state when they are asked for, so that counting costs it nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ingestion.report import REDIS, Progress, State

OTHER: Final = "other"
MOST_REASONS: Final = 50
"""Reasons are sentences about fields, so a definition bounds them; beyond this many of a view they are not told apart."""

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_AGES: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0, 3600.0)
_MESSAGES: Final = (1, 10, 100, 1_000, 10_000, 50_000, 100_000, 200_000)


class Metrics:
    """What Prometheus reads of one worker; `registry` is its own."""

    def __init__(self, state: State) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Totals(state))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._messages = Histogram(
            "tally_stream_batch_messages", "Messages in a batch", buckets=_MESSAGES, registry=self.registry
        )
        self._seconds = Histogram(
            "tally_stream_batch_seconds",
            "From a batch in hand to its effects in Redis",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._freshness = Histogram(
            "tally_stream_freshness_seconds",
            "Age of the first message of a batch, by its timestamp in Kafka, when its effects were in Redis",
            buckets=_AGES,
            registry=self.registry,
        )

    def on_batch(self, progress: Progress) -> None:
        """Count a batch."""
        self._messages.observe(progress.batch)
        self._seconds.observe(progress.seconds)
        if progress.age is not None:
            self._freshness.observe(progress.age)


class _Totals(Collector):
    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state
        topics, views = dict(state.summary.topics), dict(state.summary.views)
        messages = CounterMetricFamily("tally_stream_messages", "Messages read", labels=["topic"])
        letters = CounterMetricFamily(
            "tally_stream_dead_letters", "Messages to the dead-letter topic", labels=["topic"]
        )
        expired = CounterMetricFamily(
            "tally_stream_expired", "Messages deleted by Kafka before they were read", labels=["topic"]
        )
        for topic, read in topics.items():
            messages.add_metric([topic], read.consumed)
            letters.add_metric([topic], read.dead_lettered)
            expired.add_metric([topic], read.expired)
        yield from (messages, letters, expired)

        events = CounterMetricFamily(
            "tally_stream_events", "What became of the events of a view", labels=["view", "outcome"]
        )
        refused = CounterMetricFamily("tally_stream_refused", "Events refused, by reason", labels=["view", "reason"])
        conflicts = CounterMetricFamily(
            "tally_stream_fence_conflicts", "Deltas of which a part had been applied before", labels=["view"]
        )
        for view, counts in views.items():
            reasons = Counter(counts.refused)
            outcomes = {
                "applied": counts.applied,
                "duplicate": counts.duplicate,
                "too_late": counts.too_late,
                "refused": reasons.total(),
            }
            for outcome, count in outcomes.items():
                events.add_metric([view, outcome], count)
            for reason, count in _bounded(reasons).items():
                refused.add_metric([view, reason], count)
            conflicts.add_metric([view], counts.conflicts)
        yield from (events, refused, conflicts)

        lag = GaugeMetricFamily("tally_stream_lag_messages", "Messages still to read", labels=["topic", "partition"])
        for (topic, partition), behind in dict(state.lag).items():
            lag.add_metric([topic, str(partition)], behind)
        yield lag
        yield GaugeMetricFamily("tally_stream_partitions", "Partitions that this worker reads", len(state.lag))
        yield GaugeMetricFamily("tally_stream_redis_up", "0 while Redis takes no writes", int(REDIS not in state.away))
        yield _counted(
            "tally_stream_redis_errors", "Calls that Redis did not answer or refused", "kind", state.redis_errors
        )
        yield _counted("tally_stream_kafka_errors", "Errors that librdkafka told us of", "code", state.kafka_errors)
        yield _counted(
            "tally_stream_read_again", "Messages read again because Redis lost their effects", "topic", state.read_again
        )


def _counted(name: str, text: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in dict(counts).items():
        family.add_metric([value], count)
    return family


def _bounded(reasons: Counter[str]) -> Counter[str]:
    kept = Counter(dict(reasons.most_common(MOST_REASONS)))
    if len(reasons) > MOST_REASONS:
        kept[OTHER] += reasons.total() - kept.total()
    return kept
