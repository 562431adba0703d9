"""The keys of a lookup, and the command that reads them, packed at once: redis-py would look at each key in Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final

Values = list[bytes | None]
"""What Redis has for some keys, in their order: None where there is nothing."""
_HEAD: Final = b"\r\n$%d\r\n%b"
"""What comes before a key's own part: the end of the part before, the key's length, its prefix."""


def mget(keys: Sequence[bytes]) -> bytes:
    """MGET of `keys`."""
    return b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1) + b"".join([b"$%d\r\n%b\r\n" % (len(k), k) for k in keys])


class Keys(Sequence[bytes]):
    """Keys in blocks: each block's keys are its prefix before each of its texts. They are put together when looked at."""

    def __init__(self, blocks: Sequence[tuple[bytes, Sequence[bytes]]]) -> None:
        self._blocks = blocks
        self._count = sum([len(texts) for _, texts in blocks])

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        return chain.from_iterable([prefix + text for text in texts] for prefix, texts in self._blocks)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice) or position < 0:
            return list(self)[position]
        for prefix, texts in self._blocks:
            if position < len(texts):
                return prefix + texts[position]
            position -= len(texts)
        raise IndexError(position)

    @property
    def blocks(self) -> list[Keys]:
        """The keys of each block."""
        return [Keys((block,)) for block in self._blocks]

    def mget(self, more: Sequence[bytes]) -> bytes:
        """MGET of these keys, and of `more` after them."""
        parts = [b"*%d\r\n$4\r\nMGET" % (1 + self._count + len(more))]
        for prefix, texts in (*self._blocks, (b"", more)):
            heads = {length: _HEAD % (len(prefix) + length, prefix) for length in set(map(len, texts))}
            if len(heads) == 1:
                (head,) = heads.values()
                parts += [head, head.join(texts)]
            else:
                parts += [heads[len(text)] + text for text in texts]
        parts.append(b"\r\n")
        return b"".join(parts)
