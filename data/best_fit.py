"""Which pieces of documents share a row: best-fit decreasing (Ding et al. 2024, "Fewer truncations").

Documents are taken in blocks of BLOCK, in the order of the store, so that neither the time nor the memory that a
plan asks for depends on more than a block. Of each block the longest piece comes first, and each goes into the row
in which the least room is left behind it; a new row is begun where it fits into none.
"""

from __future__ import annotations

import numpy as np

BLOCK = 1 << 16  # documents planned together
# A stretch of a store's stream that one row holds: its first token, and how many.
PIECE = np.dtype([("start", "<u8"), ("length", "<u4")])


def pieces(starts: np.ndarray, stops: np.ndarray, length: int, drop: bool) -> np.ndarray:
    """PIECE [pieces] of the documents from `starts` up to `stops`, in their order.

    A document longer than a row of `length` is cut into rows and a rest or, under `drop`, left out.
    """
    sizes = stops - starts
    if drop:
        starts, sizes = starts[sizes <= length], sizes[sizes <= length]
    counts = -(-sizes // length)
    document = np.repeat(np.arange(sizes.size), counts)
    number = np.arange(document.size) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.empty(document.size, PIECE)
    found["start"] = starts[document] + number * length
    found["length"] = np.minimum(sizes[document] - number * length, length)
    return found


def best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(order, rows): piece `order[i]` is the next one of row `rows[i]`; int64 [pieces], `rows` ascending.

    `sizes`: how many tokens each piece has, 1 to `length`. Of equal pieces the first one in the block goes first,
    of rows with equal room the one that was begun or filled last.
    """
    order = np.argsort(-sizes, kind="stable")
    room: list[list[int]] = [[] for _ in range(length + 1)]  # the rows that have so many tokens left
    occupied = 0  # bit s: whether there is a row with s left
    rows, begun = np.empty(sizes.size, np.int64), 0
    for place, size in enumerate(sizes[order].tolist()):
        fitting = occupied >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1
            row = room[left].pop()
            if not room[left]:
                occupied ^= 1 << left
        else:
            left, row, begun = length, begun, begun + 1
        rows[place] = row
        left -= size
        if left:
            room[left].append(row)
            occupied |= 1 << left
    by_row = np.argsort(rows, kind="stable")
    return order[by_row], rows[by_row]
