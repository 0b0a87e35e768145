"""Experts divided among devices: the run of one device, by two exchanges of tokens a layer; none is gathered."""

import re
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import CapacityExperts, FeedForward, Layer
from model.experts import Experts
from model.parameters import declarations
from model.transformer import identity
from tests.helpers import TINY, drawn, replaced, tiny
from tests.train.test_devices import batches, compiled
from train import mesh
from train.assembly import assemble
from train.config import Mesh, Sgd
from train.step import Step

# Experts of every second layer that run out of places; second choices are drawn.
CHANGES = {
    "optim.optimizer": Sgd(),
    "optim.learning_rate": 0.1,
    "model.pattern": (Layer(), Layer(experts=True)),
    "model.experts": CapacityExperts(num_experts=8, capacity_factor=1.0, min_capacity=1, z_coefficient=0.01),
}
MESHES = {
    "expert=8": Mesh(1, 1, 1, expert=8),
    "data=2 expert=4": Mesh(2, 1, 1, expert=4),
    "fsdp=2 tensor=2 expert=2": Mesh(1, 2, 2, expert=2),
    "data=8": Mesh(8),
}
SLOW = pytest.mark.slow


def learned(config, start, accumulate=1):
    """(parameters after 3 steps from `start` on the mesh of `config`, their metrics)."""
    assembly = assemble(config)
    state = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), start, assembly.abstract)
    step, metrics = compiled(assembly, accumulate), []
    for batch in batches(assembly, 3):
        state, found = step(state, batch)
        metrics.append(jax.device_get(found))
    return jax.device_get(state.params), metrics


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    config = tiny(tmp_path_factory.mktemp("alone"), CHANGES)
    start = jax.device_get(drawn(assemble(config)))
    layer = start.params["stack"]["1"]  # its choices are apart by more than rounding, and what it gives is seen
    for norm in (layer["feed_forward_norm"], start.params["final_norm"]):
        norm["scale"] = np.ones_like(norm["scale"])
    layer["feed_forward"] = jax.tree.map(lambda kernel: 5 * kernel, layer["feed_forward"])
    return config, start, *learned(config, start)


def same(found, expected):
    """Sums in another order, over three steps of at most a tenth of the gradient."""
    (params, metrics), (other_params, other_metrics) = found, expected
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), params, other_params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), metrics, other_metrics)


@pytest.mark.parametrize(
    "name",
    (
        "fsdp=2 tensor=2 expert=2",
        *(pytest.param(name, marks=SLOW) for name in ("expert=8", "data=2 expert=4", "data=8")),
    ),
)
def test_three_steps_with_experts_divided_are_those_on_one_device(name, alone):
    """Parameters, and every metric: losses, tokens dropped, load and entropy of each layer."""
    config, start, params, metrics = alone
    assert 0 < metrics[0]["experts/decoder.1/dropped"] < 1
    new, old = (tree["stack"]["1"]["feed_forward"]["up"]["kernel"] for tree in (params, start.params))
    assert np.all(np.abs(new - old).max(axis=(0, 2, 3)) > 3e-4)  # of every expert
    same(learned(replaced(config, {"mesh": MESHES[name]}), start), (params, metrics))


@pytest.mark.parametrize(
    ("sizes", "parts"),
    ((Mesh(1), 2), pytest.param(Mesh(1), 4, marks=SLOW), pytest.param(Mesh(2, 1, 1, expert=2), 2, marks=SLOW)),
    ids=("2", "4", "2 on 4 devices"),
)
def test_micro_batches_are_the_batch(sizes, parts, alone):
    """A row's draws are its own, in whichever micro-batch it stands; losses are divided by the whole batch's groups."""
    config, start, params, metrics = alone
    changed = replaced(config, {"mesh": sizes, "train.accumulate": parts})
    same(learned(changed, start, accumulate=parts), (params, metrics))


