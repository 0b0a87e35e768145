"""Shardings are what the table says, or are refused by name before anything compiles; on 8 devices."""

import os
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from data.errors import ConfigError
from tests.train.small import DECLARATIONS, draw
from train import config as cfg
from train import mesh as meshes
from train import optim
from train.mesh import RULES

GOLDEN = """\
mesh data=2 fsdp=2 expert=1 tensor=2
embedding/position                                [16, 8]                   positions embed                   - fsdp
embedding/token                                   [256, 8]                  vocab embed                       tensor fsdp
final_norm/scale                                  [8]                       norm                              -
head                                              [8, 256]                  embed vocab                       fsdp tensor
stack/0/attention/key/kernel                      [3, 8, 2, 2]              layers embed kv_heads head_dim    - fsdp tensor -
stack/0/attention/output/kernel                   [3, 4, 2, 8]              layers heads head_dim embed       - tensor - fsdp
stack/0/attention/query/bias                      [3, 4, 2]                 layers heads head_dim             - tensor -
stack/0/attention/query/kernel                    [3, 8, 4, 2]              layers embed heads head_dim       - fsdp tensor -
stack/0/feed_forward/up/kernel                    [3, 8, 24]                layers embed hidden               - fsdp tensor
stack/0/norm/scale                                [3, 8]                    layers norm                       - -
"""  # noqa: E501

BATCH = {
    "tokens": ((16, 4), np.int32, ("batch", "length")),
    "weights": ((16, 4), np.float32, ("batch", "length")),
}


def make(data=-1, fsdp=1, tensor=1, expert=1, count=8):
    assert jax.device_count() >= 8, "run with XLA_FLAGS=--xla_force_host_platform_device_count=8"
    return meshes.make_mesh(cfg.Mesh(data, fsdp, tensor, expert), jax.devices()[:count])


@pytest.fixture
def mesh():
    return make(fsdp=2, tensor=2)


@pytest.mark.parametrize(
    ("sizes", "count", "shape"),
    (
        ((-1, 1, 1), 8, (8, 1, 1, 1)),
        ((2, -1, 2), 8, (2, 2, 1, 2)),
        ((1, 2, 4), 8, (1, 2, 1, 4)),
        ((1, 1, -1), 4, (1, 1, 1, 4)),
        ((-1, 1, 1), 1, (1, 1, 1, 1)),
        ((2, 1, 1), 2, (2, 1, 1, 1)),
        ((2, 1, 1, -1), 8, (2, 1, 4, 1)),
    ),
)
def test_mesh_uses_every_device_once(sizes, count, shape):
    mesh = make(*sizes, count=count)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "expert", "tensor"), shape, strict=True))
    assert sorted(device.id for device in mesh.devices.flat) == list(range(count))
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
    ("sizes", "message"),
    (
        ((2, 2, 3), "data 2 x fsdp 2 x tensor 3 x expert 1, which takes 12 devices, and this machine has 8"),
        ((-1, 3, 1), "mesh.data is -1, the rest of 8 devices, which the other axes' 3 do not divide"),
    ),
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        make(*sizes)


def test_a_mesh_smaller_than_the_machine_takes_the_first_devices():
    assert [device.id for device in make(data=2, fsdp=1, tensor=2).devices.flat] == [0, 1, 2, 3]


def test_spec_follows_the_table(mesh):
    assert meshes.spec(("batch", "length"), RULES, mesh) == PartitionSpec(("data", "fsdp", "expert"), None)
    assert meshes.spec(("vocab", "embed"), RULES, mesh) == PartitionSpec("tensor", "fsdp")
    assert meshes.spec(("layers", "norm"), RULES, mesh) == PartitionSpec(None, None)
    assert meshes.spec((), RULES, mesh) == PartitionSpec()


def test_a_misspelt_axis_is_refused_with_or_without_a_mesh(mesh):
    with pytest.raises(ValueError, match="'activation_hiden' has no rule; .* 'activation_hidden'"):
        meshes.spec(("batch", "length", "activation_hiden"), RULES, mesh)
    for constrain in (meshes.constrainer(RULES, None), meshes.constrainer(RULES, mesh)):
        with pytest.raises(ValueError, match="'lenght' has no rule; .* 'length'"):
            jax.eval_shape(lambda x, constrain=constrain: constrain(x, ("batch", "lenght")), jnp.zeros((8, 4)))


def test_a_mesh_axis_divides_one_dimension(mesh):
    with pytest.raises(ValueError, match="mesh axis 'tensor' divides both 'heads' and 'hidden'"):
        meshes.spec(("heads", "hidden"), RULES, mesh)
    with pytest.raises(ValueError, match="mesh axis 'fsdp' divides both 'batch' and 'embed'"):
        meshes.spec(("batch", "embed"), RULES, mesh)


def test_a_rule_for_an_axis_that_the_mesh_lacks_is_refused(mesh):
    with pytest.raises(ValueError, match="'stages' goes to 'stage', which is none of .*'data'"):
        meshes.spec(("stages",), {**RULES, "stages": "stage"}, mesh)


