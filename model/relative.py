"""T5's relative positions: a bias on the scores of self-attention by distance and head (Raffel et al. 2019).

Sizes in names: B batch, L queries, S keys, H heads.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from model import config as cfg
from model.ops.attention import Places
from model.ops.relative import buckets, by_distance
from model.parameters import Declaration, declare, normal


class RelativeBias(nn.Module):
    """One table of scalars, which all layers of a stack read (section 2.1)."""

    config: cfg.Model  # with RelativePositions
    bidirectional: bool  # whether keys behind a query have buckets of their own: an encoder's

    @nn.compact
    def __call__(self, queries: Places, keys: Places):
        """Float32 `[1 or B, H, L, S]`, to be added to the scores.

        Where the queries are the keys they are rows, in which a token's distance to another of its segment is that
        of their places, for every row the same; else, with a cache, it is that of their positions.
        """
        config, positions = self.config, self.config.positions
        shape = (positions.buckets, config.attention.num_heads)
        declaration = Declaration(shape, ("buckets", "heads"), "table")
        table = declare(self, "table", declaration, normal(config.init.position_std, config.init.truncation))
        settings = (self.bidirectional, positions.buckets, positions.max_distance)
        if queries is keys:
            length = queries.positions.shape[1]
            distances_N = jnp.arange(length - 1, -length, -1, dtype=jnp.int32)
            return by_distance(jnp.take(table, buckets(distances_N, *settings), axis=0).T)[None]
        distances_BxLxS = queries.positions[:, :, None] - keys.positions[:, None, :]
        return jnp.moveaxis(jnp.take(table, buckets(distances_BxLxS, *settings), axis=0), -1, 1)
