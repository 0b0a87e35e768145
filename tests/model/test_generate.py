"""Decoding with a cache is the whole forward pass; a row's text is its own, whatever stands beside it."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.generate import Sampling, choose, empty_cache, extend, generate, read_source
from model.transformer import Transformer
from tests.model.small import (
    GEMMA,
    GPT2,
    LENGTH,
    LLAMA,
    MODELS,
    PAIR,
    close,
    draw,
    jit,
    logits,
    pack,
    same,
    sourced,
    tokens,
)

READERS = {**MODELS, "pair": PAIR}
models = pytest.mark.parametrize("config", READERS.values(), ids=READERS)
ROWS = (tokens(LENGTH, 1), tokens(LENGTH, 2))
SOURCES = (tokens(LENGTH, 6), tokens(5, 7))
NO_END = 127  # no token of the vocabulary: nothing ends early


@cache
def extender(config):
    """Compiled `(params, cache, tokens, counts) -> (logits, cache)`."""
    model = Transformer(config)
    return jit(lambda params, cache, tokens, counts: extend(model, params, cache, tokens, counts))


@cache
def source_reader(config):
    """Compiled `(params, cache) -> cache` with SOURCES in it, the shorter one padded with a token like any."""
    rows = np.full((2, LENGTH), 77, np.int32)
    for row, source in enumerate(SOURCES):
        rows[row, : len(source)] = source
    counts = np.array([len(source) for source in SOURCES], np.int32)
    return jit(lambda params, cache: read_source(Transformer(config), params, cache, rows, counts))


def read(config, steps, capacity: int = LENGTH) -> list:
    """Read ROWS through a cache: `steps` of (tokens, padding included, and how many of them are real) a row.

    Returns after each step the logits, and the position of the token they stand behind, both by row.
    """
    run, found, cache, done = extender(config), [], empty_cache(config, 2, capacity), np.zeros(2, int)
    if config.encoder_layers:
        cache = source_reader(config)(draw(config), cache)
    for width, counts in steps:
        given = np.full((2, width), 77, np.int32)  # padding is a token like any other
        for row in range(2):
            given[row, : counts[row]] = ROWS[row][done[row] : done[row] + counts[row]]
        done += counts
        scores, cache = run(draw(config), cache, given, np.array(counts, np.int32))
        same(cache["length"], done)
        found.append((scores, done - 1))
    return found


def full(config):
    """Logits `[2, LENGTH, V]` of ROWS, and of SOURCES where there is an encoder, without a cache."""
    sources = pack(*([row] for row in SOURCES))
    return logits(config)(draw(config), sourced(pack(*([row] for row in ROWS)), sources))


def check_read(config, steps, capacity: int = LENGTH):
    expected = full(config)
    for scores, last in read(config, steps, capacity):
        for row in range(2):
            close(scores[row, :100], expected[row, last[row], :100], 2e-5)


@models
def test_a_token_at_a_time_is_the_full_forward_pass(config):
    check_read(config, LENGTH * [(1, (1, 1))])


@models
def test_chunks_of_unequal_lengths_are_the_full_forward_pass(config):
    check_read(config, [(4, (4, 2)), (4, (3, 4)), (4, (1, 4)), (4, (4, 2))], capacity=LENGTH + 4)


@models
def test_a_prompt_of_any_length_is_the_full_forward_pass(config):
    for count in (1, 5, LENGTH - 1):
        check_read(config, [(LENGTH, (count, LENGTH - count))])


def test_padding_behind_the_end_of_a_learned_table_is_harmless():
    """The table ends with the rows' last tokens, and padding reaches beyond it."""
    check_read(GPT2, [(4, (4, 4)), (4, (4, 4)), (4, (2, 3)), (4, (2, 1))], capacity=LENGTH + 4)


def test_a_cache_in_bfloat16_reads_as_its_model_does():
    config = replace(LLAMA, dtype="bfloat16")
    expected = full(config)
    for scores, last in read(config, LENGTH * [(1, (1, 1))]):
        close(scores[:, :100], np.stack([expected[row, last[row], :100] for row in range(2)]), 0.05)


