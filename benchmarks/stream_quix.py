"""The same three views in Quix Streams: tiles in RocksDB, written to Redis by its own sink.

Quix has no windows whose head is exact; its nearest is what our tiles are: tumbling windows of one hop, which a reader would
have to merge. Hopping windows would cost it up to 24 updates for each event where tiles cost one, so tiles are the kinder choice.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from redis import Redis

from benchmarks.definitions import AMOUNT, AT, THREE_VIEWS, WINDOWS
from benchmarks.measure import DifferentAnswersError

_DATABASE: Final = 1
_MICROS_PER_MILLI: Final = 1000


def _key(prefix: str, key: bytes, value: Any) -> str:
    return f"{prefix}/{key.decode()}/{value['start']}"


def apply(config: Mapping[str, str], topic: str, redis_url: str, messages: int) -> float:
    """Events a second that one process brings from the topic to Redis, from the first event it gets to the last."""
    from quixstreams import Application
    from quixstreams.dataframe.windows import Count, Max, Mean, Sum
    from quixstreams.sinks.community.redis import RedisSink

    makers: dict[str, Any] = {"count": Count, "sum": Sum, "mean": Mean, "max": Max}
    address = urlsplit(redis_url)
    seen = 0
    began = 0.0

    def watched(value: Any) -> Any:
        nonlocal seen, began
        began = began or time.perf_counter()
        seen += 1
        return value

    def at(value: Any, *_: Any) -> int:
        return int(datetime.fromisoformat(value[AT.name]).timestamp() * 1000)

    with tempfile.TemporaryDirectory() as folder:
        app = Application(
            broker_address=config["bootstrap.servers"],
            consumer_group=f"quix-{time.time_ns()}",
            auto_offset_reset="earliest",
            state_dir=folder,
            loglevel="ERROR",
        )
        read = app.topic(topic, value_deserializer="json", key_deserializer="bytes", timestamp_extractor=at)
        frame = app.dataframe(read).apply(watched)
        outputs = 0
        for view, wanted in THREE_VIEWS.items():
            for window in sorted({window for _, window in wanted}):
                hop = timedelta(milliseconds=WINDOWS[window].hop // _MICROS_PER_MILLI)
                cells = {
                    name: makers[name]() if name == "count" else makers[name](AMOUNT.name)
                    for name, of_window in wanted
                    if of_window == window
                }
                tiles = (
                    frame.tumbling_window(hop, grace_ms=timedelta(minutes=5), name=f"{topic}-{view}-{window}")
                    .agg(**cells)
                    .current()
                )
                sink = RedisSink(
                    host=str(address.hostname),
                    port=int(address.port or 0),
                    db=_DATABASE,
                    key_serializer=partial(_key, f"{view}/{window}"),
                )
                tiles.sink(sink)
                outputs += 1
        app.run(count=messages * outputs, timeout=60.0)
        taken = time.perf_counter() - began
    with Redis(host=str(address.hostname), port=int(address.port or 0), db=_DATABASE) as redis:
        written = redis.dbsize()
    if seen < messages or not written:
        raise DifferentAnswersError(
            f"Quix Streams took {seen} of {messages} messages of {topic} and wrote {written} keys."
        )
    return seen / taken
