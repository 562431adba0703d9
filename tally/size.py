"""How many bytes a key of a view takes in Redis, at most: computed from the definition alone.

Of a windowed view: the header, 12 bytes for each partition whose events the entity had, and the tiles. At a level with a hop
and a longest window, windows as of the newest event reach back `length / hop` tiles, rounded up, and one more where they begin
or end within a tile. Older tiles are dropped in the write that makes them so. A tile takes `TileLayout.stored` bytes, and its
texts at most LONGEST_TEXT each. Of a latest row: the fixed part, and its texts, which have no limit.

The key itself and Redis' own bookkeeping (about 60 bytes) come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from tally.aggregates import LONGEST_TEXT
from tally.dtypes import VARIABLE_WIDTH
from tally.layout import FENCE, TILES_HEADER
from tally.plan import View
from tally.tiles import TileLayout

_RECORDS_COUNT = 4


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of a value, at most: `fixed`, `per_partition` for each partition of its topic, and `texts` of text.

    `texts` is None where texts have no limit.
    """

    fixed: int
    per_partition: int
    texts: int | None

    def __str__(self) -> str:
        """For people: ``at most 4,567 bytes per key, 12 more per partition, plus text``."""
        parts = [f"at most {self.fixed:,} bytes per key"]
        if self.per_partition:
            parts.append(f"{self.per_partition} more per partition")
        if self.texts is None:
            parts.append("plus text")
        elif self.texts:
            parts.append(f"plus text of at most {self.texts:,}")
        return ", ".join(parts)

    def bound(self, partitions: int) -> int | None:
        """The bytes of a value with events of so many partitions, at most; None where there is no limit."""
        return None if self.texts is None else self.fixed + self.per_partition * partitions + self.texts


def most_tiles(layout: TileLayout) -> int:
    """How many tiles an entity has, at most."""
    return sum(-(-length // hop) + 1 for hop, length in layout.levels)


def bytes_per_key(view: View) -> Size:
    """What a key of a view takes, at most."""
    if view.kind == "latest":
        has_texts = any(field.dtype in VARIABLE_WIDTH for field in view.fields)
        return Size(view.row_layout.fixed.itemsize, 0, None if has_texts else 0)
    layout = view.tile_layout
    tiles = most_tiles(layout)
    fixed = TILES_HEADER.size + tiles * layout.stored.itemsize + (_RECORDS_COUNT if layout.texts else 0)
    return Size(fixed, FENCE.itemsize, tiles * len(layout.texts) * LONGEST_TEXT)