def test_every_row_of_every_step_draws_from_its_own_key(alone):
    assembly = assemble(alone[0])
    keys = [Step(assembly.task, assembly.optimizer, None, seed).row_keys(step, 8) for seed in (0, 1) for step in (0, 1)]
    assert len(np.unique(np.concatenate([jax.random.key_data(part) for part in keys]), axis=0)) == 4 * 8
    again = Step(assembly.task, assembly.optimizer, None, 0, accumulate=4).row_keys(0, 8)
    np.testing.assert_array_equal(jax.random.key_data(again), jax.random.key_data(keys[0]))


COLLECTIVES = re.compile(r"= \(?(\w+\[[\d,]*\]).* (all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute)")


@cache
def collectives(sizes: Mesh, backward: bool) -> list[tuple[str, str]]:
    """(operation, shape of its first result on a device) of the compiled program of one layer of experts alone.

    8 rows of 16 tokens x 24; 8 experts x 40 hidden units, with 4 places in a row: no two sizes are equal by chance.
    """
    layer = {"pattern": (Layer(experts=True),), "experts": CapacityExperts(num_experts=8)}
    config = replaced(TINY.model, {**layer, "embed_dim": 24, "feed_forward": FeedForward(40, "relu", gated=False)})
    grid = mesh.make_mesh(sizes)
    constrain = mesh.constrainer(mesh.RULES, grid)
    boxed = Experts(config, identity).init(jax.random.key(0), jnp.zeros((1, 1, 24)), jnp.ones((1, 1), jnp.int32))
    params, segments = nn.meta.unbox(boxed["params"]), jnp.ones((8, 16), jnp.int32)

    def place(*names):
        return jax.sharding.NamedSharding(grid, mesh.spec(names, mesh.RULES, grid))

    rows = place("batch", "length", "activation_embed")
    shardings = (mesh.param_shardings(declarations(boxed["params"]), mesh.RULES, grid), rows, place("batch"))

    def forward(params, x, row_keys):
        return Experts(config, constrain).apply({"params": params}, x, segments, row_keys)[0]

    def gradient(params, x, row_keys):
        return jax.grad(lambda *inputs: jnp.sum(forward(*inputs, row_keys) ** 2), argnums=(0, 1))(params, x)

    function, out = (gradient, shardings[:2]) if backward else (forward, rows)
    inputs = (params, jnp.zeros((8, 16, 24)), jax.random.split(jax.random.key(1), 8))
    text = jax.jit(function, in_shardings=shardings, out_shardings=out).lower(*inputs).compile().as_text()
    return sorted((found[2], found[1]) for line in text.splitlines() if (found := COLLECTIVES.search(line)))


DIVIDED = ("expert=8", pytest.param("data=2 expert=4", marks=SLOW), "fsdp=2 tensor=2 expert=2")
ROUTER = {"f32[24,8]", "f32[8,24]", "f32[12,8]", "f32[8,12]"}  # whole, or the half of `fsdp`; a gradient may be turned
KERNELS = {"f32[4,24,20]", "f32[4,20,24]"}  # those of a device's experts, of the hidden units of its part of `tensor`


@pytest.mark.parametrize("name", DIVIDED)
@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
def test_tokens_go_to_their_experts_and_back_by_one_exchange_each(name, backward):
    """Two all-to-alls forward, dispatch and combine, and each the other way round behind it. No token is gathered.

    What `fsdp` has divided, kernels, is gathered; `tensor` adds up partial sums.
    """
    found = collectives(MESHES[name], backward)
    exchanges = [shape for operation, shape in found if operation == "all-to-all"]
    assert len(exchanges) == (4 if backward else 2)
    assert all(shape.endswith("4,24]") for shape in exchanges)  # places and embedding
    gathered = {shape for operation, shape in found if operation in ("all-gather", "collective-permute")}
    assert gathered <= (ROUTER | KERNELS if "fsdp" in name else set())
    if "fsdp" not in name and not backward:
        assert len(found) == 2
