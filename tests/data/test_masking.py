"""Masks are BERT's in number and kind, and a function of (seed, row, copy) and the row alone."""

from dataclasses import replace

import numpy as np
import pytest

from data.draws import Draws, key, words
from data.masking import Vocabulary, keys, mask, prediction_counts, unslotted
from data.objective_config import MaskedObjective

CLS, SEP, MASK, PAD = 2, 3, 4, 0
VOCABULARY = Vocabulary(1000, MASK, (PAD, CLS, SEP, MASK))
BERT = MaskedObjective(max_predictions=20)


def drawn_rows(count=6, length=48, seed=0):
    """(tokens, lengths, begins): rows of several lengths that begin with [CLS] and end with [SEP]."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(5, 1000, (count, length)).astype(np.int32)
    lengths = np.resize([length, 3, length - 1, 20, 2, 33], count)
    tokens[:, 0] = CLS
    tokens[np.arange(count), lengths - 1] = SEP
    tokens[np.arange(length) >= lengths[:, None]] = PAD
    begins = generator.random((count, length)) < 0.6
    return tokens, lengths, begins


def masked(objective, tokens, lengths, begins=None, seed=0, rows=None, copy=0, vocabulary=VOCABULARY):
    rows = range(len(tokens)) if rows is None else rows
    return mask(objective, vocabulary, tokens, lengths, begins, keys(seed, rows, [copy] * len(tokens)))


def test_draws_are_splitmix64():
    """The first numbers of the reference code's stream of seed 1234567 (Vigna, splitmix64.c)."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert words(np.array([1234567], np.uint64), 4)[0].tolist() == expected
    draws = Draws("name")
    assert [draws.word() for _ in range(5)] == words(np.array([key("name")], np.uint64), 5)[0].tolist()


def test_draws_are_even():
    draws = Draws("even")
    counts = np.bincount([draws.below(10) for _ in range(20_000)], minlength=10)
    assert abs(counts - 2000).max() < 5 * np.sqrt(1800)
    assert abs(sum(draws.chance(0.1) for _ in range(20_000)) - 2000) < 5 * np.sqrt(1800)
    assert not any(draws.chance(0.0) for _ in range(1000)) and all(draws.chance(1.0) for _ in range(1000))


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, 0), (1, 1), (3, 1), (10, 2), (30, 4), (50, 8), (128, 19), (133, 20), (134, 20), (512, 20), (9, 1), (17, 3)],
)
def test_the_number_is_berts(length, expected):
    """min(max_predictions, max(1, round(rate * length))), round as Python's: 30 * .15 = 4.5 gives 4."""
    assert prediction_counts(BERT, np.array([length])).tolist() == [expected]
    assert length == 0 or expected == min(20, max(1, int(round(length * 0.15))))


def test_what_is_predicted_can_be_put_back():
    tokens, lengths, _ = drawn_rows()
    found = masked(BERT, tokens, lengths)
    counts = prediction_counts(BERT, lengths)
    restored = found["tokens"].copy()
    for row, count in enumerate(counts):
        count = min(count, lengths[row] - 2)  # what is no special token
        places = found["masked_positions"][row, :count]
        assert (np.diff(places) > 0).all()
        assert (found["targets"][row, :count] == tokens[row, places]).all()
        assert not np.isin(tokens[row, places], VOCABULARY.special).any()
        assert found["weights"][row].tolist() == [1.0] * count + [0.0] * (20 - count)
        for key_ in ("masked_positions", "targets"):
            assert not found[key_][row, count:].any()
        restored[row, places] = found["targets"][row, :count]
    assert (restored == tokens).all()
    assert {key_: value.dtype for key_, value in found.items()} == {
        "tokens": np.int32,
        "masked_positions": np.int32,
        "targets": np.int32,
        "weights": np.float32,
    }


def test_a_row_without_candidates_predicts_nothing():
    tokens = np.array([[CLS, SEP, PAD, PAD], [PAD] * 4], np.int32)
    found = masked(replace(BERT, max_predictions=3), tokens, np.array([2, 0]))
    assert (found["tokens"] == tokens).all() and not found["weights"].any()


