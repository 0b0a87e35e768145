"""The fused loss is the reference, and the reference is the formula, in value and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops.cross_entropy import LogitRule, Unembedding, fused, logits, reference
from tests.model.small import close, jit, same

B, L, D, STORED, VOCAB = 2, 8, 6, 128, 100
CASES = {  # soft cap, bias, z-loss, smoothing, dtype
    "plain": (None, False, 0.0, 0.0, "float32"),
    "smoothed": (None, False, 0.0, 0.3, "float32"),
    "everything": (2.0, True, 1e-2, 0.3, "float32"),
    "bfloat16": (2.0, True, 1e-2, 0.3, "bfloat16"),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def make(bias: bool, dtype: str, seed: int = 0):
    """Hidden states, unembedding, targets, weights; a third of the weights are 0, some are not 1."""
    generator = np.random.default_rng(seed)
    hidden = generator.standard_normal((B, L, D)).astype(np.float32)
    kernel = generator.standard_normal((D, STORED)).astype(np.float32)
    head = Unembedding(kernel, generator.standard_normal(STORED).astype(np.float32) if bias else None)
    targets = generator.integers(0, VOCAB, (B, L)).astype(np.int32)
    weights = generator.choice([0.0, 1.0, 0.5], (B, L)).astype(np.float32)
    return jnp.asarray(hidden, dtype), head, targets, weights


def differentiate(function, hidden, head, targets, weights, cotangent: float = 1.0):
    """(objective, metrics, gradient in hidden and head) of `cotangent` times the objective."""

    def scaled(hidden, head):
        objective, metrics = function(hidden, head, targets, weights)
        return cotangent * objective, (objective, metrics)

    (_, (objective, metrics)), found = jax.value_and_grad(scaled, (0, 1), has_aux=True)(hidden, head)
    return objective, metrics, found


@cases
def test_fused_is_the_reference(case):
    cap, bias, z_loss, smoothing, dtype = case
    rule, inputs = LogitRule(VOCAB, cap), make(bias, dtype)

    @jit
    def run(*inputs):
        functions = {n: lambda *x, n=n: fused(*x, rule, z_loss, n, smoothing) for n in (1, 2, 4)}
        values = {n: functions[n](*inputs) for n in (1, 4)}
        differentiated = {n: differentiate(function, *inputs, -1.7) for n, function in functions.items()}
        slow = partial(reference, rule=rule, z_loss=z_loss, smoothing=smoothing)
        return values, differentiated, differentiate(slow, *inputs, -1.7)

    values, differentiated, expected = run(*inputs)
    for value in values.values():
        close(value, expected[:2], 1e-6)
    for actual in differentiated.values():
        close(actual[:2], expected[:2], 1e-6)
        # In bfloat16 the two round at different places.
        close(actual[2], expected[2], 1e-5 if dtype == "float32" else 2**-7)
        assert jax.tree.map(lambda x: x.dtype, actual) == jax.tree.map(lambda x: x.dtype, expected)


def formula(hidden, kernel, bias, targets, weights, cap, z_loss, smoothing):
    """(objective, nll, z) in float64, a token at a time."""
    nll = z = smoothed = 0.0
    for state, target, weight in zip(hidden.reshape(-1, D), targets.ravel(), weights.ravel(), strict=True):
        scores = state @ kernel[:, :VOCAB] + bias[:VOCAB]
        scores = scores if cap is None else cap * np.tanh(scores / cap)
        partition = np.log(np.sum(np.exp(scores)))
        expected = np.full(VOCAB, smoothing / VOCAB)
        expected[target] += 1 - smoothing
        smoothed += weight * np.sum(expected * (partition - scores))
        nll += weight * (partition - scores[target])
        z += weight * partition**2
    return smoothed + z_loss * z, nll, z


@cases
def test_the_reference_is_the_formula(case):
    """Values, and the gradient along a random direction as a central difference in float64."""
    cap, bias, z_loss, smoothing, dtype = case
    hidden, head, targets, weights = make(bias, dtype)
    read = jnp.asarray(head.kernel, dtype)  # as the product does
    point = [np.asarray(x, np.float64) for x in (hidden, read, head.bias if bias else np.zeros(STORED))]
    function = partial(reference, rule=LogitRule(VOCAB, cap), z_loss=z_loss, smoothing=smoothing)
    run = jit(partial(differentiate, function))
    objective, metrics, (d_hidden, d_head) = run(hidden, head, targets, weights)
    rest = (targets, weights, cap, z_loss, smoothing)
    expected = formula(*point, *rest)
    close((objective, metrics["nll"], metrics["z"]), expected, 1e-6)
    generator, step = np.random.default_rng(1), 1e-5
    found = (d_hidden, d_head.kernel, d_head.bias if bias else np.zeros(STORED))
    for _ in range(4):
        way = [generator.standard_normal(x.shape) for x in point]
        way[2] *= bias
        ahead, behind = (
            formula(*(x + sign * step * w for x, w in zip(point, way, strict=True)), *rest)[0] for sign in (1, -1)
        )
        slope = sum(np.vdot(np.asarray(g, np.float64), w) for g, w in zip(found, way, strict=True))
        size = np.sqrt(sum(np.sum(np.square(np.asarray(g, np.float64))) for g in found))
        assert abs(slope - (ahead - behind) / (2 * step)) < (1e-5 if dtype == "float32" else 2e-2) * size


def test_padding_ids_have_no_gradient_and_no_probability():
    hidden, head, targets, weights = make(True, "float32")
    loud = Unembedding(head.kernel.copy(), head.bias.copy())
    loud.kernel[:, VOCAB:], loud.bias[VOCAB:] = 1e4, 1e4
    for chunks in (0, 2):
        run = jit(partial(differentiate, choose(chunks)))
        result = run(hidden, loud, targets, weights)
        same(result, run(hidden, head, targets, weights))
        d_head = result[2][1]
        assert not np.any(d_head.kernel[:, VOCAB:]) and not np.any(d_head.bias[VOCAB:])
        assert np.all(np.any(d_head.kernel[:, :VOCAB], axis=0))
    assert np.all(jax.nn.softmax(logits(hidden, loud, LogitRule(VOCAB)))[..., VOCAB:] == 0)


@pytest.mark.parametrize("chunks", (0, 1, 4), ids=("reference", "fused 1", "fused 4"))
def test_a_batch_without_weights_has_loss_and_gradient_zero(chunks):
    hidden, head, targets, weights = make(True, "float32")
    result = jit(partial(differentiate, choose(chunks)))(hidden, head, targets, 0 * weights)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(result))


@pytest.mark.parametrize("chunks", (0, 1, 4), ids=("reference", "fused 1", "fused 4"))
def test_infinite_logits_where_the_weight_is_zero_change_nothing(chunks):
    hidden, head, targets, weights = make(True, "float32")
    unweighted = weights == 0
    assert unweighted.any()
    huge = hidden.at[unweighted].set(3e38)
    assert not np.all(np.isfinite(logits(huge, head, LogitRule(VOCAB))[..., :VOCAB]))
    run = jit(partial(differentiate, choose(chunks)))
    actual = run(huge, head, targets, weights)
    close(actual, run(hidden, head, targets, weights), 1e-6)
    assert not np.any(actual[2][0][unweighted])


def choose(chunks: int):
    """The reference for 0 chunks, else the fused loss; smoothed, and with a z-loss."""
    if chunks == 0:
        return partial(reference, rule=LogitRule(VOCAB), z_loss=1e-2, smoothing=0.2)
    return lambda *inputs: fused(*inputs, LogitRule(VOCAB), 1e-2, chunks, 0.2)


def test_the_smoothed_loss_has_a_floor_and_the_logged_one_has_none():
    """Logits that are exactly the smoothed target reach its entropy; more certain ones lower nll alone."""
    smoothing, targets, weights = 0.3, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1))
    share = np.full(VOCAB, smoothing / VOCAB)
    share[0] += 1 - smoothing
    kernel = np.zeros((1, STORED), np.float32)
    kernel[0, :VOCAB] = np.log(share)

    def losses(certainty: float):
        head = Unembedding(certainty * kernel, None)
        objective, metrics = reference(jnp.ones((1, 1, 1)), head, targets, weights, LogitRule(VOCAB), 0.0, smoothing)
        return float(objective), float(metrics["nll"])

    (floor, nll), (higher, lower) = losses(1.0), losses(2.0)
    close((floor, nll), (-np.sum(share * np.log(share)), -np.log(share[0])), 1e-5)
    assert higher > floor and lower < nll
