"""Compile Feast's registry into Tally's plan, or say what in the definitions cannot be done and where it stands."""

from __future__ import annotations

from dataclasses import replace

from feast_plugins.compiler.definitions import Definitions, read_definitions
from feast_plugins.compiler.request_functions import compile_function
from feast_plugins.compiler.services import compile_service
from feast_plugins.compiler.views import compile_view
from tally.plan import Plan, Source, View

__all__ = ["Definitions", "compile_plan", "compile_service", "read_definitions"]


def compile_plan(definitions: Definitions) -> Plan:
    """The plan of a project. Raises DefinitionError naming the file, the object and the fix."""
    sources: dict[str, Source] = {}
    views: list[View] = []
    for name in sorted(definitions.views):
        source, view = compile_view(definitions, definitions.views[name])
        known = sources.setdefault(source.name, source)
        if known != source:
            raise definitions.refused(
                name, f"its source {source.name} is defined in two ways; give one of them another name"
            )
        views.append(view)
    plan = Plan(definitions.project, tuple(sources[n] for n in sorted(sources)), tuple(views), (), ())
    request_functions = tuple(
        compile_function(definitions, definitions.on_demand[name]) for name in sorted(definitions.on_demand)
    )
    plan = replace(plan, functions=request_functions)
    services = tuple(
        compile_service(definitions, plan, name, definitions.services[name].feature_view_projections)
        for name in sorted(definitions.services)
    )
    return replace(plan, services=services)
