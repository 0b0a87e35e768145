"""Disentangled attention is the paper's formula, its fast kernel the reference, and buckets are the published ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops.attention import Places, Rule
from model.ops.disentangled import KERNELS, bucket_ends, log_buckets, reference, rows_read, skew, skewed, table_rows
from tests.model.small import close, jit, same

B, L, H, C = 2, 10, 3, 4
SPAN, BUCKETS = 3, 4  # distances beyond them are within a row
# A document begun elsewhere and a whole one; one, another of a single token, and padding.
PLACES = Places(
    np.array([[4, 5, 6, 7, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 0, 0, 0, 0, 0]], np.int32),
    np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 2, 0, 0, 0, 0]], np.int32),
)
ONE = Places(np.tile(np.arange(L, dtype=np.int32), (B, 1)), np.ones((B, L), np.int32))
RULE = Rule(causal=False, scale=(3 * C) ** -0.5)
RULES = {
    "plain": RULE,
    "window": RULE._replace(window=4),
    "capped": RULE._replace(scale=2.0, soft_cap=1.5),
}
TERMS = {"both": (True, True), "keys": (True, False), "queries": (False, True)}
TABLES = {"span": (SPAN, None), "buckets": (8, BUCKETS), "wide": (20, None)}
terms = pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
tables = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


def test_the_published_buckets():
    """256 of them for distances up to 512, as microsoft/DeBERTa's code has them."""
    published = {127: 127, 128: 128, 129: 129, 130: 130, 200: 169, 256: 192, 300: 207, 400: 233, 500: 254, 511: 255}
    distances, expected = np.array(list(published)), np.array(list(published.values()))
    np.testing.assert_array_equal(log_buckets(distances, 256, 512), expected)
    np.testing.assert_array_equal(log_buckets(-distances, 256, 512), -expected)
    np.testing.assert_array_equal(table_rows(distances, 512, 256), 256 + expected)
    np.testing.assert_array_equal(
        table_rows(np.array([-700, -512, -511, 0, 512, 700]), 512, 256), [0, 0, 1, 256, 511, 511]
    )


def test_distances_are_cut_off_at_the_span():
    """delta(i, j) of equation 3."""
    rows = table_rows(np.arange(-9, 10), SPAN, None)
    expected = [0 if d <= -SPAN else 2 * SPAN - 1 if d >= SPAN else d + SPAN for d in range(-9, 10)]
    np.testing.assert_array_equal(rows, expected)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows_read(10, SPAN, None), expected)


@pytest.mark.parametrize(("buckets", "span"), [(256, 512), (4, 8), (6, 10), (32, 128), (64, 1000), (8, 6)])
def test_buckets_are_the_formula(buckets, span):
    """ceil(log(d / m) / log((span - 1) / m) * (m - 1)) + m, in float64, where that is no whole number to rounding."""
    middle = buckets // 2
    for distance in range(middle + 1, 2 * span):
        step = np.log(distance / middle) / np.log((span - 1) / middle) * (middle - 1)
        whole = abs(step - round(step)) < 1e-9
        expected = min(round(step) if whole else int(np.ceil(step)), middle) + middle
        assert log_buckets(np.array([distance]), buckets, span)[0] == expected, distance
    ends = bucket_ends(buckets, span)
    assert len(ends) == middle and ends[0] == middle and ends[-1] == span - 1


@pytest.mark.parametrize("length", (1, 2, 7))
def test_rows_are_moved_by_their_number(length):
    values = np.random.default_rng(0).standard_normal((2, length, 2 * length)).astype(np.float32)
    expected = [[[values[b, i, length - 1 + j - i] for j in range(length)] for i in range(length)] for b in range(2)]
    same(skew(jnp.asarray(values)), np.array(expected))


def make(table, terms, dtype="float32", seed: int = 0):
    """(queries, keys, values, positions as keys and as queries or None; rows of distances; cotangent)."""
    generator = np.random.default_rng(seed)
    rows = rows_read(L, *table)
    rows = rows - rows[0]
    count = int(rows[-1]) + 1

    def draw(*shape):
        return jnp.asarray(generator.standard_normal(shape), dtype)

    content, cotangent = [draw(B, L, H, C) for _ in range(3)], draw(B, L, H, C)
    positions = [draw(count, H, C) if present else None for present in terms]
    return (*content, *positions), rows, cotangent


