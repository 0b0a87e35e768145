"""Which tokens of a row are predicted, and what the model reads in their place (Devlin et al. 2018, section 3.1).

Of `objective.choice`:

    count        as in BERT's code the row's length fixes how many: min(max_predictions, max(1, round(rate * tokens))),
                 special tokens counted but never chosen
    independent  each token by itself with the probability `rate`; of more than max_predictions as many are taken,
                 any of them alike, and the others stay what they are. `unslotted` is how many in the mean

Everything is drawn from (seed, row, copy) alone, so neither the batch around a row nor who makes it can change it.
"""

from __future__ import annotations

import math
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


def unslotted(objective: MaskedObjective, candidates: int) -> float:
    """Tokens of a row that are chosen and find no slot, in the mean over rows of `candidates` tokens.

    Each is chosen by itself, so that their number is binomial: sum over n > slots of (n - slots) * P(n).
    """
    rate, slots = objective.rate, objective.max_predictions
    if objective.choice != "independent" or candidates <= slots:
        return 0.0
    if rate == 1.0:
        return float(candidates - slots)
    n = np.arange(slots + 1, candidates + 1)
    whole = math.lgamma(candidates + 1)
    ways = [whole - math.lgamma(k + 1) - math.lgamma(candidates - k + 1) for k in n.tolist()]
    chances = np.exp(np.array(ways) + n * math.log(rate) + (candidates - n) * math.log1p(-rate))
    return float(np.sum((n - slots) * chances))


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
    if objective.whole_word:
        chosen = _whole_words(objective, order, candidates, begins, lengths)
    else:
        wanted = candidates & _drawn(objective, order)
        # The candidates by their random words; of what is none, the words are the largest there are.
        ranks = np.argsort(np.argsort(np.where(wanted, order, LAST), axis=1, kind="stable"), axis=1)
        chosen = wanted & (ranks < _most(objective, lengths)[:, None])
    found = chosen.sum(axis=1)
    places = np.argsort(~chosen, axis=1, kind="stable")[:, :slots]
    used = np.arange(slots) < found[:, None]
    return {
        "tokens": np.where(chosen, _replaced(objective, vocabulary, tokens, action, identity), tokens),
        "masked_positions": np.where(used, places, 0).astype(np.int32),
        "targets": np.where(used, np.take_along_axis(tokens, places, axis=1), 0).astype(np.int32),
        "weights": used.astype(np.float32),
    }


def _drawn(objective: MaskedObjective, order: np.ndarray) -> np.ndarray:
    """bool: whether each word is one that may be predicted at all; all are where their number is fixed."""
    if objective.choice == "count":
        return np.ones(order.shape, bool)
    return draws.shares(order) < objective.rate


def _most(objective: MaskedObjective, lengths: np.ndarray) -> np.ndarray:
    """How many tokens of each row are predicted at the most, int64 [rows]."""
    if objective.choice == "count":
        return prediction_counts(objective, lengths)
    return np.full(lengths.shape, objective.max_predictions, np.int64)


def _replaced(objective, vocabulary, tokens, action, identity) -> np.ndarray:
    """What stands in place of each token if it is chosen: itself, any token, or the mask."""
    share = draws.shares(action)
    anything = draws.below(identity, vocabulary.size)
    kept, drawn = objective.keep_share, objective.keep_share + objective.random_share
    masked = np.where(share < drawn, anything.astype(np.int32), np.int32(vocabulary.mask))
    return np.where(share < kept, tokens, masked)


def _whole_words(objective, order, candidates, begins, lengths) -> np.ndarray:
    """bool [rows, length]: words in random order, each whole; one that would overshoot is passed over."""
    chosen = np.zeros_like(candidates)
    drawn = _drawn(objective, order)
    for row, most in enumerate(_most(objective, lengths)):
        places = np.flatnonzero(candidates[row])
        # A word also begins behind a special token, and where a row does.
        starts = np.flatnonzero(begins[row, places] | (np.diff(places, prepend=-2) != 1))
        words, left = np.split(places, starts[1:]), int(most)
        for word in np.argsort(order[row, places[starts]], kind="stable"):
            if not drawn[row, places[starts[word]]]:
                break  # words come in the order of what is drawn for them: no later one is
            if words[word].size <= left:
                chosen[row, words[word]] = True
                left -= words[word].size
            if not left:
                break
    return chosen
