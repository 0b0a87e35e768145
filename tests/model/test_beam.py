"""Beam search is a plain loop over whole forward passes, its widest one an exhaustive search, its narrowest greedy."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.beam import BeamSearch, Hypotheses, advance, beam_search
from model.config import Layer
from model.generate import Sampling, generate
from model.transformer import Transformer
from tests.helpers import replaced
from tests.model.small import GEMMA, PAIR, draw, jit, logits, pack, sourced, tokens

NEW, END, VOCABULARY, WIDTH = 6, 3, 20, 8  # tokens written; prompts and sources are padded to WIDTH
PROMPTS = tuple(tokens(count, seed, high=VOCABULARY) for count, seed in ((5, 3), (2, 4), (4, 5)))
SOURCES = tuple(tokens(count, seed, high=VOCABULARY) for count, seed in ((4, 6), (8, 7), (1, 8)))
HEAD = {"vocab_size": VOCABULARY, "tied_head": False, "head_bias": True, "num_layers": 2, "output_scale": None}
WINDOWS = replaced(GEMMA, {**HEAD, "pattern": (Layer(window=3), Layer()), "logit_soft_cap": None})
# The prompts of a decoder beside an encoder are one token each, as in use.
CASES = {
    "decoder": (WINDOWS, PROMPTS, None),
    "encoder-decoder": (replaced(PAIR, {**HEAD, "encoder_layers": 2}), [prompt[:1] for prompt in PROMPTS], SOURCES),
}
either = pytest.mark.parametrize("case", ("decoder", pytest.param("encoder-decoder", marks=pytest.mark.slow)))


def padded(rows):
    """(int32 [rows, WIDTH] with another token behind each row's own, int32 [rows])."""
    given = np.full((len(rows), WIDTH), 7, np.int32)
    for place, row in enumerate(rows):
        given[place, : len(row)] = row
    return given, np.array([len(row) for row in rows], np.int32)


@cache
def searcher(config, new: int, search: BeamSearch):
    model = Transformer(config)
    return jit(lambda *arguments: beam_search(model, *arguments[:4], new, END, search, arguments[4]))


@cache
def params_of(config):
    """Parameters under which texts end at once, later and never."""
    params = draw(config)
    bias = np.array(params["head_bias"])
    bias[END] += 2.0
    return {**params, "head": 2 * params["head"], "head_bias": bias}


def searched(case: str, search: BeamSearch, rows=range(3), new: int = NEW, limits=None):
    """[(tokens without what is behind the end, score)] by row, of which each writes `limits` at most."""
    config, prompts, sources = CASES[case]
    source = None if sources is None else padded([sources[row] for row in rows])
    given = padded([prompts[row] for row in rows])
    limits = np.full(len(rows), new, np.int32) if limits is None else np.array(limits, np.int32)
    found = searcher(config, new, search)(params_of(config), *given, limits, source)
    texts, counts, scores = (np.asarray(part) for part in found)
    for text, count in zip(texts, counts, strict=True):
        assert np.all(text[count:] == END) and END not in text[: count - 1] and np.all(text < VOCABULARY)
    return [(text[:count].tolist(), float(score)) for text, count, score in zip(texts, counts, scores, strict=True)]


@cache
def log_probabilities(case: str, row: int, written: tuple[int, ...]) -> np.ndarray:
    """float64 [vocabulary]: of the token behind the prompt and what was written, by a whole forward pass."""
    config, prompts, sources = CASES[case]
    text = [*prompts[row], *written]
    batch = pack([text])
    if sources is not None:
        batch = sourced(batch, pack([sources[row]]))
    scores = np.asarray(logits(config)(params_of(config), batch), np.float64)[0, len(text) - 1, :VOCABULARY]
    return scores - scores.max() - np.log(np.sum(np.exp(scores - scores.max())))


def by_hand(case: str, row: int, beams: int, alpha: float, new: int = NEW) -> tuple[list[int], float]:
    """The search as it is described, on lists."""

    def lp(count):
        return ((5 + count) / 6) ** alpha

    alive, ended = [((), 0.0)], []
    for _ in range(new):
        every = [
            ((*text, token), score + log)
            for text, score in alive
            for token, log in enumerate(log_probabilities(case, row, text))
        ]
        every.sort(key=lambda found: -found[1])
        ended += [(text, score / lp(len(text))) for text, score in every[:beams] if text[-1] == END]
        alive = [found for found in every[: 2 * beams] if found[0][-1] != END][:beams]
        if len(ended) >= beams or (ended and max(e[1] for e in ended) >= alive[0][1] / lp(new)):
            break
    text, score = max(ended or [(alive[0][0], alive[0][1] / lp(new))], key=lambda found: found[1])
    return list(text), score


@pytest.mark.parametrize(
    ("case", "beams", "alpha"),
    (
        ("decoder", 4, 3.0),
        ("decoder", 2, 0.0),
        ("encoder-decoder", 4, 3.0),
        pytest.param("decoder", 4, 0.6, marks=pytest.mark.slow),
        pytest.param("decoder", 7, 1.0, marks=pytest.mark.slow),
        pytest.param("encoder-decoder", 2, 0.0, marks=pytest.mark.slow),
        pytest.param("encoder-decoder", 4, 0.6, marks=pytest.mark.slow),
    ),
)
def test_it_is_a_plain_loop_over_whole_forward_passes(case, beams, alpha):
    for row, (text, score) in enumerate(searched(case, BeamSearch(beams, alpha))):
        expected, value = by_hand(case, row, beams, alpha)
        assert text == expected, row
        assert score == pytest.approx(value, abs=2e-5)


@pytest.mark.parametrize("alpha", (0.0, 3.0))
def test_with_beams_for_all_texts_it_finds_the_best_one(alpha):
    """Of the texts of at most three of five tokens and the end; without a penalty and under one that favours long."""
    known, new = 6, 3
    texts = [text for count in range(new) for text in itertools.product(range(known), repeat=count) if END not in text]
    found = searched("encoder-decoder", BeamSearch(5 * 5 * known, alpha, vocab_size=known), new=new)
    for row, (text, score) in enumerate(found):
        values = {}
        for begun in texts:
            value = 0.0
            for place, token in enumerate((*begun, END)):
                logs = log_probabilities("encoder-decoder", row, begun[:place])[:known]
                value += logs[token] - np.log(np.sum(np.exp(logs)))
            values[(*begun, END)] = value / ((6 + len(begun)) / 6) ** alpha
        assert tuple(text) == max(values, key=values.get)
        assert score == pytest.approx(max(values.values()), abs=2e-5)
    assert len({len(text) for text, _ in found}) > 1


@either
def test_one_beam_is_the_greedy_text_whatever_the_penalty(case):
    config, prompts, sources = CASES[case]
    source = None if sources is None else padded(sources)
    arguments = (params_of(config), *padded(prompts), jax.random.split(jax.random.key(0), 3))
    run = jit(partial(generate, Transformer(config), max_new_tokens=NEW, end=END, sampling=Sampling(0.0)))
    texts, counts = (np.asarray(part) for part in run(*arguments, source=source))
    greedy = [text[:count].tolist() for text, count in zip(texts, counts, strict=True)]
    assert any(len(text) < NEW for text in greedy)
    for alpha in (0.0, 3.0):
        assert [text for text, _ in searched(case, BeamSearch(1, alpha))] == greedy


@either
def test_rows_are_each_alone(case):
    search = BeamSearch(4, 0.6)
    together = searched(case, search)
    for rows in ((0,), (1,), (2,), (2, 1, 0)):
        for (text, score), (expected, value) in zip(
            searched(case, search, rows), map(together.__getitem__, rows), strict=True
        ):
            assert text == expected and score == pytest.approx(value, abs=2e-5)


def stopped(beams: int, alpha: float, limit: int, chances) -> bool:
    """Whether a row is done after a first token of these chances, by id: 0, the end and others."""
    none = Hypotheses(np.full((1, beams, 8), END), np.full((1, beams), -np.inf), np.zeros((1, beams), np.int32))
    alive = none._replace(scores_BxK=np.array([[0.0, *[-np.inf] * (beams - 1)]], np.float32))
    alive, none = (Hypotheses(*map(jnp.asarray, each)) for each in (alive, none))
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(chances, jnp.float32)), (1, beams, len(chances)))
    done, limits = jnp.zeros((1,), bool), jnp.full((1,), limit, jnp.int32)
    run = jit(partial(advance, end=END, search=BeamSearch(beams, alpha)))
    return bool(run(0, logits, alive, none, done, limits)[2][0])


