"""The same run on 1, 2, 4 or 8 devices, however they are divided among data, fsdp and tensor."""

import itertools
import logging
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from data.errors import ConfigError
from model.config import LearnedPositions
from tests.helpers import digests, drawn, lines, replaced, tiny, train
from train import checkpoint, mesh
from train.assembly import assemble
from train.checkpoint import leaf_dict
from train.checks import load
from train.config import Mesh, Sgd
from train.errors import Stopped
from train.inspect import digest
from train.step import Step
from train.task import causal

ROOT = Path(__file__).resolve().parents[2]
FACTORISATIONS = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(sizes) in (1, 2, 4, 8)]
FAST = {(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)}
SLOW = pytest.mark.slow
SIZES = [pytest.param(s, marks=() if s in FAST else SLOW, id="x".join(map(str, s))) for s in FACTORISATIONS]
LEARNING = {"optim.optimizer": Sgd(), "optim.learning_rate": 0.1}
WIDE = {
    **LEARNING,
    "model.vocab_size": 50257,
    "model.num_layers": 1,
    "model.embed_dim": 16,
    "model.attention.head_dim": 2,
    "data.length": 8,
}


def batches(assembly, count=5):
    """Packed rows whose padding, and so the number of targets, differs from each device to the next."""
    generator = np.random.default_rng(0)
    rows, length = 8, assembly.config.data.length
    for _ in range(count):
        tokens = generator.integers(0, assembly.config.model.vocab_size, (rows, length + 1)).astype(np.int32)
        filled = np.arange(length)[None] < generator.permutation(np.linspace(0, length, rows).astype(int))[:, None]
        batch = {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "weights": filled.astype(np.float32),
            "segment_ids": filled.astype(np.int32),
            "positions": np.where(filled, np.arange(length), 0).astype(np.int32),
        }
        yield jax.device_put(batch, assembly.batch_shardings())


def compiled(assembly, accumulate=1):
    step = Step(assembly.task, assembly.optimizer, lambda _: jnp.float32(0.1), 0, accumulate)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, assembly.abstract)
    return jax.jit(step, out_shardings=(shardings, None))


def learned(config, start, accumulate=1):
    """(parameters after 5 steps from `start` on the mesh of `config`, the losses)."""
    assembly = assemble(config)
    state = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), start, assembly.abstract)
    step, losses = compiled(assembly, accumulate), []
    for batch in batches(assembly):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    return jax.device_get(state.params), losses


def baseline(directory, changes):
    config = tiny(directory, changes)
    start = jax.device_get(drawn(assemble(config)))
    return config, start, *learned(config, start)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return baseline(tmp_path_factory.mktemp("alone"), LEARNING)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return baseline(tmp_path_factory.mktemp("wide"), WIDE)


def same(config, start, params, losses, accumulate=1):
    """Sums in another order, over five steps of at most a tenth of the gradient."""
    found, curve = learned(config, start, accumulate)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), found, params)
    np.testing.assert_allclose(curve, losses, rtol=1e-6)


@pytest.mark.parametrize("sizes", SIZES)
def test_five_steps_on_any_mesh_are_those_on_one_device(sizes, alone):
    config, start, params, losses = alone
    assert np.abs(params["embedding"]["token"] - start.params["embedding"]["token"]).max() > 1e-3
    same(replaced(config, {"mesh": Mesh(*sizes)}), start, params, losses)


@pytest.mark.parametrize("sizes", ((2, 2, 2), pytest.param((1, 1, 8), marks=SLOW), pytest.param((1, 8, 1), marks=SLOW)))
def test_a_vocabulary_that_no_mesh_divides_is_divided_as_stored(sizes, wide):
    config, start, params, losses = wide
    same(replaced(config, {"mesh": Mesh(*sizes)}), start, params, losses)


