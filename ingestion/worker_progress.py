"""How far the views of one worker have come in Redis: read, raised and witnessed in its name.

What progress is, and why a server has to witness it, is in `ingestion.progress`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from connections import Client
from ingestion import redis_store
from ingestion.patience import Patience
from ingestion.progress import advance_progress, begin_progress, is_empty, progress_of_each, witness
from ingestion.redis_calls import load_library
from ingestion.report import Place
from ingestion.topics import check_ids
from tally.plan import View


class WorkerProgress:
    """Progress of `views` (topic -> those that read it), written under the name `writer`.

    What writes waits for Redis with `patience`, except `meet`. What only reads raises UnavailableError.
    """

    def __init__(
        self, redis: Client, project: str, views: Mapping[str, Sequence[View]], writer: bytes, patience: Patience
    ) -> None:
        self.views = views
        self._redis, self._project, self._writer, self._patience = redis, project, writer, patience

    def meet(self) -> None:
        """Prepare Redis for a new worker. Raises UnavailableError."""
        self.load_functions()
        witness(self._redis, self._project, (), {}, self._writer)
        for topic, views in self.views.items():
            for view in views:
                if redis_store.view_mark(self._redis, self._project, view) is None:
                    redis_store.mark_view(self._redis, self._project, view, {"by": "stream", "topic": topic})

    def load_functions(self) -> None:
        """Load the function library wherever it is missing. Raises UnavailableError."""
        load_library(self._redis)

    def check_ids(self, ids: Mapping[str, str]) -> None:
        """See `ingestion.topics`. Raises NotReadyError, UnavailableError."""
        check_ids(self._redis, self._project, self.views, ids)

    def of_each(self) -> dict[str, dict[Place, int]]:
        """View -> how far it has come in each partition of its topic, where it has begun."""
        return progress_of_each(self._redis, self._project, [view for views in self.views.values() for view in views])

    def of_places(self) -> dict[Place, list[int]]:
        """How far each view has come in each partition of its topic; 0 where it never began."""
        come = self.of_each()
        result: dict[Place, list[int]] = {}
        for topic, views in self.views.items():
            of_views = [come[view.name] for view in views]
            for place in set[Place]().union(*of_views):
                if place[0] == topic:
                    result[place] = [of_view.get(place, 0) for of_view in of_views]
        return result

    def is_empty(self) -> bool:
        """Whether Redis holds no progress of any definition of the project."""
        return is_empty(self._redis, self._project)

    def begin(self, come: Mapping[str, Mapping[Place, int]], starts: Mapping[Place, int]) -> None:
        """Let every view that has not begun in some of the places, by `come` (see `of_each`), begin there at `starts`."""
        for topic, views in self.views.items():
            for view in views:
                known = come[view.name]
                new = {place: at for place, at in starts.items() if place[0] == topic and place not in known}
                begin_progress(self._redis, self._project, [view], new, self._patience)

    def advance(self, positions: Mapping[Place, int]) -> None:
        """Raise the progress of all views of each topic."""
        for topic in {topic for topic, _ in positions}:
            of_topic = _of_topic(topic, positions)
            advance_progress(self._redis, self._project, self.views[topic], of_topic, self._patience, self._writer)
        self._patience.answered()

    def skip_to(self, positions: Mapping[Place, int]) -> None:
        """Raise the progress of all views of each topic to where it begins, whatever this worker has written."""
        for topic, views in self.views.items():
            advance_progress(self._redis, self._project, views, _of_topic(topic, positions), self._patience)

    def witnessed(self, positions: Mapping[Place, int]) -> bool:
        """Whether every server still holds progress up to `positions`; if so they take the worker's deltas."""
        answers = [
            witness(self._redis, self._project, views, of_topic, self._writer, self._patience)
            for topic, views in self.views.items()
            if (of_topic := _of_topic(topic, positions))
        ]
        return all(answers)


def _of_topic(topic: str, positions: Mapping[Place, int]) -> dict[Place, int]:
    return {place: offset for place, offset in positions.items() if place[0] == topic}
