"""Self-attention and cross-attention: projections around a kernel of `model.ops.attention`, with or without a cache.

Sizes in names: B batch, L length, D embed_dim, H query heads, K key-value heads, C head_dim, S cache capacity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import config as cfg
from model.layers import Norm, Projection, kernel_std, residual_std, rotate
from model.ops.attention import KERNELS, Places, Rule


class Memory(NamedTuple):
    """What the layers of a decoder read of an encoder."""

    places: Places  # of the source's tokens
    states_BxSxD: jax.Array | None  # None: the cache holds the keys and values that each layer makes of them


class Shared(NamedTuple):
    """What every layer reads and none changes."""

    places: Places  # of the input tokens
    tables: tuple  # rotary (cos, sin) of each pattern entry; None without rotary positions
    lengths: jax.Array | None = None  # int32 [B]: tokens already in the cache
    prefixes: jax.Array | None = None  # int32 [B]: those of them that see one another; None: none do
    bias_BxHxLxS: jax.Array | None = None  # float32, added to the scores of self-attention; of one row, or of each
    relations: jax.Array | None = None  # [rows, D] embeddings of relative positions (DeBERTa)
    context_BxLxD: jax.Array | None = None  # what DeBERTa's keys and values are made of; None: what its queries are
    memory: Memory | None = None
    row_keys: jax.Array | None = None  # keys [B]: what routing draws from; None: it draws nothing


def query_projection(config: cfg.Model, name: str = "query") -> Projection:
    """From activations to the queries of attention."""
    std = kernel_std(config, config.embed_dim)
    std = std * config.head_dim**-0.5 if config.init.scale_query else std
    return _into(config, name, ("heads", config.attention.num_heads), std)


def key_projection(config: cfg.Model, name: str, **parent) -> Projection:
    """From activations to the keys, or with another name the values, of attention."""
    return _into(config, name, ("kv_heads", config.num_kv_heads), config.init.kernel_std, **parent)


def _into(config: cfg.Model, name: str, heads: tuple[str, int], std: float | None, **parent) -> Projection:
    inputs, outputs = (("embed", config.embed_dim),), (heads, ("head_dim", config.head_dim))
    dtype, truncation = jnp.dtype(config.dtype), config.init.truncation
    return Projection(inputs, outputs, config.attention.qkv_bias, std, dtype, truncation, name=name, **parent)


def output_projection(config: cfg.Model) -> Projection:
    """From what the heads have read to activations, named `output`."""
    heads = (("heads", config.attention.num_heads), ("head_dim", config.head_dim))
    std = residual_std(config, config.attention.num_heads * config.head_dim)
    dtype, truncation = jnp.dtype(config.dtype), config.init.truncation
    bias = config.attention.output_bias
    return Projection(heads, (("embed", config.embed_dim),), bias, std, dtype, truncation, name="output")


def rule_of(config: cfg.Model, causal: bool, window: int | None) -> Rule:
    """How scores are formed, and what a query may see."""
    settings = config.attention
    scale = config.head_dim**-0.5 if settings.scale is None else settings.scale
    return Rule(causal, window, scale, settings.soft_cap, settings.dropout)


class SelfAttention(nn.Module):
    config: cfg.Model
    layer: cfg.Layer
    constrain: Callable

    @nn.compact
    def __call__(self, x_BxLxD, shared: Shared, table, key=None, cache=None):
        """Returns (`[B, L, D]`, cache). `cache` is None, or this layer's (keys, values), each `[B, K, S, C]`."""
        config, settings = self.config, self.config.attention
        q_BxLxHxC = query_projection(config)(x_BxLxD)
        k_BxLxKxC = key_projection(config, "key")(x_BxLxD)
        v_BxLxKxC = key_projection(config, "value")(x_BxLxD)
        if settings.qk_norm:
            norm = cfg.Norm("rmsnorm", epsilon=config.norm.epsilon, unit_offset=config.norm.unit_offset)
            q_BxLxHxC = Norm(norm, "head_dim", name="query_norm")(q_BxLxHxC)
            k_BxLxKxC = Norm(norm, "head_dim", name="key_norm")(k_BxLxKxC)
        if table is not None:
            q_BxLxHxC, k_BxLxKxC = rotate(q_BxLxHxC, table), rotate(k_BxLxKxC, table)
        q_BxLxHxC = self.constrain(q_BxLxHxC, ("batch", "length", "activation_heads", "head_dim"))
        keys, (k_BxSxKxC, v_BxSxKxC), cache = remember(shared, k_BxLxKxC, v_BxLxKxC, cache)
        rule = rule_of(config, settings.causal, self.layer.window)
        attend = KERNELS[settings.kernel]
        y_BxLxHxC = attend(q_BxLxHxC, k_BxSxKxC, v_BxSxKxC, shared.places, keys, rule, key, shared.bias_BxHxLxS)
        return output_projection(config)(y_BxLxHxC), cache


class CrossAttention(nn.Module):
    """From a decoder's tokens to an encoder's (Vaswani et al. 2017, section 3.2.3), of the same segment each."""

    config: cfg.Model
    constrain: Callable

    @nn.compact
    def __call__(self, x_BxLxD, shared: Shared, key=None, cached=None):
        """`[B, L, D]`. `cached` is None, or what `memory_heads` has made of the memory: keys and values."""
        config, memory = self.config, shared.memory
        q_BxLxHxC = query_projection(config)(x_BxLxD)
        q_BxLxHxC = self.constrain(q_BxLxHxC, ("batch", "length", "activation_heads", "head_dim"))
        if cached is None:
            k_BxSxKxC, v_BxSxKxC = (key_projection(config, name)(memory.states_BxSxD) for name in ("key", "value"))
        else:
            k_BxSxKxC, v_BxSxKxC = (part.swapaxes(1, 2) for part in cached)
        attend, rule = KERNELS[config.attention.kernel], rule_of(config, False, None)
        y_BxLxHxC = attend(q_BxLxHxC, k_BxSxKxC, v_BxSxKxC, shared.places, memory.places, rule, key)
        return output_projection(config)(y_BxLxHxC)


def memory_heads(config: cfg.Model, params, states_BxSxD) -> tuple:
    """(keys, values), `[B, K, S, C]` each, that cross-attention with `params` makes of an encoder's output."""
    projected = (
        key_projection(config, name, parent=None).apply({"params": params[name]}, states_BxSxD)
        for name in ("key", "value")
    )
    return tuple(part.swapaxes(1, 2) for part in projected)


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
    places = slots(cache[0].shape[0], cache[0].shape[2])
    if shared.prefixes is not None:
        places = places._replace(order=prefix_order(places.positions, shared.prefixes))
    return places, tuple(part.swapaxes(1, 2) for part in cache), cache


def slots(rows: int, capacity: int) -> Places:
    """The places of a cache's slots."""
    slots_BxS = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32)[None], (rows, capacity))
    return Places(slots_BxS, jnp.ones_like(slots_BxS))
