"""The objectives span_corruption and ul2: rows of which spans are predicted.

A row of text is a packed one, as long as `data.span_lengths.raw_length` has it, so that span corruption pads
nothing for an encoder-decoder, and at most two positions of a decoder. It is corrupted as one sequence, as in T5:
documents that are packed into it stand one behind the other, each behind its end of text, which may be noise like
any token, and see one another. Under data.packing=unpacked a row holds one document only.

Inputs and targets end with the token that ends a text; T5's is </s>, and its decoder begins with another, <pad>.
Every token of text is in the inputs or the targets, exactly once. Weights are 1 on the targets, sentinels and end
included, so that a row's sum to k + s + 1. Rows of ul2 differ in length by their noise: the shorter are padded.
"""

from __future__ import annotations

import numpy as np

from data import arrangements, draws
from data.config import Data
from data.drawn_rows import DrawnRows, Row
from data.kinds import Spec, drawing_seed
from data.objective_config import denoisers_of, sentinel_names
from data.packing import make_rows
from data.record_encoder import stop_of
from data.span_lengths import Denoiser, noise_counts, raw_length, target_length
from data.spans import corrupt, draw_spans
from data.store import Store

NO_MODE = -1


def text_length(config: Data) -> int:
    """Tokens of text that a row is made of."""
    return raw_length(denoisers_of(config.objective), config.objective.arrangement, config.length)


def spec(config: Data) -> Spec:
    """The keys of the objective's arrangement; a decoder beside an encoder has the targets that any noise makes."""
    raw = text_length(config)
    targets = max(target_length(denoiser, raw) for denoiser in denoisers_of(config.objective))
    return arrangements.spec(config.objective.arrangement, config.length, targets)


def choose(denoisers: tuple[Denoiser, ...], word: int) -> int:
    """Which of the denoisers a row has, by their weights."""
    ends = np.cumsum([denoiser.weight for denoiser in denoisers])
    share = draws.shares(np.array([word], np.uint64))[0]
    return min(int(np.searchsorted(ends, share * ends[-1], side="right")), len(denoisers) - 1)


def denoise(
    tokens: np.ndarray, denoisers: tuple[Denoiser, ...], modes: np.ndarray, sentinels: np.ndarray, end: int, key: int
) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets), int32, of a row of `tokens` under the denoiser that its key chooses.

    `modes` int32 [denoisers]: the token before the inputs of each, or NO_MODE.
    """
    words = draws.words(np.array([key], np.uint64), 1 + tokens.size)[0]
    chosen = choose(denoisers, words[0])
    inputs, targets = corrupt(tokens, *draw_spans(denoisers[chosen], tokens.size, words[1:]), sentinels, end)
    return (inputs if modes[chosen] == NO_MODE else np.insert(inputs, 0, modes[chosen])), targets


def rows(config: Data, store: Store, seed: int, held_out: bool) -> DrawnRows:
    """The corrupted rows of a store."""
    objective, tokenizer = config.objective, store.tokenizer
    denoisers, start, end = denoisers_of(objective), tokenizer.end_of_text, stop_of(config, tokenizer)
    raw, known = text_length(config), tokenizer.special_tokens
    spans = max(noise_counts(denoiser, raw)[1] for denoiser in denoisers)
    sentinels = np.array([known[name] for name in sentinel_names(objective, spans)], np.int32)
    modes = np.array([known[denoiser.mode] if denoiser.mode else NO_MODE for denoiser in denoisers], np.int32)

    def make(row: Row, key: int) -> Row:
        inputs, targets = denoise(row["tokens"], denoisers, modes, sentinels, end, key)
        return arrangements.arrange(objective.arrangement, inputs, targets, start)

    packed = make_rows(store, raw, config.packing, config.long_documents)
    return DrawnRows(packed, spec(config), objective.name, drawing_seed(seed, held_out), make)
