"""What DeBERTa has that other encoders lack: disentangled attention, a convolution, a decoder of masked tokens.

He et al. 2020 (arXiv 2006.03654), with what its second and third versions changed (arXiv 2111.09543 and their code).
Sizes in names: B batch, L length, D embed_dim, H heads, C head_dim, R rows of relative positions, W tokens that the
convolution reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import config as cfg
from model.attention import Shared, key_projection, output_projection, query_projection, rule_of
from model.layers import OUTER_ACTIVATIONS, Norm, kernel_std
from model.ops.attention import Places
from model.ops.disentangled import KERNELS, rows_read
from model.ops.dropout import dropout
from model.ops.projection import project
from model.parameters import Declaration, constant, declare, normal


def row_numbers(positions: cfg.DisentangledPositions, length: int):
    """(first row, row of each distance counted from it) of the table that rows of `length` tokens read."""
    rows_N = rows_read(length, positions.span, positions.buckets)
    return int(rows_N[0]), rows_N - rows_N[0]


class Relations(nn.Module):
    """The table of relative positions, which all layers read (section 3.1), in v2 behind a norm."""

    config: cfg.Model
    constrain: Callable

    @nn.compact
    def __call__(self, length: int):
        """`[R, D]` in the compute dtype: those rows that distances within `length` tokens have."""
        config, positions = self.config, self.config.positions
        side = positions.span if positions.buckets is None else positions.buckets
        declaration = Declaration((2 * side, config.embed_dim), ("positions", "embed"), "table")
        table = declare(self, "table", declaration, normal(config.init.position_std, config.init.truncation))
        # Whole features, which the norm and, as the rows are not many, each device's projections read.
        table = self.constrain(table, ("positions", "activation_embed"))
        first, rows_N = row_numbers(positions, length)
        relations_RxD = table[first : first + rows_N[-1] + 1]
        if positions.norm:
            relations_RxD = Norm(config.norm, name="norm")(relations_RxD)
        return relations_RxD.astype(config.dtype)


class DisentangledAttention(nn.Module):
    """Self-attention whose scores add, to content by content, content by position and position by content.

    Positions have projections of their own, and no key has a bias (v1); or `shared_projections`, those of the
    content, biases and all (v2).
    """

    config: cfg.Model
    layer: cfg.Layer
    constrain: Callable

    @nn.compact
    def __call__(self, x_BxLxD, shared: Shared, table, key=None, cache=None):
        """(`[B, L, D]`, cache): as `SelfAttention`, with `shared.relations`; an encoder's, it has no use for a cache.

        Queries are made of x, keys and values of `shared.context_BxLxD` where that is given.
        """
        config, positions = self.config, self.config.positions
        relations_key, probs_key = (None, None) if key is None else jax.random.split(key)
        relations_RxD = dropout(shared.relations, config.dropout, relations_key)
        context_BxLxD = x_BxLxD if shared.context_BxLxD is None else shared.context_BxLxD
        bare = config
        if not positions.shared_projections:
            bare = replace(config, attention=replace(config.attention, qkv_bias=False))
        query, content_key = query_projection(config), key_projection(bare, "key")
        q_BxLxHxC = self.constrain(query(x_BxLxD), ("batch", "length", "activation_heads", "head_dim"))
        k_BxLxHxC = content_key(context_BxLxD)
        v_BxLxHxC = key_projection(config, "value")(context_BxLxD)
        keys_RxHxC = queries_RxHxC = None
        if positions.content_to_position:
            own = content_key if positions.shared_projections else key_projection(bare, "position_key")
            keys_RxHxC = own(relations_RxD)
        if positions.position_to_content:
            own = query if positions.shared_projections else query_projection(config, "position_query")
            queries_RxHxC = own(relations_RxD)
        terms = 1 + positions.content_to_position + positions.position_to_content
        rule = rule_of(config, False, self.layer.window)
        rule = rule._replace(scale=rule.scale * terms**-0.5)
        _, rows_N = row_numbers(positions, x_BxLxD.shape[1])
        attend, places = KERNELS[config.attention.kernel], shared.places
        y_BxLxHxC = attend(
            q_BxLxHxC, k_BxLxHxC, v_BxLxHxC, keys_RxHxC, queries_RxHxC, rows_N, places, places, rule, probs_key
        )
        return output_projection(config)(y_BxLxHxC), cache


class Convolution(nn.Module):
    """v2's: what tokens near each other are, beside what the first layer makes of them."""

    config: cfg.Model

    @nn.compact
    def __call__(self, embedded_BxLxD, x_BxLxD, segments_BxL, key=None):
        """norm(x + activation(convolution of `embedded`)); nothing of other segments, or of padding, is read."""
        config, size, embed = self.config, self.config.convolution.size, self.config.embed_dim
        declaration = Declaration((size, embed, embed), ("width", "embed", "norm"), "kernel", (0, 1), (2,))
        std = kernel_std(config, declaration.fan_in)
        kernel_WxDxD = declare(self, "kernel", declaration, normal(std, config.init.truncation))
        bias_D = declare(self, "bias", Declaration((embed,), ("norm",), "bias"), constant(0.0))
        y_BxLxD = project(neighbours(embedded_BxLxD, segments_BxL, size), kernel_WxDxD, 2)
        y_BxLxD = dropout(y_BxLxD + jnp.broadcast_to(bias_D.astype(y_BxLxD.dtype), y_BxLxD.shape), config.dropout, key)
        activate = OUTER_ACTIVATIONS[config.convolution.activation]
        return Norm(config.norm, name="norm")(x_BxLxD + activate(y_BxLxD))


def neighbours(x_BxLxD, segments_BxL, size: int):
    """`[B, L, size, D]`: of each token the `size` ones around it, in order; zeros where they are of another segment."""
    side = size // 2

    def around(values, at: int):
        padded = jnp.pad(values, [(0, 0), (side, side)] + [(0, 0)] * (values.ndim - 2))
        return jax.lax.slice_in_dim(padded, at, at + values.shape[1], axis=1)

    real_BxL = segments_BxL > 0
    found = [
        jnp.where(((around(segments_BxL, at) == segments_BxL) & real_BxL)[..., None], around(x_BxLxD, at), 0)
        for at in range(size)
    ]
    return jnp.stack(found, axis=2)


class MaskDecoder(nn.Module):
    """The absolute positions, which come in where masked tokens are decoded (section 3.2)."""

    config: cfg.Model
    constrain: Callable

    @nn.compact
    def __call__(self, hidden_BxLxD, places: Places):
        """The first queries of the decoder: the hidden states before the last layer, plus their positions'."""
        config = self.config
        declaration = Declaration((config.positions.absolute_length, config.embed_dim), ("positions", "embed"), "table")
        table = declare(self, "table", declaration, normal(config.init.position_std, config.init.truncation))
        # Whole features, as `model.layers.Embedding` looks them up.
        table = self.constrain(table, ("positions", "activation_embed"))
        return hidden_BxLxD + jnp.take(table, places.positions, axis=0).astype(hidden_BxLxD.dtype)
