"""Attention over explicit positions and segments.

Sizes in names: B batch, L queries, S keys, H query heads, K key-value heads, G = H / K, C head_dim. Every
function in KERNELS has `reference`'s signature, and is tested to agree with it in value and gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.ops.dropout import dropout


class Places(NamedTuple):
    """Where tokens stand: int32 arrays `[batch, length]`. A query sees only keys of its own segment."""

    positions: jax.Array
    segments: jax.Array


class Rule(NamedTuple):
    """What a query may see and how scores are formed; the same for every head."""

    causal: bool = True
    window: int | None = None  # keys seen, the query's own included
    scale: float = 1.0
    soft_cap: float | None = None
    dropout: float = 0.0


def visible(queries: Places, keys: Places, rule: Rule):
    """Boolean `[B, L, S]`: same segment, and where causal: not later, and inside the window."""
    distance_BxLxS = queries.positions[:, :, None] - keys.positions[:, None, :]
    seen_BxLxS = queries.segments[:, :, None] == keys.segments[:, None, :]
    if rule.causal:
        seen_BxLxS &= distance_BxLxS >= 0
    if rule.window is not None:
        seen_BxLxS &= jnp.abs(distance_BxLxS) < rule.window
    return seen_BxLxS


def reference(q_BxLxHxC, k_BxSxKxC, v_BxSxKxC, queries: Places, keys: Places, rule: Rule, key=None):
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1), grouped queries (Ainslie et al. 2023).

    Scores and softmax are float32. A query that sees no key gets the mean of the values, never NaN.
    `key` draws the dropout of the probabilities; None: no dropout. Returns `[B, L, H, C]` in q's dtype.
    """
    B, L, H, C = q_BxLxHxC.shape
    K = k_BxSxKxC.shape[2]
    q_BxLxKxGxC = q_BxLxHxC.reshape(B, L, K, H // K, C)
    scores_BxKxLxGxS = jnp.einsum("blkgc,bskc->bklgs", q_BxLxKxGxC, k_BxSxKxC, preferred_element_type=jnp.float32)
    scores_BxKxLxGxS = scores_BxKxLxGxS * rule.scale
    if rule.soft_cap is not None:
        scores_BxKxLxGxS = rule.soft_cap * jnp.tanh(scores_BxKxLxGxS / rule.soft_cap)
    seen_BxLxS = visible(queries, keys, rule)
    lowest = jnp.finfo(jnp.float32).min
    scores_BxKxLxGxS = jnp.where(seen_BxLxS[:, None, :, None], scores_BxKxLxGxS, lowest)
    probs_BxKxLxGxS = jax.nn.softmax(scores_BxKxLxGxS, axis=-1).astype(v_BxSxKxC.dtype)
    probs_BxKxLxGxS = dropout(probs_BxKxLxGxS, rule.dropout, key)
    out_BxLxKxGxC = jnp.einsum("bklgs,bskc->blkgc", probs_BxKxLxGxS, v_BxSxKxC)
    return out_BxLxKxGxC.reshape(B, L, H, C)


KERNELS: dict[str, Callable] = {"auto": reference, "reference": reference}
