"""Noise in a row of tokens: which spans it takes, and the inputs and targets that it makes of them.

Raffel et al. 2019, section 3.1.4 and T5's random_spans; a row begins with a token that is no noise. Tay et al.
2022, section 4.2: of an S-denoiser one span, of uniform length, up to the end of the row. Their other spans are
normally distributed; here they are T5's, each division of the noise into spans being as likely as any.
"""

from __future__ import annotations

import numpy as np

from data import draws
from data.span_lengths import Denoiser, noise_counts


def division(total: int, parts: int, words: np.ndarray) -> np.ndarray:
    """int64 [parts]: `total` as a sum of `parts` numbers from 1 on, each such sum alike. `words` uint64 [total - 1]."""
    cuts = np.sort(np.argsort(words[: total - 1], kind="stable")[: parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)


def draw_spans(denoiser: Denoiser, length: int, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(tokens kept before each span of noise, tokens of each span) of a row of `length`: int64 [spans] both.

    `words` uint64 [length] are all that is drawn from. Without noise both are empty.
    """
    noise, spans = noise_counts(denoiser, length)
    if spans == 0:
        nothing = np.empty(0, np.int64)
        return nothing, nothing
    if denoiser.suffix:
        drawn = 1 + draws.below(words[:1], noise)
        return length - drawn, drawn
    kept = length - noise
    return division(kept, spans, words[noise:]), division(noise, spans, words[:noise])


def corrupt(
    tokens: np.ndarray, kept: np.ndarray, noise: np.ndarray, sentinels: np.ndarray, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) of a row of `tokens`, without a mode; int32 both.

    `kept` and `noise` are of `draw_spans`. Span i gives way to `sentinels[i]`, behind which it stands in the
    targets; `end` ends both.
    """
    marks = sentinels[: kept.size]
    noisy = np.repeat(np.tile([False, True], kept.size), np.stack((kept, noise), axis=1).ravel())
    noisy = noisy if kept.size else np.zeros(tokens.size, bool)
    inputs = np.insert(tokens[~noisy], np.cumsum(kept), marks)
    targets = np.insert(tokens[noisy], np.cumsum(noise) - noise, marks)
    return np.append(inputs, end).astype(np.int32), np.append(targets, end).astype(np.int32)