def test_a_rank_that_differs_is_refused(mesh):
    with pytest.raises(ValueError, match="has 2 axes, but 1 are named"):
        meshes.spec(("batch",), RULES, mesh, (8, 4))


def test_the_stored_vocabulary_divides_and_the_real_one_does_not():
    mesh = make(tensor=8)
    assert meshes.spec(("vocab", "embed"), RULES, mesh, (50304, 8)) == PartitionSpec("tensor", "fsdp")
    with pytest.raises(ConfigError, match=r"\[50257, 8\] does not fit the mesh: vocab 50257 .* mesh.tensor = 8"):
        meshes.spec(("vocab", "embed"), RULES, mesh, (50257, 8))
    with pytest.raises(ConfigError, match="batch 6 does not divide by mesh.data x mesh.fsdp x mesh.expert = 8"):
        meshes.spec(("batch",), RULES, make(data=4, fsdp=2), (6,))


def test_everything_that_does_not_divide_is_named_at_once():
    meshes.check_mesh(DECLARATIONS, 4, RULES, make(fsdp=2, tensor=2))
    with pytest.raises(ConfigError) as error:
        meshes.check_mesh(DECLARATIONS, 5, RULES, make(tensor=4))
    text = str(error.value)
    assert "data=2 fsdp=1 expert=1 tensor=4" in text
    assert "batch 5 does not divide by mesh.data x mesh.fsdp x mesh.expert = 2" in text
    assert "kv_heads 2 does not divide by mesh.tensor = 4 (stack/0/attention/key/kernel)" in text
    assert "query" not in text and "\n" not in text


def test_parameter_shardings_are_the_golden_ones(mesh):
    assert meshes.describe(DECLARATIONS, RULES, mesh) == GOLDEN


def test_shardings_of_parameters_place_every_element(mesh):
    params = draw(DECLARATIONS, 0)
    placed = jax.device_put(params, meshes.param_shardings(DECLARATIONS, RULES, mesh))
    jax.tree.map(np.testing.assert_array_equal, placed, params)
    assert placed["head"].addressable_shards[0].data.shape == (4, 128)


def test_optimizer_states_lie_with_their_parameters(mesh):
    """Adafactor's rows and columns, counts and the step have no parameter's shape and are everywhere."""
    groups = (cfg.Group("embedding/position", freeze=True),)

    def abstract(optimizer):
        built = optim.build(cfg.Optim(optimizer=optimizer, groups=groups), DECLARATIONS)
        params, frozen = optim.split_frozen(draw(DECLARATIONS, 0), built.frozen_paths)
        state = {"params": params, "frozen": frozen, "step": jnp.int32(0), "ema": params}
        return jax.eval_shape(lambda: {**state, "opt_state": built.init(params)})

    specs = jax.tree.map(
        lambda sharding: tuple(sharding.spec),
        meshes.state_shardings(abstract(cfg.AdamW()), DECLARATIONS, RULES, mesh),
    )
    assert specs["step"] == ()
    assert specs["params"]["head"] == specs["ema"]["head"] == ("fsdp", "tensor")
    assert specs["frozen"] == {"embedding": {"position": (None, "fsdp")}}
    query = specs["opt_state"]["stack"]["0"]["attention"]["query"]["kernel"]
    assert query.mu == query.nu == (None, "fsdp", "tensor", None) and query.count == ()
    adafactor = abstract(cfg.Adafactor(min_dim_size_to_factor=8))
    specs = jax.tree.map(
        lambda sharding: tuple(sharding.spec), meshes.state_shardings(adafactor, DECLARATIONS, RULES, mesh)
    )
    up = specs["opt_state"]["stack"]["0"]["feed_forward"]["up"]["kernel"][0]
    assert (up.v_row, up.v_col, up.v) == ((), (), ())
    assert specs["opt_state"]["final_norm"]["scale"][0].v == (None,)


@pytest.mark.parametrize("optimizer", (cfg.AdamW(), cfg.Adafactor(min_dim_size_to_factor=8), cfg.Muon()))
def test_updates_on_a_mesh_are_those_on_one_device(optimizer, mesh):
    built = optim.build(cfg.Optim(optimizer=optimizer), DECLARATIONS)
    params, grads = draw(DECLARATIONS, 0), draw(DECLARATIONS, 1)
    alone, state = params, built.init(params)
    for _ in range(2):
        alone, state = jax.jit(built.update)(grads, state, alone, 0.1)
    together = {"params": params, "opt_state": built.init(params)}
    shardings = meshes.state_shardings(together, DECLARATIONS, RULES, mesh)
    together = jax.device_put(together, shardings)

    def update(state, grads):
        params, opt_state = built.update(grads, state["opt_state"], state["params"], 0.1)
        return {"params": params, "opt_state": opt_state}

    step = jax.jit(update, out_shardings=shardings)
    for _ in range(2):
        together = step(together, jax.device_put(grads, shardings["params"]))
    assert step._cache_size() == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), together["params"], alone)


