"""Matrix products of the experts' tokens with the experts' float32 kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def reference(x_ExNxI, kernel_ExIxO):
    """`x[e] @ kernel[e]` of every expert, in x's dtype."""
    return jnp.einsum("eni,eio->eno", x_ExNxI, kernel_ExIxO.astype(x_ExNxI.dtype))


@jax.custom_vjp
def project_experts(x_ExNxI, kernel_ExIxO):
    """`reference`; the kernels' gradient is summed and returned in float32, never rounded to x's dtype."""
    return reference(x_ExNxI, kernel_ExIxO)


def _forward(x_ExNxI, kernel_ExIxO):
    return reference(x_ExNxI, kernel_ExIxO), (x_ExNxI, kernel_ExIxO)


def _backward(saved, dy_ExNxO):
    x_ExNxI, kernel_ExIxO = saved
    dx_ExNxI = jnp.einsum("eno,eio->eni", dy_ExNxO, kernel_ExIxO.astype(dy_ExNxO.dtype))
    dtype = kernel_ExIxO.dtype
    return dx_ExNxI, jnp.einsum("eni,eno->eio", x_ExNxI, dy_ExNxO, preferred_element_type=dtype)


project_experts.defvjp(_forward, _backward)
