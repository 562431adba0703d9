"""Feature services: what one lookup answers, and what it has to be given."""

from __future__ import annotations

from collections.abc import Iterable

from feast.feature_view_projection import FeatureViewProjection

from feast_plugins.compiler.definitions import Definitions, doubled
from feast_plugins.compiler.request_functions import projections_of
from tally.plan import Field, FunctionUse, Plan, Service, ViewUse, hashed_service


def compile_service(
    definitions: Definitions,
    plan: Plan,
    name: str,
    projections: Iterable[FeatureViewProjection],
    *,
    full_names: bool = False,
) -> Service:
    """The service that answers `projections` in their order. `full_names` answers ``view__feature``, as Feast does.

    Raises DefinitionError when two features have one name, or a projection is of something unknown.
    """
    uses: dict[str, ViewUse] = {}
    function_uses: list[FunctionUse] = []
    outputs: list[Field] = []
    for projection in projections:
        used_as = projection.name_to_use()
        wanted = [(f.name, f"{used_as}__{f.name}" if full_names else f.name) for f in projection.features]
        if projection.name in definitions.on_demand:
            function = plan.function(projection.name)
            dtypes = {f.name: f.dtype for f in function.outputs}
            function_uses.append(FunctionUse(function.name, tuple(wanted)))
            for source in projections_of(definitions.on_demand[projection.name]):
                uses.setdefault(source.name_to_use(), _view_use(plan, source, []))
        else:
            dtypes = {f.name: f.dtype for f in plan.view(projection.name).fields}
            uses[used_as] = _view_use(plan, projection, wanted)
        for feature, answered in wanted:
            outputs.append(Field(answered, dtypes[feature]))
    if twice := doubled(f.name for f in outputs):
        raise definitions.refused(
            name,
            f"features {twice} come from more than one view; ask for full feature names or rename them",
        )
    keys: dict[str, Field] = {}
    for use in uses.values():
        for column, key in zip(use.keys, plan.view(use.view).keys, strict=True):
            keys.setdefault(column, Field(column, key.dtype))
    request = {
        i.feature: Field(i.feature, i.dtype)
        for use in function_uses
        for i in plan.function(use.function).inputs
        if not i.view
    }
    service = Service(
        name, tuple(uses.values()), tuple(function_uses), tuple(keys.values()), tuple(request.values()), tuple(outputs)
    )
    return hashed_service(service, plan)


def _view_use(plan: Plan, projection: FeatureViewProjection, wanted: list[tuple[str, str]]) -> ViewUse:
    view = plan.view(projection.name)
    keys = tuple(projection.join_key_map.get(key.name, key.name) for key in view.keys)
    return ViewUse(view.name, projection.name_to_use(), keys, tuple(wanted))
