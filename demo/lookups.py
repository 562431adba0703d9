"""Looking every flight up at its prediction time, while the messages of those days arrive."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from redis import Redis

from demo.replay import Streams, wait_until_applied
from demo.terminal import StreamWorker
from infra.settings import Settings
from ingestion.materialize import materialize_view
from serving_client import FeatureClient, FeatureRows, ParquetSink, ServedLog
from tally.columns import Column, concatenate
from tally.plan import Plan

WEATHER_VIEW = "origin_weather"


@dataclass(frozen=True)
class Served:
    """What was looked up: answers in the order of the labels, and seconds for each lookup.

    `ahead` counts answers that were flagged because the store already held something later than was asked for.
    """

    columns: dict[str, Column]
    seconds: list[float]
    ahead: int


def serve(
    labels: pd.DataFrame,
    streams: Streams,
    weather: pa.Table,
    plan: Plan,
    service: str,
    repo: Path,
    settings: Settings,
    variables: Mapping[str, str],
    log: Path,
    done: Callable[[int], None],
) -> Served:
    """Play the messages in the order of their arrival, and look each label up at its time (`labels` are sorted by it).

    Kafka, the stream worker and the lookups move in step: at a flight's prediction time everything that had arrived by
    then has been applied, and nothing later has been sent. Weather is materialized when it is reported. Half-way the
    worker is killed and another one takes over. What is served is logged in the folder `log`.
    """
    moments = labels["event_timestamp"].dt.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)
    needed = ["origin", "carrier", "tailnum", "scheduled_departure", "distance"]
    # Times as `datetime`, as a service would have them, not pandas' own.
    columns = [labels[name].astype(object).tolist() for name in needed]
    times = needed.index("scheduled_departure")
    columns[times] = [moment.to_pydatetime() for moment in columns[times]]
    requests = [dict(zip(needed, row, strict=True)) for row in zip(*columns, strict=True)]
    reports = sorted(set(weather["event_timestamp"].cast(pa.int64()).to_pylist()), reverse=True)
    answers: list[FeatureRows] = []
    seconds: list[float] = []
    said = settings.home / "stream.log"
    with ExitStack() as stack:
        redis = stack.enter_context(Redis.from_url(settings.redis_url))
        worker = stack.enter_context(StreamWorker(repo, variables, said))
        served = stack.enter_context(ServedLog(ParquetSink(log)))
        client = stack.enter_context(
            FeatureClient.connect(settings.redis_url, project=plan.project, service=service, log=served)
        )
        for row, moment in enumerate(moments.tolist()):
            if row == len(labels) // 2:
                worker.kill()
                worker = stack.enter_context(StreamWorker(repo, variables, said))
            if row == 0 or moment > moments[row - 1]:
                if streams.send_until(moment):
                    wait_until_applied(redis, plan, streams.sender.next_offset, worker.check)
                if reports and reports[-1] <= moment:
                    while reports and reports[-1] <= moment:
                        reports.pop()
                    materialize_view(plan, plan.view(WEATHER_VIEW), settings.offline_uri(), redis, end=moment)
            began = time.perf_counter()
            answers.append(client.get([requests[row]], as_of=moment))
            seconds.append(time.perf_counter() - began)
            done(row + 1)
        streams.send_until(int(streams.arrival_ms[-1]) * 1000)
    return Served(
        {name: concatenate([rows.columns[name] for rows in answers]) for name in answers[0].names},
        seconds,
        sum(int(rows.ahead.sum()) for rows in answers),
    )
