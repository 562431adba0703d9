"""The definitions of one project, as Feast's registry holds them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView, StreamFeatureView
from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto
from feast.types import PrimitiveFeastType

from tally.dtypes import DTYPES, Dtype
from tally.errors import DefinitionError
from tally.functions import Transformation

_DTYPES: Final[dict[PrimitiveFeastType, Dtype]] = {
    PrimitiveFeastType.FLOAT64: "Float64",
    PrimitiveFeastType.FLOAT32: "Float32",
    PrimitiveFeastType.INT64: "Int64",
    PrimitiveFeastType.INT32: "Int32",
    PrimitiveFeastType.BOOL: "Bool",
    PrimitiveFeastType.STRING: "String",
    PrimitiveFeastType.BYTES: "Bytes",
    PrimitiveFeastType.UNIX_TIMESTAMP: "UnixTimestamp",
}


@dataclass(frozen=True)
class Definitions:
    """The objects of one project, by name, and how to find the file that defines one of them."""

    project: str
    entities: dict[str, Entity]
    views: dict[str, FeatureView]
    on_demand: dict[str, OnDemandFeatureView]
    services: dict[str, FeatureService]
    file_of: Callable[[str], str]

    def refused(self, name: str, problem: str) -> DefinitionError:
        """The error for the object called `name`: its file, itself, and the problem with its fix."""
        return DefinitionError(f"{self.file_of(name)}: {name}: {problem}.")

    def dtype(self, name: str, field: str, dtype: Any) -> Dtype:
        """Our dtype for Feast's, of a field of the object called `name`. Raises DefinitionError for one not stored."""
        if dtype not in _DTYPES:
            raise self.refused(
                name, f"field {field} has type {dtype}, which Tally does not store; use one of {', '.join(DTYPES)}"
            )
        return _DTYPES[dtype]

    def shared_function(self, name: str, udf: Any) -> Transformation:
        """The plain function behind a Feast `udf` of the object called `name`. Raises DefinitionError for any other."""
        function = getattr(udf, "transformation", None)
        if function is None:
            raise self.refused(
                name, "its function is not a shared transformation; pass **as_udf(transformations.YOURS)"
            )
        return function  # type: ignore[no-any-return]


def read_definitions(registry: RegistryProto, project: str, repo: Path) -> Definitions:
    """The definitions of `project` in a registry. Raises DefinitionError when a function cannot be imported."""

    def mine(protos: Iterable[Any]) -> list[Any]:
        return [proto for proto in protos if proto.spec.project == project]

    try:
        views: list[FeatureView] = [FeatureView.from_proto(p) for p in mine(registry.feature_views)]
        views += [StreamFeatureView.from_proto(p) for p in mine(registry.stream_feature_views)]
        on_demand = [OnDemandFeatureView.from_proto(p) for p in mine(registry.on_demand_feature_views)]
    except ModuleNotFoundError as error:
        raise DefinitionError(
            f"A transformation in the registry cannot be imported: {error}. Install the feature repository's package, "
            f"or put {repo.parent} on PYTHONPATH, and run feast apply again."
        ) from error
    entities = [Entity.from_proto(p) for p in mine(registry.entities)]
    services = [FeatureService.from_proto(p) for p in mine(registry.feature_services)]
    return Definitions(
        project,
        {e.name: e for e in entities},
        {v.name: v for v in views},
        {v.name: v for v in on_demand},
        {s.name: s for s in services},
        lambda name: _file_of(name, repo),
    )


def _file_of(name: str, repo: Path) -> str:
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path is None or not Path(path).resolve().is_relative_to(repo.resolve()):
            continue
        if any(getattr(item, "name", None) == name for item in vars(module).values()):
            return str(path)
    return str(repo)


def doubled(names: Iterable[str]) -> list[str]:
    """Names that occur more than once."""
    return sorted(name for name, count in Counter(names).items() if count > 1)
