"""Is everything there that a service needs? What to tell the user when it is not. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable

from tally.errors import NotReadyError, UnknownServiceError
from tally.plan import Plan, View


def plan_of(document: bytes | None, services: Iterable[bytes], project: str, service: str) -> Plan:
    """The plan from its published `document`. Raises UnknownServiceError or NotReadyError where there is none."""
    if document is not None:
        return Plan.from_json(document)
    published = sorted(name.decode() for name in services)
    if not published:
        raise NotReadyError(f"Redis holds no plan of project {project!r}; run feast apply, which publishes it.")
    if service in published:
        raise NotReadyError(
            f"Redis lists feature service {service!r} of {project} but lacks its plan; run feast apply."
        )
    raise UnknownServiceError(f"Project {project} has no feature service {service!r}. It has: {', '.join(published)}.")


def check_views(plan: Plan, loaded: Iterable[bytes]) -> None:
    """Raises NotReadyError unless each view's definition is among `loaded` (fields of `tally.layout.views_key`)."""
    names = {name.decode() for name in loaded}
    for view in plan.views:
        if f"{view.name}@{view.hash}" in names:
            continue
        others = sorted(name.rpartition("@")[2] for name in names if name.rpartition("@")[0] == view.name)
        held = (
            f"Redis holds another definition of it ({', '.join(h[:8] for h in others)})" if others else "never loaded"
        )
        raise NotReadyError(
            f"Feature view {view.name} is not in Redis under definition {view.hash[:8]}: {held}. "
            f"Load it with `{_command(view)}`."
        )


def _command(view: View) -> str:
    if view.kind == "window":
        return f"tally bootstrap {view.name}"
    return "tally stream" if view.stream else "feast materialize"
