"""Which of an entity's rows is the latest: the one rule that the offline join and materialization share.

Rows are ordered by ``(event_timestamp, a, b)``, where (a, b) is (created, 0) for warehouse rows and (partition, offset) for
stream rows. Rows that tie in all three are ordered by their packed bytes (`RowLayout.pack`), as Redis does, so the latest
row depends on the set of rows and never on their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tally.blocks import BLOCK, Each, blocks_of, one_by_one

Positions = NDArray[np.int64]
Integers = NDArray[np.int64]
Codes = NDArray[np.int32] | NDArray[np.int64]

_HALVED: Final = 1 << 18
"""More rows than this are sorted in halves, which may be sorted at the same time."""


def sorted_positions(
    codes: Codes,
    timestamp: Integers,
    a: Integers,
    b: Integers,
    packed: Callable[[Positions], list[bytes]] | None = None,
    each: Each = one_by_one,
) -> Positions:
    """Positions that sort rows by (code, timestamp, a, b, packed bytes); the latest row of a code comes last.

    `codes` are integers from 0 that stand for entities. `packed` gives the bytes of the rows at some positions and is asked
    only for rows that tie in everything else; without it such rows keep any order. `each` may work on several blocks of
    rows at the same time.
    """
    if len(codes) == 0:
        return np.zeros(0, np.int64)
    first = timestamp.min()
    order, same = _by_code_and_time(codes, timestamp, first, (int(timestamp.max()) - int(first)).bit_length(), each)
    tied = _tied(same)
    if len(tied) == 0:
        return order
    rows = order[tied]
    group = np.cumsum(np.concatenate([[True], ~same])[tied])
    within = np.lexsort((b[rows], a[rows], group))
    rows, group = rows[within], group[within]
    if packed is not None:
        _order_full_ties(rows, group, a, b, packed)
    order[tied] = rows
    return order


def _by_code_and_time(
    codes: Codes, times: Integers, first: np.int64, width: int, each: Each
) -> tuple[Positions, NDArray[np.bool_]]:
    """(positions that sort by (code, time), whether each of them ties with the one after it).

    `times` are those from `first` on, with at most `width` bits above it. Plain integers sort several times faster than
    positions do (`argsort`), so each row becomes one: its code, as many leading bits of its time as there is room for, its
    position. Rows that tie in these are few, and are sorted again by the bits that were left out.
    """
    count = len(codes)
    below = (count - 1).bit_length()
    room = 64 - below - int(codes.max()).bit_length()
    if room < min(width, 2):
        codes = np.unique(codes, return_inverse=True)[1]
        room = 64 - below - int(codes.max()).bit_length()
    kept = min(room, width)
    cut = width - kept
    key = np.empty(count, np.uint64)
    ascending = np.arange(min(count, BLOCK), dtype=np.uint64)

    def pack(block: slice) -> None:
        part = key[block]
        part[:] = codes[block]
        part <<= kept
        part |= (times[block] - first).view(np.uint64) >> cut  # right even where the difference does not fit int64
        part <<= below
        part |= ascending[: len(part)] + np.uint64(block.start)

    each(pack, blocks_of(count))
    _sort(key, each)
    position = np.uint64((1 << below) - 1)
    same = np.empty(count - 1, np.bool_)

    def compare(block: slice) -> None:
        np.less_equal(key[1:][block] ^ key[:-1][block], position, out=same[block])

    each(compare, blocks_of(count - 1))
    key &= position
    order = key.view(np.int64)
    tied = _tied(same) if cut else order[:0]
    if len(tied):
        rows = order[tied]
        group = np.cumsum(np.concatenate([[False], ~same])[tied])
        left_out = (times[rows] - first) & ((1 << cut) - 1)
        again, still = _by_code_and_time(group, left_out, np.int64(0), cut, one_by_one)
        order[tied] = rows[again]
        same[:] = False
        same[tied[:-1][still]] = True
    return order, same


def _sort(key: NDArray[np.uint64], each: Each) -> None:
    """Sort in place."""
    if len(key) <= _HALVED:
        key.sort()
    else:
        half = len(key) // 2
        key.partition(half)
        each(lambda part: key[part].sort(), [slice(0, half), slice(half, len(key))])


def _tied(same: NDArray[np.bool_]) -> Positions:
    if not same.any():
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate([[False], same]) | np.concatenate([same, [False]]))


def _order_full_ties(
    rows: Positions, group: Integers, a: Integers, b: Integers, packed: Callable[[Positions], list[bytes]]
) -> None:
    same = (group[1:] == group[:-1]) & (a[rows[1:]] == a[rows[:-1]]) & (b[rows[1:]] == b[rows[:-1]])
    tied = _tied(same)
    if len(tied) == 0:
        return
    subgroup = np.cumsum(np.concatenate([[True], ~same])[tied]).tolist()
    contents = packed(rows[tied])
    ranked = sorted(range(len(tied)), key=lambda i: (subgroup[i], contents[i]))
    rows[tied] = rows[tied[np.array(ranked)]]
