"""How long the inputs and targets of a corrupted row are, and so how many tokens of text fill a row. No arrays.

Of n tokens k are noise, in s spans. The inputs are what is left, a sentinel for each span and an end, behind a
token for the mode where there is one; the targets are each span behind its sentinel, and an end. By the arithmetic
of T5's random_spans (Raffel et al. 2019), with which s and k follow from n alone: rows of 568 tokens give inputs
of 512 and targets of 114.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

SHORTEST_NOISY = 2  # a token and one of noise
JOINED = ("decoder", "prefix_decoder")  # arrangements in which the targets stand behind the inputs


@dataclass(frozen=True)
class Denoiser:
    """A kind of noise: SPANCORRUPT(mu, r, n) of Tay et al. 2022, section 3.1."""

    mode: str = "[NLU]"  # the special token before its inputs; empty: none
    rate: float = 0.15  # r: of a row's tokens that are noise; with `suffix` in the mean
    mean_span: float = 3.0  # mu, in tokens; without meaning with `suffix`
    suffix: bool = False  # n = 1: one span, up to the row's end, its length uniform
    weight: float = 1.0  # how often it is chosen, relative to the others


def noise_counts(denoiser: Denoiser, length: int) -> tuple[int, int]:
    """(k, s) of a row of `length` tokens; a single token is no noise. With `suffix` k is the most that is drawn.

    Half a token, and half a span, round to even, as in T5.
    """
    if length < SHORTEST_NOISY:
        return 0, 0
    wanted = round(length * denoiser.rate)
    if denoiser.suffix:
        return min(max(1, 2 * wanted - 1), length - 1), 1
    noise = min(max(1, wanted), length - 1)
    return noise, min(max(1, round(noise / denoiser.mean_span)), noise, length - noise)


def input_length(denoiser: Denoiser, length: int) -> int:
    """Inputs of a row of `length` tokens at the most: a suffix may be one token."""
    noise, spans = noise_counts(denoiser, length)
    noise = min(noise, 1) if denoiser.suffix else noise
    return bool(denoiser.mode) + length - noise + spans + 1


def target_length(denoiser: Denoiser, length: int) -> int:
    """Targets of a row of `length` tokens at the most."""
    noise, spans = noise_counts(denoiser, length)
    return noise + spans + 1


def joined_length(denoiser: Denoiser, length: int) -> int:
    """Positions of a decoder that reads inputs and targets of a row of `length` tokens; the last is a target only."""
    _, spans = noise_counts(denoiser, length)
    return bool(denoiser.mode) + length + 2 * spans + 1


def raw_length(denoisers: tuple[Denoiser, ...], arrangement: str, length: int) -> int:
    """Tokens of text in a row: the most that any of `denoisers` fits into `length` positions; 0 where none does.

    Into those of the inputs or, under an arrangement of JOINED, of inputs and targets together.
    """
    measure = joined_length if arrangement in JOINED else input_length

    def longest(tokens: int) -> int:
        return max(measure(denoiser, tokens) for denoiser in denoisers)

    beyond = 1
    while longest(beyond) <= length:
        beyond *= 2
    return bisect_right(range(1, beyond), length, key=longest)
