"""Matrix products of activations with float32 kernels."""

from __future__ import annotations

from functools import partial

import jax


def reference(x, kernel, count: int):
    """`x[..., *inputs] @ kernel[*inputs, *outputs]` over the last `count` axes of x, in x's dtype."""
    return _contract(x, kernel.astype(x.dtype), _last(x, count), tuple(range(count)))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x, kernel, count: int):
    """`reference`; the kernel's gradient is summed and returned in float32, never rounded to x's dtype.

    Both operands of the backward products are materialised: where XLA for CPU fuses the norm or activation
    that made them into a transposed read, the product takes up to a quarter longer.
    """
    return reference(x, kernel, count)


def _forward(x, kernel, count):
    x = jax.lax.optimization_barrier(x)
    return reference(x, kernel, count), (x, kernel)


def _backward(count, saved, dy):
    x, kernel = saved
    dy = jax.lax.optimization_barrier(dy)
    outputs = kernel.ndim - count
    dx = _contract(dy, kernel.astype(dy.dtype), _last(dy, outputs), tuple(range(count, kernel.ndim)))
    rows = tuple(range(x.ndim - count))
    d_kernel = _contract(x, dy, rows, rows, preferred_element_type=kernel.dtype)
    return dx, d_kernel


project.defvjp(_forward, _backward)


def _last(x, count: int) -> tuple[int, ...]:
    return tuple(range(x.ndim - count, x.ndim))


def _contract(a, b, a_axes, b_axes, **options):
    return jax.lax.dot_general(a, b, ((a_axes, b_axes), ((), ())), **options)
