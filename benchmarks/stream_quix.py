"""The same three views in Quix Streams: tiles in RocksDB, written to Redis by its own sink.

Quix has no windows whose head is exact; its nearest is what our tiles are: tumbling windows of one hop, which a reader would
have to merge. Hopping windows would cost it up to 24 updates for each event where tiles cost one, so tiles are the kinder choice.

A script of its own, for an environment of its own (`benchmarks.stream`): Quix wants older versions of what we use. Its one
argument is the `Job` as JSON; it prints events a second.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypedDict
from urllib.parse import urlsplit

_DATABASE: Final = 1


class Job(TypedDict):
    """What to do. `views`: name -> for each window the hop of its tiles in ms, and the functions, over the column `amount` by the instant `at`."""

    servers: str
    topic: str
    redis_url: str
    messages: int
    amount: str
    at: str
    views: dict[str, list[tuple[int, list[str]]]]


def _key(prefix: str, key: bytes, value: Any) -> str:
    return f"{prefix}/{key.decode()}/{value['start']}"


def apply(job: Job) -> float:
    """Events a second that one process brings from the topic to Redis, from the first event it gets to the last."""
    from quixstreams import Application
    from quixstreams.dataframe.windows import Count, Max, Mean, Sum
    from quixstreams.sinks.community.redis import RedisSink
    from redis import Redis

    makers: dict[str, Any] = {"count": Count, "sum": Sum, "mean": Mean, "max": Max}
    address = urlsplit(job["redis_url"])
    topic = job["topic"]
    seen = 0
    began = 0.0

    def watched(value: Any) -> Any:
        nonlocal seen, began
        began = began or time.perf_counter()
        seen += 1
        return value

    def at(value: Any, *_: Any) -> int:
        return int(datetime.fromisoformat(value[job["at"]]).timestamp() * 1000)

    with tempfile.TemporaryDirectory() as folder:
        app = Application(
            broker_address=job["servers"],
            consumer_group=f"quix-{time.time_ns()}",
            auto_offset_reset="earliest",
            state_dir=folder,
            loglevel="ERROR",
        )
        read = app.topic(topic, value_deserializer="json", key_deserializer="bytes", timestamp_extractor=at)
        frame = app.dataframe(read).apply(watched)
        outputs = 0
        for view, tiles_of_view in job["views"].items():
            for number, (hop, functions) in enumerate(tiles_of_view):
                cells = {name: makers[name]() if name == "count" else makers[name](job["amount"]) for name in functions}
                name = f"{topic}-{view}-{number}"
                tiles = (
                    frame.tumbling_window(timedelta(milliseconds=hop), grace_ms=timedelta(minutes=5), name=name)
                    .agg(**cells)
                    .current()
                )
                sink = RedisSink(
                    host=str(address.hostname),
                    port=int(address.port or 0),
                    db=_DATABASE,
                    key_serializer=partial(_key, f"{view}/{number}"),
                )
                tiles.sink(sink)
                outputs += 1
        app.run(count=job["messages"] * outputs, timeout=60.0)
        taken = time.perf_counter() - began
    with Redis(host=str(address.hostname), port=int(address.port or 0), db=_DATABASE) as redis:
        written = redis.dbsize()
    if seen < job["messages"] or not written:
        sys.exit(f"Quix Streams took {seen} of {job['messages']} messages of {topic} and wrote {written} keys.")
    return seen / taken


if __name__ == "__main__":
    sys.stdout.write(json.dumps(apply(json.loads(sys.argv[1]))))
