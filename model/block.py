"""The block: norm placement around its slots, a mixer, where there is an encoder cross-attention, a feed-forward."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from model import config as cfg
from model.attention import CrossAttention, SelfAttention, Shared
from model.deberta import DisentangledAttention
from model.experts import Experts
from model.layers import FeedForward, Norm
from model.ops.dropout import dropout


class Block(nn.Module):
    config: cfg.Model
    layer: cfg.Layer
    constrain: Callable

    @nn.compact
    def __call__(self, x_BxLxD, shared: Shared, table, key=None, cache=None):
        """Returns (`[B, L, D]`, aux, cache): aux holds the layer's losses and statistics by name.

        `key` draws this layer's dropout, None: none; `shared.row_keys` are the layer's own. `cache` is None or a dict
        of `k` and `v`, and beside an encoder `memory_k` and `memory_v`, `[B, K, S, C]` each. The mixer and the
        feed-forward each see norm(x) (pre), or x (post, where norm(x + f(x)) follows), or have a norm on both sides
        (both).
        """
        keys = (None,) * 6 if key is None else jax.random.split(key, 6)
        disentangled = isinstance(self.config.positions, cfg.DisentangledPositions)
        mixer = DisentangledAttention if disentangled else SelfAttention
        mixer = mixer(self.config, self.layer, self.constrain, name="attention")
        aux, mixed = {}, {}

        def mix(x_BxLxD):
            y_BxLxD, mixed["cache"] = mixer(x_BxLxD, shared, table, keys[0], _pair(cache, "k", "v"))
            return y_BxLxD

        def read(x_BxLxD):
            cross = CrossAttention(self.config, self.constrain, name="cross_attention")
            return cross(x_BxLxD, shared, keys[3], _pair(cache, "memory_k", "memory_v"))

        def feed(x_BxLxD):
            if not self.layer.experts:
                return FeedForward(self.config, self.constrain, name="feed_forward")(x_BxLxD, keys[5])
            experts = Experts(self.config, self.constrain, name="feed_forward")
            y_BxLxD, found = experts(x_BxLxD, shared.places.segments, shared.row_keys, keys[5])
            aux.update(found)
            return y_BxLxD

        x_BxLxD = self.sublayer("attention", mix, x_BxLxD, keys[1])
        if self.config.encoder_layers:
            x_BxLxD = self.sublayer("cross_attention", read, x_BxLxD, keys[4])
        x_BxLxD = self.sublayer("feed_forward", feed, x_BxLxD, keys[2])
        if cache is not None:
            k_BxKxSxC, v_BxKxSxC = mixed["cache"]
            cache = {**cache, "k": k_BxKxSxC, "v": v_BxKxSxC}
        return x_BxLxD, aux, cache

    def sublayer(self, name: str, function: Callable, x_BxLxD, key):
        """x plus `function`, with the norms and the dropout of the configured placement."""
        norm, placement = self.config.norm, self.config.norm.placement
        y_BxLxD = x_BxLxD if placement == "post" else Norm(norm, name=f"{name}_norm")(x_BxLxD)
        y_BxLxD = function(y_BxLxD)
        if placement == "both":
            y_BxLxD = Norm(norm, name=f"{name}_post_norm")(y_BxLxD)
        y_BxLxD = x_BxLxD + dropout(y_BxLxD, self.config.dropout, key)
        if placement == "post":
            y_BxLxD = Norm(norm, name=f"{name}_norm")(y_BxLxD)
        return self.constrain(y_BxLxD, ("batch", "length", "activation_embed"))


def _pair(cache: dict | None, *names: str) -> tuple | None:
    return None if cache is None else tuple(cache[name] for name in names)
