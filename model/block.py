"""The block: norm placement around two slots, a mixer and a feed-forward."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from model import config as cfg
from model.attention import SelfAttention, Shared
from model.layers import FeedForward, Norm
from model.ops.dropout import dropout


class Block(nn.Module):
    config: cfg.Model
    layer: cfg.Layer
    constrain: Callable

    @nn.compact
    def __call__(self, x_BxLxD, shared: Shared, table, key=None, cache=None):
        """Returns (`[B, L, D]`, aux, cache): aux holds the layer's losses and statistics by name.

        `key` draws this layer's dropout, None: none. The mixer and the feed-forward each see norm(x) (pre),
        or x (post, where norm(x + f(x)) follows), or have a norm on both sides (both).
        """
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        mixer = SelfAttention(self.config, self.layer, self.constrain, name="attention")
        mixed = {}

        def mix(x):
            y, mixed["cache"] = mixer(x, shared, table, keys[0], cache)
            return y

        x_BxLxD = self.sublayer("attention", mix, x_BxLxD, keys[1])
        feed_forward = FeedForward(self.config, self.constrain, name="feed_forward")
        x_BxLxD = self.sublayer("feed_forward", feed_forward, x_BxLxD, keys[2])
        return x_BxLxD, {}, mixed["cache"]

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
