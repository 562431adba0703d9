"""Feature lookups from Redis, for inference workers. Imports redis, numpy and tally; nothing heavier."""

from serving_client.async_client import AsyncFeatureClient
from serving_client.client import FeatureClient
from serving_client.rows import FeatureRows, Status

__all__ = ["AsyncFeatureClient", "FeatureClient", "FeatureRows", "Status"]
