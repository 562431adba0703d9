"""Why a replayed row may not be what was served: what of its evidence the offline tables do not have as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingestion.delta import open_table, open_version, read_columns
from ingestion.offline import OFFSET, PARTITION, high_watermarks, rejected_name
from ingestion.reading import read_rows
from tally.columns import Column
from tally.layout import entity_texts, row_check
from tally.plan import Plan, Service, Source, ViewUse

Evidence = Mapping[str, Any]
"""What one row was read from: by use of a view, as `tally.served.EVIDENCE_COLUMN` has it."""

UNEXPLAINED = "unexplained: all that was read is there, and gives another value; keep the log and the offline tables, and report it"


@dataclass(frozen=True)
class Gaps:
    """Offsets of one partition that no row has: gap i is ``first[i]..last[i]``."""

    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @staticmethod
    def among(offsets: NDArray[np.int64], last: int) -> Gaps:
        """Those from 0 to `last` that are not in `offsets` (in any order, none beyond `last`)."""
        rising = np.unique(np.append(offsets, (-1, last + 1)))
        at = np.flatnonzero(np.diff(rising) > 1)
        return Gaps(rising[at] + 1, rising[at + 1] - 1)

    def until(self, offset: int) -> int:
        """How many of the offsets up to `offset` are in a gap."""
        return int(np.maximum(np.minimum(self.last, offset) - self.first + 1, 0).sum())


class OfflineEvidence:
    """Looks for what served rows were read from in the offline tables, at the versions of a replay."""

    def __init__(self, plan: Plan, service: Service, offline_uri: str, versions: Mapping[str, int]) -> None:
        self._plan = plan
        self._service = service
        self._uri = offline_uri
        self._versions = versions
        self._gaps = cache(self._gaps_of)

    def problems(self, labels: Mapping[str, Column], evidence: Sequence[Evidence]) -> list[list[str]]:
        """For each use of a view, in the order of the service, a sentence for each row; empty where nothing is known.

        `labels` has the service's key columns, of as many rows as there is evidence.
        """
        found = []
        for use in self._service.views:
            seen = [one.get(use.name) for one in evidence]
            if self._plan.view(use.view).kind == "window":
                found.append(self._of_windows(use, seen))
            else:
                found.append(self._of_latest(use, [labels[key] for key in use.keys], seen))
        return found

    def _of_latest(self, use: ViewUse, keys: Sequence[Column], seen: Sequence[Evidence | None]) -> list[str]:
        view = self._plan.view(use.view)
        read = [None if one is None else tuple(one["version"]) for one in seen]
        times = [one[0] for one in read if one is not None]
        if not times:
            return [""] * len(seen)
        rows = read_rows(
            self._plan, view, self._uri, version=self._versions[view.source], start=min(times), end=max(times)
        )
        near = rows.take(np.flatnonzero(np.isin(rows.timestamp, times)))
        fields = {field.name: near.columns[field.name] for field in view.fields}
        packed = view.row_layout.pack(near.timestamp, near.a, near.b, fields)
        there: dict[tuple[Any, ...], set[int]] = {}
        entities = entity_texts([near.columns[key.name] for key in view.keys])
        versions = zip(near.timestamp.tolist(), near.a.tolist(), near.b.tolist(), strict=True)
        for entity, version, value in zip(entities, versions, packed, strict=True):
            there.setdefault((entity, *version), set()).add(row_check(value))
        where = f"offline table {view.source} version {self._versions[view.source]}"
        found = []
        for entity, served in zip(entity_texts(keys), read, strict=True):
            checks = None if served is None else there.get((entity, *served[:3]))
            if served is None or (checks is not None and (len(served) < 4 or served[3] in checks)):
                found.append("")
            elif checks is None:
                found.append(
                    f"the row of {use.name} that was served is not in {where}: deleted, or replaced by another"
                )
            else:
                found.append(f"the row of {use.name} that was served has other values in {where}: changed in place")
        return found

    def _of_windows(self, use: ViewUse, seen: Sequence[Evidence | None]) -> list[str]:
        source = self._plan.source(self._plan.view(use.view).source)
        gaps = self._gaps(source)
        found = []
        for one in seen:
            fences = {} if one is None else {int(partition): offset for partition, offset in one["fences"].items()}
            missing = {p: gaps[p].until(offset) for p, offset in sorted(fences.items()) if p in gaps}
            lacking = [partition for partition, count in missing.items() if count]
            if not lacking:
                found.append("")
                continue
            found.append(
                f"offline table {source.name} version {self._versions[source.name]} lacks {sum(missing.values()):,} offsets of "
                f"{source.topic} up to where {use.name} had read, the first of them {gaps[lacking[0]].first[0]} of "
                f"partition {lacking[0]}: messages that never landed, or Kafka's own marks"
            )
        return found

    def _gaps_of(self, source: Source) -> dict[int, Gaps]:
        """By partition, what a landing table lacks: of the messages that decode and of those that do not."""
        tables = [open_version(self._uri, source.name, self._versions[source.name])]
        rejected = open_table(self._uri, rejected_name(source))
        if rejected is not None:
            tables.append(rejected)
        read = [read_columns(table, (PARTITION, OFFSET)) for table in tables]
        partitions = np.concatenate([table.column(PARTITION).to_numpy() for table in read])
        offsets = np.concatenate([table.column(OFFSET).to_numpy() for table in read])
        landed = high_watermarks(self._plan, source, self._uri, self._versions[source.name])
        among = {one: offsets[(partitions == one) & (offsets <= last)] for one, last in landed.items()}
        return {one: Gaps.among(among[one], last) for one, last in landed.items()}
