"""Features of a service for labels, some of the keys at a time: what does not fit into memory, or runs on a cluster.

Labels go to disk in their order. For each view the keys are divided into parts; rows and labels of one key are in one part,
so a part is joined on its own, and is all that is in memory. What a part answers goes to disk by chunk of labels, and is
put in the labels' order when that chunk is read.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from ingestion.arrow import from_column
from ingestion.reading import Refused
from ingestion.scan import batches, refused_once
from tally.columns import Column, concatenate
from tally.errors import DataError
from tally.served import EVIDENCE_COLUMN
from training.asks import Questions
from training.join import TiedRowsError
from training.keys import partition_of
from training.memory import FIXED, room_for_data
from training.spill import Spill
from training.stores import AnswerStore, LabelStore
from training.work import (
    AS_OF,
    EVIDENCE,
    POSITION,
    Answered,
    ViewWork,
    join_part,
    key_of_labels,
    key_of_rows,
    rows_table,
)

Progress = Callable[[int, int], None]
One = TypeVar("One")
Other = TypeVar("Other")

MOST_PARTS: Final = 512
_READ_BYTES: Final = 200_000_000
_BEST_BYTES: Final = 256_000_000
"""Parts of more than this are joined more slowly, row by row: arrays fall out of the processor's caches."""
_FINEST: Final = 1 << 16
_UNEVEN: Final = 1.25
"""Parts are made smaller than memory allows, since keys do not divide evenly."""