@pytest.mark.parametrize("config", (LLAMA, replace(GEMMA, dtype="bfloat16")), ids=("llama", "gemma"))
def test_the_cache_has_its_documented_shape(config):
    cache = empty_cache(config, rows=3, capacity=7)
    head_dim = 4 if config is LLAMA else 6
    for part in (cache["k"], cache["v"]):
        assert part.shape == (config.num_layers, 3, 2, 7, head_dim) and part.dtype == config.dtype
    same(cache["length"], np.zeros(3, np.int32))
    after = jax.eval_shape(extender(config), draw(config), cache, jnp.zeros((3, 2), int), jnp.ones(3, int))[1]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), cache)


PROMPTS = (tokens(7, 3), tokens(2, 4), tokens(4, 5))
SAMPLED = Sampling(temperature=0.7, top_k=50, top_p=0.95)
GREEDY = Sampling(temperature=0.0)
NEW = 5


@cache
def generator(config, new: int, end: int, sampling: Sampling):
    """Compiled `(params, prompts, lengths, keys) -> (tokens, counts)`."""
    model = Transformer(config)
    return jit(lambda *arguments: generate(model, *arguments, new, end, sampling))


def continued(config, prompts, sampling=GREEDY, new: int = NEW, end: int = NO_END, seed: int = 0, params=None):
    """(tokens, counts) behind `prompts`, each drawing from the key of its own last token."""
    given = np.zeros((len(prompts), 7), np.int32)
    for row, prompt in enumerate(prompts):
        given[row, : len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), prompt[-1]) for prompt in prompts])
    params = draw(config) if params is None else params
    return jax.device_get(generator(config, new, end, sampling)(params, given, lengths, keys))


@pytest.mark.parametrize("config", (GPT2, GEMMA), ids=("learned", "windows"))
def test_greedy_text_is_the_argmax_of_the_full_forward_pass(config):
    written, counts = continued(config, PROMPTS)
    same(counts, np.full(3, NEW, np.int32))
    for prompt, row in zip(PROMPTS, written, strict=True):
        text = list(prompt)
        for token in row:
            scores = logits(config)(draw(config), pack([text], []))[0, len(text) - 1]
            assert token == np.argmax(scores)
            text.append(int(token))


@pytest.mark.parametrize("sampling", (GREEDY, SAMPLED), ids=("greedy", "sampled"))
def test_rows_of_unequal_prompts_are_each_alone(sampling):
    together, _ = continued(GEMMA, PROMPTS, sampling)
    for row, prompt in enumerate(PROMPTS):
        same(continued(GEMMA, [prompt], sampling)[0][0], together[row])
    same(continued(GEMMA, PROMPTS[::-1], sampling)[0][::-1], together)


def test_a_seed_repeats_its_text_and_another_seed_does_not():
    first, again, other = (continued(GEMMA, PROMPTS, SAMPLED, seed=seed)[0] for seed in (0, 0, 1))
    same(again, first)
    assert all(np.any(other[row] != first[row]) for row in range(3))


def test_one_new_token_is_one():
    written, counts = continued(GEMMA, PROMPTS, new=1)
    assert written.shape == (3, 1)
    same(counts, np.ones(3, np.int32))
    same(written[:, 0], continued(GEMMA, PROMPTS)[0][:, 0])


def test_a_row_stops_at_its_first_end_and_the_others_go_on():
    """The end is a token that the second row comes to write, and the first does not."""
    written, _ = continued(GEMMA, PROMPTS, SAMPLED)
    place, end = next((t, token) for t, token in enumerate(written[1]) if token not in (*written[0], written[1][0]))
    stopped, counts = continued(GEMMA, PROMPTS, SAMPLED, end=int(end))
    same(stopped[0], written[0])
    same(stopped[1], [*written[1][: place + 1], *[end] * (NEW - place - 1)])
    assert counts[0] == NEW and counts[1] == place + 1


