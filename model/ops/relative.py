"""Distances between tokens in buckets, as T5 has them (Raffel et al. 2019, section 2.1).

Near distances have a bucket each, farther ones share buckets whose borders grow by equal factors. The borders are
found on the host in whole numbers, so that no device's logarithm moves one.
"""

from __future__ import annotations

from bisect import bisect_left

import jax.numpy as jnp
import numpy as np


def borders(side: int, max_distance: int) -> np.ndarray:
    """The least distance of each of `side` buckets, int32 `[side]`; from `max_distance` on all are in the last.

    The first half hold one distance each. With m of those and n others, the j-th of the others begins at the least
    whole d with m (max_distance / m) ** (j / n) <= d. Needs 1 <= m < max_distance.
    """
    near = side // 2
    far = side - near
    bounds = [max_distance**step * near ** (far - step) for step in range(far)]
    least = [bisect_left(range(max_distance + 1), bound, key=lambda distance: distance**far) for bound in bounds]
    return np.array([*range(near), *least], np.int32)


def buckets(distance, bidirectional: bool, buckets: int, max_distance: int):
    """int32 buckets, below `buckets`, of int32 distances: a query's position less a key's.

    Bidirectional, half of the buckets are for keys behind the query, whose distance is negative; else those are in
    bucket 0.
    """
    side = buckets // 2 if bidirectional else buckets
    size = jnp.abs(distance) if bidirectional else jnp.maximum(distance, 0)
    found = jnp.searchsorted(borders(side, max_distance), size, side="right", method="compare_all") - 1
    return (found + side * (distance < 0) if bidirectional else found).astype(jnp.int32)


def by_distance(values_xN):
    """`[..., L, L]`, at (query i, key j) the value of distance i - j, of `[..., 2 L - 1]` from L - 1 down to 1 - L.

    A row is its predecessor's values moved by one. Copies of the values, one longer than they are, laid end to end
    and cut into rows of their own length, are that: nothing is gathered, and the gradient is a sum over copies.
    """
    length = (values_xN.shape[-1] + 1) // 2
    longer = jnp.pad(values_xN, [(0, 0)] * (values_xN.ndim - 1) + [(0, 1)])
    copies = jnp.broadcast_to(longer[..., None, :], (*values_xN.shape[:-1], length, 2 * length))
    laid = copies.reshape(*values_xN.shape[:-1], 2 * length * length)[..., length - 1 : 2 * length * length - 1]
    return laid.reshape(*values_xN.shape[:-1], length, 2 * length - 1)[..., :length]
