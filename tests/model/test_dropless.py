"""Dropless experts are, token by token, the weighted networks of the likeliest few; on any mesh, and in any company."""

import re
from dataclasses import replace
from functools import cache
from operator import itemgetter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import config as cfg
from model.dropless import DroplessFeedForward
from model.layers import ACTIVATIONS
from model.parameters import declarations
from model.placement import identity
from tests.model.small import LLAMA, close, gradients, jit, logits, pack, tokens, with_targets
from tests.model.small import draw as draw_model
from train import mesh
from train.config import Mesh

EXPERTS = cfg.DroplessExperts(num_experts=5, top_k=2)
CONFIG = replace(LLAMA, experts=EXPERTS, pattern=(cfg.Layer(experts=True, rotary_base=50.0),))
PLAIN = replace(CONFIG, feed_forward=cfg.FeedForward(24, "relu", gated=False, bias=True))
KEY = jax.random.key(7)
ROWS, LENGTH, WIDTH = 8, 12, 16
SEGMENTS = np.array([[1] * length + [0] * (LENGTH - length) for length in (12, 12, 9, 7, 12, 1, 0, 12)], np.int32)


def draw(config, seed: int = 0) -> dict:
    generator = np.random.default_rng(seed)
    count, hidden = config.experts.num_experts, config.feed_forward.hidden_dim
    shapes = {"router": {"kernel": (WIDTH, count)}, "up": {"kernel": (count, WIDTH, hidden)}}
    shapes |= {"gate": {"kernel": (count, WIDTH, hidden)}} if config.feed_forward.gated else {}
    shapes |= {"down": {"kernel": (count, hidden, WIDTH)}}
    if config.feed_forward.bias:
        for name in ("up", "down"):
            shapes[name]["bias"] = (count, shapes[name]["kernel"][-1])
    shaped = jax.tree.map(
        lambda shape: 0.5 * generator.standard_normal(shape).astype(np.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    return shaped, generator.standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32)


def by_token(config, params, x_BxLxD):
    """The output, of each token alone: every expert's in turn, times its weight or 0."""
    settings, feed = config.experts, config.feed_forward
    activate = ACTIVATIONS[feed.activation]

    def one(x_D, segment):
        gate_E = jax.nn.softmax(x_D @ params["router"]["kernel"])
        chosen_E = jnp.array([jnp.sum(gate_E > gate) < settings.top_k for gate in gate_E])
        y_D = jnp.zeros(WIDTH)
        for expert in range(settings.num_experts):
            own = jax.tree.map(itemgetter(expert), {name: params[name] for name in params if name != "router"})
            hidden = x_D @ own["up"]["kernel"] + own["up"].get("bias", 0)
            hidden = activate(x_D @ own["gate"]["kernel"]) * hidden if feed.gated else activate(hidden)
            share = jnp.where(chosen_E[expert], gate_E[expert], 0) / jnp.sum(gate_E * chosen_E)
            y_D += share * (hidden @ own["down"]["kernel"] + own["down"].get("bias", 0))
        return y_D * (segment > 0)

    return jax.vmap(jax.vmap(one))(x_BxLxD, SEGMENTS)


@cache
def module(config, constrain=identity):
    return DroplessFeedForward(config, constrain)


def heard(function):
    """(value, gradient) under a cotangent that differs from place to place."""
    weights = np.random.default_rng(9).standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32)

    def loss(params, x):
        y, aux = function(params, x)
        return jnp.sum(weights * y.astype(jnp.float32)), (y, aux)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def ours(config, constrain=identity):
    return lambda params, x: module(config, constrain).apply({"params": params}, x, SEGMENTS)


@pytest.mark.parametrize("config", (CONFIG, PLAIN), ids=("gated", "biases"))
def test_values_and_gradients_are_those_of_each_token_alone(config):
    params, x = draw(config)
    (_, (y, _)), found = jit(heard(ours(config)))(params, x)
    (_, (expected, _)), wanted = jit(heard(lambda params, x: (by_token(config, params, x), None)))(params, x)
    close(y, expected, 1e-5)
    close(found, wanted, 1e-5)
    assert not np.any(np.asarray(y)[SEGMENTS == 0]) and not np.any(np.asarray(found[1])[SEGMENTS == 0])


