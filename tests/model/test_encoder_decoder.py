"""A decoder beside an encoder: what of the source a token sees, whatever stands beside it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import config as cfg
from model import transformer
from model.checks import check
from model.generate import empty_cache, extend, read_source
from model.ops.dropout import dropout
from model.transformer import Transformer
from tests.model.jaxprs import equations
from tests.model.small import PAIR, close, declared, draw, gradients, jit, logits, pack, sourced, tokens, with_targets

TARGETS, SOURCES = (tokens(5, 1), tokens(7, 2)), (tokens(4, 3), tokens(8, 4))
POST = replace(PAIR, norm=replace(PAIR.norm, placement="post"), pattern=(cfg.Layer(),))
placements = pytest.mark.parametrize("config", (PAIR, POST), ids=("pre", "post"))


def scores(config, batch):
    return np.asarray(logits(config)(draw(config), batch))[..., : config.vocab_size]


def alone(index: int):
    return sourced(pack([TARGETS[index]]), pack([SOURCES[index]]))


@placements
def test_a_packed_pair_is_the_pair_alone(config):
    packed = scores(config, sourced(pack([*TARGETS]), pack([*SOURCES])))[0]
    close(packed[:5], scores(config, alone(0))[0, :5], 2e-5)
    close(packed[5:12], scores(config, alone(1))[0, :7], 2e-5)


@placements
def test_padding_of_either_side_changes_nothing(config):
    short = sourced(pack([TARGETS[0]], length=5), pack([SOURCES[0]], length=4))
    close(scores(config, alone(0))[0, :5], scores(config, short)[0], 2e-5)
    noisy = alone(0)
    for key in ("tokens", "source_tokens"):
        noisy[key] = np.where(noisy[key.replace("tokens", "segment_ids")] > 0, noisy[key], 55)
    np.testing.assert_array_equal(scores(config, noisy)[0, :5], scores(config, alone(0))[0, :5])


def test_every_token_sees_all_of_its_source_and_no_later_target():
    """By the derivative of one token's logit: what it does not see has none at all."""
    model, params = Transformer(PAIR), draw(PAIR)
    batch = sourced(pack([TARGETS[0], TARGETS[1]]), pack([SOURCES[0], SOURCES[1]]))
    own = jax.tree.map(jnp.asarray, batch)

    def logit(table):
        """Of token 2 of the first pair, each row of the table being one place of the batch."""
        changed = {**params, "embedding": {"token": table}}
        places = {**own, "tokens": jnp.arange(12)[None], "source_tokens": 12 + jnp.arange(12)[None]}
        hidden, _, _ = model.apply({"params": changed}, places)
        return jnp.sum(jnp.sin(hidden[0, 2]))

    table = np.random.default_rng(0).standard_normal((128, 16)).astype(np.float32)
    heard = np.abs(np.asarray(jit(jax.grad(logit))(table))).sum(axis=1) > 0
    assert np.flatnonzero(heard).tolist() == [0, 1, 2, *range(12, 16)]


@pytest.mark.slow
@placements
def test_layers_may_be_unrolled_and_computed_again(config):
    batch = with_targets(sourced(pack([*TARGETS], [TARGETS[1]]), pack([*SOURCES], [SOURCES[1]])))
    expected = gradients(config)(draw(config), batch, None)
    close(gradients(replace(config, unroll=3, remat="full"))(draw(config), batch, None), expected, 1e-5)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(expected[1]["encoder_stack"]))


def test_dropout_of_the_encoder_and_the_decoder_are_drawn_apart(monkeypatch):
    """Of the embeddings and of the final states of both, the keys are four; and a key repeats its loss."""
    config = replace(POST, num_layers=4, dropout=0.5, output_dropout=0.5)
    batch = with_targets(sourced(pack([TARGETS[1]]), pack([TARGETS[1]])))
    losses = [float(gradients(config)(draw(config), batch, jax.random.key(seed))[0]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    keys = set()

    def recorded(x, rate, key):
        keys.add(tuple(jax.random.key_data(key).tolist()))
        return dropout(x, rate, key)

    monkeypatch.setattr(transformer, "dropout", recorded)
    Transformer(config).apply({"params": draw(config)}, batch, jax.random.key(0))
    assert len(keys) == 4


def test_decoding_projects_the_source_once():
    """A step of decoding has no array as long as the source but the cache and the scores on it."""
    params, cache = draw(PAIR), empty_cache(PAIR, 1, 4)
    source = np.zeros((1, 50), np.int32)
    cache = jax.eval_shape(lambda: read_source(Transformer(PAIR), params, cache, source, np.array([50])))
    step = jax.make_jaxpr(lambda cache: extend(Transformer(PAIR), params, cache, source[:, :1], np.array([1])))(cache)
    products = [equation for equation in equations(step.jaxpr) if equation.primitive.name == "dot_general"]
    assert not [e for e in products if any(v.aval.shape[-1] == PAIR.embed_dim and 50 in v.aval.shape for v in e.invars)]


def test_both_stacks_are_declared_apart():
    names = set(declared(PAIR))
    assert {"stack", "remainder", "final_norm", "encoder_stack", "encoder_final_norm"} <= names
    assert "encoder_remainder" not in names
    assert (
        "cross_attention" in declared(PAIR)["stack"]["0"]
        and "cross_attention" not in declared(PAIR)["encoder_stack"]["0"]
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"attention": replace(PAIR.attention, causal=False)}, "attention.causal"),
        ({"token_types": 2}, "token_types"),
        ({"encoder_layers": -1}, "encoder_layers"),
        ({"positions": cfg.DisentangledPositions()}, "positions.name"),
        ({"heads": cfg.Heads(pooler=True)}, "heads.pooler"),
    ],
)
def test_an_impossible_pair_is_refused(changes, key):
    assert key in [found for found, _ in check(replace(PAIR, **changes))]
