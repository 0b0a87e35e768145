"""T5: how it begins, where it drops, and that its relative positions hold the invariances of every family."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from model import config as cfg
from tests.model.small import (
    LENGTH,
    close,
    declared,
    draw,
    fresh,
    gradients,
    jit,
    logits,
    loss_of,
    pack,
    sourced,
    tokens,
    with_targets,
)
from tests.model.test_generate import check_read
from train.checks import load

BOTH = ("debug", "debug-1.1")
DEBUG = {size: load(f"configs/t5.py:{size}").model for size in BOTH}
sizes = pytest.mark.parametrize("size", BOTH)


# Buckets so few, and so near one another, that a row reaches the last.
SMALL = cfg.Model(
    vocab_size=100,
    num_layers=3,
    embed_dim=16,
    attention=cfg.Attention(num_heads=4, num_kv_heads=2, head_dim=6, scale=1.0),
    feed_forward=cfg.FeedForward(24, "relu", gated=False),
    positions=cfg.RelativePositions(buckets=8, max_distance=7),
    output_scale=0.25,
)
DECODER, PAIR = SMALL, replace(SMALL, encoder_layers=2)
ENCODER = replace(SMALL, attention=replace(SMALL.attention, causal=False))
STACKS = {"decoder": DECODER, "encoder": ENCODER, "pair": PAIR}
stacks = pytest.mark.parametrize("config", STACKS.values(), ids=STACKS)
A, B = tokens(5, 1), tokens(7, 2)


def undropped(model: cfg.Model) -> cfg.Model:
    attention, feed_forward = replace(model.attention, dropout=0.0), replace(model.feed_forward, dropout=0.0)
    return replace(model, dropout=0.0, output_dropout=0.0, attention=attention, feed_forward=feed_forward)


def widened(model: cfg.Model, embed: int, layers: int, vocab_size: int) -> cfg.Model:
    """With what the recipe makes of another width."""
    init = replace(model.init, position_std=embed**-0.5, head_std=embed**-0.5)
    scale = None if model.output_scale is None else embed**-0.5
    shape = {"embed_dim": embed, "num_layers": layers, "encoder_layers": layers, "vocab_size": vocab_size}
    return replace(undropped(model), init=init, output_scale=scale, **shape)


def initial_loss(model: cfg.Model) -> float:
    """Mean over the tokens of four rows, in nats."""
    read, target, source = (
        [[tokens(32, seed + row, high=model.vocab_size)] for row in range(4)] for seed in (0, 10, 20)
    )
    batch = sourced(pack(*read, length=32), pack(*source, length=32))
    found = np.asarray(logits(model)(fresh(model), batch), np.float64)[..., : model.vocab_size]
    chosen = np.take_along_axis(found, np.array(target).reshape(4, 32, 1), axis=-1)[..., 0]
    return float(np.mean(np.log(np.sum(np.exp(found), axis=-1)) - chosen))


@sizes
def test_the_initial_loss_is_that_of_logits_of_variance_one(size):
    """ln V + 1/2. A tied head favours the token that it has read, by the square root of the width over the residual
    stream's size, which counts for little in a wide vocabulary behind several layers."""
    model = widened(DEBUG[size], embed=128, layers=6, vocab_size=8192)
    assert initial_loss(model) == pytest.approx(math.log(8192) + 0.5, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("size", ("small", "1.1-small"))
def test_the_initial_loss_of_a_published_size(size):
    model = replace(undropped(load(f"configs/t5.py:{size}").model), dtype="float32", remat="none")
    found = initial_loss(model)
    assert math.log(model.vocab_size) + 0.3 < found < math.log(model.vocab_size) + 1.0, found


@sizes
def test_it_begins_as_published(size):
    """Kernels by their inputs, queries by their heads' size too, embeddings with 1; tables and heads by the width."""
    model = DEBUG[size]
    embed, head_dim, inner = model.embed_dim, model.head_dim, model.attention.num_heads * model.head_dim
    expected = {
        "query/kernel": (embed * head_dim) ** -0.5,
        "key/kernel": embed**-0.5,
        "value/kernel": embed**-0.5,
        "output/kernel": inner**-0.5,
        "up/kernel": embed**-0.5,
        "gate/kernel": embed**-0.5,
        "down/kernel": model.feed_forward.hidden_dim**-0.5,
        "token": 1.0,
        "table": embed**-0.5,
        "head": embed**-0.5,
    }
    found = jax.tree_util.tree_leaves_with_path(fresh(model))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found]
    for name, (_, leaf) in zip(names, found, strict=True):
        if name.endswith("scale"):
            assert np.all(leaf == 1), name
            continue
        std = next(value for end, value in expected.items() if name.endswith(end))
        assert np.std(leaf) == pytest.approx(std, rel=4 * (2 * leaf.size) ** -0.5), name
        assert abs(np.mean(leaf)) < 4 * std * leaf.size**-0.5, name
    assert sum(name.endswith("cross_attention/query/kernel") for name in names) == 1
    assert ("head" in names) == (size == "debug-1.1")


