"""On-demand views: functions of features and of what a request brings along."""

from __future__ import annotations

from feast import OnDemandFeatureView
from feast.feature_view_projection import FeatureViewProjection

from feast_plugins.compiler.definitions import Definitions
from tally import functions
from tally.columns import nulls
from tally.errors import DataError, DefinitionError
from tally.plan import Field, Input, RequestFunction


def compile_function(definitions: Definitions, view: OnDemandFeatureView) -> RequestFunction:
    """An on-demand view. Raises DefinitionError, also for a function that fails on a row of nulls."""
    if view.feature_transformation is None or getattr(view, "aggregations", None):
        raise definitions.refused(view.name, "an on-demand view must be one function without aggregations")
    function = definitions.shared_function(view.name, view.feature_transformation.udf)
    offered: dict[str, Input] = {}
    origins: dict[str, list[str]] = {}
    for projection in projections_of(view):
        for field in projection.features:
            dtype = definitions.dtype(view.name, field.name, field.dtype)
            offered[field.name] = Input(field.name, dtype, projection.name_to_use(), field.name)
            origins.setdefault(field.name, []).append(projection.name_to_use())
    for request_name, request in view.source_request_sources.items():
        for field in request.schema:
            origins.setdefault(field.name, []).append(request_name)
            dtype = definitions.dtype(view.name, field.name, field.dtype)
            offered[field.name] = Input(field.name, dtype, "", field.name)
    try:
        described = functions.describe(function)
        names = functions.parameters(function)
    except DefinitionError as error:
        raise definitions.refused(view.name, str(error).rstrip(".")) from error
    missing = [name for name in names if name not in offered]
    if missing:
        raise definitions.refused(view.name, f"its function asks for {missing}, its sources have {sorted(offered)}")
    for name in names:
        if len(origins[name]) > 1:
            raise definitions.refused(
                view.name,
                f"its function asks for {name}, which {' and '.join(origins[name])} both have; rename one of them",
            )
    outputs = tuple(Field(f.name, definitions.dtype(view.name, f.name, f.dtype)) for f in view.features)
    compiled = RequestFunction(view.name, described, tuple(offered[name] for name in names), outputs)
    try:
        functions.run(function, {i.parameter: nulls(i.dtype, 1) for i in compiled.inputs}, outputs, 1)
    except DataError as error:
        raise definitions.refused(view.name, str(error).rstrip(".")) from error
    except Exception as error:
        raise definitions.refused(
            view.name, f"its function fails on a row of nulls ({type(error).__name__}: {error})"
        ) from error
    return compiled


def projections_of(view: OnDemandFeatureView) -> list[FeatureViewProjection]:
    """The views that an on-demand view reads, by name: the registry holds them in a map, which has no order."""
    return sorted(view.source_feature_view_projections.values(), key=FeatureViewProjection.name_to_use)
