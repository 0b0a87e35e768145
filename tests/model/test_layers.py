"""Norms, activations, projections and rotary positions are their published formulas."""

import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import config as cfg
from model.layers import ACTIVATIONS, Embedding, FeedForward, Norm, rotary_frequencies, rotary_table, rotate, sinusoids
from model.transformer import identity
from tests.model import formulas
from tests.model.small import close, jit, same

NORMS = {
    "layernorm": cfg.Norm("layernorm", bias=True, epsilon=0.1),
    "layernorm without bias": cfg.Norm("layernorm"),
    "rmsnorm": cfg.Norm("rmsnorm", epsilon=0.1),
    "rmsnorm from one": cfg.Norm("rmsnorm", unit_offset=True),
}
LLAMA3 = cfg.Layer(rotary_base=500_000.0, rotary_scaling=cfg.Llama3Scaling(factor=8.0))


def apply_norm(config: cfg.Norm, x):
    """(the norm of x, its parameters), with scale and bias drawn at random."""
    generator = np.random.default_rng(3)
    params = {"scale": generator.standard_normal(x.shape[-1]).astype(np.float32)}
    if config.bias:
        params["bias"] = generator.standard_normal(x.shape[-1]).astype(np.float32)
    return jit(Norm(config).apply)({"params": params}, x), params


@pytest.mark.parametrize("config", NORMS.values(), ids=NORMS)
def test_norms_are_their_formulas(config):
    x = np.random.default_rng(0).standard_normal((3, 5, 16)).astype(np.float32) * 2 + 1
    y, params = apply_norm(config, x)
    close(y, formulas.norm(x, params, config), 1e-6)


@pytest.mark.parametrize("name", cfg.NORMS)
def test_norms_of_bfloat16_are_computed_in_float32(name):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 256)) + 30, jnp.bfloat16)
    y, params = apply_norm(cfg.Norm(name), x)
    assert y.dtype == jnp.bfloat16
    exact = formulas.norm(np.asarray(x, np.float64), params, cfg.Norm(name))
    close(y.astype(jnp.float32), exact, 2**-8)  # the one rounding at the end


@pytest.mark.parametrize("config", NORMS.values(), ids=NORMS)
def test_norms_begin_as_the_norm_alone(config):
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    y, variables = jit(lambda: Norm(config).init_with_output(jax.random.key(0), x))()
    unscaled = replace(config, unit_offset=False, bias=False)
    close(y, formulas.norm(x, {"scale": np.ones(16)}, unscaled), 1e-6)
    declared = {name: leaf.declaration.kind for name, leaf in variables["params"].items()}
    assert declared == ({"scale": "scale", "bias": "bias"} if config.bias else {"scale": "scale"})


@pytest.mark.parametrize("name", cfg.ACTIVATIONS)
def test_activations_are_their_formulas(name):
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    np.testing.assert_allclose(jit(ACTIVATIONS[name])(x), formulas.activation(name, np.float64(x)), atol=2e-6)


def test_gelu_by_erf_is_told_from_gelu_by_tanh():
    erf, tanh = (float(ACTIVATIONS[name](1.0)) for name in ("gelu", "gelu_tanh"))
    assert erf == pytest.approx((1 + math.erf(1 / math.sqrt(2))) / 2, abs=1e-6)  # .841345
    assert tanh == pytest.approx(0.841192, abs=1e-6)


@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("gated", (False, True))
@pytest.mark.parametrize("activation", ("silu", "gelu"))
def test_feed_forward_is_its_formula(activation, gated, bias):
    settings = cfg.FeedForward(12, activation, gated, bias)
    config = cfg.Model(embed_dim=8, feed_forward=settings)
    generator = np.random.default_rng(0)
    params = {}
    for name in ("up", "gate", "down") if gated else ("up", "down"):
        inputs, outputs = (12, 8) if name == "down" else (8, 12)
        params[name] = {"kernel": generator.standard_normal((inputs, outputs)).astype(np.float32)}
        if bias:
            params[name]["bias"] = generator.standard_normal(outputs).astype(np.float32)
    x = generator.standard_normal((1, 5, 8)).astype(np.float32)
    y = jit(FeedForward(config, identity).apply)({"params": params}, x)
    close(y[0], formulas.feed_forward(np.float64(x[0]), params, config), 1e-5)


def test_every_name_of_the_configuration_has_its_activation():
    assert tuple(ACTIVATIONS) == cfg.ACTIVATIONS


@cache
def turned(layer: cfg.Layer):
    """Compiled `(x [B, L, H, C], positions) -> x turned`."""
    return jit(lambda x, positions: rotate(x, rotary_table(positions, layer, x.shape[-1])))


def heads(seed: int, length: int = 6, head_dim: int = 8):
    return np.random.default_rng(seed).standard_normal((1, length, 2, head_dim)).astype(np.float32)


