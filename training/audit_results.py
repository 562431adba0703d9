"""What came of an audit: counts for each definition, feature and hour, and differences one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from training.audit_page import fragment, page

KEPT: Final = 1_000
"""Differences of a definition that are kept one by one; all are counted."""
FLAGGED: Final = ("ahead", "default")
"""Statuses of values that carried no certificate: the answer itself said so."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that was served and is another when it is replayed. `row` counts the audited rows of its definition, from 0.

    `key` has the row's keys and request fields; `as_of` is in µs UTC; values are as `Column.to_list` gives them.
    """

    row: int
    key: Mapping[str, Any]
    as_of: int
    feature: str
    served: Any
    replayed: Any
    why: str


@dataclass(slots=True)
class FeatureAudit:
    """What came of a feature's values: `values` were compared, of which `differ`.

    `later` of those that do not differ would be others in a training set by event time, which sees what had not arrived.
    `flagged` were not compared, by status (`FLAGGED`).
    """

    name: str
    dtype: str
    values: int = 0
    differ: int = 0
    later: int = 0
    flagged: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class ServiceAudit:
    """What came of the rows that were served under one definition.

    `rows` are in the log, `audited` of them were compared, `left_out` counts the others by reason. `first` and `last` are
    the instants (µs) of those audited. `versions` are those of the offline tables that were read. `hours` has for each
    hour (of `as_of`, since the epoch) how many values were compared, differ, and are `later`. `why` counts differences by
    reason; `differences` are the first `KEPT` of them.
    """

    service: str
    definition: str
    rows: int
    features: list[FeatureAudit] = field(default_factory=list)
    audited: int = 0
    first: int = 0
    last: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    versions: dict[str, int] = field(default_factory=dict)
    hours: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    why: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    @property
    def values(self) -> int:
        """How many values were compared."""
        return sum(one.values for one in self.features)

    @property
    def differ(self) -> int:
        """How many of them differ."""
        return sum(one.differ for one in self.features)

    @property
    def later(self) -> int:
        """How many of the others would be different by event time."""
        return sum(one.later for one in self.features)

    @property
    def flagged(self) -> Counter[str]:
        """How many values carried no certificate, by status."""
        return sum((one.flagged for one in self.features), Counter())


@dataclass(frozen=True)
class Audit:
    """What came of a log of served rows: a part for each definition that it has rows of."""

    log: Path
    parts: list[ServiceAudit]

    @property
    def values(self) -> int:
        """How many values were compared."""
        return sum(part.values for part in self.parts)

    @property
    def differ(self) -> int:
        """How many of them differ."""
        return sum(part.differ for part in self.parts)

    @property
    def later(self) -> int:
        """How many of the others would be different by event time."""
        return sum(part.later for part in self.parts)

    @property
    def agrees(self) -> bool:
        """Whether something was compared, and nothing differs."""
        return self.values > 0 and self.differ == 0

    def to_html(self) -> str:
        """A page of its own, which needs nothing from elsewhere."""
        return page(self)

    def _repr_html_(self) -> str:
        return fragment(self)
