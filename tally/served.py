"""A row of the log of served rows: the columns it has beside the service's keys and request fields."""

from __future__ import annotations

from typing import Final

from tally.plan import Service

SERVED: Final = "served__"
"""What the names of answered features begin with: labels may not have columns that are called like features."""
EVIDENCE_COLUMN: Final = "tally_evidence"
"""JSON of what each use of a view was read from: ``{"fences": {partition: offset}}``, ``{"version": [event_timestamp, a, b,
check]}``, or null where nothing was stored."""
STATUS_COLUMN: Final = "tally_status"
"""JSON of the features that were not simply present: name -> status."""
SERVICE_COLUMN: Final = "tally_service"
"""The service's name."""
DEFINITION_COLUMN: Final = "tally_definition"
"""The service's hash."""


def instant_column(service: Service) -> str:
    """Where the instant of the answer is: ``event_timestamp``, as in labels, unless the request has a field of that name."""
    taken = {field.name for field in (*service.keys, *service.request)}
    return "tally_as_of" if "event_timestamp" in taken else "event_timestamp"
