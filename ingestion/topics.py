"""Whether a topic is the one that Redis was filled from.

The offsets of a topic that was deleted and created anew begin at 0 again: its events lie behind the fences and the progress of
those before it, so they would count as duplicates or not be read at all. Kafka gives each topic an id of its own, by which
the two are told apart; one before 2.8 gives none, and then only a topic that is too short is noticed (`ingestion.positions`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from connections import Client, reaching
from ingestion.progress import definition, progress
from tally.errors import NotReadyError
from tally.layout import topics_key
from tally.plan import View


def check_ids(redis: Client, project: str, views: Mapping[str, Sequence[View]], ids: Mapping[str, str]) -> None:
    """Compare the topics' `ids` with those that `views` (topic -> those that read it) were filled from; keep what is new.

    Raises NotReadyError when a view has read another topic of that name, UnavailableError.
    """
    with reaching(redis):
        stored = cast(dict[bytes, bytes], redis.hgetall(topics_key(project)))
        for topic, found in ids.items():
            for view in views.get(topic, ()):
                field = f"{definition(view)}:{topic}"
                before = stored.get(field.encode(), b"").decode()
                if not found or found == before:
                    continue
                if before and any(at for place, at in progress(redis, project, view).items() if place[0] == topic):
                    raise NotReadyError(
                        f"Kafka topic {topic} was deleted and created anew (its id was {before}, now it is {found}) after "
                        f"{view.name} had read it: its new events have the offsets of old ones and would be taken for them. Give "
                        "the new topic a name of its own and correct the source; or remove everything that came from the old one "
                        "(feast teardown, the rows of the landing table), run feast apply, and start again. If it is a copy that "
                        f"has the same offsets, delete {topics_key(project)} from Redis."
                    )
                redis.hset(topics_key(project), field, found)
