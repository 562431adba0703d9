"""What a Feast call asks for (a service, or a list of references), as a service of the plan."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Final

from feast import FeatureService
from feast.feature_view_projection import FeatureViewProjection
from feast.infra.registry.base_registry import BaseRegistry

from feast_plugins.compiler import Definitions, compile_service
from tally.errors import DataError
from tally.plan import Plan, Service

_Asked = tuple[str, str | tuple[str, ...], bool]
"""The plan's hash; a service with its projections, or references; whether names are full."""
_SERVICES: dict[_Asked, Service] = {}
_MOST_SERVICES: Final = 1024
"""Lists of references come from outside: this bounds what they can hold."""


def requested_service(
    registry: BaseRegistry, plan: Plan, features: FeatureService | Sequence[str], full_feature_names: bool
) -> Service:
    """The service that answers `features` in the order in which they are named.

    Raises DataError for a reference that is not ``view:feature`` or names something that does not exist.
    """
    if not isinstance(features, FeatureService):
        references = plan.hash, tuple(features), full_feature_names
        return _SERVICES.get(references) or _kept(
            references, registry, plan, "features", _projections(registry, plan, features)
        )
    name = features.name
    projections = features.feature_view_projections
    if not projections:
        projections = registry.get_feature_service(name, plan.project, allow_cache=True).feature_view_projections
    asked = [
        [p.name, p.name_to_use(), sorted(p.join_key_map.items()), [f.name for f in p.features]] for p in projections
    ]
    known_as = plan.hash, json.dumps([name, asked]), full_feature_names
    return _SERVICES.get(known_as) or _kept(known_as, registry, plan, name, projections)


def _kept(
    known_as: _Asked, registry: BaseRegistry, plan: Plan, name: str, projections: Sequence[FeatureViewProjection]
) -> Service:
    on_demand = registry.list_on_demand_feature_views(plan.project, allow_cache=True)
    definitions = Definitions(plan.project, {}, {}, {v.name: v for v in on_demand}, {}, lambda _: "This request")
    service = compile_service(definitions, plan, name, projections, full_names=known_as[2])
    if len(_SERVICES) >= _MOST_SERVICES:
        _SERVICES.clear()
    _SERVICES[known_as] = service
    return service


def _projections(registry: BaseRegistry, plan: Plan, references: Sequence[str]) -> list[FeatureViewProjection]:
    wanted: dict[str, list[str]] = {}
    for reference in references:
        view, _, feature = reference.partition(":")
        if not feature:
            raise DataError(f"{reference!r} is not a feature reference; write view:feature.")
        wanted.setdefault(view, []).append(feature)
    projections = []
    for view_name, names in wanted.items():
        view = registry.get_any_feature_view(view_name, plan.project, allow_cache=True)
        fields = {field.name: field for field in view.features}
        unknown = [name for name in names if name not in fields]
        if unknown:
            raise DataError(
                f"Feature view {view_name} has no feature {unknown[0]!r}. It has: {', '.join(sorted(fields))}."
            )
        projection = copy.copy(view.projection)
        projection.features = [fields[name] for name in dict.fromkeys(names)]
        projections.append(projection)
    return projections


def plan_of_service(plan: Plan, service: Service) -> Plan:
    """The part of `plan` that answers `service`, which need not be one of its own."""
    others = tuple(s for s in plan.services if s.name != service.name)
    return Plan(plan.project, plan.sources, plan.views, plan.functions, (*others, service)).for_service(service.name)
