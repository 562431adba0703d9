"""The state of an entity does not grow with time."""

from __future__ import annotations

import numpy as np
from redis import Redis

from ingestion import stream
from ingestion.redis_store import TileWriter
from tally.time import SECOND
from tests.ingestion import streams


def test_a_key_stays_small_over_a_long_event_time(redis: Redis) -> None:
    """Ten thousand windows later a value has no more records than its windows can see, and it expires after the last."""
    view = streams.view_with_every_cell(texts=False)
    writer = TileWriter(redis, "p", view)
    key = view.prefix("p") + b"a"
    layout = view.tile_layout
    most = sum(length // hop + 2 for hop, length in layout.levels)
    begin, sizes = 1_357_000_000 * SECOND, []
    for batch in range(50):
        messages = [
            streams.Message(0, batch * 100 + i, dict.fromkeys(("text", "raw"))
                | {"at": begin + (batch * 100 + i) * 37 * SECOND, "who": "a", "f": 0.5, "i": i, "wide": batch})
            for i in range(100)
        ]  # fmt: skip
        stream.merge(streams.events_of(view, messages), writer.merge)
        sizes.append(redis.strlen(key))

    header = 19 + 12
    assert max(sizes) <= header + most * layout.record.itemsize
    assert np.ptp(sizes[5:]) <= 3 * layout.record.itemsize  # the hops do not divide the steps
    assert 0 < redis.pttl(key) <= (layout.longest + view.future_tolerance) // 1000 + 1
