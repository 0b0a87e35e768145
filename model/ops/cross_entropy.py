"""Token cross entropy from hidden states, with or without all logits alive at once.

Sizes in names: B batch, L length, D embed_dim, V stored vocabulary (padding included).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Unembedding(NamedTuple):
    """From hidden states to logits: float32 `kernel` `[D, V]`, float32 `bias` `[V]` or None."""

    kernel: jax.Array
    bias: jax.Array | None


class LogitRule(NamedTuple):
    vocab_size: int  # ids from here to V are padding: never predicted, without gradient
    soft_cap: float | None = None  # cap * tanh(logit / cap)


def logits(hidden, unembedding: Unembedding, rule: LogitRule):
    """Float32 logits `[..., V]` of hidden states `[..., D]`; padding ids get the lowest finite value."""
    kernel_DxV = unembedding.kernel.astype(hidden.dtype)
    raw = jnp.einsum("...d,dv->...v", hidden, kernel_DxV, preferred_element_type=jnp.float32)
    if unembedding.bias is not None:
        raw = raw + jnp.broadcast_to(unembedding.bias, raw.shape)
    if rule.soft_cap is not None:
        raw = rule.soft_cap * jnp.tanh(raw / rule.soft_cap)
    return raw if rule.vocab_size == raw.shape[-1] else jnp.where(_ids(raw) < rule.vocab_size, raw, _LOWEST)


_LOWEST = jnp.finfo(jnp.float32).min


def _ids(logits):
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)


def _sums(logits, targets, weights, rule: LogitRule, z_loss, smoothing):
    """((objective, {"nll", "z"}), log-partition), the first as `reference` returns it."""
    log_partition = jax.nn.logsumexp(logits, axis=-1)
    # A masked sum instead of a gather: its gradient needs no scatter, and a sharded vocabulary no exchange.
    chosen = jnp.sum(jnp.where(_ids(logits) == targets[..., None], logits, 0.0), axis=-1)
    nll = jnp.sum(jnp.where(weights > 0, (log_partition - chosen) * weights, 0.0))
    z = jnp.sum(jnp.where(weights > 0, jnp.square(log_partition) * weights, 0.0))
    objective = nll + z_loss * z
    if smoothing:
        mean = jnp.sum(jnp.where(_ids(logits) < rule.vocab_size, logits, 0.0), axis=-1) / rule.vocab_size
        objective = objective + smoothing * jnp.sum(jnp.where(weights > 0, (chosen - mean) * weights, 0.0))
    return (objective, {"nll": nll, "z": z}), log_partition


def reference(
    hidden_BxLxD, unembedding: Unembedding, targets_BxL, weights_BxL, rule: LogitRule, z_loss=0.0, smoothing=0.0
):
    """Weighted sums over all tokens: (objective, {"nll": ..., "z": ...}), float32 scalars.

    nll = -log softmax(logits)[target] in nats; z = log(partition)^2 (the z-loss of Chowdhery et al. 2022,
    section 5); objective = nll + z_loss * z. A token of weight 0 adds nothing, whatever its logits.

    `smoothing` s (Szegedy et al. 2015, section 7) has the objective, and nothing else, expect each target with
    probability 1 - s + s / vocab_size and each other id that is no padding with s / vocab_size: it is never 0, which
    is why nll is the loss to look at.
    """
    found = logits(hidden_BxLxD, unembedding, rule)
    found = jnp.where(weights_BxL[..., None] > 0, found, 0.0)  # or an infinite one's gradient is 0 * NaN
    return _sums(found, targets_BxL, weights_BxL, rule, z_loss, smoothing)[0]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def fused(hidden_BxLxD, unembedding, targets_BxL, weights_BxL, rule: LogitRule, z_loss=0.0, chunks=1, smoothing=0.0):
    """`reference`, with the logits of one of `chunks` parts of the length alive at a time.

    The forward pass of a differentiated call computes the gradient too, since a sum's gradient is known up
    to its cotangent: no logits are kept and none are computed twice. Only the objective is differentiable,
    and only in `hidden_BxLxD` and `unembedding`.
    """

    def part(hidden, targets, weights):
        return reference(hidden, unembedding, targets, weights, rule, z_loss, smoothing), ()

    return _over_chunks(part, (hidden_BxLxD, targets_BxL, weights_BxL), chunks)[0]


def _over_chunks(part, arrays, chunks: int):
    """(sum of the first results, list of the second ones) of `part` over equal parts of axis 1."""
    if chunks == 1:
        return part(*arrays)
    split = [jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0) for x in arrays]
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, *(x[0] for x in split))[0])

    def body(sums, inputs):
        new, kept = part(*inputs)
        return jax.tree.map(jnp.add, sums, new), kept

    sums, kept = jax.lax.scan(body, start, tuple(split))
    return sums, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]), kept)


def _forward(hidden_BxLxD, unembedding, targets_BxL, weights_BxL, rule, z_loss, chunks, smoothing):
    def part(hidden, targets, weights):
        capped = logits(hidden, unembedding, rule)
        sums, log_partition = _sums(capped, targets, weights, rule, z_loss, smoothing)
        probs = jnp.exp(capped - log_partition[..., None])
        expected = (_ids(capped) == targets[..., None]).astype(jnp.float32)
        if smoothing:
            spread = jnp.where(_ids(capped) < rule.vocab_size, smoothing / rule.vocab_size, 0.0)
            expected = (1 - smoothing) * expected + spread
        d_logits = (probs * (1 + 2 * z_loss * log_partition)[..., None] - expected) * weights[..., None]
        d_logits = jnp.where(weights[..., None] > 0, d_logits, 0.0)
        if rule.soft_cap is not None:
            d_logits = d_logits * (1 - jnp.square(jnp.clip(capped / rule.soft_cap, -1, 1)))
        # As matrices, which XLA for CPU multiplies without copying one of them into another layout.
        hidden_rows = hidden.reshape(-1, hidden.shape[-1])
        d_rows = d_logits.astype(hidden.dtype).reshape(-1, d_logits.shape[-1])
        d_hidden = (d_rows @ unembedding.kernel.astype(hidden.dtype).T).reshape(hidden.shape)
        d_kernel = jnp.matmul(hidden_rows.T, d_rows, preferred_element_type=jnp.float32)
        d_bias = None if unembedding.bias is None else jnp.sum(d_rows, 0, dtype=jnp.float32)
        return (sums, Unembedding(d_kernel, d_bias)), d_hidden

    (sums, d_unembedding), d_hidden = _over_chunks(part, (hidden_BxLxD, targets_BxL, weights_BxL), chunks)
    return sums, (d_hidden, d_unembedding)


def _backward(rule, z_loss, chunks, smoothing, gradients, cotangents):
    d_hidden, d_unembedding = gradients
    objective, _ = cotangents
    scaled = jax.tree.map(lambda x: (x.astype(jnp.float32) * objective).astype(x.dtype), (d_hidden, d_unembedding))
    return *scaled, None, None


fused.defvjp(_forward, _backward)
