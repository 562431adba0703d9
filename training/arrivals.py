"""What is known of when rows arrived, for training sets as served."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from ingestion.delta import open_version
from ingestion.offline import high_watermarks
from ingestion.reading import unknown_arrivals
from tally.errors import NotReadyError
from tally.served import EVIDENCE_COLUMN
from training.asks import Questions
from training.evidence import greatest_fences
from training.labels import LabelReader
from training.partitioned import Partitioned


def check_landed(
    questions: Questions, labels: pa.Table | Partitioned, offline_uri: str, versions: Mapping[str, int]
) -> None:
    """Raise NotReadyError where lookups had read messages that the offline tables do not have yet."""
    texts = (
        text
        for table in ([labels] if isinstance(labels, pa.Table) else labels.labels.tables())
        for text in table.column(EVIDENCE_COLUMN).to_pylist()
    )
    plan = questions.plan
    read = greatest_fences(texts)
    for use in questions.service.views:
        source = plan.source(plan.view(use.view).source)
        if not source.topic or use.name not in read:
            continue
        landed = high_watermarks(plan, source, offline_uri, versions[source.name])
        for partition, offset in sorted(read[use.name].items()):
            if offset > landed.get(partition, -1):
                raise NotReadyError(
                    f"The labels were served from partition {partition} of {source.topic} up to offset {offset}, and version "
                    f"{versions[source.name]} of offline table {source.name} ends at {landed.get(partition, -1)}; "
                    f"run: tally ingest {source.name}"
                )


def unknown_of(
    questions: Questions, reader: LabelReader, offline_uri: str, versions: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """By view, how many rows do not say when they arrived, and what was taken instead; where that matters."""
    if questions.mode != "as_served" or reader.evidence:
        return {}
    plan = questions.plan
    found = {}
    for use in questions.service.views:
        view = plan.view(use.view)
        table = open_version(offline_uri, view.source, versions[view.source])
        found[view.name] = unknown_arrivals(plan, view, table)
    return {name: reasons for name, reasons in found.items() if reasons}


def sentences(unknown: Mapping[str, Mapping[str, int]]) -> list[str]:
    """`unknown_of`, for people."""
    return [
        f"{view}: when {count:,} of its rows arrived is not known ({reason})."
        for view, reasons in unknown.items()
        for reason, count in reasons.items()
    ]