def test_padding_of_any_content_is_nothing():
    params, x = draw(CONFIG)
    expected = jit(heard(ours(CONFIG)))(params, x)
    noisy = np.where(SEGMENTS[..., None] > 0, x, 1e3).astype(np.float32)
    found = jit(heard(ours(CONFIG)))(params, noisy)
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
    jax.tree.map(np.testing.assert_array_equal, found[1][0], expected[1][0])


def test_bfloat16_is_float32_to_its_precision():
    params, x = draw(CONFIG)
    (_, (expected, aux)), wanted = jit(heard(ours(CONFIG)))(params, x)
    (_, (y, own)), found = jit(heard(ours(replace(CONFIG, dtype="bfloat16"))))(params, x)
    assert y.dtype == jnp.bfloat16 and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found[0]))
    close(y.astype(jnp.float32), expected, 0.02)
    close(found, wanted, 0.05)
    close(own, aux, 1e-6)  # gating is float32 whatever the rest is


@pytest.mark.parametrize("groups", (1, 3))
def test_statistics_are_those_of_a_loop(groups):
    config = replace(CONFIG, experts=replace(EXPERTS, groups=groups))
    params, x = draw(config)
    _, aux = jit(ours(config))(params, x)
    expected, size = dict.fromkeys(("balance", "load", "dropped", "z", "entropy"), 0.0), LENGTH // groups
    scores = x.astype(np.float64) @ params["router"]["kernel"].astype(np.float64)
    for row in range(ROWS):
        for start in range(0, LENGTH, size):
            real = [i for i in range(start, start + size) if SEGMENTS[row, i] > 0]
            if not real:
                continue
            chosen, first, gates = np.zeros(5), np.zeros(5), np.zeros(5)
            for place in real:
                exponentials = np.exp(scores[row, place])
                gate = exponentials / exponentials.sum()
                best = np.argsort(-gate)[:2]
                chosen[best] += 1 / len(real)
                first[best[0]] += 1 / len(real)
                gates += gate / len(real)
                expected["z"] += np.log(exponentials.sum()) ** 2
                expected["entropy"] -= np.sum(gate * np.log(gate))
            expected["balance"] += 5 * np.sum(chosen * gates)
            expected["load"] += 5 * first.max()
    for name, value in expected.items():
        np.testing.assert_allclose(aux[name], value, rtol=1e-5, err_msg=name)


def test_dropout_zeroes_hidden_units_of_each_choice_by_itself():
    """With one hidden unit a choice's output is there, twice as large, or not."""
    config = replace(CONFIG, feed_forward=replace(CONFIG.feed_forward, hidden_dim=1, dropout=0.5))
    params, x = draw(config)
    run = jit(lambda params, x, key: module(config).apply({"params": params}, x, SEGMENTS, None, key)[0])
    y, plain = (np.asarray(run(params, x, key)) for key in (KEY, None))
    gates = jax.nn.softmax(x @ params["router"]["kernel"], axis=-1)
    top, best = jax.lax.top_k(gates, 2)
    share = np.asarray(top / top.sum(-1, keepdims=True))[..., None]
    own = {name: params[name]["kernel"][np.asarray(best)] for name in ("up", "gate", "down")}  # [B, L, K, in, out]
    hidden = ACTIVATIONS["silu"](jnp.einsum("bld,blkdf->blkf", x, own["gate"]))
    hidden = hidden * jnp.einsum("bld,blkdf->blkf", x, own["up"])
    parts = share * np.asarray(jnp.einsum("blkf,blkfd->blkd", hidden, own["down"]))
    close(plain, parts.sum(2) * (SEGMENTS > 0)[..., None], 1e-5)
    seen = []
    for row, column in np.argwhere(SEGMENTS > 0):
        way = np.linalg.lstsq(parts[row, column].T, y[row, column], rcond=None)[0]
        seen.append(tuple(np.round(way).astype(int).tolist()))
        np.testing.assert_allclose(way, seen[-1], rtol=0, atol=1e-2)
    assert set(seen) == {(0, 0), (0, 2), (2, 0), (2, 2)}
    assert np.all(np.abs(np.mean(seen, axis=0) - 1) < 0.4)
    assert np.any(y != np.asarray(run(params, x, jax.random.key(6))))


