"""Dropout as a pure function of its key."""

import jax
import jax.numpy as jnp


def dropout(x, rate: float, key):
    """Zero each element with probability `rate`, scale the rest by 1 / (1 - rate); identity when `key` is None."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