@pytest.mark.parametrize("sizes", ((2, 2, 1), pytest.param((2, 1, 4), marks=SLOW)))
def test_micro_batches_on_a_mesh_are_those_of_one_device(sizes, alone):
    config, start, params, losses = alone
    same(replaced(config, {"mesh": Mesh(*sizes), "train.accumulate": 2}), start, params, losses, accumulate=2)


@pytest.mark.slow
def test_dropout_drops_the_same_on_any_mesh(tmp_path):
    changes = {**LEARNING, "model.dropout": 0.2, "model.attention.dropout": 0.2}
    config, start, params, losses = baseline(tmp_path, changes)
    for sizes in ((2, 2, 2), (1, 1, 8)):
        same(replaced(config, {"mesh": Mesh(*sizes)}), start, params, losses)


def test_initial_values_do_not_depend_on_the_mesh(alone):
    assembly = assemble(replaced(alone[0], {"mesh": Mesh(2, 2, 2)}))
    state = assembly.fresh()
    assert digest(state) == digest(assemble(alone[0]).fresh())
    jax.tree.map(lambda leaf, like: leaf.sharding == like.sharding or pytest.fail(), state, assembly.abstract)


EXPECTED = {
    "embedding/token": ("tensor", "fsdp"),
    "final_norm/scale": (),
    "stack/0/attention/query/kernel": (None, "fsdp", "tensor"),
    "stack/0/attention/output/kernel": (None, "tensor", None, "fsdp"),
    "stack/0/feed_forward/down/kernel": (None, "tensor", "fsdp"),
}


def test_the_compiled_step_divides_what_the_table_says(alone):
    """Parameters in and out, the batch on its rows; and the exchanges follow."""
    assembly = assemble(replaced(alone[0], {"mesh": Mesh(2, 2, 2)}))
    executable = compiled(assembly).lower(assembly.abstract, next(batches(assembly))).compile()
    (state, batch), _ = executable.input_shardings
    (after, _) = executable.output_shardings
    declared = leaf_dict(assembly.declarations)
    for tree in (state.params, after.params):
        named = leaf_dict(tree)
        for name, partition in EXPECTED.items():
            expected = jax.sharding.NamedSharding(assembly.mesh, PartitionSpec(*partition))
            rank = len(declared[name].shape)
            assert named[name].is_equivalent_to(expected, rank), (name, named[name])
    rows = jax.sharding.NamedSharding(assembly.mesh, PartitionSpec(("data", "fsdp")))
    assert all(leaf.is_equivalent_to(rows, 2) for leaf in batch.values())
    text = executable.as_text()
    assert "all-gather" in text and "all-reduce" in text
    assert "f32[192,16]" in text.splitlines()[0]  # a device's quarter of the token embedding, 384 x 32


@pytest.mark.parametrize(
    ("sizes", "present", "absent"),
    (
        ((8, 1, 1), ("all-reduce",), ("all-gather",)),
        ((1, 8, 1), ("all-gather",), ()),
    ),
)
def test_each_axis_exchanges_what_it_must(sizes, present, absent, alone):
    """Data parallelism sums gradients; full sharding gathers parameters as well."""
    assembly = assemble(replaced(alone[0], {"mesh": Mesh(*sizes)}))
    text = compiled(assembly).lower(assembly.abstract, next(batches(assembly))).compile().as_text()
    assert all(name in text for name in present), text
    assert not any(f" {name}(" in text for name in absent), text


def test_no_row_and_no_activation_moves_between_devices(alone):
    """Micro-batches take each device's own rows, and no lookup is divided otherwise than what follows it."""
    config = replaced(alone[0], {"mesh": Mesh(2, 2, 2), "train.accumulate": 2})
    assembly = assemble(replaced(config, {"model.positions": LearnedPositions(length=16)}))
    text = compiled(assembly, accumulate=2).lower(assembly.abstract, next(batches(assembly))).compile().as_text()
    assert not re.findall(r" (all-to-all|collective-permute)\(", text)


