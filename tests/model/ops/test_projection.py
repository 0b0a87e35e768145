"""The projection is the reference; its kernel's gradient is summed in float32 whatever the activations are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops.projection import project, reference
from tests.model.jaxprs import equations
from tests.model.small import close, jit

SHAPES = {  # shape of x, inputs, outputs
    "one to one": ((2, 3), (4,), (5,)),
    "one to two": ((2, 3), (4,), (2, 3)),
    "two to one": ((2, 3), (2, 4), (5,)),
    "two to two": ((2,), (2, 4), (3, 2)),
}
shapes = pytest.mark.parametrize(("leading", "inputs", "outputs"), SHAPES.values(), ids=SHAPES)


def make(leading, inputs, outputs):
    """x, kernel, and a cotangent of their product, float32."""
    generator = np.random.default_rng(0)
    drawn = (generator.standard_normal(shape) for shape in (leading + inputs, inputs + outputs, leading + outputs))
    return [x.astype(np.float32) for x in drawn]


def differentiate(function, x, kernel, dy, count: int):
    """(y, gradient in x, gradient in the kernel)."""

    def pulled(x, kernel, dy):
        y, pull = jax.vjp(lambda x, kernel: function(x, kernel, count), x, kernel)
        return y, *pull(dy)

    return jit(pulled)(x, kernel, dy)


@shapes
def test_project_is_the_reference_and_the_product(leading, inputs, outputs):
    x, kernel, dy = make(leading, inputs, outputs)
    rows = len(leading)
    count = len(inputs)
    expected = (
        np.tensordot(x, kernel, count),
        np.tensordot(dy, kernel, (range(rows, dy.ndim), range(count, kernel.ndim))),
        np.tensordot(x, dy, (range(rows), range(rows))),
    )
    for function in (project, reference):
        close(differentiate(function, x, kernel, dy, count), expected, 1e-6)


@shapes
def test_in_bfloat16_only_the_kernels_gradient_differs_from_the_reference(leading, inputs, outputs):
    x, kernel, dy = make(leading, inputs, outputs)
    x, dy = jnp.asarray(x, jnp.bfloat16), jnp.asarray(dy, jnp.bfloat16)
    actual = differentiate(project, x, kernel, dy, len(inputs))
    expected = differentiate(reference, x, kernel, dy, len(inputs))
    assert [part.dtype for part in actual] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    close(actual[:2], expected[:2], 2**-7)  # one rounding


def test_the_kernels_gradient_is_not_rounded_to_bfloat16():
    x, kernel, dy = make((16, 64), (8,), (8,))
    x, dy = jnp.asarray(x, jnp.bfloat16), jnp.asarray(dy, jnp.bfloat16)
    exact = np.tensordot(np.asarray(x, np.float64), np.asarray(dy, np.float64), ((0, 1), (0, 1)))
    error, rounded = (
        np.max(np.abs(np.asarray(differentiate(function, x, kernel, dy, 1)[2], np.float64) - exact))
        for function in (project, reference)
    )
    assert error < 1e-5 * np.max(np.abs(exact))
    assert rounded > 100 * error


def test_the_product_that_makes_the_kernels_gradient_gives_float32():
    """In the program, since a compiler may leave a rounding out that was asked for."""
    x, kernel, dy = make((16, 64), (8,), (4,))
    x, dy = jnp.asarray(x, jnp.bfloat16), jnp.asarray(dy, jnp.bfloat16)
    traced = jax.make_jaxpr(lambda *arguments: jax.vjp(lambda k: project(x, k, 1), arguments[0])[1](arguments[1]))
    products = [equation.outvars[0].aval for equation in equations(traced(kernel, dy)) if is_product(equation)]
    assert [aval.dtype for aval in products if aval.shape == kernel.shape] == [jnp.float32]


def is_product(equation) -> bool:
    return equation.primitive.name == "dot_general"
