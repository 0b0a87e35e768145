"""Disentangled attention (He et al. 2020, section 3.1): scores of content and of relative position.

Sizes in names: B batch, L queries, S keys, H heads, C head_dim, R rows of the relative positions that are given,
N = 2 L - 1 distances within a row. KERNELS are tested to agree in value and gradient on rows; `reference` takes any
places.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from model.ops.attention import Places, Rule, visible
from model.ops.dropout import dropout


@cache
def bucket_ends(buckets: int, span: int) -> tuple[int, ...]:
    """The farthest distance of each logarithmic bucket from m = `buckets` / 2 on, as DeBERTa v2's code has them.

    The j-th of these m ends at the greatest whole d with (d / m) ** (m - 1) <= ((span - 1) / m) ** j, found in whole
    numbers, so that no logarithm moves one. Needs an even number of buckets, of at least 4, and m < span - 1.
    """
    middle, farthest = buckets // 2, span - 1
    distances, power = range(middle, farthest + 1), lambda distance: distance ** (middle - 1)
    bounds = [farthest**step * middle ** (middle - 1 - step) for step in range(middle)]
    return tuple(middle + bisect_right(distances, bound, key=power) - 1 for bound in bounds)


def log_buckets(distances: np.ndarray, buckets: int, span: int) -> np.ndarray:
    """Distances up to m = `buckets` / 2 by themselves, farther ones in buckets; -/+ `buckets` from `span` on."""
    size, middle = np.abs(distances), buckets // 2
    far = middle + np.searchsorted(bucket_ends(buckets, span), size)
    return np.sign(distances) * np.where(size <= middle, size, far)


def table_rows(distances: np.ndarray, span: int, buckets: int | None) -> np.ndarray:
    """The row of the table, int32, of each distance, a query's position less a key's (equation 3).

    The table has k = `buckets` rows a side, or without buckets k = `span`.
    """
    side = span if buckets is None else buckets
    found = distances if buckets is None else log_buckets(distances, buckets, span)
    return np.clip(found + side, 0, 2 * side - 1).astype(np.int32)


def rows_read(length: int, span: int, buckets: int | None) -> np.ndarray:
    """`table_rows` of the distances within a row of `length` tokens, from 1 - length to length - 1, int32 `[N]`."""
    return table_rows(np.arange(1 - length, length), span, buckets)


def reference(
    q_BxLxHxC,
    k_BxSxHxC,
    v_BxSxHxC,
    keys_RxHxC,
    queries_RxHxC,
    rows_N,
    queries: Places,
    keys: Places,
    rule: Rule,
    key=None,
):
    """Scores (q_i + queries[r]) . k_j + q_i . keys[r], of r the row of i's position less j's (equation 4).

    In both terms r is that of i - j, as in both of the published codes, where the paper has that of j - i in the
    first. `keys_RxHxC` and `queries_RxHxC`, either of which may be None, are what relative positions are as keys
    and as queries; `rows_N` gives the row of each distance from 1 - length to length - 1, beyond which none may lie
    where a query sees a key. Scores, times `rule.scale`, and softmax are float32. A query that sees no key, as
    padding does, gets zeros. `key` draws the dropout of the probabilities. Returns `[B, L, H, C]` in q's dtype.
    """
    reach = len(rows_N) // 2
    distances_BxLxS = queries.positions[:, :, None] - keys.positions[:, None, :]
    rows_BxLxS = jnp.take(jnp.asarray(rows_N), jnp.clip(distances_BxLxS, -reach, reach) + reach)
    scores_BxHxLxS = _products("blhc,bshc->bhls", q_BxLxHxC, k_BxSxHxC)
    if keys_RxHxC is not None:
        by_row_BxHxLxR = _products("blhc,rhc->bhlr", q_BxLxHxC, keys_RxHxC)
        scores_BxHxLxS += jnp.take_along_axis(by_row_BxHxLxR, rows_BxLxS[:, None], axis=-1)
    if queries_RxHxC is not None:
        by_row_BxHxSxR = _products("bshc,rhc->bhsr", k_BxSxHxC, queries_RxHxC)
        rows_BxSxL = rows_BxLxS.swapaxes(1, 2)
        scores_BxHxLxS += jnp.take_along_axis(by_row_BxHxSxR, rows_BxSxL[:, None], axis=-1).swapaxes(2, 3)
    return _read(scores_BxHxLxS, v_BxSxHxC, queries, keys, rule, key)


def skewed(
    q_BxLxHxC,
    k_BxLxHxC,
    v_BxLxHxC,
    keys_RxHxC,
    queries_RxHxC,
    rows_N,
    queries: Places,
    keys: Places,
    rule: Rule,
    key=None,
):
    """`reference` for rows in their order, without a gather from scores or its gradient, a scatter into them.

    Within a segment positions are as far apart as places in the row are, so that distances are those of places, the
    same for every row: products with the rows of all N distances, of which each query's (key's) are moved to its own.
    """
    # Rows of distances that rise with the query's place and that fall with the key's, and one that is never read.
    rising_2L, falling_2L = np.append(rows_N, rows_N[-1]), np.append(rows_N[::-1], rows_N[0])
    scores_BxHxLxL = _products("blhc,bshc->bhls", q_BxLxHxC, k_BxLxHxC)
    if keys_RxHxC is not None:
        falling_2LxHxC = jnp.take(keys_RxHxC, falling_2L, axis=0)
        scores_BxHxLxL += skew(_products("blhc,rhc->bhlr", q_BxLxHxC, falling_2LxHxC))
    if queries_RxHxC is not None:
        rising_2LxHxC = jnp.take(queries_RxHxC, rising_2L, axis=0)
        scores_BxHxLxL += skew(_products("bshc,rhc->bhsr", k_BxLxHxC, rising_2LxHxC)).swapaxes(2, 3)
    return _read(scores_BxHxLxL, v_BxLxHxC, queries, keys, rule, key)


def skew(values_xLx2L):
    """`[..., L, L]`, at (i, j) the value at (i, L - 1 + j - i): row i moved by i to the left.

    Laid end to end and cut into rows that are shorter by one, the rows stand as moved.
    """
    *outer, length, _ = values_xLx2L.shape
    size = length * (2 * length - 1)
    laid = values_xLx2L.reshape(*outer, 2 * length * length)[..., length - 1 : length - 1 + size]
    return laid.reshape(*outer, length, 2 * length - 1)[..., :length]


def _products(equation: str, first, second):
    return jnp.einsum(equation, first, second, preferred_element_type=jnp.float32)


def _read(scores_BxHxLxS, v_BxSxHxC, queries: Places, keys: Places, rule: Rule, key):
    """What softmax of the scores, scaled, capped and masked, reads of the values: `[B, L, H, C]` in their dtype."""
    scores_BxHxLxS = scores_BxHxLxS * rule.scale
    if rule.soft_cap is not None:
        scores_BxHxLxS = rule.soft_cap * jnp.tanh(scores_BxHxLxS / rule.soft_cap)
    seen_BxLxS = visible(queries, keys, rule) & (queries.segments > 0)[:, :, None]
    seen_Bx1xLxS = seen_BxLxS[:, None]
    scores_BxHxLxS = jnp.where(seen_Bx1xLxS, scores_BxHxLxS, jnp.finfo(jnp.float32).min)
    probs_BxHxLxS = jnp.where(seen_Bx1xLxS, jax.nn.softmax(scores_BxHxLxS, axis=-1), 0.0)
    probs_BxHxLxS = dropout(probs_BxHxLxS.astype(v_BxSxHxC.dtype), rule.dropout, key)
    return jnp.einsum("bhls,bshc->blhc", probs_BxHxLxS, v_BxSxHxC)


# By the name of `model.attention.kernel`.
KERNELS: dict[str, Callable] = {"auto": skewed, "reference": reference}
