"""Buckets of distances are the paper's formula, and a bias by distance is the bias by positions."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import Attention, Model, RelativePositions
from model.ops.attention import Places
from model.ops.relative import borders, buckets, by_distance
from model.parameters import declarations
from model.relative import RelativeBias
from tests.model.small import close, jit

SETTINGS = [
    (bidirectional, count, farthest)
    for bidirectional in (True, False)
    for count, farthest in ((32, 128), (4, 5), (8, 20), (6, 64), (128, 1000), (2 * bidirectional + 3, 100))
    if not (bidirectional and count % 2)
]


def formula(distance: int, bidirectional: bool, count: int, farthest: int) -> int:
    """Raffel et al. 2019, section 2.1, as their code has it, borders in whole numbers."""
    behind = count // 2 if bidirectional and distance < 0 else 0
    side = count // 2 if bidirectional else count
    size = abs(distance) if bidirectional else max(distance, 0)
    near = side // 2
    if size < near:
        return behind + size
    step = math.log(size / near) / math.log(farthest / near) * (side - near)
    whole = round(step)
    # A logarithm that is next to a whole number is that one, where whole numbers say so.
    if abs(step - whole) < 1e-9:
        exact = size ** (side - near) >= farthest**whole * near ** (side - near - whole)
        step = whole if exact else whole - 1
    return behind + min(near + math.floor(step), side - 1)


@pytest.mark.parametrize("setting", SETTINGS)
def test_buckets_are_the_formula(setting):
    distances = np.arange(-2000, 2001)
    found = jit(lambda distances: buckets(distances, *setting))(jnp.asarray(distances, jnp.int32))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, [formula(int(distance), *setting) for distance in distances])


def test_the_published_borders():
    """T5's encoders: distances of up to 7 by themselves, then steps of about the square root of 2."""
    assert borders(16, 128).tolist() == [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
    assert borders(32, 128)[15:].tolist() == [15, 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]


@pytest.mark.parametrize("length", (1, 2, 9))
def test_values_by_distance(length):
    values = np.random.default_rng(0).standard_normal((3, 2 * length - 1)).astype(np.float32)
    cotangent = np.random.default_rng(1).standard_normal((3, length, length)).astype(np.float32)
    out, pull = jax.vjp(by_distance, jnp.asarray(values))
    expected, gradient = np.zeros_like(cotangent), np.zeros_like(values)
    for query in range(length):
        for key in range(length):
            place = length - 1 - (query - key)
            expected[:, query, key] = values[:, place]
            gradient[:, place] += cotangent[:, query, key]
    close(out, expected, 0)
    close(pull(jnp.asarray(cotangent))[0], gradient, 1e-6)


@pytest.mark.parametrize("bidirectional", (True, False))
def test_a_bias_of_rows_is_the_bias_of_their_positions(bidirectional):
    """In value and in gradient; rows are packed, so that their positions begin anew."""
    config = replace(
        Model(), embed_dim=16, attention=Attention(num_heads=2), positions=RelativePositions("relative", 8, 20)
    )
    positions = jnp.asarray([[*range(30)], [*range(4, 14), *range(20)]], jnp.int32)
    segments = jnp.asarray([[1] * 30, [1] * 10 + [2] * 20], jnp.int32)
    places, module = Places(positions, segments), RelativeBias(config, bidirectional)
    declared = module.init(jax.random.key(0), places, places)["params"]
    assert declarations(declared)["table"].axes == ("buckets", "heads")
    assert declarations(declared)["table"].kind == "table"
    table = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32)
    seen = (segments[:, :, None] == segments[:, None, :])[:, None]
    cotangent = np.random.default_rng(1).standard_normal((2, 2, 30, 30)).astype(np.float32) * seen

    def run(keys):
        out, pull = jax.vjp(lambda table: module.apply({"params": {"table": table}}, places, keys), table)
        spread = cotangent if out.shape[0] == 2 else cotangent.sum(0, keepdims=True)
        return jnp.where(seen, out, 0), out, pull(jnp.asarray(spread))[0]

    by_place, whole, gradient = run(places)
    by_position, _, expected = run(Places(positions, segments))
    assert whole.shape == (1, 2, 30, 30) and whole.dtype == jnp.float32
    close(by_place, by_position, 0)
    close(gradient, expected, 1e-5)
    for row, query, key in ((0, 3, 29), (0, 29, 3), (1, 9, 0), (1, 15, 18)):
        distance = int(positions[row, query] - positions[row, key])
        close(by_place[row, :, query, key], table[formula(distance, bidirectional, 8, 20)], 0)