def test_shares_are_80_10_10_and_any_token_is_drawn():
    """5 standard deviations of the counts; special tokens come too, as in BERT, and the whole vocabulary evenly."""
    vocabulary = Vocabulary(50, MASK, (PAD, CLS, SEP, MASK))
    tokens = np.full((3000, 64), 30, np.int32)
    found = masked(replace(BERT, max_predictions=10), tokens, np.full(3000, 64), vocabulary=vocabulary)
    places = found["masked_positions"]
    assert (found["weights"] == 1).all()
    read = np.take_along_axis(found["tokens"], places, axis=1)
    total = read.size
    kept, masks = (read == 30).mean(), (read == MASK).mean()
    deviation = 5 * np.sqrt(0.1 * 0.9 / total)
    assert abs(kept - (0.1 + 0.1 / 50)) < deviation and abs(masks - (0.8 + 0.1 / 50)) < 4 / 3 * deviation
    drawn = np.bincount(read[(read != 30) & (read != MASK)], minlength=50)
    others = np.delete(drawn, [30, MASK])
    assert others.min() > 0 and abs(others - total * 0.1 / 50).max() < 5 * np.sqrt(total * 0.1 / 50)
    assert abs(places.mean() - 31.5) < 1 and np.bincount(places.ravel(), minlength=64).min() > 0


