"""Feast's other ways of asking: by arrival, and with full names."""

from __future__ import annotations

from typing import Any

from tests import oracle
from tests.conformance.conftest import Ask
from tests.conformance.paths import answers_of, entity_rows, label_frame, labels, of_table, open_store, output_dtypes
from tests.conformance.world import SERVICE, World
from training import build_training_set


def _same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return len(one) == len(other) and all(
        mine.keys() == theirs.keys() and all(oracle.same(mine[name], theirs[name]) for name in theirs)
        for mine, theirs in zip(one, other, strict=True)
    )


def _full_names(world: World) -> dict[str, str]:
    service = world.plan.service(SERVICE)
    stored = {name: f"{use.name}__{name}" for use in service.views for _, name in use.features}
    return stored | {name: f"{use.function}__{name}" for use in service.functions for _, name in use.features}


def test_filter_by_created_timestamp_is_as_served(world: World) -> None:
    """Feast's own switch against leakage gives the training set of what had arrived."""
    with world.environment():
        store = open_store(world)
        job = store.get_historical_features(
            entity_df=label_frame(world),
            features=store.get_feature_service(SERVICE),
            filter_by_created_timestamp=True,
        )
        found = of_table(world, job.to_arrow())
    served = build_training_set(
        labels(world), service=SERVICE, repo=world.repo, offline_uri=world.offline_uri, visibility="as_served"
    )
    assert _same(found, of_table(world, served.to_arrow()))


def test_full_names_are_the_same_values(world: World, ask: Ask) -> None:
    """`full_feature_names` renames the columns of either side and changes nothing else."""
    names = _full_names(world)
    with world.environment():
        store = open_store(world)
        service = store.get_feature_service(SERVICE)
        table = store.get_historical_features(
            entity_df=label_frame(world), features=service, full_feature_names=True
        ).to_arrow()
        response = store.get_online_features(features=service, entity_rows=entity_rows(world), full_feature_names=True)
    plain = {full: name for name, full in names.items()}
    assert set(output_dtypes(world)) == set(names)
    renamed = table.rename_columns([plain.get(name, name) for name in table.column_names])
    assert _same(of_table(world, renamed), list(ask("feast-historical").values))
    found = answers_of(world, response, plain)
    assert _same(list(found.values), list(ask("feast-online").values))
