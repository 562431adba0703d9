"""What a log of served rows says, taken together: how far the lookups had read."""

from __future__ import annotations

import json
from collections.abc import Iterable


def greatest_fences(evidence: Iterable[str]) -> dict[str, dict[int, int]]:
    """By use of a view and partition, the greatest offset that any of these JSON texts names.

    Evidence of another form says nothing here; it is refused, with its row, when it is replayed.
    """
    found: dict[str, dict[int, int]] = {}
    for text in evidence:
        try:
            entry = json.loads(text)
        except ValueError:
            continue
        for use, seen in entry.items() if isinstance(entry, dict) else ():
            fences = seen.get("fences") if isinstance(seen, dict) else None
            if isinstance(fences, dict):
                of_use = found.setdefault(use, {})
                for partition, offset in fences.items():
                    if offset > of_use.get(int(partition), -1):
                        of_use[int(partition)] = offset
    return found
