"""What a traced function consists of, counted."""

import math
from collections.abc import Iterator

from jax.extend.core import jaxprs_in_params


def equations(jaxpr) -> Iterator:
    """Every equation, those of inner functions and loops included, each once."""
    for equation, _ in weighted(jaxpr):
        yield equation


def weighted(jaxpr, times: int = 1) -> Iterator:
    """(equation, how often it runs), loops of `scan` counted by their length."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation, times
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(equation.params):
            yield from weighted(inner, times * turns)


def dot_flops(jaxpr) -> int:
    """Twice the multiplications of all matrix products."""
    total = 0
    for equation, times in weighted(jaxpr):
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            summed = math.prod(shape[axis] for axis in contracted)
            total += 2 * times * summed * math.prod(equation.outvars[0].aval.shape)
    return total


def count(jaxpr, primitive: str) -> int:
    return sum(equation.primitive.name == primitive for equation in equations(jaxpr))