def test_a_row_stops_when_nothing_can_beat_what_has_ended():
    """The end is as likely as the likeliest other token, which a penalty may make worth going on with."""
    even, sure = (0.4, 0.1, 0.05, 0.4, 0.05), (0.1, 0.02, 0.02, 0.84, 0.02)
    assert stopped(2, 0.0, 8, even) and not stopped(2, 0.6, 8, even)
    assert stopped(2, 0.6, 1, even)  # the limit
    assert stopped(2, 0.6, 8, sure) and not stopped(2, 9.0, 8, sure)
    assert stopped(1, 9.0, 8, sure)  # as many have ended as there are beams
    assert not stopped(2, 0.0, 8, (0.84, 0.1, 0.02, 0.02, 0.02))  # the end is not among the likeliest


def test_a_row_of_fewer_tokens_is_as_where_all_have_so_few():
    """Also one that has not ended then, while others go on."""
    limits = (3, 5, 6)
    found = searched("encoder-decoder", BeamSearch(4, 3.0), limits=limits)
    assert len(found[0][0]) == 3 < len(found[1][0])
    for row, limit in enumerate(limits):
        text, score = by_hand("encoder-decoder", row, 4, 3.0, new=limit)
        assert found[row][0] == text and found[row][1] == pytest.approx(score, abs=2e-5)


def test_one_token_is_the_likeliest_or_the_end():
    """With several beams the end is kept where it is among as many likeliest, and nothing else has ended."""
    for beams in (1, 4):
        for row, (text, score) in enumerate(searched("decoder", BeamSearch(beams), new=1)):
            logs = log_probabilities("decoder", row, ())
            likely = np.argsort(-logs)[:beams]
            assert text == [END if END in likely else likely[0]]
            assert score == pytest.approx(logs[text[0]], abs=2e-5)
