"""The objective fim: documents whose middle stands at their end (Bavarian et al. 2022, section 3).

At the level of contexts: a packed row is cut from the store first, and then some of its segments are rearranged.
Behind its end of text, where it begins with one, a segment is cut at two random tokens into a prefix, a middle and
a suffix, any of which may be empty; it becomes one of

    PSM  <prefix> prefix <suffix> suffix <middle> middle
    SPM  <prefix> <suffix> suffix <middle> prefix middle      (their second variant, for training on both)

and ends with an end of text as its last target, also where the row cuts its document. All tokens are predicted,
sentinels included. Middles are cut between tokens, not characters.

A row's text is shorter than the row by the room for `segments` times three sentinels, so that no token is lost:
every token of the store is an input exactly once an epoch. Room that is not taken is padding at the row's end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data import draws
from data.config import Data
from data.drawn_rows import DrawnRows, Row
from data.kinds import Spec, drawing_seed, sequence
from data.objective_config import FimObjective, fim_length
from data.packing import DTYPES, make_rows
from data.store import Store

WORDS = 4  # drawn for a segment: whether it is rearranged, how, and its two cuts


@dataclass(frozen=True)
class Names:
    """The ids that rows are rearranged with."""

    prefix: int
    suffix: int
    middle: int
    end: int  # of text


def spec(config: Data) -> Spec:
    return sequence(config.length, DTYPES)


def middle_last(tokens: np.ndarray, first: int, second: int, suffix_first: bool, names: Names) -> np.ndarray:
    """`tokens` int32 with those from `first` up to `second` at the end: PSM or, with `suffix_first`, SPM."""
    prefix, middle, suffix = np.split(tokens, [first, second])
    if suffix_first:
        parts = ([names.prefix, names.suffix], suffix, [names.middle], prefix, middle)
    else:
        parts = ([names.prefix], prefix, [names.suffix], suffix, [names.middle], middle)
    return np.concatenate(parts).astype(np.int32)


def rearrange(row: Row, objective: FimObjective, names: Names, key: int) -> Row:
    """A packed row without padding, some of its segments rearranged; longer by three tokens for each."""
    starts = np.flatnonzero(np.diff(row["segment_ids"], prepend=0))
    stops = np.append(starts[1:], row["segment_ids"].size)
    words = draws.words(np.array([key], np.uint64), WORDS * starts.size)[0].reshape(-1, WORDS)
    chosen = _chosen(row["tokens"], starts, stops, objective, names, words[:, 0])
    parts = []
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        tokens, targets = row["tokens"][start:stop], row["targets"][start:stop]
        if chosen[number]:
            lead = int(tokens[0] == names.end)
            suffix_first = bool(draws.shares(words[number, 1:2])[0] < objective.spm_share)
            first, second = np.sort(draws.below(words[number, 2:], tokens.size - lead + 1))
            moved = middle_last(tokens[lead:], first, second, suffix_first, names)
            tokens = np.concatenate((tokens[:lead], moved))
            targets = np.append(tokens[1:], names.end).astype(np.int32)
        ids, positions = np.full(tokens.size, number + 1, np.int32), np.arange(tokens.size, dtype=np.int32)
        parts.append((tokens, targets, np.ones(tokens.size, np.float32), ids, positions))
    return {key: np.concatenate(part) for key, part in zip(DTYPES, zip(*parts, strict=True), strict=True)}


def _chosen(tokens, starts, stops, objective: FimObjective, names: Names, words) -> np.ndarray:
    """bool [segments]: those that are rearranged; where too many are drawn any of them alike, as many as have room."""
    empty = stops - starts == (tokens[starts] == names.end)
    drawn = np.where(empty, 1.0, draws.shares(words))
    ranks = np.argsort(np.argsort(drawn, kind="stable"), kind="stable")
    return (drawn < objective.rate) & (ranks < objective.segments) & ~empty


def rows(config: Data, store: Store, seed: int, held_out: bool) -> DrawnRows:
    """The rows of a store, rearranged."""
    objective, tokenizer = config.objective, store.tokenizer
    found = (tokenizer.special_tokens[name] for name in (objective.prefix, objective.suffix, objective.middle))
    names = Names(*found, tokenizer.end_of_text)
    packed = make_rows(store, fim_length(objective, config.length), config.packing, config.long_documents)

    def make(row: Row, key: int) -> Row:
        return rearrange(row, objective, names, key)

    return DrawnRows(packed, spec(config), "fim", drawing_seed(seed, held_out), make)
