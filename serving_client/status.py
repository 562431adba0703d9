"""What the store had to say about one value."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """How a value came about. A request function's output has the greatest status of its stored inputs."""

    PRESENT = 0
    """From a stored row or tiles (the value may still be null: a null was stored, or a window is empty)."""
    MISSING = 1
    """Nothing is stored for the entity: null; a window's count is 0."""
    EXPIRED = 2
    """The stored row is older than the view's time to live: null."""
    AHEAD = 3
    """The store already holds a row after `as_of`. A latest row is then null, since an older one that `as_of` would see
    may have been overwritten; a window may hold rows after `as_of` or lack tiles that have been dropped since."""
    CACHED = 4
    """As PRESENT, but from the in-process cache: Redis may hold something newer, by no more than the cache's age."""
    STALE = 5
    """Redis did not answer, and the value comes from what the cache had read before; asked for with `Fallback`."""
    DEFAULT = 6
    """Redis did not answer, and the value is the one given in `Fallback`, or null where none was given."""
