"""The state of training: everything that a step reads and replaces, and a checkpoint holds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from train.optim import Optimizer, split_frozen


class State(struct.PyTreeNode):
    """Trees of float32 arrays by parameter path, and two int32 scalars."""

    params: dict  # trained
    frozen: dict  # read by the model, not differentiated, without optimizer state
    opt_state: Any  # an optimizer state at each path of `params`
    ema: dict  # exponential moving average of `params`; empty where none is kept
    step: jax.Array  # updates attempted = batches consumed
    skipped: jax.Array  # of these, the ones refused for a loss or a gradient that was not finite


@jax.jit
def all_finite(tree) -> jax.Array:
    """Boolean scalar: whether every element of every floating-point leaf is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def initial_state(params: dict, optimizer: Optimizer, keep_ema: bool) -> State:
    """The state before the first step, from the whole parameter tree."""
    trained, frozen = split_frozen(params, optimizer.frozen_paths)
    zero = jnp.zeros((), jnp.int32)
    # Copies, since a donated buffer must not stand in the state twice.
    ema = jax.tree.map(jnp.copy, trained) if keep_ema else {}
    return State(trained, frozen, optimizer.init(trained), ema, zero, jnp.copy(zero))