PLACES = ("dropout", "output_dropout", "attention.dropout", "feed_forward.dropout")


def test_dropout_is_where_it_was_published():
    """At one rate everywhere in the first form, nowhere in the second; and each of the rates is heard."""
    rates = {size: [_at(model, place) for place in PLACES] for size, model in DEBUG.items()}
    assert rates == {"debug": [0.1] * 4, "debug-1.1": [0.0] * 4}
    batch, model = with_targets(sourced(pack([A]), pack([B]))), replace(PAIR, num_layers=1, encoder_layers=1)
    variants = [_with(model, place, 0.5) for place in PLACES]

    @jit
    def losses(params, key):
        return [loss_of(variant)(params, batch, key) for variant in variants]

    found = losses(draw(model), jax.random.key(0))
    still = losses(draw(model), None)
    np.testing.assert_allclose(still, still[0], rtol=1e-6)
    assert all(abs(drawn - still[0]) > 1e-3 for drawn in found)


def _at(model: cfg.Model, place: str) -> float:
    part, _, name = place.rpartition(".")
    return getattr(getattr(model, part) if part else model, name)


def _with(model: cfg.Model, place: str, rate: float) -> cfg.Model:
    part, _, name = place.rpartition(".")
    return replace(model, **({part: replace(getattr(model, part), **{name: rate})} if part else {name: rate}))


def scores(config: cfg.Model, batch: dict) -> np.ndarray:
    return np.asarray(logits(config)(draw(config), batch))[..., : config.vocab_size]


@stacks
def test_packed_is_alone_and_padded_is_unpadded(config):
    packed = scores(config, sourced(pack([A, B])))[0]
    for text, place in ((A, slice(0, 5)), (B, slice(5, 12))):
        alone = sourced(pack([text]))
        close(packed[place], scores(config, alone)[0, : len(text)], 2e-5)
        close(packed[place], scores(config, sourced(pack([text], length=len(text))))[0], 2e-5)


def test_a_gradient_is_the_segments_own():
    """That of both tables too: what stands beside a text, or pads it, has no part in it."""

    def summed(*batches):
        found = [gradients(PAIR)(draw(PAIR), batch, None)[1] for batch in batches]
        return jax.tree.map(lambda *leaves: sum(map(np.asarray, leaves)), *found)

    packed = with_targets(sourced(pack([A, B])))
    alone = []
    for text, place in ((A, slice(0, 5)), (B, slice(5, 12))):
        batch = with_targets(sourced(pack([text])))
        batch["targets"][0, : len(text)] = packed["targets"][0, place]
        alone.append(batch)
    found, expected = summed(packed), summed(*alone)
    close(found, expected, 2e-5)
    assert all(np.any(table) for name in found if name.endswith("relative_bias") for table in found[name].values())


def test_layers_may_be_unrolled_and_computed_again():
    batch = with_targets(sourced(pack([A, B])))
    expected = gradients(PAIR)(draw(PAIR), batch, None)
    close(gradients(replace(PAIR, unroll=3, remat="full"))(draw(PAIR), batch, None), expected, 1e-5)


@pytest.mark.parametrize("config", (DECODER, PAIR), ids=("decoder", "pair"))
def test_decoding_with_a_cache_is_the_full_forward_pass(config):
    check_read(config, LENGTH * [(1, (1, 1))])
    check_read(config, [(4, (4, 2)), (4, (3, 4)), (4, (1, 4)), (4, (4, 2))], capacity=LENGTH + 4)


def test_distances_are_heard_and_an_encoders_have_a_sign():
    """Tokens in another order give other scores, though nothing but distances tells where they stand."""
    for config in (DECODER, ENCODER):
        forward, backward = (scores(config, pack([text]))[0] for text in (A, A[:-2] + A[-2:][::-1]))
        assert np.abs(forward[4] - backward[3]).max() > 1e-2
    held = draw(ENCODER)["relative_bias"]["table"]
    mirrored = {**draw(ENCODER), "relative_bias": {"table": np.concatenate([held[4:], held[:4]])}}
    changed = np.asarray(logits(ENCODER)(mirrored, pack([A])))[0, :5, :100]
    assert np.abs(changed - scores(ENCODER, pack([A]))[0, :5]).max() > 1e-2


def test_each_stack_has_one_table():
    tables = {name: tree["table"] for name, tree in declared(PAIR).items() if name.endswith("relative_bias")}
    assert set(tables) == {"relative_bias", "encoder_relative_bias"}
    assert all(
        (leaf.shape, leaf.axes, leaf.kind) == ((8, 4), ("buckets", "heads"), "table") for leaf in tables.values()
    )
