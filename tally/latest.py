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
    order = _by_code_and_time(codes, timestamp)
    ordered_codes, ordered_times = codes[order], timestamp[order]
    same = (ordered_codes[1:] == ordered_codes[:-1]) & (ordered_times[1:] == ordered_times[:-1])
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


def _by_code_and_time(codes: Integers, timestamp: Integers) -> Positions:
    if len(codes) == 0:
        return np.zeros(0, np.int64)
    earliest = int(timestamp.min())
    span = int(timestamp.max()) - earliest + 1
    if (int(codes.max()) + 1) * span < 2**63:
        return np.argsort(codes * span + (timestamp - earliest))
    order = np.argsort(timestamp)
    # NumPy sorts 16-bit integers stably by radix: two passes beat one comparison sort of the codes.
    order = order[np.argsort((codes[order] & 0xFFFF).astype(np.uint16), kind="stable")]
    high = codes[order] >> 16
    return order[np.argsort(high.astype(np.uint16) if int(high.max()) < 2**16 else high, kind="stable")]


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
