"""A model with prefixes is its formula: a prefix sees itself, nothing behind it; packed is alone, cached is whole."""

from dataclasses import replace
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

from model import config as cfg
from model.checks import check
from model.generate import Sampling, empty_cache, extend, generate
from model.transformer import Transformer
from tests.model import formulas
from tests.model.small import (
    GEMMA,
    GPT2,
    LENGTH,
    LLAMA,
    close,
    draw,
    gradients,
    jit,
    logits,
    pack,
    same,
    tokens,
    with_targets,
)


def with_prefix(config: cfg.Model) -> cfg.Model:
    return replace(config, attention=replace(config.attention, prefix=True))


PREFIX = {"gpt2": with_prefix(GPT2), "llama": with_prefix(LLAMA), "gemma": with_prefix(GEMMA)}
models = pytest.mark.parametrize("config", PREFIX.values(), ids=PREFIX)
A, B, C = tokens(5, 1), tokens(7, 2), tokens(LENGTH, 3)


def ordered(batch: dict, *prefixes: tuple[int, ...]) -> dict:
    """`batch` with the length of the prefix of each segment of each row."""
    order = batch["positions"].copy()
    for row, lengths in enumerate(prefixes):
        for number, length in enumerate(lengths, 1):
            place = batch["segment_ids"][row] == number
            order[row, place] = np.maximum(order[row, place], length - 1)
    return {**batch, "order": order}


@models
def test_the_model_is_its_formula(config):
    params, batch = draw(config), ordered(pack([A, B], [C]), (3, 7), (6,))
    actual = logits(config)(params, batch)[..., : config.vocab_size]
    close(actual, formulas.logits(params, config, batch), 2e-5)


@models
def test_prefixes_of_one_token_are_a_causal_model(config):
    plain = replace(config, attention=replace(config.attention, prefix=False))
    batch = pack([A, B], [C])
    close(logits(config)(draw(config), ordered(batch)), logits(plain)(draw(plain), batch), 1e-6)


@models
def test_a_prefix_sees_itself_and_nothing_behind_it(config):
    params, batch = draw(config), ordered(pack([C]), (5,))
    expected = logits(config)(params, batch)
    for t in range(1, LENGTH):
        changed = {**batch, "tokens": batch["tokens"].copy()}
        changed["tokens"][0, t] = (changed["tokens"][0, t] + 1) % 100
        actual = logits(config)(params, changed)
        if t < 5:  # in the window of the first layers, and through the others, all of it reaches the first token
            assert np.all(np.any(actual[0, :5] != expected[0, :5], axis=-1))
        else:
            same(actual[0, :t], expected[0, :t])
            assert np.any(actual[0, t] != expected[0, t])


@models
def test_packed_is_alone(config):
    params = draw(config)
    packed = logits(config)(params, ordered(pack([A, B], []), (2, 4)))[0, len(A) :, :100]
    alone = logits(config)(params, ordered(pack([B], []), (4,)))[0, : len(B), :100]
    close(packed, alone, 1e-5)


def test_a_segment_has_no_gradient_at_anothers_inputs():
    config = replace(PREFIX["gemma"], tied_head=False)
    own, other = tokens(5, 1, high=40), tokens(7, 2, low=40)
    batch = with_targets(ordered(pack([own, other], []), (3, 4)))
    batch["weights"] = (batch["segment_ids"] == 1).astype(np.float32)
    found = np.asarray(gradients(config)(draw(config), batch, None)[1]["embedding"]["token"])
    assert not np.any(found[np.unique(other)]) and np.all(np.any(found[np.unique(own)], axis=1))


@cache
def reader(config):
    """Compiled `(params, cache, tokens, counts) -> (logits, cache)`."""
    model = Transformer(config)
    return jit(lambda *arguments: extend(model, *arguments))


@models
def test_a_prompt_read_as_prefix_and_a_token_at_a_time_behind_it_is_the_full_forward_pass(config):
    """Rows of unequal prompts, padded with what is a token like any other."""
    prompts, rows = (4, 7), (C, tokens(LENGTH, 4))
    expected = logits(config)(draw(config), ordered(pack(*([row] for row in rows)), *((p,) for p in prompts)))
    given = np.full((2, 8), 77, np.int32)
    for row, count in enumerate(prompts):
        given[row, :count] = rows[row][:count]
    counts = np.array(prompts, np.int32)
    scores, held = reader(config)(draw(config), {**empty_cache(config, 2, LENGTH + 8), "prefix": counts}, given, counts)
    for step in range(5):
        for row in range(2):
            close(scores[row, :100], expected[row, prompts[row] + step - 1, :100], 2e-5)
        following = np.array([[rows[row][prompts[row] + step]] for row in range(2)], np.int32)
        scores, held = reader(config)(draw(config), held, following, np.ones(2, np.int32))
    same(held["prefix"], counts)


@pytest.mark.parametrize("config", (PREFIX["gpt2"], PREFIX["gemma"]), ids=("learned", "windows"))
def test_generated_text_stands_behind_its_prompt_as_a_prefix(config):
    model, prompts, new = Transformer(config), (tokens(6, 5), tokens(3, 6)), 4
    given, lengths = np.zeros((2, 6), np.int32), np.array([6, 3], np.int32)
    for row, prompt in enumerate(prompts):
        given[row, : len(prompt)] = prompt
    keys = jnp.zeros((2, 2), jnp.uint32)
    run = jit(lambda params: generate(model, params, given, lengths, keys, new, 127, Sampling(temperature=0.0)))
    written, _ = run(draw(config))
    for prompt, row in zip(prompts, np.asarray(written), strict=True):
        text = list(prompt)
        for token in row:
            batch = ordered(pack([text]), (len(prompt),))
            assert token == np.argmax(logits(config)(draw(config), batch)[0, len(text) - 1, :100])
            text.append(int(token))


def test_a_prefix_in_an_encoder_is_refused():
    config = replace(GPT2, attention=replace(GPT2.attention, causal=False, prefix=True))
    assert [key for key, _ in check(config)] == ["attention.prefix"]
