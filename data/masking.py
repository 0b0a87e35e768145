"""Which tokens of a row are predicted, and what the model reads in their place (Devlin et al. 2018, section 3.1).

As in BERT's code the number is fixed by the row's length: min(max_predictions, max(1, round(rate * tokens))),
special tokens counted but never chosen. Everything is drawn from (seed, row, copy) alone, so neither the batch
around a row nor who makes it can change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data import draws
from data.objective_config import MaskedObjective

LAST = np.uint64(draws.LAST)


@dataclass(frozen=True)
class Vocabulary:
    size: int  # a random token is any of these ids
    mask: int
    special: tuple[int, ...]  # never chosen


def keys(seed: int, rows: Sequence[int], copies: Sequence[int]) -> np.ndarray:
    """The key of each row's masks in its copy, uint64 [rows]."""
    names = (f"plumbline masks 1:{seed}:{int(row)}:{int(copy)}" for row, copy in zip(rows, copies, strict=True))
    return np.fromiter(map(draws.key, names), np.uint64)


def prediction_counts(objective: MaskedObjective, lengths: np.ndarray) -> np.ndarray:
    """How many tokens of rows of `lengths` are to be predicted, int64; half a token rounds to even, as in BERT."""
    wanted = np.rint(objective.rate * lengths).astype(np.int64)
    return np.where(lengths > 0, np.clip(wanted, 1, objective.max_predictions), 0)


def mask(
    objective: MaskedObjective,
    vocabulary: Vocabulary,
    tokens: np.ndarray,
    lengths: np.ndarray,
    begins: np.ndarray | None,
    keys: np.ndarray,
) -> dict[str, np.ndarray]:
    """Masks rows of `tokens` int32 [rows, length], whose first `lengths` int [rows] tokens are no padding.

    `begins` bool [rows, length]: whether a token begins a word, asked for by `objective.whole_word`; `keys`
    uint64 [rows].

    Returns the masked `tokens`, and [rows, max_predictions] `masked_positions` int32 in order, `targets` int32
    and `weights` float32; unused slots are 0 in all three.
    """
    length, slots = tokens.shape[1], objective.max_predictions
    order, action, identity = np.split(draws.words(keys, 3 * length), 3, axis=1)
    candidates = (np.arange(length) < lengths[:, None]) & ~np.isin(tokens, vocabulary.special)
    counts = prediction_counts(objective, lengths)
    if objective.whole_word:
        chosen = _whole_words(order, candidates, begins, counts)
    else:
        # The candidates by their random words; of what is none, the words are the largest there are.
        ranks = np.argsort(np.argsort(np.where(candidates, order, LAST), axis=1, kind="stable"), axis=1)
        chosen = candidates & (ranks < counts[:, None])
    found = chosen.sum(axis=1)
    places = np.argsort(~chosen, axis=1, kind="stable")[:, :slots]
    used = np.arange(slots) < found[:, None]
    return {
        "tokens": np.where(chosen, _replaced(objective, vocabulary, tokens, action, identity), tokens),
        "masked_positions": np.where(used, places, 0).astype(np.int32),
        "targets": np.where(used, np.take_along_axis(tokens, places, axis=1), 0).astype(np.int32),
        "weights": used.astype(np.float32),
    }


def _replaced(objective, vocabulary, tokens, action, identity) -> np.ndarray:
    """What stands in place of each token if it is chosen: itself, any token, or the mask."""
    share = (action >> np.uint64(11)).astype(np.float64) / 2.0**53
    # 32 bits of the word times the size stay below 64: any id, each as likely to one part in 2**32 / size.
    anything = ((identity >> np.uint64(32)) * np.uint64(vocabulary.size)) >> np.uint64(32)
    kept, drawn = objective.keep_share, objective.keep_share + objective.random_share
    masked = np.where(share < drawn, anything.astype(np.int32), np.int32(vocabulary.mask))
    return np.where(share < kept, tokens, masked)


def _whole_words(order, candidates, begins, counts) -> np.ndarray:
    """bool [rows, length]: words in random order, each whole; one that would overshoot the count is passed over."""
    chosen = np.zeros_like(candidates)
    for row, count in enumerate(counts):
        places = np.flatnonzero(candidates[row])
        # A word also begins behind a special token, and where a row does.
        starts = np.flatnonzero(begins[row, places] | (np.diff(places, prepend=-2) != 1))
        words, left = np.split(places, starts[1:]), int(count)
        for word in np.argsort(order[row, places[starts]], kind="stable"):
            if words[word].size <= left:
                chosen[row, words[word]] = True
                left -= words[word].size
            if not left:
                break
    return chosen
