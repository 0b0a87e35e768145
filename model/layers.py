"""Projections, norms, embeddings, rotary positions and the feed-forward network.

Sizes in names: B batch, L length, D embed_dim, H heads, C head_dim, F hidden_dim, V stored vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model import config as cfg
from model.ops.dropout import dropout
from model.ops.projection import project
from model.parameters import Declaration, constant, declare, normal

ACTIVATIONS: dict[str, Callable] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
OUTER_ACTIVATIONS: dict[str, Callable] = {**ACTIVATIONS, "tanh": jnp.tanh}  # outside of feed-forward networks

Axes = tuple[tuple[str, int], ...]  # (logical name, size) of each axis


class Projection(nn.Module):
    """`x @ kernel + bias` over the last axes of x, in `dtype`; kernel `[*inputs, *outputs]`, N(0, std^2)."""

    inputs: Axes
    outputs: Axes
    bias: bool
    std: float | None  # None: fan_in ** -0.5
    dtype: jnp.dtype
    truncation: float | None = None  # of the initial values, in standard deviations

    @nn.compact
    def __call__(self, x):
        axes = self.inputs + self.outputs
        count = len(self.inputs)
        declaration = Declaration(
            shape=tuple(size for _, size in axes),
            axes=tuple(name for name, _ in axes),
            kind="kernel",
            inputs=tuple(range(count)),
            outputs=tuple(range(count, len(axes))),
        )
        std = declaration.fan_in**-0.5 if self.std is None else self.std
        kernel = declare(self, "kernel", declaration, normal(std, self.truncation))
        y = project(x.astype(self.dtype), kernel, count)
        if self.bias:
            shape, names = declaration.shape[count:], declaration.axes[count:]
            bias = declare(self, "bias", Declaration(shape, names, "bias"), constant(0.0)).astype(self.dtype)
            y = y + jnp.broadcast_to(bias, y.shape)
        return y


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the last axis, in float32."""

    config: cfg.Norm
    axis: str = "norm"  # logical name of the normalised axis

    @nn.compact
    def __call__(self, x, change=None):
        """The norm of x; `change`, float32 of its shape or None, is added to what is normalised, before the scale."""
        config, size, dtype = self.config, x.shape[-1], x.dtype
        x = x.astype(jnp.float32)
        if config.name == "layernorm":
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + config.epsilon)
        x = x if change is None else x + change
        offset = 1.0 if config.unit_offset else 0.0
        declaration = Declaration((size,), (self.axis,), "scale")
        scale_D = declare(self, "scale", declaration, constant(1.0 - offset)) + offset
        x = x * jnp.broadcast_to(scale_D, x.shape)
        if config.bias:
            bias_D = declare(self, "bias", Declaration((size,), (self.axis,), "bias"), constant(0.0))
            x = x + jnp.broadcast_to(bias_D, x.shape)
        return x.astype(dtype)


class Embedding(nn.Module):
    """Token embeddings, plus positions and token types where the configuration has them, and their norm."""

    config: cfg.Model
    constrain: Callable

    def setup(self):
        config, init = self.config, self.config.init
        embed = ("embed", config.embed_dim)

        def table(name: str, axis: str, rows: int, kind: str, std: float):
            declaration = Declaration((rows, embed[1]), (axis, embed[0]), kind)
            return declare(self, name, declaration, normal(std, init.truncation))

        self.token = table("token", "vocab", config.padded_vocab_size, "embedding", init.embedding_std)
        if isinstance(config.positions, cfg.LearnedPositions):
            self.position = table("position", "positions", config.positions.length, "table", init.position_std)
        if config.token_types:
            self.token_type = table("token_type", "token_types", config.token_types, "embedding", init.embedding_std)
        if config.embedding_norm:
            self.norm = Norm(config.norm)

    def __call__(self, batch: dict, change=None):
        """Activations `[B, L, D]` in the compute dtype, of `tokens`, `positions` and, if configured, `token_types`.

        `change`, float32 `[B, L, D]` or None, is added where `config.embedding_norm` normalises, before its scale.
        """
        config = self.config
        x_BxLxD = self.look_up(self.token, "vocab", batch["tokens"])
        if config.embedding_scale is not None:
            x_BxLxD = x_BxLxD * config.embedding_scale
        if isinstance(config.positions, cfg.LearnedPositions):
            x_BxLxD = x_BxLxD + self.look_up(self.position, "positions", batch["positions"])
        if isinstance(config.positions, cfg.SinusoidalPositions):
            x_BxLxD = x_BxLxD + sinusoids(batch["positions"], config.embed_dim, config.positions)
        if config.token_types:
            x_BxLxD = x_BxLxD + self.look_up(self.token_type, "token_types", batch["token_types"])
        if config.embedding_norm:
            x_BxLxD = self.norm(x_BxLxD, change)
        return x_BxLxD.astype(config.dtype)

    def look_up(self, table, axis: str, ids_BxL):
        # Whole features: divided by `fsdp`, as rows are, they would have to be exchanged after the lookup.
        return jnp.take(self.constrain(table, (axis, "activation_embed")), ids_BxL, axis=0)


