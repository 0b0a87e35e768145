"""Self-attention: projections around one of the kernels of `model.ops.attention`, with or without a cache.

Sizes in names: B batch, L length, D embed_dim, H query heads, K key-value heads, C head_dim, S cache capacity.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import config as cfg
from model.layers import Norm, Projection, residual_std, rotate
from model.ops.attention import KERNELS, Places, Rule


class Shared(NamedTuple):
    """What every layer reads and none changes."""

    places: Places  # of the input tokens
    tables: tuple  # rotary (cos, sin) of each pattern entry; None without rotary positions
    lengths: jax.Array | None = None  # int32 [B]: tokens already in the cache
    prefixes: jax.Array | None = None  # int32 [B]: those of them that see one another; None: none do


class SelfAttention(nn.Module):
    config: cfg.Model
    layer: cfg.Layer
    constrain: Callable

    @nn.compact
    def __call__(self, x_BxLxD, shared: Shared, table, key=None, cache=None):
        """Returns (`[B, L, D]`, cache). `cache` is None, or this layer's (keys, values), each `[B, K, S, C]`."""
        config, settings = self.config, self.config.attention
        embed, width = (("embed", config.embed_dim),), ("head_dim", config.head_dim)
        project = partial(Projection, dtype=jnp.dtype(config.dtype), truncation=config.init.truncation)
        into = partial(project, embed, bias=settings.qkv_bias, std=config.init.kernel_std)
        kv_heads = (("kv_heads", config.num_kv_heads), width)
        heads = (("heads", settings.num_heads), width)
        q_BxLxHxC = into(heads, name="query")(x_BxLxD)
        k_BxLxKxC = into(kv_heads, name="key")(x_BxLxD)
        v_BxLxKxC = into(kv_heads, name="value")(x_BxLxD)
        if settings.qk_norm:
            norm = cfg.Norm("rmsnorm", epsilon=config.norm.epsilon, unit_offset=config.norm.unit_offset)
            q_BxLxHxC = Norm(norm, "head_dim", name="query_norm")(q_BxLxHxC)
            k_BxLxKxC = Norm(norm, "head_dim", name="key_norm")(k_BxLxKxC)
        if table is not None:
            q_BxLxHxC, k_BxLxKxC = rotate(q_BxLxHxC, table), rotate(k_BxLxKxC, table)
        q_BxLxHxC = self.constrain(q_BxLxHxC, ("batch", "length", "activation_heads", "head_dim"))
        keys, (k_BxSxKxC, v_BxSxKxC), cache = remember(shared, k_BxLxKxC, v_BxLxKxC, cache)
        rule = Rule(
            causal=settings.causal,
            window=self.layer.window,
            scale=config.head_dim**-0.5 if settings.scale is None else settings.scale,
            soft_cap=settings.soft_cap,
            dropout=settings.dropout,
        )
        attend = KERNELS[settings.kernel]
        y_BxLxHxC = attend(q_BxLxHxC, k_BxSxKxC, v_BxSxKxC, shared.places, keys, rule, key)
        std = residual_std(config, settings.num_heads * config.head_dim)
        return project(heads, embed, bias=settings.output_bias, std=std, name="output")(y_BxLxHxC), cache


def prefix_order(positions_BxL, prefixes_B):
    """The order int32 `[B, L]` of tokens of which the first `prefixes_B` see one another."""
    return jnp.maximum(positions_BxL, prefixes_B[:, None] - 1)


def remember(shared: Shared, k_BxLxKxC, v_BxLxKxC, cache):
    """(places of the keys, (keys, values) to attend to, new cache), after writing the new ones behind the old.

    Row b writes at slot `lengths[b]`, and slot s holds position s; slots behind a row's last token are later
    than any of its queries, so that causality hides what padding has written there.
    """
    if cache is None:
        return shared.places, (k_BxLxKxC, v_BxLxKxC), None

    def write(slots_KxSxC, new_LxKxC, start):
        return jax.lax.dynamic_update_slice(slots_KxSxC, new_LxKxC.swapaxes(0, 1), (0, start, 0))

    cache = tuple(
        jax.vmap(write)(old, new, shared.lengths) for old, new in zip(cache, (k_BxLxKxC, v_BxLxKxC), strict=True)
    )
    batch, capacity = cache[0].shape[0], cache[0].shape[2]
    slots_BxS = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32)[None], (batch, capacity))
    order_BxS = None if shared.prefixes is None else prefix_order(slots_BxS, shared.prefixes)
    places = Places(slots_BxS, jnp.ones_like(slots_BxS), order_BxS)
    return places, tuple(part.swapaxes(1, 2) for part in cache), cache