MESHES = {"data=8": Mesh(8), "fsdp=4 tensor=2": Mesh(1, 4, 2), "data=2 expert=4": Mesh(2, 1, 1, 4)}


# No axis of a token's is as long as a kernel's, or a part of it, but the embedding.
DIVIDED = replace(CONFIG, experts=replace(EXPERTS, num_experts=8), feed_forward=cfg.FeedForward(40))
DROPPING = replace(DIVIDED, feed_forward=cfg.FeedForward(40, dropout=0.25))
PARTS = [(embed, other) for embed in (WIDTH, WIDTH // 4) for other in (40, 20, 8)]
KERNELS = {*PARTS, *(part[::-1] for part in PARTS)}
COLLECTIVES = re.compile(r"= \(?(\w+\[[\d,]*\]).* (all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute)")


@cache
def on_a_mesh(name: str):
    """Value, statistics and gradients on a mesh, parameters divided as they are in a run; and the compiled program."""
    grid = mesh.make_mesh(MESHES[name])
    place = jax.sharding.NamedSharding(grid, mesh.spec(("batch",), mesh.RULES, grid))
    shapes = jax.eval_shape(module(DIVIDED).init, jax.random.key(0), jnp.zeros((1, 1, WIDTH)), SEGMENTS[:1, :1])
    params = mesh.param_shardings(declarations(shapes["params"]), mesh.RULES, grid)
    run = jit(
        heard(ours(DIVIDED, mesh.constrainer(mesh.RULES, grid))),
        in_shardings=(params, place),
        out_shardings=((None, (place, None)), (params, place)),
    )
    compiled = run.lower(*draw(DIVIDED)).compile()
    return compiled(*jax.device_put(draw(DIVIDED), (params, place))), compiled.as_text()


@pytest.mark.parametrize("name", MESHES)
def test_devices_change_nothing(name):
    (_, (y, aux)), found = on_a_mesh(name)[0]
    (_, (expected, wanted)), gradient = jit(heard(ours(DIVIDED)))(*draw(DIVIDED))
    close(y, expected, 1e-6)
    close(aux, wanted, 1e-6)
    close(found, gradient, 1e-5)


@pytest.mark.parametrize("name", MESHES)
def test_no_token_leaves_its_device(name):
    """Under data parallelism the only exchange is the sum of gradients and statistics; otherwise kernels are moved too.

    Of everything that goes from device to device as it is, the last two sizes are those of a kernel or a part of it.
    """
    moved = [(kind, shape) for shape, kind in COLLECTIVES.findall(on_a_mesh(name)[1]) if kind != "all-reduce"]
    assert "all-reduce" in on_a_mesh(name)[1]
    assert bool(moved) == (name != "data=8")
    for kind, shape in moved:
        sizes = tuple(map(int, re.findall(r"\d+", shape.partition("[")[2])))
        assert sizes[-2:] in KERNELS, (kind, shape)


@pytest.mark.parametrize("name", MESHES)
def test_dropout_is_the_same_on_any_mesh(name):
    def run(constrain):
        return jit(lambda params, x: module(DROPPING, constrain).apply({"params": params}, x, SEGMENTS, None, KEY)[0])

    found = run(mesh.constrainer(mesh.RULES, mesh.make_mesh(MESHES[name])))(*draw(DROPPING))
    close(found, run(identity)(*draw(DROPPING)), 1e-6)


def test_a_packed_text_is_the_text_alone():
    texts = (tokens(7, 1), tokens(5, 2))
    found = np.asarray(logits(CONFIG)(draw_model(CONFIG), pack([*texts], [texts[1]], [texts[0]])))[..., :100]
    close(found[0, 7:], found[1, :5], 2e-5)
    close(found[0, :7], found[2, :7], 2e-5)


@pytest.mark.slow
def test_layers_may_be_unrolled_and_computed_again():
    batch = with_targets(pack([tokens(7, 1), tokens(5, 2)]))
    expected = gradients(CONFIG)(draw_model(CONFIG), batch, None)
    close(gradients(replace(CONFIG, unroll=2, remat="full"))(draw_model(CONFIG), batch, None), expected, 1e-5)
    router = expected[1]["stack"]["0"]["feed_forward"]["router"]["kernel"]
    assert nn.meta.unbox(router).shape == (2, WIDTH, 5) and np.any(router)
