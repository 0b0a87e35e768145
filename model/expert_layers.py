"""What all mixtures of experts are made of: a router, and the kernels of the experts, one stack for each projection.

A mixture is a Linen module with the children `router`, `up`, where feed-forwards are gated `gate`, and `down`. Sizes
in names: E experts, D embed_dim, F hidden_dim, G groups, S tokens of a group.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import config as cfg
from model.layers import kernel_std, residual_std
from model.parameters import Declaration, constant, declare, normal


class Weights(NamedTuple):
    """Of one projection of all experts, float32."""

    kernel: jax.Array  # [E, inputs, outputs]
    bias: jax.Array | None  # [E, outputs]


class Router(nn.Module):
    """Float32 logits `[..., E]` of tokens `[..., D]`, computed in float32 whatever their dtype."""

    config: cfg.Model

    @nn.compact
    def __call__(self, x):
        config, experts = self.config, self.config.experts.num_experts
        declaration = Declaration((config.embed_dim, experts), ("embed", "router"), "kernel", (0,), (1,))
        std = kernel_std(config, declaration.fan_in)
        kernel_DxE = declare(self, "kernel", declaration, normal(std, config.init.truncation))
        x_NxD = x.astype(jnp.float32).reshape(-1, config.embed_dim)
        # Accelerators otherwise round the factors of a float32 product, and a choice between experts with them.
        logits_NxE = jnp.matmul(x_NxD, kernel_DxE, precision=jax.lax.Precision.HIGHEST)
        return logits_NxE.reshape(*x.shape[:-1], experts)


class ExpertWeights(nn.Module):
    """The weights of a projection that every expert has its own of: of `up` and `gate`, or of `down`."""

    config: cfg.Model
    down: bool  # from the hidden units to the residual stream, otherwise into them

    @nn.compact
    def __call__(self) -> Weights:
        config, settings, init = self.config, self.config.feed_forward, self.config.init
        axes = [("embed", config.embed_dim), ("hidden", settings.hidden_dim)]
        axes = [("experts", config.experts.num_experts), *(reversed(axes) if self.down else axes)]
        names, shape = zip(*axes, strict=True)
        declaration = Declaration(shape, names, "kernel", inputs=(1,), outputs=(2,))
        std = (residual_std if self.down else kernel_std)(config, declaration.fan_in)
        kernel = declare(self, "kernel", declaration, normal(std, init.truncation))
        if not settings.bias:
            return Weights(kernel, None)
        declaration = Declaration((shape[0], shape[2]), (names[0], names[2]), "bias")
        return Weights(kernel, declare(self, "bias", declaration, constant(0.0)))


def expert_weights(config: cfg.Model) -> dict[str, Weights]:
    """`up`, `gate` where the feed-forward is gated, and `down`, children of the module that calls this."""
    names = ("up", "gate", "down") if config.feed_forward.gated else ("up", "down")
    return {name: ExpertWeights(config, down=name == "down", name=name)() for name in names}
