"""Attention over explicit positions and segments.

Sizes in names: B batch, L queries, T queries of a block, S keys, H query heads, K key-value heads, G = H / K,
C head_dim. Every function in KERNELS has `reference`'s signature, and is tested to agree with it in value and gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.ops.dropout import dropout


class Places(NamedTuple):
    """Where tokens stand: int32 arrays `[batch, length]`. A query sees only keys of its own segment."""

    positions: jax.Array
    segments: jax.Array
    order: jax.Array | None = None  # what causality goes by, equal for tokens that see one another; None: positions

    @property
    def ranks(self) -> jax.Array:
        return self.positions if self.order is None else self.order

    def part(self, start: int, stop: int) -> Places:
        """The tokens from `start` up to `stop` of each row."""
        return jax.tree.map(lambda values: values[:, start:stop], self)


class Rule(NamedTuple):
    """What a query may see and how scores are formed; the same for every head."""

    causal: bool = True
    window: int | None = None  # keys seen, the query's own included
    scale: float = 1.0
    soft_cap: float | None = None
    dropout: float = 0.0


def visible(queries: Places, keys: Places, rule: Rule):
    """Boolean `[B, L, S]`: same segment, where causal no later rank, and inside the window, which counts positions."""
    seen_BxLxS = queries.segments[:, :, None] == keys.segments[:, None, :]
    if rule.causal:
        seen_BxLxS &= queries.ranks[:, :, None] >= keys.ranks[:, None, :]
    if rule.window is not None:
        distance_BxLxS = queries.positions[:, :, None] - keys.positions[:, None, :]
        seen_BxLxS &= jnp.abs(distance_BxLxS) < rule.window
    return seen_BxLxS


def reference(q_BxLxHxC, k_BxSxKxC, v_BxSxKxC, queries: Places, keys: Places, rule: Rule, key=None, bias_BxHxLxS=None):
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1), grouped queries (Ainslie et al. 2023).

    Scores and softmax are float32. A query that sees no key gets the mean of the values, never NaN.
    `key` draws the dropout of the probabilities; None: no dropout. `bias_BxHxLxS`, float32 and of one row or of all,
    is added to the scaled scores. Returns `[B, L, H, C]` in q's dtype.
    """
    B, L, H, C = q_BxLxHxC.shape
    K = k_BxSxKxC.shape[2]
    q_BxLxKxGxC = q_BxLxHxC.reshape(B, L, K, H // K, C)
    scores_BxKxLxGxS = jnp.einsum("blkgc,bskc->bklgs", q_BxLxKxGxC, k_BxSxKxC, preferred_element_type=jnp.float32)
    scores_BxKxLxGxS = scores_BxKxLxGxS * rule.scale
    if bias_BxHxLxS is not None:
        bias_BxKxGxLxS = bias_BxHxLxS.reshape(bias_BxHxLxS.shape[0], K, H // K, L, -1)
        scores_BxKxLxGxS = scores_BxKxLxGxS + bias_BxKxGxLxS.swapaxes(2, 3)
    if rule.soft_cap is not None:
        scores_BxKxLxGxS = rule.soft_cap * jnp.tanh(scores_BxKxLxGxS / rule.soft_cap)
    seen_BxLxS = visible(queries, keys, rule)
    lowest = jnp.finfo(jnp.float32).min
    scores_BxKxLxGxS = jnp.where(seen_BxLxS[:, None, :, None], scores_BxKxLxGxS, lowest)
    probs_BxKxLxGxS = jax.nn.softmax(scores_BxKxLxGxS, axis=-1).astype(v_BxSxKxC.dtype)
    probs_BxKxLxGxS = dropout(probs_BxKxLxGxS, rule.dropout, key)
    out_BxLxKxGxC = jnp.einsum("bklgs,bskc->blkgc", probs_BxKxLxGxS, v_BxSxKxC)
    return out_BxLxKxGxC.reshape(B, L, H, C)


def blocked(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, queries: Places, keys: Places, rule: Rule, key=None, bias_BxHxLxS=None):
    """`reference` for causal self-attention over rows in their order, without dropout.

    Queries are taken in blocks, and each block reads only the keys from its window up to its end: half of the
    causal scores are never formed. Where places have an order, a block reads all keys, since a prefix may go on
    behind it. Nothing of size [L, L] is kept for the backward pass, which forms a block's
    probabilities again from the saved log-partition (Dao et al. 2022). Within a segment a later token must have
    a later position, by as much as it stands behind; that holds for rows, not for a cache.
    """
    B, L, H, C = q_BxLxHxC.shape
    K = k_BxLxKxC.shape[2]
    G = H // K
    q_BxKxLGxC = q_BxLxHxC.reshape(B, L, K, G, C).transpose(0, 2, 1, 3, 4).reshape(B, K, L * G, C)
    k_BxKxLxC, v_BxKxLxC = k_BxLxKxC.swapaxes(1, 2), v_BxLxKxC.swapaxes(1, 2)
    bias_BxKxLGxL = None if bias_BxHxLxS is None else _by_query(bias_BxHxLxS, K)
    size = block_size(L)
    outputs = []
    for start in range(0, L, size):
        stop = start + size
        first, last = _keys_read(start, stop, L, rule, ordered=keys.order is not None)
        seen_BxTxS = visible(queries.part(start, stop), keys.part(first, last), rule)
        seen_BxTGxS = jnp.repeat(seen_BxTxS, G, axis=1) if G > 1 else seen_BxTxS
        q_BxKxTGxC = q_BxKxLGxC[:, :, start * G : stop * G]
        k_BxKxSxC, v_BxKxSxC = k_BxKxLxC[:, :, first:last], v_BxKxLxC[:, :, first:last]
        bias_BxKxTGxS = None
        if bias_BxKxLGxL is not None:
            bias_BxKxTGxS = bias_BxKxLGxL[:, :, start * G : stop * G, first:last]
        outputs.append(_block(q_BxKxTGxC, k_BxKxSxC, v_BxKxSxC, bias_BxKxTGxS, seen_BxTGxS, rule))
    out_BxKxLxGxC = jnp.concatenate(outputs, axis=2).reshape(B, K, L, G, C)
    return out_BxKxLxGxC.transpose(0, 2, 1, 3, 4).reshape(B, L, H, C)


def _by_query(bias_BxHxLxS, num_kv_heads: int):
    """`[B, K, L * G, S]` of `[B, H, L, S]`, the heads of a group of queries side by side as in `blocked`."""
    B, H, L, S = bias_BxHxLxS.shape
    bias_BxKxGxLxS = bias_BxHxLxS.reshape(B, num_kv_heads, H // num_kv_heads, L, S)
    return bias_BxKxGxLxS.swapaxes(2, 3).reshape(B, num_kv_heads, -1, S)


def _keys_read(start: int, stop: int, length: int, rule: Rule, ordered: bool) -> tuple[int, int]:
    """(first key that the queries from `start` up to `stop` may see, the one behind the last)."""
    before = 0 if rule.window is None else max(0, start - rule.window + 1)
    if not ordered:
        return before, stop
    return before, length if rule.window is None else min(length, stop + rule.window - 1)


def block_size(length: int) -> int:
    """Queries of a block: at most 8 blocks, of 64 queries or more; the whole row where that does not divide it."""
    return next((length // n for n in (8, 4, 2) if length % n == 0 and length // n >= 64), length)


def _scores(q, k, bias, seen, rule: Rule):
    """(masked scores, capped scores), float32 `[B, K, T * G, S]`; the same where there is no cap."""
    capped = rule.scale * jnp.einsum("bktc,bksc->bkts", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        capped = capped + bias
    if rule.soft_cap is not None:
        capped = rule.soft_cap * jnp.tanh(capped / rule.soft_cap)
    return jnp.where(seen[:, None], capped, jnp.finfo(jnp.float32).min), capped


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _block(q, k, v, bias, seen, rule: Rule):
    """Attention of one block: q `[B, K, T * G, C]`, k and v `[B, K, S, C]`, seen `[B, T * G, S]`.

    `bias` is None or float32 `[1 or B, K, T * G, S]`, added to the scores.
    """
    return _block_forward(q, k, v, bias, seen, rule)[0]


def _block_forward(q, k, v, bias, seen, rule):
    masked, _ = _scores(q, k, bias, seen, rule)
    highest = jnp.max(masked, axis=-1, keepdims=True)
    exponentials = jnp.exp(masked - highest)
    partition = jnp.sum(exponentials, axis=-1, keepdims=True)
    probs = (exponentials / partition).astype(v.dtype)
    out = jnp.einsum("bkts,bksc->bktc", probs, v)
    return out, (q, k, v, bias, seen, highest + jnp.log(partition), out)


def _block_backward(rule, saved, d_out):
    q, k, v, bias, seen, log_partition, out = saved
    masked, capped = _scores(q, k, bias, seen, rule)
    probs = jnp.exp(masked - log_partition)
    d_v = jnp.einsum("bkts,bktc->bksc", probs.astype(v.dtype), d_out)
    d_probs = jnp.einsum("bktc,bksc->bkts", d_out, v, preferred_element_type=jnp.float32)
    inner = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    d_scores = probs * (d_probs - inner)
    if rule.soft_cap is not None:
        d_scores = d_scores * (1 - jnp.square(capped / rule.soft_cap))
    d_bias = None
    if bias is not None:
        d_bias = d_scores if bias.shape[0] == q.shape[0] else jnp.sum(d_scores, axis=0, keepdims=True)
    d_scores = (d_scores * rule.scale).astype(q.dtype)
    d_q = jnp.einsum("bkts,bksc->bktc", d_scores, k)
    d_k = jnp.einsum("bkts,bktc->bksc", d_scores, q)
    return d_q, d_k, d_v, d_bias, None


_block.defvjp(_block_forward, _block_backward)


def auto(q_BxLxHxC, k_BxSxKxC, v_BxSxKxC, queries: Places, keys: Places, rule: Rule, key=None, bias_BxHxLxS=None):
    """The fastest kernel that computes `reference` for these arguments."""
    ordered = rule.causal and queries is keys  # the same tokens on both sides: a row, not a cache
    drops = rule.dropout > 0 and key is not None
    if ordered and not drops:
        return blocked(q_BxLxHxC, k_BxSxKxC, v_BxSxKxC, queries, keys, rule, key, bias_BxHxLxS)
    return reference(q_BxLxHxC, k_BxSxKxC, v_BxSxKxC, queries, keys, rule, key, bias_BxHxLxS)


# Kernels that serve any arguments. `blocked` does not, and is chosen by `auto` where it does.
KERNELS: dict[str, Callable] = {"auto": auto, "reference": reference}
