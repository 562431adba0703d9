"""The definition that a client serves, and when a newer one takes its place. Pure: what Redis says is handed in.

A new plan is served from the moment when this worker can: its views are in Redis and its functions are those installed
here. Until then the old one is served, for as long as its own views are in Redis, and every answer says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from serving_client.lookup import Lookup
from serving_client.readiness import check_views, plan_of
from tally.errors import NotReadyError, StoredBytesError, SupersededError, TallyError
from tally.plan import Plan

MOST_CHECKED: Final = 256
"""Keys whose type is asked for at a time."""


@dataclass(frozen=True, slots=True)
class Said:
    """What Redis holds of a service: the plan, the names of the services, the definitions loaded."""

    document: bytes | None
    services: Sequence[bytes]
    views: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class InUse:
    """A lookup, and what is wrong with it: `behind` says why a newer plan is not served, `gone` why this one cannot be.

    `foreign` are keys that hold another type than ours, as text; MGET reads them as if nothing was stored.
    """

    lookup: Lookup
    behind: TallyError | None = None
    gone: TallyError | None = None
    foreign: Mapping[bytes, str] = field(default_factory=dict)

    @property
    def version(self) -> bytes:
        """What `tally.layout.version_key` holds while this is the newest plan."""
        return self.lookup.service.hash.encode()

    @property
    def unusual(self) -> bool:
        """Whether there is anything wrong with it. What is gone is behind, too."""
        return self.behind is not None or bool(self.foreign)

    def check(self, keys: Sequence[bytes]) -> None:
        """Raises SupersededError or NotReadyError when nothing can be served, StoredBytesError for a key of another type."""
        if self.gone is not None:
            raise self.gone
        for key in keys if self.foreign else ():
            if key in self.foreign:
                raise StoredBytesError(
                    f"{key!r} holds a {self.foreign[key]}, which is not Tally's; delete the key and load the view again."
                )


def first(said: Said, project: str, service: str) -> Plan:
    """The published plan. Raises NotReadyError (there is none, or its views were never loaded), UnknownServiceError."""
    plan = plan_of(said.document, said.services, project, service)
    check_views(plan, said.views)
    return plan


def renewed(current: InUse, said: Said) -> InUse:
    """What to serve from now on, given what Redis says: the published plan if it can be served, else the current one."""
    plan = current.lookup.plan
    service = current.lookup.service
    try:
        published = plan_of(said.document, said.services, plan.project, service.name)
        check_views(published, said.views)
        if published.services[0].hash == service.hash:
            return replace(current, behind=None, gone=None)
        return InUse(Lookup(published))
    except TallyError as error:
        behind = error
    return replace(current, behind=behind, gone=_gone(plan, said.views, behind))


def _gone(plan: Plan, views: Sequence[bytes], behind: TallyError) -> TallyError | None:
    try:
        check_views(plan, views)
    except NotReadyError as error:
        service = plan.services[0]
        return SupersededError(
            f"Definition {service.hash[:8]} of service {service.name}, which this worker serves, is no longer in Redis "
            f"({error}) and the published one cannot take its place ({behind}) Restart the worker with what was applied."
        )
    return None
