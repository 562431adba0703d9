"""Feature lookups from Redis, for inference workers. Imports redis, numpy and tally; nothing heavier until asked."""

from serving_client.async_client import AsyncFeatureClient
from serving_client.cache import Cache
from serving_client.client import FeatureClient
from serving_client.marks import Fallback
from serving_client.metrics import Metrics
from serving_client.rows import FeatureRows, Status
from serving_client.served_log import ServedLog
from serving_client.sinks import KafkaSink, ParquetSink

__all__ = [
    "AsyncFeatureClient",
    "Cache",
    "Fallback",
    "FeatureClient",
    "FeatureRows",
    "KafkaSink",
    "Metrics",
    "ParquetSink",
    "ServedLog",
    "Status",
]
