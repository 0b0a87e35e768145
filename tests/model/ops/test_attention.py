"""Every attention kernel is the reference, packed rows are rows alone, and the reference is the formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import config as cfg
from model.ops.attention import KERNELS, Places, Rule, reference
from tests.model import formulas
from tests.model.small import close, jit, same

B, L, H, C = 2, 10, 4, 6
kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
FAST = {name: kernel for name, kernel in KERNELS.items() if kernel is not reference}
fast_kernels = pytest.mark.parametrize("kernel", FAST.values(), ids=FAST)
RULES = {
    "causal": Rule(scale=0.4),
    "window": Rule(window=3, scale=0.4),
    "window of one": Rule(window=1),
    "capped": Rule(scale=2.0, soft_cap=1.5),
    "bidirectional": Rule(causal=False),
    "bidirectional window": Rule(causal=False, window=3),
}
# A document begun elsewhere and a whole one; one, another of a single token, and padding.
PLACES = Places(
    np.array([[4, 5, 6, 7, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 0, 0, 0, 0, 0]], np.int32),
    np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 2, 0, 0, 0, 0]], np.int32),
)
# The same, each document begun by a prefix: of 2 tokens and of 4; of all 5, and of the one.
ORDERED = PLACES._replace(order=np.array([[5, 5, 6, 7, 3, 3, 3, 3, 4, 5], [4, 4, 4, 4, 4, 0, 0, 0, 0, 0]], np.int32))
EVERYWHERE = {"places": PLACES, "prefixes": ORDERED}
everywhere = pytest.mark.parametrize("places", EVERYWHERE.values(), ids=EVERYWHERE)
SEGMENTS = ((0, slice(0, 4)), (0, slice(4, 10)), (1, slice(0, 5)), (1, slice(5, 6)))


def make(kv_heads: int, dtype="float32", seed: int = 0):
    """Queries, keys, values and a cotangent of the output."""
    generator = np.random.default_rng(seed)
    shapes = ((B, L, heads, C) for heads in (H, kv_heads, kv_heads, H))
    return [jnp.asarray(generator.standard_normal(shape), dtype) for shape in shapes]


def differentiate(kernel, inputs, queries, keys, rule):
    """(output, gradients of its product with the cotangent)."""
    *inputs, cotangent = inputs
    out, pull = jax.vjp(lambda q, k, v: kernel(q, k, v, queries, keys, rule), *inputs)
    return out, pull(cotangent)


def row(places: Places, index: int):
    return [part[index] for part in places if part is not None]


@everywhere
@pytest.mark.parametrize("kv_heads", (4, 2, 1))
def test_the_reference_is_the_formula(kv_heads, places):
    q, k, v, _ = make(kv_heads)

    @jit
    def run(q, k, v):
        return {name: reference(q, k, v, places, places, rule) for name, rule in RULES.items()}

    def expected(rule):
        return [formulas.attention(q[b], k[b], v[b], row(places, b), row(places, b), rule) for b in range(B)]

    close(run(q, k, v), {name: np.stack(expected(rule)) for name, rule in RULES.items()}, 1e-6)


def test_queries_need_not_be_the_keys():
    """As with a cache: queries late in a row, keys from its beginning."""
    q, k, v, _ = make(2)
    late = Places(PLACES.positions[:, 3:5], PLACES.segments[:, 3:5])
    run = jit(lambda q, k, v, places: reference(q, k, v, places, PLACES, RULES["window"]))
    close(run(q[:, 3:5], k, v, late), run(q, k, v, PLACES)[:, 3:5], 1e-6)


@everywhere
@fast_kernels
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_every_kernel_is_the_reference(kernel, dtype, places):
    inputs = make(2, dtype)

    def run(function):
        return jit(
            lambda inputs: {name: differentiate(function, inputs, places, places, rule) for name, rule in RULES.items()}
        )(inputs)

    actual = run(kernel)
    close(actual, run(reference), 1e-5 if dtype == "float32" else 2**-6)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(actual))


@everywhere
@kernels
@pytest.mark.parametrize("rule", (Rule(window=3, soft_cap=1.5), Rule(causal=False)), ids=("window", "bidirectional"))
def test_packed_is_alone(kernel, rule, places):
    """A segment's output and gradients are those of a batch that holds nothing else."""
    inputs = make(2)
    whole = jit(lambda inputs: differentiate(kernel, inputs, places, places, rule))(inputs)

    def cut(tree, index, place):
        return jax.tree.map(lambda x: x[index : index + 1, place], tree)

    @jit
    def alone(inputs):
        parts = [(cut(inputs, *segment), cut(places, *segment)) for segment in SEGMENTS]
        return [differentiate(kernel, part, where, where, rule) for part, where in parts]

    # A token alone has no gradient in its scores but what rounding leaves: hence an absolute tolerance.
    cuts = [cut(whole, *segment) for segment in SEGMENTS]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-5), cuts, alone(inputs))


