"""The offline side of an audit: served rows, built again from their evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from ingestion.offline import high_watermarks
from tally.columns import Column
from tally.errors import DataError
from tally.plan import Plan, Service
from tally.served import instant_column
from training.asks import evidence_kind
from training.build import OfflineVersion, offline_versions, training_set
from training.engine import pinned_versions
from training.join import Mode
from training.visibility import Mask
from training.why import UNEXPLAINED, Evidence, OfflineEvidence


class Replay:
    """One service, and the offline tables at one version each."""

    def __init__(
        self, plan: Plan, service: Service, offline_uri: str, version: OfflineVersion, memory: Any, client: Any
    ) -> None:
        self.service = service
        self.timestamp = instant_column(service)
        self.asked = (*service.keys, *service.request)
        wanted = offline_versions(plan, service, offline_uri, version)
        self.versions = pinned_versions(plan, service, offline_uri, wanted)
        self._plan = plan
        self._uri = offline_uri
        self._memory = memory
        self._client = client
        self._offline = OfflineEvidence(plan, service, offline_uri, self.versions)
        self._uses = []
        for use in service.views:
            view = plan.view(use.view)
            source = plan.source(view.source)
            landed = high_watermarks(plan, source, offline_uri, self.versions[source.name]) if source.topic else None
            self._uses.append((use.name, evidence_kind(view), source.name, landed))

    def left_out(self, evidence: Sequence[Evidence]) -> list[str]:
        """For each row why it cannot be replayed: it had read more than there is. Empty where it can.

        Raises DataError for evidence that is not of this service's answers.
        """
        found = [""] * len(evidence)
        for name, kind, source, landed in self._uses:
            for row, one in enumerate(evidence):
                seen = one.get(name, "")
                if seen is not None and (not isinstance(seen, dict) or kind not in seen):
                    raise DataError(
                        f"The log has evidence without {kind} of {name}, which rows served by {self.service.name} have; "
                        "give a log as it was written."
                    )
                if seen is None or landed is None:
                    continue
                read = seen["fences"].items() if kind == "fences" else [seen["version"][1:3]]
                if any(offset > landed.get(int(partition), -1) for partition, offset in read):
                    found[row] = (
                        f"had read messages that offline table {source} does not have yet; run: tally ingest {source}"
                    )
        return found

    def features(self, labels: pa.Table, visibility: Mode) -> dict[str, Column]:
        """The service's outputs for these rows."""
        return training_set(
            self._plan,
            labels,
            service=self.service.name,
            offline_uri=self._uri,
            visibility=visibility,
            offline_version=self.versions,
            timestamp=self.timestamp,
            memory=self._memory,
            client=self._client,
        ).columns

    def why(
        self, differs: Mapping[str, Mask], asked: Mapping[str, Column], evidence: Sequence[Evidence]
    ) -> dict[str, list[str]]:
        """Why a feature's value differs, for each row, by feature; `differs` has those that do."""
        problems = self._offline.problems(asked, evidence)
        found = {}
        for use, of_use in zip(self.service.views, problems, strict=True):
            found.update({name: [one or UNEXPLAINED for one in of_use] for _, name in use.features})
        for called in self.service.functions:
            read = [(self.service.origin(one), one.feature) for one in self._plan.function(called.function).inputs]
            origins = sorted({origin for origin, _ in read} - {-1})
            inputs = [
                name
                for origin in origins
                for feature, name in self.service.views[origin].features
                if (origin, feature) in read
            ]
            reasons = []
            for row in range(len(evidence)):
                known = [problems[origin][row] for origin in origins if problems[origin][row]]
                wrong = [f"made from {name}, which differs" for name in inputs if differs[name][row]]
                reasons.append([*known, *wrong, UNEXPLAINED][0])
            found.update({name: reasons for _, name in called.features})
        return found
