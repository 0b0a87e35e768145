"""Products of rows sorted by expert are each row's own, and so are their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops.ragged_projection import project_ragged, reference
from tests.model.small import close, jit

SIZES = np.array([4, 0, 3, 6, 1], np.int32)  # an expert without a token, and two rows behind the last group


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_a_ragged_product_is_the_product_of_each_row(dtype):
    generator = np.random.default_rng(1)
    x, dy = (generator.standard_normal((16, width)).astype(np.float32) for width in (6, 7))
    kernel = generator.standard_normal((5, 6, 7)).astype(np.float32)
    dy[14:] = 0  # what lies there is not used

    def heard_of(function):
        def loss(x, kernel):
            return jnp.sum(function(x.astype(dtype), kernel, SIZES)[:14].astype(jnp.float32) * dy[:14])

        return jit(jax.value_and_grad(loss, argnums=(0, 1)))

    tolerance = 1e-6 if dtype == "float32" else 0.01
    close(heard_of(project_ragged)(x, kernel), heard_of(reference)(x, kernel), tolerance)


def test_the_kernels_gradient_is_summed_in_float32():
    """Of 512 equal rows of bfloat16 it is 512 times one, which bfloat16 itself would round."""
    x = jnp.full((512, 1), 1.0078125, jnp.bfloat16)
    sizes = jnp.array([512], jnp.int32)
    grad = jax.grad(lambda kernel: jnp.sum(project_ragged(x, kernel, sizes).astype(jnp.float32)))(jnp.ones((1, 1, 1)))
    assert grad.dtype == jnp.float32 and float(grad[0, 0, 0]) == 516.0
