"""Layers under a scan are layers in a Python loop, whatever is unrolled or computed again."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import config as cfg
from model.attention import Shared
from model.block import Block
from model.ops.attention import Places
from model.ops.dropout import dropout
from model.stack import REMAT_POLICIES
from model.transformer import EMBEDDING_KEY, Transformer, identity
from tests.model.formulas import layer_params
from tests.model.jaxprs import count, equations
from tests.model.small import close, draw, fresh, initialiser, jit, loss_of, pack, same, tokens, with_targets

# A pattern of two over five layers: two periods and one layer left over. Dropout everywhere.
CONFIG = cfg.Model(
    vocab_size=100,
    num_layers=5,
    embed_dim=16,
    attention=cfg.Attention(num_heads=2, num_kv_heads=1, dropout=0.2),
    feed_forward=cfg.FeedForward(24, "relu", gated=False),
    positions=cfg.NoPositions(),
    pattern=(cfg.Layer(window=3), cfg.Layer()),
    dropout=0.2,
)
UNIFORM = replace(CONFIG, pattern=(cfg.Layer(),))
BATCH = with_targets(pack([tokens(5, 1), tokens(7, 2)], [tokens(9, 3)]))
KEY = jax.random.key(5)
TOLERANCE = 1e-5  # the compiler may fuse, and so round, in another order


@cache
def differentiated(config: cfg.Model):
    """(loss, gradient) with dropout; the parameters do not depend on what is unrolled or computed again."""
    return jit(jax.value_and_grad(loss_of(config)))(draw(config), BATCH, KEY)


def in_a_loop(config: cfg.Model, params: dict, batch: dict, key):
    """The final hidden states, one layer after another."""
    places = Places(batch["positions"], batch["segment_ids"])
    x = dropout(params["embedding"]["token"][batch["tokens"]], config.dropout, jax.random.fold_in(key, EMBEDDING_KEY))
    for index in range(config.num_layers):
        block = Block(config, config.pattern[index % len(config.pattern)], identity)
        own = {"params": layer_params(params, config, index)}
        x, _, _ = block.apply(own, x, Shared(places, ()), None, jax.random.fold_in(key, index))
    scale = params["final_norm"]["scale"]
    x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm.epsilon)
    return x * jnp.broadcast_to(scale, x.shape)


def states(config: cfg.Model, params: dict, key):
    return jit(lambda params, key: Transformer(config).apply({"params": params}, BATCH, key)[0])(params, key)


def test_scanned_layers_are_layers_in_a_loop():
    params = draw(CONFIG)
    expected = jit(lambda params, key: in_a_loop(CONFIG, params, BATCH, key))(params, KEY)
    close(states(CONFIG, params, KEY), expected, TOLERANCE)


def test_every_layer_draws_its_own_dropout():
    """Where output biases alone write to the residual stream, it is a sum of powers of two that the masks choose."""
    config = replace(
        UNIFORM, num_layers=3, attention=replace(UNIFORM.attention, output_bias=True), dropout=0.5, vocab_size=100
    )
    params = jax.tree.map(np.zeros_like, draw(config))
    params["stack"]["0"]["attention"]["output"]["bias"] = np.array([[1.0], [2.0], [4.0]]) * np.ones((3, 16), np.float32)
    params["final_norm"]["scale"] = np.ones(16, np.float32)
    x = np.asarray(states(replace(config, norm=replace(config.norm, epsilon=1e6)), params, KEY)) * 1e3
    masks = [(np.rint(x).astype(int) // 2 >> layer) & 1 for layer in range(3)]
    assert all(0.3 < mask.mean() < 0.7 for mask in masks)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert 0.3 < (masks[one] == masks[other]).mean() < 0.7


def test_unrolling_changes_neither_value_nor_gradient():
    close(differentiated(replace(CONFIG, unroll=2)), differentiated(CONFIG), TOLERANCE)


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_computing_again_changes_neither_value_nor_gradient(remat):
    config = replace(UNIFORM, num_layers=2)
    close(differentiated(replace(config, remat=remat)), differentiated(config), TOLERANCE)


def traced(config: cfg.Model):
    return jax.make_jaxpr(jax.value_and_grad(loss_of(config)))(draw(config), BATCH, KEY)


def test_remat_computes_again_what_its_name_says():
    """Matrix products of a step: all forward ones twice, none twice, those with a batch axis twice."""
    config = replace(UNIFORM, num_layers=2)
    products = {remat: count(traced(replace(config, remat=remat)), "dot_general") for remat in cfg.REMAT}
    attention = 2  # scores and mixing have a batch axis; six projections a layer have not
    assert products["dots"] == products["none"]
    assert products["dots_no_batch"] == products["none"] + attention
    assert products["full"] > products["dots_no_batch"]


def test_a_deeper_model_compiles_no_more():
    sizes = {depth: len(list(equations(traced(replace(UNIFORM, num_layers=depth))))) for depth in (2, 4, 32)}
    assert len(set(sizes.values())) == 1, sizes


def test_initial_values_depend_neither_on_unrolling_nor_on_remat():
    """The very same program makes them."""
    other = replace(CONFIG, unroll=3, remat="full")
    programs = [jit(initialiser(config)).lower(KEY).as_text() for config in (CONFIG, other)]
    assert programs[0] == programs[1]


def test_no_two_layers_begin_alike():
    grouped = replace(UNIFORM, pattern=2 * UNIFORM.pattern)
    params = fresh(grouped)
    kernels = [layer_params(params, grouped, index)["attention"]["query"]["kernel"] for index in range(5)]
    for one in range(5):
        for other in range(one):
            assert np.max(np.abs(kernels[one] - kernels[other])) > 0.01


def test_how_layers_are_grouped_changes_neither_initial_values_nor_outputs():
    """Five equal layers as a pattern of one, and as a pattern of two with one left over."""
    grouped = replace(UNIFORM, pattern=2 * UNIFORM.pattern)
    params, others = fresh(UNIFORM), fresh(grouped)
    for index in range(5):
        same(layer_params(others, grouped, index), layer_params(params, UNIFORM, index))
    close(states(grouped, others, KEY), states(UNIFORM, params, KEY), TOLERANCE)


def test_every_name_of_the_configuration_has_its_policy():
    assert ("none", *REMAT_POLICIES) == cfg.REMAT
