"""Dropout keeps the mean, and is a function of its key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops.dropout import dropout
from tests.model.small import same

KEY = jax.random.key(0)


@pytest.mark.parametrize("rate", (0.1, 0.5, 0.9))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_elements_are_dropped_at_the_rate_and_the_others_make_up_for_them(rate, dtype):
    x = jnp.full((200, 500), 2.0, dtype)
    y = np.asarray(dropout(x, rate, KEY).astype(jnp.float32))
    kept = y != 0
    assert abs(kept.mean() - (1 - rate)) < 5 * (rate * (1 - rate) / x.size) ** 0.5  # standard errors
    np.testing.assert_allclose(y[kept], 2.0 / (1 - rate), rtol=1e-6 if dtype == "float32" else 2**-8)
    assert dropout(x, rate, KEY).dtype == x.dtype


def test_without_a_key_or_a_rate_nothing_is_dropped():
    x = jnp.arange(1.0, 101.0)
    same(dropout(x, 0.5, None), x)
    same(dropout(x, 0.0, KEY), x)


def test_equal_keys_drop_equal_elements_and_other_keys_others():
    x = jnp.arange(1.0, 101.0)
    same(dropout(x, 0.5, KEY), dropout(x, 0.5, KEY))
    assert np.any(dropout(x, 0.5, KEY) != dropout(x, 0.5, jax.random.key(1)))


def test_gradients_pass_where_values_do():
    x = jnp.arange(1.0, 101.0)
    gradient = jax.grad(lambda x: jnp.sum(dropout(x, 0.25, KEY)))(x)
    same(gradient, jnp.where(dropout(x, 0.25, KEY) != 0, np.float32(1 / 0.75), 0))