def test_a_row_may_end_at_once():
    first = int(continued(GEMMA, PROMPTS, SAMPLED)[0][1][0])
    stopped, counts = continued(GEMMA, PROMPTS[1:2], SAMPLED, end=first)
    same(stopped[0], np.full(NEW, first))
    same(counts, [1])


def test_padding_of_the_vocabulary_is_never_written():
    """Though its rows of the table would win everywhere, and at any temperature."""
    params = jax.tree.map(np.array, draw(LLAMA))
    params["head"][:, 100:] = 100 * np.sign(params["head"][:, :1])
    for temperature in (0.0, 1.0, 1e38):
        written, _ = continued(LLAMA, PROMPTS, Sampling(temperature), new=24, params=params)
        assert np.all(written < 100)
    assert len(np.unique(written)) > 40  # all but uniform at the last


def test_ids_that_the_tokenizer_lacks_are_never_written():
    written, _ = continued(LLAMA, PROMPTS, Sampling(1e38, vocab_size=50), new=24)
    assert np.all(written < 50) and len(np.unique(written)) > 25


def drawn(scores, sampling: Sampling, count: int = 400, seed: int = 0):
    """`count` independent choices from one row of logits."""
    rows = jnp.broadcast_to(jnp.asarray(scores, jnp.float32)[None], (count, len(scores)))
    run = jit(lambda rows, keys: choose(rows, keys, sampling))
    return np.asarray(run(rows, jax.random.split(jax.random.key(seed), count)))


LOGITS = np.log([0.05, 0.4, 0.1, 0.3, 0.15])


def test_temperature_zero_and_a_top_k_of_one_take_the_likeliest():
    for sampling in (GREEDY, Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(temperature=1e-30)):
        assert set(drawn(LOGITS, sampling)) == {1}
        assert set(drawn([2.0, 3.0, 3.0, 1.0], sampling)) == {1}  # of equal ones the first


def test_top_k_keeps_exactly_k_also_among_equals():
    assert set(drawn(LOGITS, Sampling(top_k=3))) == {1, 3, 4}
    assert set(drawn([1.0, 1.0, 0.0, 1.0, 1.0], Sampling(top_k=3))) == {0, 1, 3}
    assert set(drawn(LOGITS, Sampling(top_k=99))) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_token_that_crosses_it_and_at_least_one():
    assert set(drawn(LOGITS, Sampling(top_p=0.3))) == {1}
    assert set(drawn(LOGITS, Sampling(top_p=0.5))) == {1, 3}
    assert set(drawn(LOGITS, Sampling(top_p=0.8))) == {1, 3, 4}
    assert set(drawn(LOGITS, Sampling(top_p=1.0))) == {0, 1, 2, 3, 4}


def test_temperature_comes_before_top_k_and_top_k_before_top_p():
    # At temperature 1/2 the likeliest holds .16 / .285 of the probability, at 1 no more than .4.
    assert set(drawn(LOGITS, Sampling(temperature=0.5, top_p=0.5))) == {1}
    # Of the two kept, the first holds .4 / .7.
    assert set(drawn(LOGITS, Sampling(top_k=2, top_p=0.5))) == {1}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    (
        (Sampling(), [0.05, 0.4, 0.1, 0.3, 0.15]),
        (Sampling(temperature=2.0), np.sqrt([0.05, 0.4, 0.1, 0.3, 0.15])),
        (Sampling(top_k=2), [0, 0.4, 0, 0.3, 0]),
        (Sampling(top_p=0.8), [0, 0.4, 0, 0.3, 0.15]),
    ),
    ids=("plain", "temperature", "top_k", "top_p"),
)
def test_tokens_are_drawn_as_often_as_their_probability_says(sampling, expected):
    count, expected = 20_000, np.array(expected) / np.sum(expected)
    shares = np.bincount(drawn(LOGITS, sampling, count), minlength=5) / count
    assert np.all(np.abs(shares - expected) <= 4 * np.sqrt(expected * (1 - expected) / count))
