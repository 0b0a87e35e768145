"""Each parameter declared once: shape, initializer, logical axes, kind, and which axes it maps between.

Decay masks, Muon's dimensions, learning rates by fan-in, sharding and name maps read the declaration;
nothing else in the codebase looks at a parameter's rank or at its name to decide what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

KINDS = ("kernel", "embedding", "bias", "scale", "table")
STACK_AXIS = "layers"  # the logical name of the leading axis of parameters stacked over periods


@dataclass(frozen=True)
class Declaration:
    """What a parameter is. `shape` includes the leading axis of a stack; `inputs` and `outputs` do not count it."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]  # one logical name an axis
    kind: str  # one of KINDS
    inputs: tuple[int, ...] = ()  # axes summed over, in the unstacked parameter; kernels only
    outputs: tuple[int, ...] = ()  # axes produced, in the unstacked parameter; kernels only

    @property
    def stacked(self) -> bool:
        return self.axes[:1] == (STACK_AXIS,)

    @property
    def unstacked_shape(self) -> tuple[int, ...]:
        return self.shape[1:] if self.stacked else self.shape

    @property
    def fan_in(self) -> int:
        return math.prod(self.unstacked_shape[axis] for axis in self.inputs)

    @property
    def fan_out(self) -> int:
        return math.prod(self.unstacked_shape[axis] for axis in self.outputs)


class Declared(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A freshly initialised value beside its declaration, as Linen's `init` returns it."""

    value: Any
    declaration: Declaration = struct.field(pytree_node=False)

    def unbox(self):
        return self.value

    def replace_boxed(self, value):
        return self.replace(value=value)

    def add_axis(self, index, params):
        raise NotImplementedError("stacks are declared by model.transformer, not by Linen's scan")

    remove_axis = add_axis


def normal(std: float, truncation: float | None = None) -> Callable:
    """Initializer `(key, shape) -> float32 array` of N(0, std^2), redrawn beyond `truncation` * std.

    As in BERT's code, `std` is that of the distribution before it is cut.
    """
    if truncation is None:
        return lambda key, shape: std * jax.random.normal(key, shape, jnp.float32)
    return lambda key, shape: std * jax.random.truncated_normal(key, -truncation, truncation, shape, jnp.float32)


def constant(value: float) -> Callable:
    """Initializer `(key, shape) -> float32 array` of one value."""
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


def declare(module: nn.Module, name: str, declaration: Declaration, initializer: Callable):
    """Create or read parameter `name` of `module`: a float32 array of the declared shape."""

    def boxed(key):
        return Declared(initializer(key, declaration.shape), declaration)

    return module.param(name, boxed)


def is_declared(node) -> bool:
    return isinstance(node, Declared)


def declarations(boxed) -> dict:
    """The tree of `Declaration`s of a tree of `Declared` (arrays or shapes alike), path for path."""
    return jax.tree.map(lambda leaf: leaf.declaration, boxed, is_leaf=is_declared)


def stack(boxed):
    """Declare the leading stack axis on parameters that `jax.vmap` has initialised over periods."""

    def named(leaf):
        declaration = leaf.declaration
        shape = (leaf.value.shape[0], *declaration.shape)
        return leaf.replace(
            declaration=Declaration(
                shape, (STACK_AXIS, *declaration.axes), declaration.kind, declaration.inputs, declaration.outputs
            )
        )

    return jax.tree.map(named, boxed, is_leaf=is_declared)


def path_name(path) -> str:
    """`stack/0/attention/query/kernel` of a JAX key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
