"""Feed-forward networks of which each token reads one or two of many: GShard's and Switch's, with capacity.

Sizes in names as in layers.py, and E experts, G groups, S tokens of a group, C places of an expert in a group.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import config as cfg
from model.dropless import DroplessFeedForward
from model.expert_layers import Router, Weights, expert_weights
from model.layers import ACTIVATIONS
from model.ops.dropout import dropout
from model.ops.expert_projection import project_experts
from model.ops.routing import Gating, capacity, grouped, route, ungrouped

SLOTS = ("activation_experts", "exchanged_batch", "length")  # on the devices of the experts
SECOND_CHOICE, JITTER = 0, 1  # what a row's key draws


class CapacityFeedForward(nn.Module):
    """Experts of limited capacity (Lepikhin et al. 2020, section 2.2; Fedus et al. 2021, section 2)."""

    config: cfg.Model
    constrain: Callable

    @nn.compact
    def __call__(self, x_BxLxD, segments_BxL, row_keys_B=None, key=None):
        """(`[B, L, D]`, aux): what the experts give, 0 for tokens without a place and for padding (segment 0).

        `row_keys_B` draw second choices and jitter, which so depend on a row's key and a token's column alone; None
        is evaluation: nothing is drawn, and `eval_capacity_factor` holds. `key` draws dropout on hidden units. aux as
        the statistics of `model.ops.routing.route`.
        """
        settings, dtype = self.config.experts, jnp.dtype(self.config.dtype)
        (rows, length), training = segments_BxL.shape, row_keys_B is not None
        logits_BxLxE = Router(self.config, name="router")(jittered(x_BxLxD, settings.jitter, row_keys_B))
        parts = (x_BxLxD.astype(dtype), logits_BxLxE, segments_BxL > 0)
        x_GxSxD, logits_GxSxE, real_GxS = (grouped(part, settings.groups) for part in parts)
        draws_GxS = None
        if training and settings.top_k == 2 and settings.second_policy == "random":
            draws_GxS = grouped(uniform(row_keys_B, SECOND_CHOICE, (length,)), settings.groups)
        routes, aux = route(logits_GxSxE, real_GxS, *rule_and_places(settings, x_GxSxD.shape[1], training), draws_GxS)
        x_GxSxD = self.constrain(x_GxSxD, ("batch", "length", "activation_embed"))
        slots_ExGxCxD = jnp.einsum("gsec,gsd->egcd", routes.dispatch.astype(dtype), x_GxSxD)
        slots_ExGxCxD = self.exchanged(slots_ExGxCxD, back=False)
        slots_ExGxCxD = self.feed(slots_ExGxCxD, expert_weights(self.config), key)
        slots_ExGxCxD = self.exchanged(slots_ExGxCxD, back=True)
        y_GxSxD = jnp.einsum("gsec,egcd->gsd", routes.combine.astype(dtype), slots_ExGxCxD)
        y_BxLxD = ungrouped(y_GxSxD, rows, length)
        return self.constrain(y_BxLxD, ("batch", "length", "activation_embed")), aux

    def exchanged(self, slots_ExGxCxD, back: bool):
        """The same, divided by groups and then by experts, or `back`: between the two lies one all-to-all."""
        ends = (("router", "batch", "length", "activation_embed"), (*SLOTS, "activation_embed"))
        for names in reversed(ends) if back else ends:
            slots_ExGxCxD = self.constrain(slots_ExGxCxD, names)
        return slots_ExGxCxD

    def feed(self, slots_ExGxCxD, weights: dict[str, Weights], key):
        """Each expert's feed-forward network on what lies in its places."""
        settings = self.config.feed_forward
        activate = ACTIVATIONS[settings.activation]
        h_ExGxCxF = project(slots_ExGxCxD, weights["up"])
        gate_ExGxCxF = project(slots_ExGxCxD, weights["gate"]) if settings.gated else None
        h_ExGxCxF = activate(gate_ExGxCxF) * h_ExGxCxF if settings.gated else activate(h_ExGxCxF)
        h_ExGxCxF = self.constrain(h_ExGxCxF, (*SLOTS, "activation_hidden"))
        return project(dropout(h_ExGxCxF, settings.dropout, key), weights["down"])


def rule_and_places(settings: cfg.CapacityExperts, tokens: int, training: bool) -> tuple[Gating, int]:
    """(how tokens choose, the places of an expert in a group of `tokens`)."""
    rule, factor = Gating(settings.top_k, settings.rule), settings.capacity_factor
    if not training and settings.eval_capacity_factor is not None:
        factor = settings.eval_capacity_factor
    return rule, capacity(tokens, settings.num_experts, factor, settings.min_capacity, rule)


def project(slots_ExGxCxI, weights: Weights):
    """`[E, G, C, I]` times each expert's kernel, plus its bias, in the slots' dtype."""
    experts, *places, inputs = slots_ExGxCxI.shape
    y_ExNxO = project_experts(slots_ExGxCxI.reshape(experts, -1, inputs), weights.kernel)
    if weights.bias is not None:
        y_ExNxO = y_ExNxO + jnp.broadcast_to(weights.bias[:, None].astype(y_ExNxO.dtype), y_ExNxO.shape)
    return y_ExNxO.reshape(experts, *places, -1)


def jittered(x_BxLxD, jitter: float, row_keys_B):
    """x times uniform draws from [1 - jitter, 1 + jitter), in float32 (Fedus et al. 2021, section 2.4)."""
    if row_keys_B is None or jitter == 0.0:
        return x_BxLxD
    draws_BxLxD = uniform(row_keys_B, JITTER, x_BxLxD.shape[1:])
    return x_BxLxD.astype(jnp.float32) * (1 - jitter + 2 * jitter * draws_BxLxD)


def uniform(row_keys_B, use: int, shape: tuple[int, ...]):
    """Float32 draws from [0, 1), `[B, *shape]`: a column's do not depend on how long the row is."""
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, use), shape))(row_keys_B)


KINDS: dict[str, type[nn.Module]] = {"capacity": CapacityFeedForward, "dropless": DroplessFeedForward}


class Experts(nn.Module):
    """The mixture that `config.experts` names, in place of a feed-forward network; its parameters are this one's."""

    config: cfg.Model
    constrain: Callable

    def setup(self):
        self.kind = KINDS[self.config.experts.name](self.config, self.constrain)
        nn.share_scope(self, self.kind)

    def __call__(self, x_BxLxD, segments_BxL, row_keys_B=None, key=None):
        """(`[B, L, D]`, aux) of `[B, L, D]` and the segments `[B, L]`, 0 for padding; as the kind's own call."""
        return self.kind(x_BxLxD, segments_BxL, row_keys_B, key)