def test_constrain_stands_in_the_compiled_text(mesh):
    """Entered by `jax.set_mesh` or not, the hidden units of an activation are divided by `tensor`."""
    constrain = meshes.constrainer(RULES, mesh)

    def double(x):
        return 2 * constrain(x, ("batch", "length", "activation_hidden"))

    x = jax.ShapeDtypeStruct((8, 4, 6), jnp.float32)
    for lowered in (jax.jit(double).lower(x), _lower_in(mesh, double, x)):
        text = lowered.as_text()
        assert '[{"data", "fsdp", "expert"}, {}, {"tensor"}]' in text, text
        assert "f32[2,4,3]" in lowered.compile().as_text()
    np.testing.assert_array_equal(jax.jit(double)(jnp.ones((8, 4, 6))), np.full((8, 4, 6), 2.0))


def _lower_in(mesh, function, x):
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(x)


def test_constrain_refuses_a_dimension_that_does_not_divide(mesh):
    with pytest.raises(ConfigError, match="activation_heads 3 does not divide by mesh.tensor = 2"):
        jax.eval_shape(lambda x: meshes.constrainer(RULES, mesh)(x, ("batch", "activation_heads")), jnp.zeros((8, 3)))


def test_constrain_without_a_mesh_returns_its_argument():
    x = jnp.ones((3, 5))
    assert meshes.constrainer(RULES, None)(x, ("batch", "length")) is x


@pytest.mark.parametrize("sizes", ((8, 1, 1), (2, 2, 2), (1, 1, 8), (1, 8, 1)))
def test_a_global_batch_is_the_rows_it_was_given(sizes):
    mesh = make(*sizes)
    shardings = meshes.batch_shardings(BATCH, RULES, mesh)
    assert set(shardings) == set(BATCH)
    local = {
        "tokens": np.arange(64, dtype=np.int32).reshape(16, 4),
        "weights": np.arange(64, dtype=np.float32).reshape(16, 4),
    }
    assert meshes.local_rows(shardings["tokens"], 16) == (0, 16)
    batch = meshes.global_batch(local, shardings, 16)
    for key, part in local.items():
        np.testing.assert_array_equal(batch[key], part)
        assert batch[key].sharding == shardings[key] and batch[key].dtype == part.dtype


def test_a_batch_of_the_wrong_number_of_rows_is_refused(mesh):
    shardings = meshes.batch_shardings(BATCH, RULES, mesh)
    with pytest.raises(ValueError, match="rows 0 to 16 of the batch, but has 8 rows"):
        meshes.global_batch({"tokens": np.zeros((8, 4), np.int32)}, shardings, 16)
    with pytest.raises(ConfigError, match="batch 6 does not divide by mesh.data x mesh.fsdp x mesh.expert = 4"):
        meshes.batch_shardings({"tokens": ((6, 4), np.int32, ("batch", "length"))}, RULES, mesh)


PROCESS = """
import sys
import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from train import config as cfg
from train import mesh as meshes

port, index = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=index)
devices = jax.devices()
rows = np.arange(32, dtype=np.int32).reshape(8, 4)
interleaved = np.asarray([devices[i] for i in (0, 2, 1, 3)]).reshape(4, 1, 1, 1)
for mesh, expected in (
    (meshes.make_mesh(cfg.Mesh()), ((0, 4), (4, 8))),
    (meshes.make_mesh(cfg.Mesh(fsdp=-1, data=2)), ((0, 4), (4, 8))),
    (meshes.make_mesh(cfg.Mesh(tensor=2)), ((0, 4), (4, 8))),
    (meshes.make_mesh(cfg.Mesh(tensor=4)), ((0, 8), (0, 8))),
    (Mesh(interleaved, meshes.AXES, axis_types=(AxisType.Auto,) * 4), ((0, 6), (2, 8))),
):
    specification = {"tokens": ((8, 4), np.int32, ("batch", "length"))}
    shardings = meshes.batch_shardings(specification, meshes.RULES, mesh)
    start, stop = meshes.local_rows(shardings["tokens"], 8)
    assert (start, stop) == expected[index], (mesh, start, stop)
    batch = meshes.global_batch({"tokens": rows[start:stop]}, shardings, 8)["tokens"]
    for shard in batch.addressable_shards:
        np.testing.assert_array_equal(shard.data, rows[shard.index])
    weighted = jax.jit(lambda x: (x * x).sum())(batch)
    assert int(weighted) == int((rows * rows).sum())
try:
    meshes.make_mesh(cfg.Mesh(data=2))
except meshes.ConfigError as error:
    assert "data=2 fsdp=1 expert=1 tensor=1 leaves processes [1] without a device" in str(error)
    print("ok")
"""


def test_two_processes_supply_their_own_rows():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.getcwd(),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROCESS), port, str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, error) in zip(processes, ends, strict=True):
        assert process.returncode == 0 and out.strip().endswith("ok"), error