def formula(inputs, rows, queries: Places, keys: Places, rule: Rule):
    """Equation 4 and the softmax behind it, a score at a time, in float64; both terms read the row of i - j."""
    q, k, v, as_keys, as_queries = (None if part is None else np.asarray(part, np.float64) for part in inputs)
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(q.shape[:3]):
        seen, scores = [], []
        for j in range(k.shape[1]):
            distance = int(queries.positions[b, i]) - int(keys.positions[b, j])
            if not queries.segments[b, i] == keys.segments[b, j] > 0:
                continue
            if rule.window is not None and abs(distance) >= rule.window:
                continue
            row = rows[distance + len(rows) // 2]
            score = q[b, i, h] @ k[b, j, h]
            score += 0 if as_keys is None else q[b, i, h] @ as_keys[row, h]
            score += 0 if as_queries is None else as_queries[row, h] @ k[b, j, h]
            score *= rule.scale
            scores.append(score if rule.soft_cap is None else rule.soft_cap * np.tanh(score / rule.soft_cap))
            seen.append(j)
        if seen:
            weights = np.exp(np.array(scores) - max(scores))
            out[b, i, h] = (weights / weights.sum()) @ v[b, seen, h]
    return out


@tables
@terms
def test_the_reference_is_the_formula(table, terms):
    inputs, rows, _ = make(table, terms)

    @jit
    def run(inputs):
        return {
            f"{name} {place}": reference(*inputs, rows, places, places, rule)
            for name, rule in RULES.items()
            for place, places in (("packed", PLACES), ("one", ONE))
        }

    found = run(inputs)
    for name, rule in RULES.items():
        close(found[f"{name} packed"], formula(inputs, rows, PLACES, PLACES, rule), 2e-6)
        close(found[f"{name} one"], formula(inputs, rows, ONE, ONE, rule), 2e-6)


def test_the_reference_takes_any_places():
    """Queries that are some of the tokens, as of the mask decoder's predictions."""
    inputs, rows, _ = make((SPAN, None), (True, True))
    some = Places(PLACES.positions[:, [7, 2, 4]], PLACES.segments[:, [7, 2, 4]])
    run = jit(lambda q, *rest, places: reference(q, *rest, rows, places, PLACES, RULE))
    expected = run(*inputs, places=PLACES)[:, [7, 2, 4]]
    close(run(inputs[0][:, [7, 2, 4]], *inputs[1:], places=some), expected, 1e-6)


@tables
@terms
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_the_fast_kernel_is_the_reference(table, terms, dtype):
    """In value and in the gradient of all that it reads, on packed rows, with any rule."""
    inputs, rows, cotangent = make(table, terms, dtype)

    def differentiate(kernel, rule):
        out, pull = jax.vjp(lambda inputs: kernel(*inputs, rows, PLACES, PLACES, rule), inputs)
        return out, pull(cotangent)[0]

    @jit
    def run():
        return {name: [differentiate(kernel, rule) for kernel in (skewed, reference)] for name, rule in RULES.items()}

    for fast, slow in run().values():
        assert fast[0].dtype == slow[0].dtype == jnp.dtype(dtype)
        close(fast, slow, 2e-6 if dtype == "float32" else 2e-2)
        assert all(np.abs(np.asarray(part, np.float32)).max() > 1e-3 for part in jax.tree.leaves(slow))


kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


@kernels
def test_padding_reads_nothing_and_is_not_read(kernel):
    inputs, rows, _ = make((SPAN, None), (True, True))
    run = jit(lambda *inputs: kernel(*inputs, rows, PLACES, PLACES, RULE))
    found = run(*inputs)
    assert not np.any(found[1, 6:])
    assert np.all(np.any(found[1, :6], axis=(1, 2)))
    wild = [jnp.where((PLACES.segments > 0)[..., None, None], part, 1e30) for part in inputs[:3]]
    same(run(*wild, *inputs[3:])[1, :6], found[1, :6])


@kernels
def test_no_gradient_of_padding_is_not_a_number(kernel):
    inputs, rows, _ = make((SPAN, None), (True, True))
    found = jit(jax.grad(lambda inputs: jnp.sum(kernel(*inputs, rows, PLACES, PLACES, RULE) ** 2)))(inputs)
    assert all(np.all(np.isfinite(part)) for part in jax.tree.leaves(found))
    assert not np.any(found[0][1, 6:]) and not np.any(found[2][1, 6:])


@kernels
def test_dropout_is_of_the_probabilities(kernel):
    """Of uniform values the mean over draws is what there is without; a draw is some of it."""
    inputs, rows, _ = make((SPAN, None), (True, True))
    inputs = (*inputs[:2], jnp.ones_like(inputs[2]), *inputs[3:])
    run = partial(kernel, *inputs, rows, ONE, ONE, RULE._replace(dropout=0.5))
    drawn = jit(lambda: jax.vmap(lambda key: run(key=key))(jax.random.split(jax.random.key(0), 256)))()
    close(drawn.mean(0), np.ones((B, L, H, C)), 0.3)
    assert np.std(drawn[0]) > 0.05
    close(run(key=None), np.ones((B, L, H, C)), 1e-6)
