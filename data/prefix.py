"""The objective prefix_lm: each segment of a packed row is a prefix, whose tokens see one another, and what follows.

Of a segment of m tokens the first p are its prefix, p from 1 to m alike (Raffel et al. 2019, section 3.2.1). What
is predicted is what the prefix does not hold: the targets from that of its last token on, m - p + 1 of them.
`order` ranks the tokens for causality: a token sees those of its segment whose order is not above its own. It is
p - 1 within the prefix, and the position behind it.
"""

from __future__ import annotations

import numpy as np

from data import draws
from data.config import Data
from data.drawn_rows import DrawnRows, Row
from data.kinds import Spec, drawing_seed, sequence
from data.packing import DTYPES, make_rows
from data.store import Store

KEYS = {**DTYPES, "order": np.int32}


def spec(config: Data) -> Spec:
    return sequence(config.length, KEYS)


def split(row: Row, key: int) -> Row:
    """A packed row without padding, its segments split: weights 0 where a target is in its prefix, and `order`."""
    starts = np.flatnonzero(np.diff(row["segment_ids"], prepend=0))
    sizes = np.diff(starts, append=row["segment_ids"].size)
    lasts = draws.below(draws.words(np.array([key], np.uint64), sizes.size)[0], sizes)  # p - 1
    last = np.repeat(lasts, sizes).astype(np.int32)
    weights = np.where(row["positions"] >= last, row["weights"], np.float32(0))
    return {**row, "weights": weights, "order": np.maximum(row["positions"], last)}


def rows(config: Data, store: Store, seed: int, held_out: bool) -> DrawnRows:
    packed = make_rows(store, config.length, config.packing, config.long_documents)
    return DrawnRows(packed, spec(config), "prefix_lm", drawing_seed(seed, held_out), split)
