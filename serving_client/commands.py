"""The command of a lookup as Redis reads it, packed at once: redis-py would look at each key in Python."""

from __future__ import annotations

from collections.abc import Sequence


def mget(keys: Sequence[bytes]) -> bytes:
    """MGET of `keys`."""
    return b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1) + b"".join([b"$%d\r\n%b\r\n" % (len(k), k) for k in keys])