class FeedForward(nn.Module):
    """Two projections with an activation between (Vaswani et al. 2017, eq. 2), or its gated form (Shazeer 2020)."""

    config: cfg.Model
    constrain: Callable

    @nn.compact
    def __call__(self, x_BxLxD, key=None):
        """`[B, L, D]` of `[B, L, D]`; `key` draws the dropout of the hidden units, None: none."""
        config, settings = self.config, self.config.feed_forward
        embed, hidden = (("embed", config.embed_dim),), (("hidden", settings.hidden_dim),)
        project = partial(
            Projection, bias=settings.bias, dtype=jnp.dtype(config.dtype), truncation=config.init.truncation
        )
        into = partial(project, embed, hidden, std=config.init.kernel_std)
        h_BxLxF = into(name="up")(x_BxLxD)
        activate = ACTIVATIONS[settings.activation]
        h_BxLxF = activate(into(name="gate")(x_BxLxD)) * h_BxLxF if settings.gated else activate(h_BxLxF)
        h_BxLxF = dropout(h_BxLxF, settings.dropout, key)
        h_BxLxF = self.constrain(h_BxLxF, ("batch", "length", "activation_hidden"))
        return project(hidden, embed, std=residual_std(config, settings.hidden_dim), name="down")(h_BxLxF)


def kernel_std(config: cfg.Model, fan_in: int) -> float:
    """Standard deviation of a kernel's initial values."""
    return fan_in**-0.5 if config.init.kernel_std is None else config.init.kernel_std


def residual_std(config: cfg.Model, fan_in: int) -> float:
    """Standard deviation of a kernel that writes to the residual stream (GPT-2 divides by sqrt(2 num_layers))."""
    std = kernel_std(config, fan_in)
    return std * (2 * config.num_layers) ** -0.5 if config.init.scale_residual else std


def sinusoids(positions_BxL, dim: int, setting: cfg.SinusoidalPositions):
    """Float32 `[B, L, dim]`: sines and cosines of each position, in the layout of `setting`; `dim` is even.

    Pair i of the dim / 2 turns by 10000^(-2i / dim) radians a position (Vaswani et al. 2017, section 3.5), under
    `timescales` by 10000^(-i / (dim / 2 - 1)).
    """
    half = dim // 2
    last = max(half - 1, 1) if setting.layout == "timescales" else half
    turns = 10_000.0 ** (-np.arange(half) / last) / (2 * np.pi)  # of a position, in float64
    # Products that wrap around drop whole turns without error; a float32 angle would be 4e-5 off at position 512.
    step = jnp.asarray(np.round(turns * 2.0**32), jnp.uint32)
    wrapped = (positions_BxL + setting.offset).astype(jnp.uint32)[..., None] * step[None, None, :]
    signed = jax.lax.bitcast_convert_type(wrapped, jnp.int32)  # from half a turn behind to half a turn ahead
    angles = signed.astype(jnp.float32) * (2 * np.pi / 2**32)
    parts = [jnp.sin(angles), jnp.cos(angles)]
    if setting.layout == "interleaved":
        return jnp.stack(parts, axis=-1).reshape(*positions_BxL.shape, dim)
    return jnp.concatenate(parts, axis=-1)


def rotary_frequencies(layer: cfg.Layer, head_dim: int):
    """Radians a position turns each of `head_dim / 2` pairs, float32 (Su et al. 2021; scaling as named)."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = layer.rotary_base**-exponents
    scaling = layer.rotary_scaling
    if isinstance(scaling, cfg.LinearScaling):
        return frequencies / scaling.factor
    if isinstance(scaling, cfg.Llama3Scaling):
        turns = scaling.original_length * frequencies / (2 * jnp.pi)  # over the original context
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        return frequencies * (kept + (1 - kept) / scaling.factor)
    return frequencies


def rotary_table(positions_BxL, layer: cfg.Layer, head_dim: int):
    """(cos, sin), float32 `[B, L, head_dim / 2]`."""
    frequencies = rotary_frequencies(layer, head_dim)
    angles = positions_BxL.astype(jnp.float32)[..., None] * frequencies[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BxLxHxC, table):
    """Turn the pairs (i, i + head_dim / 2) of each head by the table's angles, in float32."""
    cos, sin = (part[:, :, None, :] for part in table)
    first, second = jnp.split(x_BxLxHxC.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxLxHxC.dtype)