class Partitioned:
    """Labels and their features on disk; `tables` gives them in the labels' order. The files go with the object."""

    def __init__(self, questions: Questions, timestamp: str) -> None:
        self._questions = questions
        self.folder = Path(tempfile.mkdtemp(prefix="tally-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.labels = LabelStore(self.folder / "labels", questions.service, timestamp)
        self.refused: dict[str, dict[str, int]] = {}
        self._answers: dict[int, AnswerStore] = {}

    def close(self) -> None:
        """Delete the files."""
        self._remove()

    def tables(self) -> Iterator[tuple[pa.Table, dict[str, Column]]]:
        """Chunk by chunk the labels and the service's outputs."""
        request = [field.name for field in self._questions.service.request]
        for number, table in enumerate(self.labels.tables()):
            count = table.num_rows
            found = [self._answers[position].chunk(number, count) for position in range(len(self._answers))]
            yield table, self._questions.outputs(self.labels.columns(table, request), found, count)

    def in_memory(self) -> tuple[pa.Table, dict[str, Column]]:
        """All labels, and the service's outputs for them."""
        chunks = list(self.tables())
        labels = pa.concat_tables([table for table, _ in chunks]).combine_chunks()
        names = [field.name for field in self._questions.service.outputs]
        return labels, {name: concatenate([columns[name] for _, columns in chunks]) for name in names}

    def join(self, work: Sequence[ViewWork], joiner: Joiner, progress: Progress | None) -> None:
        """Answer all labels that were added. Raises as `training.engine.features`."""
        meter = Meter(sum(2 * one.rows for one in work), progress)
        for one in work:
            try:
                self._join(one, joiner, meter)
            except TiedRowsError:
                self._join(one.whole(), joiner, meter)
        meter.finish()

    def _join(self, work: ViewWork, joiner: Joiner, meter: Meter) -> None:
        refused: list[Refused] = []
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folder = Path(name)
            parts = joiner.parts(work, self.labels.rows)
            labels = [self._by_key(position, parts, folder / f"labels-{position}") for position in work.uses]
            for position in work.uses:
                answers = Path(tempfile.mkdtemp(dir=self.folder)) / "answers"
                self._answers[position] = AnswerStore(answers, work.dtypes(position))
            for answered in joiner.join(work, parts, labels, folder, refused, meter):
                for position, one in zip(work.uses, answered, strict=True):
                    self._answers[position].add(one.positions, one.columns)
        self.refused[work.view.name] = refused_once(refused, events=work.reading.events)

    def _by_key(self, position: int, parts: int, folder: Path) -> Spill:
        """The labels of a use, divided by its key: where each stands among all, its instant, key and evidence."""
        names = self._questions.service.views[position].keys
        spill: Spill | None = None
        done = 0
        for table in self.labels.tables():
            key = list(self.labels.columns(table, names).values())
            columns = {
                POSITION: pa.array(np.arange(done, done + table.num_rows)),
                AS_OF: pa.array(self.labels.as_of(table)),
                **{str(number): from_column(part) for number, part in enumerate(key)},
            }
            if EVIDENCE_COLUMN in table.column_names and self._questions.mode == "as_served":
                columns[EVIDENCE] = table.column(EVIDENCE_COLUMN).cast(pa.string())
            of_use = pa.table(columns)
            spill = spill or Spill(folder, of_use.schema)
            spill.add(of_use, partition_of(key, parts))
            done += table.num_rows
        assert spill is not None, "there is at least one label"
        return spill


class Meter:
    """Tells `progress` how much is done of `total` rows, each of which is read and joined."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = max(total, 1)
        self._done = 0
        self._progress = progress

    def add(self, rows: int) -> None:
        """So many more rows were read, or joined."""
        self._done = min(self._done + rows, self._total - 1)
        if self._progress is not None and rows:
            self._progress(self._done, self._total)

    def finish(self) -> None:
        """All is done."""
        if self._progress is not None:
            self._progress(self._total, self._total)


class Joiner(Protocol):
    """Where parts are joined."""

    def parts(self, work: ViewWork, labels: int) -> int:
        """How many parts to divide the keys into, for so many labels."""

    def join(
        self, work: ViewWork, parts: int, labels: Sequence[Spill], folder: Path, refused: list[Refused], meter: Meter
    ) -> Iterator[list[Answered]]:
        """For each part what each use answers; what was left out is added to `refused`. `folder` is for files."""


class Local:
    """Joins on threads of this process, within `memory` bytes."""

    def __init__(self, memory: int) -> None:
        self._threads = min(os.cpu_count() or 1, 4)
        self._room = room_for_data(memory)
        self._budget = min(self._room // self._threads, _BEST_BYTES)
        self._joining_large = threading.Lock()

    def parts(self, work: ViewWork, labels: int) -> int:
        """See `Joiner`."""
        needed = work.cost(work.rows, [labels] * len(work.uses)) * _UNEVEN
        return max(1, min(MOST_PARTS, math.ceil(needed / self._budget)))

    def join(
        self, work: ViewWork, parts: int, labels: Sequence[Spill], folder: Path, refused: list[Refused], meter: Meter
    ) -> Iterator[list[Answered]]:
        """See `Joiner`."""
        rows: Spill | None = None
        for some, left_out in batches(work.reading, work.pieces, max(1, _READ_BYTES // work.row_cost())):
            refused.append(left_out)
            table = rows_table(work.view, some)
            rows = rows or Spill(folder / "rows", table.schema)
            rows.add(table, partition_of([some.columns[key.name] for key in work.view.keys], parts))
            meter.add(len(some.timestamp))

        def join_one(part: int) -> list[list[Answered]]:
            count = 0 if rows is None else rows.rows.get(part, 0)
            answers = list(self._part(work, part, parts, rows, labels, folder))
            meter.add(count)
            return answers

        for answers in _in_order(join_one, range(parts), self._threads):
            yield from answers

    def _part(
        self, work: ViewWork, part: int, parts: int, rows: Spill | None, labels: Sequence[Spill], folder: Path
    ) -> Iterator[list[Answered]]:
        counts = [spill.rows.get(part, 0) for spill in labels]
        count = 0 if rows is None else rows.rows.get(part, 0)
        cost = work.cost(count, counts)
        if not any(counts):
            pass
        elif cost <= self._budget * _UNEVEN or rows is None or parts > MOST_PARTS:
            with self._large(work, cost, count, counts):
                of_part = None if rows is None else rows.read(part)
                answered = join_part(work.questions, work.view, of_part, [spill.read(part) for spill in labels])
            yield answered
        else:  # many keys fell into it, or one that has many rows: what can be divided, is
            finer = parts * max(
                MOST_PARTS // parts + 1, min(math.ceil(cost * _UNEVEN / self._budget), _FINEST // parts)
            )
            with tempfile.TemporaryDirectory(dir=folder) as name:
                again = Path(name)
                rows_again = _divided(rows, part, finer, again / "rows", lambda table: key_of_rows(work.view, table))
                labels_again = [
                    _divided(spill, part, finer, again / str(number), lambda table: key_of_labels(work.view, table))
                    for number, spill in enumerate(labels)
                ]
                for one in range(part, finer, parts):
                    yield from self._part(work, one, finer, rows_again, labels_again, again)
        for spill in (*labels, *(() if rows is None else (rows,))):
            spill.drop(part)

    def _large(self, work: ViewWork, cost: int, rows: int, labels: Sequence[int]) -> AbstractContextManager[object]:
        """What a part that cannot be divided is joined under: one at a time of those that need more than their share.

        Raises DataError for one that needs more than there is.
        """
        if cost <= self._budget * _UNEVEN:
            return nullcontext()
        room = self._room - (self._threads - 1) * self._budget
        if cost > room:
            raise DataError(
                f"{work.view.name}: one entity has {rows:,} rows and {max(labels):,} labels, which take about {cost / 1e9:.1f} GB "
                f"to join, and there is room for {room / 1e9:.1f} GB; give memory={(self._room + cost - room + FIXED) / 1e9:.1f}GB "
                "or more, or fewer labels of that entity at a time."
            )
        return self._joining_large


def _divided(spill: Spill, part: int, parts: int, folder: Path, key: Callable[[pa.Table], list[Column]]) -> Spill:
    """The rows of a part of a spill by key, as if all had been divided into `parts`."""
    divided = Spill(folder, spill.schema)
    for table in spill.tables(part):
        divided.add(table, partition_of(key(table), parts))
    return divided


def _in_order(work: Callable[[One], Other], items: Iterable[One], threads: int) -> Iterator[Other]:
    """``map(work, items)`` on threads, at most one item a thread at a time or waiting to be taken."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Other]] = deque()
        try:
            for item in items:
                if len(waiting) == threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
