"""Spans of noise are T5's in number, length and place, and inputs and targets give every row back."""

import itertools

import numpy as np
import pytest

from data import draws
from data.span_lengths import Denoiser, input_length, joined_length, noise_counts, raw_length, target_length
from data.spans import corrupt, division, draw_spans

T5 = Denoiser("", 0.15, 3.0)
END, SENTINELS = 1, np.arange(4999, 4000, -1, dtype=np.int32)  # from the end of the vocabulary downwards
KINDS = (
    T5,
    *(Denoiser("", rate, span) for rate in (0.01, 0.15, 0.5, 0.9, 0.999) for span in (1.0, 3.0, 8.0, 64.0)),
    Denoiser("", 0.25, suffix=True),
    Denoiser("", 0.9, suffix=True),
)


def words(count: int, seed: int = 0) -> np.ndarray:
    return draws.words(np.array([draws.key(f"test {seed}")], np.uint64), count)[0]


def put_back(inputs: list[int], targets: list[int]) -> list[int]:
    """The row of which T5 makes such inputs and targets: each sentinel's span in its place. Written from the paper."""
    assert inputs[-1] == targets[-1] == END
    spans, held = {}, None
    for token in targets[:-1]:
        if token > 4000:
            held = spans.setdefault(token, [])
        else:
            held.append(token)
    row = []
    for token in inputs[:-1]:
        row += spans.pop(token) if token > 4000 else [token]
    assert not spans
    return row


@pytest.mark.parametrize(
    ("length", "raw", "targets"),
    [(512, 568, 114), (256, 284, 58), (128, 141, 29), (64, 70, 14)],
)
def test_lengths_are_those_of_random_spans(length, raw, targets):
    """The table that T5's helper gives for noise of 15 % in spans of 3."""
    assert raw_length((T5,), "encoder_decoder", length) == raw
    assert (input_length(T5, raw), target_length(T5, raw)) == (length, targets)


@pytest.mark.parametrize("arrangement", ["encoder_decoder", "decoder", "prefix_decoder"])
def test_no_longer_row_of_text_would_fit(arrangement):
    measure = input_length if arrangement == "encoder_decoder" else joined_length
    for kinds in ((T5,), KINDS[1:3], KINDS[-2:]):
        for length in range(6, 700, 7):
            raw = raw_length(kinds, arrangement, length)
            longest = [max(measure(kind, tokens) for kind in kinds) for tokens in (raw, raw + 1)]
            assert longest[0] <= length < longest[1]
            assert longest[0] > length - (1 if arrangement == "encoder_decoder" else 3)
    assert raw_length((T5,), arrangement, 1) == 0


def test_divisions_are_all_alike():
    """The 20 sums of 4 numbers that are 7, each as often as any: 5 standard deviations."""
    found = {}
    for seed in range(8000):
        parts = tuple(division(7, 4, words(6, seed)).tolist())
        found[parts] = found.get(parts, 0) + 1
    assert set(found) == {parts for parts in itertools.product(range(1, 7), repeat=4) if sum(parts) == 7}
    assert len(found) == 20 and max(abs(count - 400) for count in found.values()) < 5 * np.sqrt(400 * 0.95)
    assert division(5, 1, words(4)).tolist() == [5] and division(3, 3, words(2)).tolist() == [1, 1, 1]


def test_every_row_is_put_back():
    """Of 4,000 rows of every length up to 200 and every kind of noise: nothing is lost, doubled or moved."""
    generator = np.random.default_rng(0)
    for seed in range(4000):
        kind = KINDS[seed % len(KINDS)]
        tokens = generator.integers(2, 4001, generator.integers(1, 201)).astype(np.int32)
        kept, noise = draw_spans(kind, tokens.size, words(tokens.size, seed))
        inputs, targets = corrupt(tokens, kept, noise, SENTINELS, END)
        assert inputs.dtype == targets.dtype == np.int32
        assert put_back(inputs.tolist(), targets.tolist()) == tokens.tolist()
        assert kept.size == noise.size == noise_counts(kind, tokens.size)[1]
        if tokens.size > 1:
            assert tokens[0] == inputs[0] and kept.min() >= 1 and noise.min() >= 1
        assert inputs[inputs > 4000].tolist() == SENTINELS[: kept.size].tolist()
        assert targets[targets > 4000].tolist() == SENTINELS[: kept.size].tolist()
        assert inputs.size <= input_length(kind, tokens.size) and targets.size <= target_length(kind, tokens.size)
        if not kind.suffix:
            assert inputs.size == input_length(kind, tokens.size) and targets.size == target_length(kind, tokens.size)
            assert noise.sum() == noise_counts(kind, tokens.size)[0]
        assert inputs.size + targets.size - 1 == joined_length(kind, tokens.size)


@pytest.mark.parametrize(
    ("length", "expected"),
    [(1, (0, 0)), (2, (1, 1)), (3, (1, 1)), (10, (2, 1)), (30, (4, 1)), (70, (10, 3)), (568, (85, 28))],
)
def test_counts_round_to_even(length, expected):
    """round(length * .15) noise, at least 1 and not all; round(noise / 3) spans: 30 * .15 = 4.5 gives 4."""
    assert noise_counts(T5, length) == expected


def test_a_suffix_is_of_uniform_length_with_the_rates_mean():
    """Of 40 tokens a quarter in the mean: 1 to 19 at the end of the row, alike."""
    kind = Denoiser("", 0.25, suffix=True)
    drawn = [draw_spans(kind, 40, words(40, seed)) for seed in range(6000)]
    counts = np.bincount([noise[0] for _, noise in drawn], minlength=20)
    assert all(kept[0] + noise[0] == 40 for kept, noise in drawn)
    assert counts[0] == 0 and counts.size == 20
    assert abs(counts[1:] - 6000 / 19).max() < 5 * np.sqrt(6000 / 19)


def test_noise_is_everywhere_but_at_the_start():
    """Each token of a row but the first few is noise about as often as the rate says."""
    length, hits = 60, np.zeros(60)
    for seed in range(3000):
        kept, noise = draw_spans(T5, length, words(length, seed))
        hits += np.repeat(np.tile([0, 1], kept.size), np.stack((kept, noise), 1).ravel())
    assert hits[0] == 0 and abs(hits.sum() - 9 * 3000) == 0
    assert abs(hits[10:-10] / 3000 - 0.15).max() < 0.06