@pytest.mark.parametrize("layer", (cfg.Layer(rotary_base=100.0), LLAMA3), ids=("plain", "llama3"))
def test_rotary_positions_turn_pairs_of_halves(layer):
    x, positions = heads(0), np.array([[0, 1, 2, 30, 31, 700]])
    close(turned(layer)(x, positions)[0], formulas.turn(np.float64(x[0]), positions[0], layer), 1e-4)


def test_position_zero_turns_nothing():
    x = heads(0)
    same(turned(cfg.Layer())(x, np.zeros((1, 6), np.int32)), x)


def test_scores_depend_on_the_distance_alone():
    layer, q, k = cfg.Layer(rotary_base=100.0), heads(0), heads(1)

    def scores(positions):
        return np.einsum("blhc,bshc->bhls", turned(layer)(q, positions), turned(layer)(k, positions))

    positions = np.arange(6)[None]
    close(scores(positions + 50), scores(positions), 1e-5)
    assert np.max(np.abs(scores(2 * positions) - scores(positions))) > 0.1


def test_linear_scaling_divides_positions():
    scaled = cfg.Layer(rotary_base=100.0, rotary_scaling=cfg.LinearScaling(factor=4.0))
    x, positions = heads(0), np.array([[0, 4, 8, 12, 40, 400]])
    close(turned(scaled)(x, positions), turned(cfg.Layer(rotary_base=100.0))(x, positions // 4), 1e-5)


@pytest.mark.parametrize("head_dim", (64, 128))
@pytest.mark.parametrize("factor", (8.0, 32.0))
def test_llama3_scaling_is_the_published_rule(factor, head_dim):
    layer = replace(LLAMA3, rotary_scaling=cfg.Llama3Scaling(factor=factor))
    expected = formulas.frequencies(layer, head_dim)
    np.testing.assert_allclose(rotary_frequencies(layer, head_dim), expected, rtol=1e-5)
    # All three parts of the rule are there: kept, between, divided.
    shares = expected / formulas.frequencies(cfg.Layer(rotary_base=500_000.0), head_dim)
    assert shares[0] == 1 and shares[-1] == pytest.approx(1 / factor)
    assert np.any((shares < 0.99) & (shares > 1.01 / factor))


def test_turning_is_done_in_float32():
    x = jnp.asarray(heads(0), jnp.bfloat16)
    positions = np.array([[0, 1, 2, 300, 301, 700]])
    exact = formulas.turn(np.asarray(x[0], np.float64), positions[0], cfg.Layer())
    y = turned(cfg.Layer())(x, positions)
    assert y.dtype == jnp.bfloat16
    close(y[0].astype(jnp.float32), exact, 2**-8)


def slow_sinusoids(position: int, dim: int, layout: str) -> list[float]:
    """Section 3.5 of Vaswani et al. 2017 and tensor2tensor's timing signal, a number at a time."""
    if layout == "timescales":
        rates = [math.exp(-i * math.log(10_000) / max(dim // 2 - 1, 1)) for i in range(dim // 2)]
    else:
        rates = [1 / 10_000 ** (2 * i / dim) for i in range(dim // 2)]
    if layout == "interleaved":
        return [turn(position * rate) for rate in rates for turn in (math.sin, math.cos)]
    return [turn(position * rate) for turn in (math.sin, math.cos) for rate in rates]


@pytest.mark.parametrize("dim", (2, 16, 512))
@pytest.mark.parametrize("layout", cfg.SINUSOIDS)
def test_sinusoids_are_their_formula_also_far_out(layout, dim):
    """An angle in float32 would be off by 1e-3 at the last positions here."""
    positions = np.array([[0, 1, 2, 7], [511, 512, 4095, 10_000]], np.int32)
    for offset in (0, 2):
        found = jit(
            lambda places, offset=offset: sinusoids(places, dim, cfg.SinusoidalPositions("sinusoidal", layout, offset))
        )(positions)
        assert found.dtype == jnp.float32 and found.shape == (2, 4, dim)
        expected = [[slow_sinusoids(place + offset, dim, layout) for place in row] for row in positions.tolist()]
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=5e-7)
        np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-5)


def test_sinusoids_are_added_to_the_scaled_embedding():
    """Section 3.4 and 3.5: the embedding times its scale, plus the position, which is not scaled."""
    config = cfg.Model(vocab_size=100, embed_dim=16, positions=cfg.SinusoidalPositions(), embedding_scale=4.0)
    table = np.random.default_rng(0).standard_normal((128, 16)).astype(np.float32)
    batch = {"tokens": jnp.array([[5, 9]]), "positions": jnp.array([[0, 3]])}
    found = Embedding(config, identity).apply({"params": {"token": table}}, batch)
    positions = np.array([slow_sinusoids(place, 16, "interleaved") for place in (0, 3)])
    close(found[0], 4 * table[[5, 9]] + positions, 1e-6)
