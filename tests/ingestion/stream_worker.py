"""A worker to be killed: `stream_worker.py PLAN_JSON BOOTSTRAP_SERVERS REDIS_URL`, in small batches.

It reads no further than half of what there is, so that whoever kills it is never too late.
"""

from __future__ import annotations

import sys
import threading

from redis import Redis

from ingestion import kafka
from ingestion.report import Progress
from ingestion.worker import run
from tally.plan import Plan

MOST = 10_000


def on_batch(progress: Progress) -> None:
    """Wait for the end after so many messages."""
    if progress.consumed >= MOST:
        threading.Event().wait()


kafka.MAX_BATCH = 100  # type: ignore[misc]
run(
    Plan.from_json(sys.argv[1]),
    None,
    {"bootstrap.servers": sys.argv[2], "session.timeout.ms": 6000},
    Redis.from_url(sys.argv[3]),
    on_batch=on_batch,
)
