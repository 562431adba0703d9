"""Views made by hand for tests: what most definitions leave as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tally.aggregates import output_dtype
from tally.plan import Field, Source, View, hashed_view
from tally.tiles import Aggregation
from tally.windows import Window


def latest_view(name: str, source: Source, keys: Sequence[Field], fields: Sequence[Field], **more: Any) -> View:
    """A view of the latest rows of a topic or a table; `more` are other attributes of the view, ``ttl`` for example."""
    return _view(name, "latest", source, keys, fields, **more)


def window_view(
    name: str, source: Source, keys: Sequence[Field], aggregations: Sequence[Aggregation], **more: Any
) -> View:
    """A view of windows of a topic, whose features are what the aggregations give."""
    fields = [Field(a.feature, a.output) for a in aggregations]
    return _view(name, "window", source, keys, fields, aggregations=tuple(aggregations), **more)


def aggregation(feature: str, column: Field, function: str, window: Window) -> Aggregation:
    """A feature of a column."""
    return Aggregation(feature, column.name, column.dtype, function, window, output_dtype(function, column.dtype))


def _view(name: str, kind: Any, source: Source, keys: Sequence[Field], fields: Sequence[Field], **more: Any) -> View:
    stamps = [Field(stamp, "UnixTimestamp") for stamp in (source.timestamp, source.created) if stamp]
    rows: dict[str, Any] = {
        "columns": source.message or (*keys, *fields, *stamps), "ttl": 0, "online": True, "stream": bool(source.topic),
        "function": None, "aggregations": (),
    }  # fmt: skip
    rows |= more
    view = View(
        name=name, kind=kind, source=source.name, keys=tuple(keys), fields=tuple(fields), timestamp=source.timestamp,
        created=source.created, **rows,
    )  # fmt: skip
    return hashed_view(view, source)
