"""Where reading a partition begins, and when it must not. Pure: offsets in, offset out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ingestion.report import Place
from tally.errors import NotReadyError


@dataclass(frozen=True, slots=True)
class Begin:
    """Read from `offset`. `expired` messages before it are gone unread; `again` were committed, but Redis lacks them.

    Views that are `late` have read nothing of the partition, and its beginning is gone.
    """

    offset: int
    expired: int
    again: int
    late: tuple[str, ...] = ()


def begin(
    place: Place,
    low: int,
    high: int,
    committed: int,
    come: Mapping[str, int | None],
    *,
    emptied: bool,
    skip_expired: bool = False,
) -> Begin:
    """Where to read a partition that holds the offsets low..high-1, for views that have come to `come` (None: never began).

    `committed` is the group's offset (negative: none); `emptied` says that Redis holds no progress of the project at all.
    Reading starts at the least of them: what is read twice is applied once. Raises NotReadyError when what Redis lacks is no
    longer in the topic (unless `skip_expired`), and when Redis is ahead of the topic.
    """
    topic, partition = place
    begun = {view: offset for view, offset in come.items() if offset is not None}
    check_end(place, high, begun.values())
    wanted = min([*(offset or 0 for offset in come.values()), *([committed] if committed >= 0 else [])])
    behind = {view: offset for view, offset in begun.items() if offset < low}
    if emptied and committed > 0 and low > 0:
        behind = dict.fromkeys(come, 0)
    expired = low - min(behind.values()) if behind else 0
    if expired and not skip_expired:
        views = ", ".join(sorted(behind))
        raise NotReadyError(
            f"{topic}[{partition}]: offsets {low - expired} to {low - 1} are not in Redis and no longer in the topic, so "
            f"{views} would lack those events: workers were away longer than the topic keeps messages, or Redis was restored "
            f"from an older state. Stop all workers, run tally ingest and tally bootstrap {' '.join(sorted(behind))}, then "
            "start again; or start with --skip-expired to go on without those events."
        )
    again = max(0, committed - max(low, min(begun.values(), default=0))) if begun or emptied else 0
    late = tuple(sorted(come.keys() - begun.keys() - behind.keys())) if low else ()
    return Begin(max(wanted, low), expired, again, late)


def check_end(place: Place, high: int, come: Collection[int]) -> None:
    """Raises NotReadyError when views have come beyond the end of a partition: new events would be taken for old ones.

    `come` has to be looked up before `high`, for both rise.
    """
    ahead = max(come, default=0)
    if ahead > high:
        topic, partition = place
        raise NotReadyError(
            f"Redis holds events of {topic}[{partition}] up to offset {ahead - 1}, the topic ends at {high - 1}: it is another "
            "topic of that name, or was truncated. Change the views' definitions (any change), or remove their keys and "
            "progress from Redis (feast teardown does); then start again."
        )
