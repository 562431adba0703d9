"""A worker to be killed: `stream_worker.py PLAN_JSON BOOTSTRAP_SERVERS REDIS_URL`, in small batches."""

from __future__ import annotations

import sys

from redis import Redis

from ingestion import kafka
from tally.plan import Plan

kafka.MAX_BATCH = 100  # type: ignore[misc]
kafka.run(
    Plan.from_json(sys.argv[1]),
    None,
    {"bootstrap.servers": sys.argv[2], "session.timeout.ms": 6000},
    Redis.from_url(sys.argv[3]),
)
