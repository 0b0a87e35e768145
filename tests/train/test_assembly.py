"""A configuration becomes a state on its devices before anything is read or compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import ConfigError
from tests.helpers import replaced, tiny
from train.assembly import assemble
from train.checkpoint import leaf_dict
from train.config import Adafactor, AdamW, Group, Mesh, Muon
from train.inspect import digest
from train.optim import merge
from train.state import all_finite

# On all devices, with an average and a frozen part.
FULL = {"mesh": Mesh(2, 2, 2), "optim.ema_decay": 0.9, "optim.groups": (Group("embedding", freeze=True),)}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("assembly"))


OPTIMIZERS = [
    AdamW(),
    *(pytest.param(x, marks=pytest.mark.slow) for x in (Muon(), Adafactor(min_dim_size_to_factor=8))),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_abstract_state_is_that_of_a_real_one(config, optimizer):
    """Path for path: shape, dtype and sharding."""
    assembly = assemble(replaced(config, {"optim.optimizer": optimizer, **FULL}))
    state, abstract = leaf_dict(assembly.fresh()), leaf_dict(assembly.abstract)
    assert set(state) == set(abstract)
    for name, leaf in state.items():
        like = abstract[name]
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype), name
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim), name
        assert leaf.dtype in (jnp.float32, jnp.int32), name


def test_a_fresh_state_begins_everything(config):
    assembly = assemble(replaced(config, FULL))
    state = assembly.fresh()
    assert (int(state.step), int(state.skipped)) == (0, 0)
    assert set(state.frozen) == {"embedding"} and "embedding" not in state.params
    assert digest(state.ema) == digest(state.params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    buffers = [
        shard.data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards
    ]
    assert len(buffers) == len(set(buffers))  # donated ones must not stand in it twice


def test_the_seed_decides_the_initial_values(config):
    first, again, other = (
        digest(assemble(replaced(config, {"train.seed": seed})).fresh().params) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_weights_from_elsewhere_begin_with_a_fresh_optimizer(config):
    assembly = assemble(replaced(config, FULL))
    fresh = assembly.fresh()
    whole = jax.tree.map(lambda leaf: leaf + 1, merge(fresh.params, fresh.frozen))
    state = assembly.from_params(whole)
    assert digest(merge(state.params, state.frozen)) == digest(whole) and digest(state.ema) == digest(state.params)
    assert digest(state.opt_state) == digest(fresh.opt_state) and int(state.step) == 0
    assert leaf_dict(assembly.abstract_params).keys() == leaf_dict(whole).keys()


@pytest.mark.parametrize(("rows", "sizes", "expected"), ((None, (1, 1, 1), 8), (3, (1, 1, 1), 3), (3, (2, 2, 2), 4)))
def test_an_evaluation_batch_divides_by_the_mesh(config, rows, sizes, expected):
    assert assemble(replaced(config, {"eval.batch_size": rows, "mesh": Mesh(*sizes)})).eval_rows() == expected


def test_a_batch_lies_on_its_rows(config):
    shardings = assemble(replaced(config, {"mesh": Mesh(2, 2, 2)})).batch_shardings()
    assert set(shardings) == {"tokens", "targets", "weights", "segment_ids", "positions"}
    assert {sharding.spec for sharding in shardings.values()} == {jax.P(("data", "fsdp", "expert"), None)}


def test_a_group_that_matches_nothing_is_refused(config):
    with pytest.raises(ConfigError, match="optim.groups.0.pattern is 'embeding', which matches no parameter"):
        assemble(replaced(config, {"optim.groups": (Group("embeding", freeze=True),)}))


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_one_element_that_is_not_finite_is_found(value):
    tree = {"a": jnp.zeros((3, 4)), "b": [jnp.ones(5)], "step": jnp.int32(7)}
    assert all_finite(tree)
    assert not all_finite({**tree, "b": [tree["b"][0].at[3].set(value)]})
