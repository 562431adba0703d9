"""Which of an entity's rows is the latest: the one rule that the offline join and materialization share.

Rows are ordered by ``(event_timestamp, a, b)``, where (a, b) is (created, 0) for warehouse rows and (partition, offset) for
stream rows. Rows that tie in all three are ordered by their packed bytes (`RowLayout.pack`), as Redis does, so the latest
row depends on the set of rows and never on their order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
Integers = NDArray[np.int64]
Unsigned = NDArray[np.uint64]


def sorted_positions(
    codes: Integers,
    timestamp: Integers,
    a: Integers,
    b: Integers,
    packed: Callable[[Positions], list[bytes]] | None = None,
) -> Positions:
    """Positions that sort rows by (code, timestamp, a, b, packed bytes); the latest row of a code comes last.

    `codes` are integers from 0 that stand for entities. `packed` gives the bytes of the rows at some positions and is asked
    only for rows that tie in everything else; without it such rows keep any order.
    """
    if len(codes) == 0:
        return np.zeros(0, np.int64)
    later = (timestamp - timestamp.min()).view(np.uint64)  # right even where the difference does not fit int64
    order, same = _by_code_and_time(codes.view(np.uint64), later, int(later.max()).bit_length())
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


def _by_code_and_time(codes: Unsigned, times: Unsigned, width: int) -> tuple[Positions, NDArray[np.bool_]]:
    """(positions that sort by (code, time), whether each of them ties with the one after it).

    `times` have at most `width` bits. Plain integers sort several times faster than positions do (`argsort`), so each row
    becomes one: its code, as many leading bits of its time as there is room for, its position. Rows that tie in these are
    few, and are sorted again by the bits that were left out.
    """
    below = (len(codes) - 1).bit_length()
    room = 64 - below - int(codes.max()).bit_length()
    if room < min(width, 2):
        codes = np.unique(codes, return_inverse=True)[1].astype(np.uint64)
        room = 64 - below - int(codes.max()).bit_length()
    kept = min(room, width)
    cut = width - kept
    key = codes << kept
    key |= times >> cut
    key <<= below
    key |= np.arange(len(codes), dtype=np.uint64)
    key.sort()
    order = (key & ((1 << below) - 1)).view(np.int64)
    key >>= below
    same = key[1:] == key[:-1]
    tied = _tied(same) if cut else order[:0]
    if len(tied):
        rows = order[tied]
        group = np.cumsum(np.concatenate([[False], ~same])[tied]).view(np.uint64)
        again, still = _by_code_and_time(group, times[rows] & np.uint64((1 << cut) - 1), cut)
        order[tied] = rows[again]
        same[:] = False
        same[tied[:-1][still]] = True
    elif cut:
        same[:] = False
    return order, same


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
