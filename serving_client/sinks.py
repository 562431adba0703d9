"""Sinks of the log of served rows: a folder of Parquet files, a Kafka topic. Their libraries are imported on first use."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving_client.served_log import Served
from tally.columns import Column
from tally.time import to_datetime

_log = logging.getLogger(__name__)


class ParquetSink:
    """Files below `folder`: ``<service>@<first 8 of the definition>/served-<UTC time>-<process>-<number>.parquet``.

    A file appears whole. Those of one definition are one table of labels. Needs pyarrow.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._number = 0

    def write(self, served: Served) -> int:
        """See `serving_client.served_log.Sink`."""
        import pyarrow.parquet as pq

        from serving_client.frames import to_arrow

        folder = self._folder / f"{served.service}@{served.definition[:8]}"
        folder.mkdir(parents=True, exist_ok=True)
        self._number += 1
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        name = f"served-{moment}-{os.getpid()}-{self._number}.parquet"
        aside = folder / f".{name}"  # readers of Parquet folders pass over names with a dot in front
        try:
            pq.write_table(to_arrow(served.columns), aside)
            aside.replace(folder / name)
        finally:
            aside.unlink(missing_ok=True)
        return 0

    def close(self) -> int:
        """See `serving_client.served_log.Sink`."""
        return 0

    def after_fork(self) -> None:
        """See `serving_client.served_log.Sink`: files carry the number of their process."""


class KafkaSink:
    """One JSON message per row on a topic. Needs confluent-kafka.

    Instants are ISO-8601 texts, bytes base64, floats the shortest text that reads back to the same bits; infinities, which
    JSON lacks, are the texts "Infinity" and "-Infinity". `config` are librdkafka's properties. A full queue and failed
    deliveries lose rows, which are counted; what librdkafka says of them goes to this module's logger. `patience` is how many
    seconds `close` waits for the last deliveries.
    """

    def __init__(self, config: Mapping[str, Any], topic: str, *, patience: float = 10.0) -> None:
        self._config = dict(config)
        self._topic = topic
        self._patience = patience
        self._producer: Any = None
        self._abandoned: list[Any] = []
        self._failed = 0

    def write(self, served: Served) -> int:
        """See `serving_client.served_log.Sink`."""
        if self._producer is None:
            from confluent_kafka import Producer

            self._producer = Producer({"logger": _log, **self._config})
        for message in messages(served):
            try:
                self._producer.produce(self._topic, message, on_delivery=self._delivered)
            except BufferError:
                self._failed += 1
            self._producer.poll(0)
        return self._failures()

    def _delivered(self, error: Any, _: Any) -> None:
        if error is not None:
            self._failed += 1

    def _failures(self) -> int:
        failed, self._failed = self._failed, 0
        return failed

    def close(self) -> int:
        """See `serving_client.served_log.Sink`."""
        if self._producer is None:
            return 0
        give_up = time.monotonic() + self._patience
        undelivered = self._producer.flush(self._patience)
        if undelivered and time.monotonic() >= give_up:
            self._producer.purge()
            self._producer.flush(0)
        return self._failures()

    def after_fork(self) -> None:
        """See `serving_client.served_log.Sink`: a producer's threads stay with the parent, and so does what it holds."""
        self._abandoned.append(self._producer)  # to destroy it here would wait for those threads
        self._producer = None
        self._failed = 0


def messages(served: Served) -> list[bytes]:
    """The rows as JSON texts."""
    names = list(served.columns)
    columns = [_plain(column) for column in served.columns.values()]
    return [
        json.dumps(dict(zip(names, row, strict=True)), separators=(",", ":"), ensure_ascii=False).encode()
        for row in zip(*columns, strict=True)
    ]


def _plain(column: Column) -> list[Any]:
    items = [item if ok else None for item, ok in zip(column.values.tolist(), column.valid.tolist(), strict=True)]
    if column.dtype == "UnixTimestamp":
        return [None if item is None else to_datetime(item).isoformat() for item in items]
    if column.dtype == "Bytes":
        return [None if item is None else base64.b64encode(item).decode() for item in items]
    if column.dtype in ("Float64", "Float32"):
        return [item if item is None or math.isfinite(item) else f"{item:+}".replace("inf", "Infinity").lstrip("+") for item in items]  # fmt: skip
    return items
