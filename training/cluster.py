"""Parts joined on a Dask cluster: workers share the row groups of a view, exchange rows by key, and join what they hold."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import getitem
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ingestion.delta import open_version
from ingestion.reading import Reading, Refused
from ingestion.scan import Piece, batches
from tally.plan import Plan
from training.asks import Questions, narrowed
from training.join import Mode
from training.keys import partition_of
from training.memory import room_for_data
from training.partitioned import MOST_PARTS, Meter
from training.spill import Spill
from training.work import Answered, ViewWork, join_part, rows_table

_PARTS_PER_THREAD: Final = 2
_READS_PER_THREAD: Final = 4
_FEWEST_ROWS: Final = 1 << 18
_SHARE: Final = 0.4
"""Of a worker's memory, what its threads may use for joins; the rest holds rows on their way."""


def active_client() -> Any:
    """The `distributed.Client` that is active here, or None."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_client  # noqa: PLC0415 - a second of import, for those who have a cluster

    try:
        return get_client()
    except ValueError:
        return None


class Cluster:
    """Joins on the workers of a `distributed.Client`.

    Only labels and answers pass through this process, on their way between its disk and the workers: one part at a time,
    within `memory` bytes.
    """

    def __init__(self, client: Any, memory: int) -> None:
        self._client = client
        self._room = room_for_data(memory)
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        self._threads = max(1, sum(worker["nthreads"] for worker in workers))
        limits = [worker["memory_limit"] / max(1, worker["nthreads"]) for worker in workers if worker["memory_limit"]]
        self._budget = _SHARE * min(limits, default=math.inf)

    def parts(self, work: ViewWork, labels: int) -> int:
        """See `training.partitioned.Joiner`."""
        of_each = [labels] * len(work.uses)
        there, here = work.cost(work.rows, of_each) / self._budget, work.cost(0, of_each) / self._room
        return int(min(MOST_PARTS, max(self._threads * _PARTS_PER_THREAD, math.ceil(there), math.ceil(here))))

    def join(
        self, work: ViewWork, parts: int, labels: Sequence[Spill], folder: Path, refused: list[Refused], meter: Meter
    ) -> Iterator[list[Answered]]:
        """See `training.partitioned.Joiner`."""
        del folder  # workers keep their own
        from distributed import as_completed  # noqa: PLC0415 - as above

        client, questions, reading = self._client, work.questions, work.reading
        document = questions.plan.for_service(questions.service.name).to_json()
        columns = [field.name for field in work.view.columns]
        root = reading.table.table_uri.rstrip("/").rpartition("/")[0]
        told = (document, work.view.name, columns)
        range_ = (root, reading.table.version(), reading.start, reading.end)
        reads = [
            client.submit(_read, *told, *range_, [(p.path, p.row_group, p.rows) for p in group], parts, pure=False)
            for group in _groups(work.pieces, max(_FEWEST_ROWS, work.rows // (self._threads * _READS_PER_THREAD)))
        ]
        joins = {}
        for part in range(parts):
            if not any(spill.rows.get(part, 0) for spill in labels):
                continue
            asked = [client.scatter(spill.read(part), hash=False) for spill in labels]
            rows = [client.submit(getitem, read, part, pure=False) for read in reads]
            service = (questions.service.name, questions.mode)
            joins[client.submit(_join, *told, *service, rows, asked, pure=False)] = part
        left_out = [client.submit(getitem, read, parts, pure=False) for read in reads]
        del reads
        for future in as_completed(list(joins), loop=client.loop):
            answered = future.result()
            del joins[future]
            meter.add(2 * work.rows // parts)
            yield answered
        refused.extend(client.gather(left_out))


def _groups(pieces: Sequence[Piece], rows: int) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    for piece in pieces:
        group.append(piece)
        if sum(one.rows for one in group) >= rows:
            yield group
            group = []
    if group:
        yield group


def _read(
    document: str,
    name: str,
    columns: Sequence[str],
    offline_uri: str,
    version: int,
    start: int | None,
    end: int | None,
    pieces: Sequence[tuple[str, int, int]],
    parts: int,
) -> list[Any]:
    """On a worker: the rows of some row groups, one table for each part, and at the end those that were left out."""
    plan = Plan.from_json(document)
    view = narrowed(plan.view(name), columns)
    reading = Reading.of(plan, view, open_version(offline_uri, view.source, version), start, end)
    for rows, refused in batches(reading, [Piece(*piece) for piece in pieces], sys.maxsize):
        part = partition_of([rows.columns[key.name] for key in view.keys], parts)
        order = np.argsort(part, kind="stable")
        table = rows_table(view, rows).take(order)
        cuts = np.searchsorted(part[order], np.arange(parts + 1)).tolist()
        return [*(table.slice(start, stop - start) for start, stop in pairwise(cuts)), refused]
    nothing = np.zeros(0, np.int64)
    return [None] * parts + [Refused(nothing, nothing, np.zeros(0, object))]


def _join(
    document: str,
    name: str,
    columns: Sequence[str],
    service: str,
    mode: Mode,
    rows: Sequence[pa.Table | None],
    labels: Sequence[pa.Table],
) -> list[Answered]:
    """On a worker: what each use of a view answers to the labels of one part."""
    plan = Plan.from_json(document)
    questions = Questions(plan, plan.service(service), mode)
    there = [table for table in rows if table is not None]
    return join_part(questions, narrowed(plan.view(name), columns), pa.concat_tables(there) if there else None, labels)
