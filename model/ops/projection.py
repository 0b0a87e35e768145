"""Matrix products of activations with float32 kernels."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp


def reference(x, kernel, count: int):
    """`x[..., *inputs] @ kernel[*inputs, *outputs]` over the last `count` axes of x, in x's dtype."""
    axes = tuple(range(x.ndim - count, x.ndim)), tuple(range(count))
    return jax.lax.dot_general(x, kernel.astype(x.dtype), (axes, ((), ())))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x, kernel, count: int):
    """`reference`; the kernel's gradient is summed and returned in float32, never rounded to x's dtype.

    All products are of matrices: where axes are left apart, XLA for CPU copies operands into a transposed
    layout, and computes again, element by element, the norm or activation that made them.
    """
    return _forward(x, kernel, count)[0]


def _forward(x, kernel, count):
    y = _rows(x, count) @ _matrix(kernel, count).astype(x.dtype)
    return y.reshape(*x.shape[: x.ndim - count], *kernel.shape[count:]), (x, kernel)


def _backward(count, saved, dy):
    x, kernel = saved
    x_rows, dy_rows = _rows(x, count), _rows(dy, kernel.ndim - count)
    dx = dy_rows @ _matrix(kernel, count).astype(dy.dtype).T
    d_kernel = jnp.matmul(x_rows.T, dy_rows, preferred_element_type=kernel.dtype)
    return dx.reshape(x.shape), d_kernel.reshape(kernel.shape)


project.defvjp(_forward, _backward)


def _matrix(kernel, count: int):
    """`[*inputs, *outputs]` as `[inputs, outputs]`."""
    return kernel.reshape(math.prod(kernel.shape[:count]), -1)


def _rows(x, count: int):
    """x with its last `count` axes as one, and all axes before them as one."""
    return x.reshape(-1, math.prod(x.shape[x.ndim - count :]))