LONG = 256  # four blocks of queries


@pytest.mark.parametrize("rule", (Rule(scale=0.4), Rule(window=40, scale=0.4, soft_cap=2.0)), ids=("whole", "window"))
@pytest.mark.parametrize("dtype", ("float32", pytest.param("bfloat16", marks=pytest.mark.slow)))
@pytest.mark.parametrize("prefixes", (None, (25, 98, 70)), ids=("causal", "prefixes"))
@fast_kernels
def test_every_kernel_is_the_reference_on_long_rows(kernel, dtype, rule, prefixes):
    """Segments, and prefixes, that end inside, at the end of and beyond blocks; padding, which nothing reads."""
    generator, lengths = np.random.default_rng(0), (30, 98, 110)
    positions = np.concatenate([*map(np.arange, lengths), np.zeros(LONG - sum(lengths), int)])
    segments = np.repeat((1, 2, 3, 0), (*lengths, LONG - sum(lengths)))
    places = Places(*(jnp.asarray(part[None], jnp.int32) for part in (positions, segments)))
    if prefixes:
        lasts = np.repeat((*prefixes, 1), (*lengths, LONG - sum(lengths))) - 1
        places = places._replace(order=jnp.maximum(places.positions, lasts[None]))
    shapes = ((1, LONG, heads, C) for heads in (H, 2, 2, H))
    inputs = [jnp.asarray(generator.standard_normal(shape), dtype) for shape in shapes]
    inputs[3] = jnp.where(segments[None, :, None, None] > 0, inputs[3], 0)

    @jit
    def run(inputs):
        return [differentiate(function, inputs, places, places, rule) for function in (kernel, reference)]

    (out, gradients), (expected, expected_gradients) = run(inputs)
    tolerance = 1e-5 if dtype == "float32" else 2**-6
    close(out[:, segments > 0], expected[:, segments > 0], tolerance)
    close(gradients, expected_gradients, tolerance)


def differentiate_biased(kernel, inputs, bias, places, rule):
    """(output, gradients of its product with the cotangent), that of the bias too."""
    *inputs, cotangent = inputs
    out, pull = jax.vjp(lambda q, k, v, bias: kernel(q, k, v, places, places, rule, None, bias), *inputs, bias)
    return out, pull(cotangent)


@pytest.mark.parametrize("rule", (Rule(scale=0.4), Rule(window=3, soft_cap=1.5)), ids=("causal", "window"))
@pytest.mark.parametrize("rows", (1, B), ids=("shared", "by row"))
def test_a_bias_is_added_to_the_scores(rule, rows):
    """As one more feature of queries and keys: of each query 1 times a key's bias, by head; and its gradient."""
    q, k, v, cotangent = make(H)
    by_key = np.random.default_rng(2).standard_normal((rows, H, 1, L)).astype(np.float32)
    bias = jnp.asarray(np.broadcast_to(by_key, (rows, H, L, L)))
    ones = np.full((B, L, H, 1), 1 / rule.scale, np.float32)
    extra = np.broadcast_to(by_key[:, :, 0].swapaxes(1, 2)[..., None], (B, L, H, 1))
    none = jnp.zeros_like(ones)
    longer = [jnp.concatenate(pair, axis=-1) for pair in ((q, ones), (k, extra), (v, none), (cotangent, none))]
    out, (*found, d_bias) = jit(lambda: differentiate_biased(reference, (q, k, v, cotangent), bias, PLACES, rule))()
    expected, slopes = jit(lambda: differentiate(reference, longer, PLACES, PLACES, rule))()
    close(out, expected[..., :-1], 1e-5)
    close(found, [slope[..., :-1] for slope in slopes], 1e-5)
    of_keys = slopes[1][..., -1].swapaxes(1, 2)
    close(d_bias.sum(axis=2), of_keys if rows == B else of_keys.sum(axis=0, keepdims=True), 1e-5)