@pytest.mark.parametrize("recipe", ("gpt2", "llama"))
def test_shardings_of_a_recipe_are_the_golden_ones(recipe, golden):
    config = replaced(load(f"{ROOT}/configs/{recipe}.py:debug"), {"mesh": Mesh(2, 2, 2)})
    assembly = assemble(config)
    golden(f"{recipe}_debug_shardings.txt", mesh.describe(assembly.declarations, mesh.RULES, assembly.mesh))


def test_a_misspelt_logical_axis_is_refused_before_compiling(alone):
    def misspelling(x, names):
        return mesh.constrainer(mesh.RULES, None)(x, tuple(name.replace("hidden", "hiden") for name in names))

    task, batch = causal(alone[0], misspelling), next(batches(assemble(alone[0])))
    with pytest.raises(ValueError, match="'activation_hiden' has no rule; .* 'activation_hidden'"):
        jax.eval_shape(lambda params: task.sums(params, batch, None), alone[1].params)


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        (
            {"mesh": Mesh(1, 1, 8), "model.attention.num_heads": 4},
            r"heads 4 does not divide by mesh.tensor = 8 .*query",
        ),
        ({"mesh": Mesh(1, 1, 4), "model.attention.num_kv_heads": 2}, r"kv_heads 2 does not divide .* = 4 .*key/kernel"),
        ({"mesh": Mesh(1, 8, 1), "model.embed_dim": 36}, r"embed 36 does not divide by mesh.fsdp = 8"),
        ({"mesh": Mesh(8, 1, 1), "train.batch_size": 12}, r"train.batch_size is 12, .* choose a multiple of 8"),
        ({"mesh": Mesh(4, 1, 1), "train.accumulate": 4}, r"micro-batches of 2 rows .* choose a multiple of 16"),
        ({"mesh": Mesh(4, 4, 1)}, r"takes 16 devices, and this machine has 8"),
        ({"mesh": Mesh(-1, 3, 1)}, r"the rest of 8 devices, which the other axes' 3 do not divide"),
    ),
)
def test_what_does_not_divide_is_refused_before_compiling(changes, message, tmp_path, caplog):
    with (
        jax.log_compiles(),
        caplog.at_level(logging.WARNING),
        pytest.raises(ConfigError, match=message) as caught,
    ):
        train(tiny(tmp_path, changes), tmp_path / "run")
    assert caught.value.exit_code == 2
    assert not [record for record in caplog.records if "Finished XLA compilation" in record.getMessage()]
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


MOVES = (
    (((1, 1, 1), 3), ((2, 2, 2), 2), ((1, 1, 1), None)),
    pytest.param((((1, 1, 1), 2), ((8, 1, 1), 1), ((1, 2, 4), 1), ((1, 1, 1), None)), marks=SLOW),
    pytest.param((((1, 8, 1), 2), ((1, 1, 8), 2), ((2, 1, 1), None)), marks=SLOW),
)


@pytest.mark.parametrize("moves", MOVES, ids=("1 to 8 to 1", "1 to 8 to 2x4 to 1", "fsdp to tensor to data"))
def test_a_run_goes_on_with_other_devices(moves, tmp_path):
    """What is restored is what was saved, bit for bit, and each next loss is the uninterrupted one's."""
    config = tiny(tmp_path)
    train(config, tmp_path / "whole")
    run = tmp_path / "run"
    for sizes, stop_after in moves:
        moved = replaced(config, {"mesh": Mesh(*sizes)})
        if run.exists():
            restored, _ = checkpoint.restore_newest(run / "checkpoints", assemble(moved).abstract)
            saved = {part: value for part, value in digests(run).items() if part != "counters"}
            assert {part: digest({part: getattr(restored, part)}) for part in saved} == saved
        if stop_after is None:
            train(moved, run)
        else:
            with pytest.raises(Stopped):
                train(moved, run, stop_after)
    expected, found = (losses(tmp_path / name) for name in ("whole", "run"))
    assert len(found) == len(expected) == 6
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def losses(run):
    return [record["loss"] for record in map(eval, lines(run)) if "loss" in record]
