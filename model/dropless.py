"""Feed-forward networks of which each token reads the likeliest few, none of which is ever full (Jiang et al. 2024).

Sizes in names as in layers.py, and E experts, K experts of a token, N tokens times K, G groups, S tokens of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import config as cfg
from model.expert_layers import Router, Weights, expert_weights
from model.layers import ACTIVATIONS
from model.ops.dropout import dropout
from model.ops.ragged_projection import project_ragged
from model.ops.routing import busiest, group_mean, grouped, router_statistics


class DroplessFeedForward(nn.Module):
    """Mixtral's experts: the output is that of the K likeliest, weighted by their gates, which then add up to 1."""

    config: cfg.Model
    constrain: Callable

    @nn.compact
    def __call__(self, x_BxLxD, segments_BxL, row_keys_B=None, key=None):
        """(`[B, L, D]`, aux): what the experts give, 0 for padding (segment 0).

        `key` draws dropout on hidden units; nothing else is drawn, and `row_keys_B` are not read. Every device sorts
        the tokens of its own rows by expert: no token moves to another device, and each reads the kernels of all
        experts whole. aux as the statistics of `model.ops.routing.route`; none is dropped.
        """
        logits_BxLxE, real_BxL = Router(self.config, name="router")(x_BxLxD), segments_BxL > 0
        rows = (x_BxLxD.astype(self.config.dtype), logits_BxLxE, real_BxL, self.kept(x_BxLxD.shape[:2], key))
        run, kernels = partial(mixed, self.config), expert_weights(self.config)
        y_BxLxD, experts_BxLxK = self.constrain.by_rows(run, rows, (kernels,))
        y_BxLxD = self.constrain(y_BxLxD, ("batch", "length", "activation_embed"))
        return y_BxLxD, statistics(logits_BxLxE, experts_BxLxK, real_BxL, self.config.experts)

    def kept(self, places: tuple[int, int], key):
        """What hidden units are times, `[B, L, K, F]`, drawn for the whole batch on any mesh; None without dropout."""
        settings = self.config.feed_forward
        if key is None or settings.dropout == 0.0:
            return None
        shape = (*places, self.config.experts.top_k, settings.hidden_dim)
        return dropout(jnp.ones(shape, self.config.dtype), settings.dropout, key)


def mixed(config: cfg.Model, x_BxLxD, logits_BxLxE, real_BxL, kept_BxLxKxF, kernels: dict[str, Weights]):
    """(of each token the sum of its experts' outputs, each times its weight, `[B, L, D]`; its experts `[B, L, K]`).

    A weight is the expert's gate over all of them, in float32, divided by the sum of the K. Padding has expert E,
    which is none.
    """
    count, top_k = config.experts.num_experts, config.experts.top_k
    top_BxLxK, experts_BxLxK = jax.lax.top_k(jax.nn.softmax(logits_BxLxE, axis=-1), top_k)
    weights_BxLxK = top_BxLxK / jnp.sum(top_BxLxK, axis=-1, keepdims=True)
    experts_BxLxK = jnp.where(real_BxL[..., None], experts_BxLxK, count)

    expert_N = experts_BxLxK.reshape(-1)
    order_N = jnp.argsort(expert_N, stable=True)
    sizes_E = jnp.bincount(expert_N, length=count + 1)[:count].astype(jnp.int32)
    sorted_N = expert_N[order_N]
    # Behind the last group a product may be anything, and so may its gradient: nothing goes in, nothing comes out.
    x_NxD = jnp.where((sorted_N < count)[:, None], x_BxLxD.reshape(-1, config.embed_dim)[order_N // top_k], 0)
    kept_NxF = None if kept_BxLxKxF is None else kept_BxLxKxF.reshape(order_N.size, -1)[order_N]
    y_NxD = feed(config, x_NxD, sorted_N, sizes_E, kept_NxF, kernels)[jnp.argsort(order_N)]
    y_BxLxKxD = y_NxD.reshape(*experts_BxLxK.shape, -1)
    return jnp.einsum("blkd,blk->bld", y_BxLxKxD, weights_BxLxK.astype(y_NxD.dtype)), experts_BxLxK


def feed(config: cfg.Model, x_NxD, expert_N, sizes_E, kept_NxF, kernels: dict[str, Weights]):
    """`[N, D]`: each row through its expert's network, 0 where it has none; rows lie sorted by expert."""
    real_Nx1 = (expert_N < config.experts.num_experts)[:, None]

    def project(x_NxI, weights: Weights):
        y_NxO = project_ragged(x_NxI, weights.kernel, sizes_E)
        if weights.bias is not None:
            y_NxO = y_NxO + jnp.take(weights.bias.astype(y_NxO.dtype), expert_N, axis=0, mode="clip")
        return jnp.where(real_Nx1, y_NxO, 0)

    activate, gated = ACTIVATIONS[config.feed_forward.activation], config.feed_forward.gated
    h_NxF = project(x_NxD, kernels["up"])
    h_NxF = activate(project(x_NxD, kernels["gate"])) * h_NxF if gated else activate(h_NxF)
    return project(h_NxF if kept_NxF is None else h_NxF * kept_NxF, kernels["down"])


def statistics(logits_BxLxE, experts_BxLxK, real_BxL, settings: cfg.DroplessExperts) -> dict:
    """As `model.ops.routing.route` has them; `balance` is E * sum over experts of (choices a token) * (mean gate).

    Even gates give K. That is transformers' loss, which takes both means over all tokens of a batch and all layers;
    here they are those of a group and of a layer, as no number may depend on what else is in a batch.
    """
    logits_GxSxE, experts_GxSxK, real_GxS = (
        grouped(part, settings.groups) for part in (logits_BxLxE, experts_BxLxK, real_BxL)
    )
    chosen_GxSxKxE = jax.nn.one_hot(experts_GxSxK, settings.num_experts, dtype=jnp.float32)
    gates_GxSxE = jax.nn.softmax(logits_GxSxE, axis=-1)
    share_GxE, mean_GxE = (group_mean(x, real_GxS) for x in (jnp.sum(chosen_GxSxKxE, axis=2), gates_GxSxE))
    return {
        "balance": settings.num_experts * jnp.sum(share_GxE * mean_GxE),
        "load": busiest(chosen_GxSxKxE[:, :, 0], real_GxS),
        "dropped": jnp.float32(0),
        **router_statistics(logits_GxSxE, real_GxS),
    }
