"""Dashboards and alerts name metrics, labels and commands that exist."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from ingestion.metrics import Metrics
from ingestion.report import Progress, State, Summary, TopicCounts
from ingestion.stream import Counts

INFRA = Path(__file__).parents[2] / "infra"


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Sample name -> names of labels, of a worker that has met everything."""
    counts = Counts(1, 1, 1, Counter({"r": 1}), 1)
    summary = Summary({"t": TopicCounts(1, 1, 1)}, {"v": counts})
    one = Counter({"a": 1})
    metrics = Metrics(State(summary, {("t", 0): 1}, redis_errors=one, kafka_errors=one, read_again=one))
    metrics.on_batch(Progress(1, 0.1, 0.1, 1, {}, 1))
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return {sample.name: set(sample.labels) for sample in samples}


def expressions() -> list[str]:
    """Every PromQL expression of the files."""
    rules = yaml.safe_load((INFRA / "prometheus" / "alerts.yaml").read_text())
    found = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    for path in (INFRA / "grafana").glob("*.json"):
        found += [target["expr"] for panel in json.loads(path.read_text())["panels"] for target in panel["targets"]]
    return found


@pytest.mark.parametrize("expression", expressions())
def test_expressions_name_what_is_exported(expression: str, exported: dict[str, set[str]]) -> None:
    """Every metric is one that a worker exports, with the labels by which it is summed and chosen."""
    names = re.findall(r"\b(?:tally|process)_\w+", expression)
    assert names
    assert set(names) <= set(exported)
    used = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.replace(" ", "").split(",")}
    used |= set(re.findall(r"(\w+)=", expression))
    given = set.union(*(exported[name] for name in names)) | {"instance"}
    assert used <= given, f"{used - given} is no label of {names}"


def test_every_metric_is_on_the_dashboard(exported: dict[str, set[str]]) -> None:
    """What a worker counts can be seen."""
    text = (INFRA / "grafana" / "stream.json").read_text()
    ours = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in exported if name.startswith("tally_")}
    assert {name for name in ours if name not in text} == set()
