"""Matrix products of rows that lie sorted by expert with the float32 kernel of each one's expert."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Of x and dy, both [N, ...] and grouped along N: a product of its own for each group.
BY_GROUP = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)


def reference(x_NxI, kernel_ExIxO, sizes_E):
    """Row by row: x[n] @ kernel[expert of n], 0 behind the last group, in x's dtype."""
    ends_E = jnp.cumsum(sizes_E)
    expert_N = jnp.searchsorted(ends_E, jnp.arange(x_NxI.shape[0]), side="right")
    hot_NxE = jax.nn.one_hot(expert_N, kernel_ExIxO.shape[0], dtype=x_NxI.dtype)
    return jnp.einsum("ne,ni,eio->no", hot_NxE, x_NxI, kernel_ExIxO.astype(x_NxI.dtype))


@jax.custom_vjp
def project_ragged(x_NxI, kernel_ExIxO, sizes_E):
    """`reference` through `jax.lax.ragged_dot`: `sizes_E`, int32, rows of each expert, those of expert 0 first.

    On a CPU it costs E times the arithmetic. What it gives behind the last group is not to be used. The kernel's
    gradient is summed and returned in float32, never rounded to x's dtype.
    """
    return jax.lax.ragged_dot(x_NxI, kernel_ExIxO.astype(x_NxI.dtype), sizes_E)


def _forward(x_NxI, kernel_ExIxO, sizes_E):
    return project_ragged(x_NxI, kernel_ExIxO, sizes_E), (x_NxI, kernel_ExIxO, sizes_E)


def _backward(saved, dy_NxO):
    x_NxI, kernel_ExIxO, sizes_E = saved
    dx_NxI = jax.lax.ragged_dot(dy_NxO, kernel_ExIxO.astype(dy_NxO.dtype).swapaxes(1, 2), sizes_E)
    d_kernel = jax.lax.ragged_dot_general(x_NxI, dy_NxO, sizes_E, BY_GROUP, preferred_element_type=jnp.float32)
    return dx_NxI, d_kernel, None


project_ragged.defvjp(_forward, _backward)
