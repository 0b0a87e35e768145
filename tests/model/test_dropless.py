"""Dropless experts are, token by token, the weighted networks of the likeliest few; on any mesh, and in any company."""

from dataclasses import replace
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import config as cfg
from model.dropless import DroplessFeedForward
from model.layers import ACTIVATIONS
from model.ops import ragged_projection
from model.ops.ragged_projection import project_ragged
from model.placement import identity
from tests.model.small import LLAMA, close, gradients, jit, logits, pack, tokens, with_targets
from tests.model.small import draw as draw_model
from train import mesh
from train.config import Mesh

EXPERTS = cfg.DroplessExperts(num_experts=5, top_k=2)
CONFIG = replace(LLAMA, experts=EXPERTS, pattern=(cfg.Layer(experts=True, rotary_base=50.0),))
PLAIN = replace(CONFIG, feed_forward=cfg.FeedForward(24, "relu", gated=False, bias=True))
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
            own = {name: jax.tree.map(lambda leaf: leaf[expert], part) for name, part in params.items()}
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


SIZES = np.array([4, 0, 3, 6, 1], np.int32)  # an expert without a token, and two rows behind the last group


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_a_ragged_product_is_the_product_of_each_row(dtype):
    generator = np.random.default_rng(1)
    x, dy = (generator.standard_normal((16, width)).astype(np.float32) for width in (6, 7))
    kernel = generator.standard_normal((5, 6, 7)).astype(np.float32)
    dy[14:] = 0  # what lies there is not used

    def heard_of(function):
        def loss(x, kernel):
            return jnp.sum(function(x.astype(dtype), kernel, SIZES)[:14].astype(jnp.float32) * dy[:14])

        return jit(jax.value_and_grad(loss, argnums=(0, 1)))

    tolerance = 1e-6 if dtype == "float32" else 0.01
    close(heard_of(project_ragged)(x, kernel), heard_of(ragged_projection.reference)(x, kernel), tolerance)


def test_the_kernels_gradient_is_summed_in_float32():
    """Of 512 equal rows of bfloat16 it is 512 times one, which bfloat16 itself would round."""
    x = jnp.full((512, 1), 1.0078125, jnp.bfloat16)
    sizes = jnp.array([512], jnp.int32)
    grad = jax.grad(lambda kernel: jnp.sum(project_ragged(x, kernel, sizes).astype(jnp.float32)))(jnp.ones((1, 1, 1)))
    assert grad.dtype == jnp.float32 and float(grad[0, 0, 0]) == 516.0


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


MESHES = {"data=8": Mesh(8), "fsdp=4 tensor=2": Mesh(1, 4, 2), "data=2 expert=4": Mesh(2, 1, 1, 4)}


@cache
def on_a_mesh(name: str):
    """Value, statistics and gradients on a mesh, and the compiled program."""
    grid = mesh.make_mesh(MESHES[name])
    place = jax.sharding.NamedSharding(grid, mesh.spec(("batch",), mesh.RULES, grid))
    params, x = draw(CONFIG)
    run = jit(heard(ours(CONFIG, mesh.constrainer(mesh.RULES, grid))), in_shardings=(None, place))
    compiled = run.lower(params, x).compile()
    return compiled(params, jax.device_put(x, place)), compiled.as_text()


@pytest.mark.parametrize("name", MESHES)
def test_devices_change_nothing(name):
    (_, (y, aux)), found = on_a_mesh(name)[0]
    (_, (expected, wanted)), gradient = jit(heard(ours(CONFIG)))(*draw(CONFIG))
    close(y, expected, 1e-6)
    close(aux, wanted, 1e-6)
    close(found, gradient, 1e-5)


def test_no_token_leaves_its_device():
    """Under data parallelism the only exchange is the sum of gradients and statistics."""
    text = on_a_mesh("data=8")[1]
    assert "all-reduce" in text
    for exchange in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert exchange not in text, exchange


def test_a_packed_text_is_the_text_alone():
    texts = (tokens(7, 1), tokens(5, 2))
    found = np.asarray(logits(CONFIG)(draw_model(CONFIG), pack([*texts], [texts[1]], [texts[0]])))[..., :100]
    close(found[0, 7:], found[1, :5], 2e-5)
    close(found[0, :7], found[2, :7], 2e-5)


def test_layers_may_be_unrolled_and_computed_again():
    batch = with_targets(pack([tokens(7, 1), tokens(5, 2)]))
    expected = gradients(CONFIG)(draw_model(CONFIG), batch, None)
    close(gradients(replace(CONFIG, unroll=2, remat="full"))(draw_model(CONFIG), batch, None), expected, 1e-5)
    router = expected[1]["stack"]["0"]["feed_forward"]["router"]["kernel"]
    assert nn.meta.unbox(router).shape == (2, WIDTH, 5) and np.any(router)
