"""An audit as HTML: a page of its own, or a fragment for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from tally.time import HOUR, to_datetime

if TYPE_CHECKING:
    from training.audit_results import Audit

SHOWN: Final = 100
"""Differences of a definition that a page shows."""
_BARS: Final = 96


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of time: from when on, how many values were compared, and the shares (0..1) that differ and are late."""

    begin: str
    values: int
    differ: float
    later: float


def page(audit: Audit) -> str:
    """A whole page, which needs nothing from elsewhere."""
    return _environment().get_template("page.html").render(**_context(audit))


def fragment(audit: Audit) -> str:
    """What stands in the page, with its style."""
    return _environment().get_template("fragment.html").render(**_context(audit))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("training", "audit_templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "count": lambda number: f"{number:,}",
        "share": share,
        "height": height,
        "value": shown,
        "instant": instant,
    }
    return environment


def _context(audit: Audit) -> dict[str, Any]:
    return {
        "audit": audit,
        "made": datetime.now(UTC).isoformat(" ", "seconds").removesuffix("+00:00"),
        "bars": [bars(part.hours) for part in audit.parts],
        "shown": SHOWN,
    }


def share(part: int, whole: int) -> str:
    """A part of a whole in percent: never 0 % for something, never 100 % for less than all."""
    if not part or part == whole:
        return "100 %" if part else "0 %"
    percent = 100 * part / whole
    return f"{min(percent, 99.9):.1f} %" if percent >= 0.1 else "< 0.1 %"


def height(part: float, most: float) -> float:
    """How high a bar is, of 100: something is always seen."""
    return round(max(96 * part / most, 2), 2) if part else 0.0


def instant(micros: int) -> str:
    """An instant as people read it, in UTC."""
    return to_datetime(micros).isoformat(" ").removesuffix("+00:00")


def shown(item: Any) -> str:
    """A value as people read it: floats by all their digits, texts in quotes, instants in UTC."""
    return item.isoformat(" ").removesuffix("+00:00") if isinstance(item, datetime) else repr(item)


def bars(hours: Mapping[int, tuple[int, int, int]]) -> list[Bar]:
    """At most `_BARS` stretches of equally many hours, from `ServiceAudit.hours`; none where all is one hour."""
    if len(hours) <= 1:
        return []
    first, last = min(hours), max(hours)
    width = -(-(last - first + 1) // _BARS)
    sums: dict[int, list[int]] = {}
    for hour, counts in sorted(hours.items()):
        of_bar = sums.setdefault((hour - first) // width, [0, 0, 0])
        for position, count in enumerate(counts):
            of_bar[position] += count
    found = []
    for number in range((last - first) // width + 1):
        values, differ, later = sums.get(number, (0, 0, 0))
        begin = instant((first + number * width) * HOUR)
        found.append(Bar(begin, values, differ / max(values, 1), later / max(values, 1)))
    return found