@pytest.mark.parametrize(("keep", "random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_shares_are_the_configured_ones(keep, random):
    tokens = np.full((200, 32), 30, np.int32)
    found = masked(replace(BERT, keep_share=keep, random_share=random), tokens, np.full(200, 32))
    read = np.take_along_axis(found["tokens"], found["masked_positions"], axis=1)[found["weights"] > 0]
    assert abs((read == MASK).mean() - (1 - keep - random)) < 0.01
    assert abs((read == 30).mean() - keep) < 0.1


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_row_is_masked_alike_in_every_batch(whole_word):
    """Alone, among others, in another order, padded further: only seed, row and copy are drawn from."""
    objective = replace(BERT, whole_word=whole_word)
    tokens, lengths, begins = drawn_rows()
    whole = masked(objective, tokens, lengths, begins)
    for order in ([5, 3, 1], [2], [4, 4, 0]):
        part = masked(objective, tokens[order], lengths[order], begins[order], rows=order)
        for name, value in part.items():
            assert (value == whole[name][order]).all(), name
    others = [
        masked(objective, tokens, lengths, begins, seed=1),
        masked(objective, tokens, lengths, begins, copy=1),
        masked(objective, tokens, lengths, begins, rows=range(1, 7)),
    ]
    for other in others:
        assert (other["tokens"][0] != whole["tokens"][0]).any()


def test_whole_words_are_predicted_or_left():
    """And so that none can be cut, a word that would overshoot is passed over for one that fits."""
    objective = replace(BERT, whole_word=True, max_predictions=7)
    tokens, lengths, begins = drawn_rows(600)
    found = masked(objective, tokens, lengths, begins)
    counts = prediction_counts(objective, lengths)
    short = 0
    for row in range(600):
        chosen = np.zeros(48, bool)
        chosen[found["masked_positions"][row, found["weights"][row] > 0]] = True
        groups, fits = [], counts[row] - chosen.sum()
        for place in range(lengths[row]):
            if tokens[row, place] in VOCABULARY.special:
                continue
            special_before = tokens[row, place - 1] in VOCABULARY.special
            if begins[row, place] or special_before:
                groups.append([])
            groups[-1].append(place)
        for group in groups:
            assert chosen[group].all() or not chosen[group].any()
            assert chosen[group].any() or len(group) > fits  # every word that still fits was taken
        short += fits > 0
    assert 0 < short < 600


def test_whole_words_of_one_token_are_as_even_as_tokens():
    tokens = np.full((2000, 22), 30, np.int32)
    tokens[:, 0] = CLS
    found = masked(replace(BERT, whole_word=True), tokens, np.full(2000, 22), np.ones((2000, 22), bool))
    counts = np.bincount(found["masked_positions"][found["weights"] > 0], minlength=22)
    assert counts[0] == 0 and abs(counts[1:] - 2000 * 3 / 21).max() < 5 * np.sqrt(2000 * 3 / 21)


INDEPENDENT = replace(BERT, choice="independent", rate=0.2)


def test_independent_tokens_are_each_chosen_with_the_rate():
    """A binomial number of them, by 5 standard deviations: mean, variance, and each place as often."""
    tokens = np.full((4000, 42), 30, np.int32)
    tokens[:, 0], tokens[:, 41] = CLS, SEP
    found = masked(replace(INDEPENDENT, max_predictions=40), tokens, np.full(4000, 42))
    numbers = found["weights"].sum(axis=1)
    assert abs(numbers.mean() - 8) < 5 * np.sqrt(40 * 0.16 / 4000)
    assert abs(numbers.var() - 40 * 0.16) < 5 * np.sqrt(2 * (40 * 0.16) ** 2 / 4000)
    places = np.bincount(found["masked_positions"][found["weights"] > 0], minlength=42)
    assert places[0] == places[41] == 0 and abs(places[1:41] - 800).max() < 5 * np.sqrt(800 * 0.8)


def test_of_too_many_independent_tokens_any_find_a_slot():
    """As many as there are slots, none preferred; how many find none in the mean is what `unslotted` says."""
    tokens = np.full((6000, 30), 30, np.int32)
    few, many = (replace(INDEPENDENT, rate=0.3, max_predictions=slots) for slots in (8, 30))
    part, whole = (masked(objective, tokens, np.full(6000, 30)) for objective in (few, many))
    taken, wanted = part["weights"].sum(axis=1), whole["weights"].sum(axis=1)
    assert (taken == np.minimum(wanted, 8)).all()
    lost = (wanted - taken).mean()
    assert abs(lost - unslotted(few, 30)) < 5 * (wanted - taken).std() / np.sqrt(6000)
    assert unslotted(many, 30) == unslotted(BERT, 30) == 0.0 and unslotted(replace(few, rate=1.0), 30) == 22.0
    for row in range(200):
        assert set(part["masked_positions"][row, : int(taken[row])]) <= set(whole["masked_positions"][row])
    counts = np.bincount(part["masked_positions"][part["weights"] > 0], minlength=30)
    assert abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())


def test_independent_words_are_whole():
    objective = replace(INDEPENDENT, whole_word=True, max_predictions=6)
    tokens, lengths, begins = drawn_rows(400)
    found, counts = masked(objective, tokens, lengths, begins), []
    for row in range(400):
        chosen = np.zeros(48, bool)
        chosen[found["masked_positions"][row, found["weights"][row] > 0]] = True
        inside = ~begins[row, 1:] & ~np.isin(tokens[row, 1:], VOCABULARY.special)
        inside &= ~np.isin(tokens[row, :-1], VOCABULARY.special)
        assert (chosen[1:][inside] == chosen[:-1][inside]).all()
        counts.append(chosen.sum())
    assert max(counts) == 6 and 0 in counts


def test_masks_are_the_golden_ones(golden):
    """Rows 0 and 10**12 in two copies. Whoever changes them raises DATA_ORDER_VERSION."""
    tokens, lengths, begins = drawn_rows(2)
    lengths[1] = 40
    tokens[1] = tokens[0]
    lines = []
    for whole_word in (False, True):
        for copy in range(2):
            objective = replace(BERT, whole_word=whole_word, max_predictions=8)
            found = masked(objective, tokens, lengths, begins, seed=7, rows=[0, 10**12], copy=copy)
            for row in range(2):
                pairs = zip(found["masked_positions"][row], found["weights"][row], strict=True)
                shown = [f"{place}:{found['tokens'][row, place]}" for place, weight in pairs if weight]
                lines.append(f"whole_word {whole_word} copy {copy} row {row}: {' '.join(shown)}\n")
    golden("masks.txt", "".join(lines))