@pytest.mark.parametrize("dtype", ("float32", pytest.param("bfloat16", marks=pytest.mark.slow)))
@pytest.mark.parametrize("length", (L, 256), ids=("one block", "blocks"))
@pytest.mark.parametrize("rows", (1, B), ids=("shared", "by row"))
@fast_kernels
def test_every_kernel_is_the_reference_with_a_bias(kernel, dtype, length, rows):
    generator = np.random.default_rng(0)
    places = PLACES if length == L else jax.tree.map(partial(jnp.repeat, repeats=26, axis=1), PLACES)
    if length != L:
        places = Places(jnp.cumsum(jnp.ones_like(places.positions), axis=1) - 1, places.segments).part(0, length)
    inputs = [jnp.asarray(generator.standard_normal((B, length, heads, C)), dtype) for heads in (H, 2, 2, H)]
    bias = jnp.asarray(generator.standard_normal((rows, H, length, length)), jnp.float32)
    rule = Rule(window=40, scale=0.4, soft_cap=2.0)

    @jit
    def run(inputs, bias):
        return [differentiate_biased(function, inputs, bias, places, rule) for function in (kernel, reference)]

    actual, expected = run(inputs, bias)
    close(actual, expected, 1e-5 if dtype == "float32" else 2**-6)
    assert actual[1][3].dtype == jnp.float32 and np.any(expected[1][3])


@kernels
def test_other_segments_change_not_a_bit(kernel):
    inputs, others = make(2), make(2, seed=1)
    second = jnp.asarray(PLACES.segments == 2)[..., None, None]
    mixed = [jnp.where(second, x, other) for x, other in zip(inputs, others, strict=True)]
    run = jit(lambda q, k, v, _: kernel(q, k, v, PLACES, PLACES, Rule()))
    same(run(*inputs)[PLACES.segments == 2], run(*mixed)[PLACES.segments == 2])
    assert np.any(run(*inputs)[PLACES.segments == 1] != run(*mixed)[PLACES.segments == 1])


@kernels
def test_a_query_that_sees_no_key_is_finite_and_so_are_its_gradients(kernel):
    nowhere = Places(PLACES.positions, np.full_like(PLACES.segments, 7))
    run = jit(lambda inputs: differentiate(kernel, inputs, nowhere, PLACES, RULES["capped"]))
    out, gradients = run(make(2))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((out, gradients)))
    assert not np.any(gradients[0]) and not np.any(gradients[1])


@kernels
def test_large_scores_are_finite(kernel):
    q, k, v, cotangent = make(2)
    run = jit(lambda inputs: differentiate(kernel, inputs, PLACES, PLACES, Rule()))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(run((1e4 * q, 1e4 * k, v, cotangent))))


@kernels
def test_dropout_falls_on_the_probabilities(kernel):
    """The mean over keys is the output without dropout; each probability goes for a whole value."""
    q, k, *_ = make(2)
    v = jnp.ones((B, L, 2, C))
    rule = Rule(dropout=0.25)

    def run(key):
        return kernel(q, k, v, PLACES, PLACES, rule, key)

    close(jit(run)(None), jnp.ones((B, L, H, C)), 1e-6)
    outs = jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 400))
    assert np.all(outs == outs[..., :1])
    alone = np.asarray(outs[:, 1, 5, 0, 0])  # a query with one key
    assert abs(np.mean(alone == 0) - 0.25) < 0.1
    np.testing.assert_allclose(alone[alone != 0], 1 / 0.75, rtol=1e-6)
    np.testing.assert_allclose(np.mean(outs, axis=0), 1.0, atol=0.15)


def test_every_name_of_the_configuration_has_its_kernel():
    assert tuple(KERNELS) == cfg.ATTENTION_KERNELS
