"""The partitions that the group has given a worker, and what it reads next of each: at rebalances, and when Redis lost writes.

Reading starts at the lower of what Redis holds and what the group has committed, and at the beginning of the topic for a
definition without progress (`ingestion.positions`): what is read twice is applied once (law 5), so starting early is always safe.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from functools import partial

from confluent_kafka.admin import TopicDescription

from ingestion.kafka import GroupConsumer
from ingestion.patience import Patience
from ingestion.positions import begin, check_end
from ingestion.report import Place, State
from ingestion.worker_progress import WorkerProgress
from tally.errors import UnavailableError

log = logging.getLogger(__name__)


class Assignment:
    """`next` is the offset to read next of each place that is ours.

    librdkafka calls `on_assign`, `on_revoke` and `on_lost` from within a poll; what fails there is left in `failure`. A consumer
    that is being closed answers no questions, so `is_closing` has to be set before that.
    """

    def __init__(
        self,
        consumer: GroupConsumer,
        progress: WorkerProgress,
        patience: Patience,
        kafka_patience: Patience,
        state: State,
        *,
        skip_expired: bool,
    ) -> None:
        self._consumer, self._progress, self._state = consumer, progress, state
        self._patience, self._kafka_patience = patience, kafka_patience
        self._skip_expired = skip_expired
        self.next: dict[Place, int] = {}
        self.failure: Exception | None = None
        self.is_closing = False

    def on_assign(self, places: Collection[Place]) -> None:
        """They are ours from now on."""
        if self.is_closing:  # nothing will be read
            return
        try:
            starts = self._starts(places)
        except Exception as error:  # noqa: BLE001
            self.failure = error
            return
        self.next.update(starts)
        self._state.joined = True
        self._consumer.assign(starts)
        if starts:
            log.info("reading %s", ", ".join(f"{t}[{p}] from {offset}" for (t, p), offset in sorted(starts.items())))

    def on_revoke(self, places: Collection[Place]) -> None:
        """They are given to others, who begin where we have committed."""
        ours = {place: offset for place, offset in self.next.items() if place in places}
        self._consumer.commit(ours, asynchronous=False)
        self.on_lost(places)

    def on_lost(self, places: Collection[Place]) -> None:
        """They were given to others, for we were silent too long."""
        for place in places:
            self.next.pop(place, None)
        self._consumer.unassign(places)

    def go_back(self) -> None:
        """Go on from what Redis holds, where that is less than what we wrote."""
        while True:
            self._patience.outlast(self._progress.load_functions)
            starts = self._starts(self.next)
            positions = {place: min(offset, starts[place]) for place, offset in self.next.items()}
            if self._progress.witnessed(positions):
                break
        for place, offset in positions.items():
            if offset < self.next[place]:
                self._state.read_again[place[0]] += self.next[place] - offset
                log.warning(
                    "%s[%d]: Redis lost the effects of %d messages; reading them again",
                    *place,
                    self.next[place] - offset,
                )
            self._consumer.seek(place, offset)
        self.next.update(positions)
        self._patience.answered()

    def look_again(self, places: Collection[Place]) -> None:
        """Go on reading places that do not hold what we would read next. Raises NotReadyError when that is a loss."""
        ours = {place for place in places if place in self.next}
        if not ours:
            return
        self.check_ids(self._consumer.ask_ids())
        starts = self._starts(ours)
        self._consumer.unassign(starts)  # librdkafka has stopped to fetch them, so seeking is not possible
        self._consumer.assign(starts)
        self.next.update(starts)

    def ends(self, partitions: Mapping[str, Sequence[int]]) -> dict[Place, int]:
        """The offset after the last message of each partition that has any, whoever reads it. Raises NotReadyError if Redis is ahead."""
        come, targets = self._progress.of_places(), {}
        for place in [(topic, number) for topic, numbers in partitions.items() for number in numbers]:
            low, high = self._consumer.watermarks(*place)
            check_end(place, high, come.get(place, ()))
            if high > low:
                targets[place] = high
        return targets

    def check_ids(self, asked: Mapping[str, Future[TopicDescription]]) -> None:
        """Raises NotReadyError when a topic, by what was `asked` of Kafka, is not the one that Redis was filled from."""
        try:
            ids = self._consumer.ids(asked)
        except UnavailableError as error:
            log.debug("the topics could not be looked at: %s", error)  # the worker looks again every few seconds
        else:
            self._patience.outlast(partial(self._progress.check_ids, ids))
            self._patience.answered()

    def _starts(self, places: Collection[Place]) -> dict[Place, int]:
        """Where to read each place, by what Redis has; every view's progress is there at least from now on."""
        if not places:
            return {}
        of_views = self._patience.outlast(self._progress.of_each)
        emptied = not any(of_views.values()) and self._patience.outlast(self._progress.is_empty)
        committed = self._kafka_patience.outlast(partial(self._consumer.committed, places))
        starts, expired = {}, set()
        for place, offset in committed.items():
            found = begin(
                place,
                *self._kafka_patience.outlast(partial(self._consumer.watermarks, *place)),
                offset,
                {view.name: of_views[view.name].get(place) for view in self._progress.views[place[0]]},
                emptied=emptied,
                skip_expired=self._skip_expired,
            )
            if found.expired:
                expired.add(place)
                self._state.summary.topics[place[0]].expired += found.expired
                log.warning("%s[%d]: %d messages were deleted before they were read", *place, found.expired)
            for view in found.late:
                log.warning(
                    "%s begins with offset %d of %s[%d], the first that is there: what reaches farther back is not whole; stop all "
                    "workers, run tally ingest and tally bootstrap %s, then start again",
                    view, found.offset, *place, view,
                )  # fmt: skip
            if found.again:
                log.warning(
                    "%s[%d]: Redis lacks %d messages that were committed; reading them again", *place, found.again
                )
            starts[place] = found.offset
        self._progress.begin(of_views, starts)
        self._progress.skip_to({place: starts[place] for place in expired})
        self._kafka_patience.answered()
        return starts
