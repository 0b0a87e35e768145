"""Decoders and encoders: embedding, stacks of blocks under a plain `jax.lax.scan`, final norm, heads.

A period is one turn of the layer pattern. Parameters of whole periods are stacked under `stack`, the
layers left over under `remainder`; `unroll` changes only what is compiled. Sizes in names as in layers.py.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import config as cfg
from model.attention import Shared
from model.block import Block
from model.heads import Heads, Transform
from model.layers import Embedding, Norm, rotary_table
from model.ops.attention import Places
from model.ops.cross_entropy import LogitRule, Unembedding, logits
from model.ops.dropout import dropout
from model.parameters import Declaration, constant, declare, normal
from model.stack import Stack

EMBEDDING_KEY = 0x7FFFFFFF  # the fold of the embedding's dropout; layers fold their own index


def identity(x, names):
    """The `constrain` of a model on one device."""
    return x


class Transformer(nn.Module):
    """A decoder, or an encoder, as pure functions of its parameters.

    `initialise(model, key)` gives its parameters, `model.apply({"params": params}, batch, key)` hidden states.
    """

    config: cfg.Model
    constrain: Callable = identity

    def setup(self):
        config = self.config
        self.embedding = Embedding(config, self.constrain)
        # One key for both stacks, since a layer draws from its index; shapes alone need none.
        key = self.make_rng("params") if self.is_initializing() else jax.random.key(0)
        for name, part in self.stacks().items():
            setattr(self, name, self.param(name, lambda _, part=part: part.initialise(key)))
        if config.norm.placement != "post":
            self.final_norm = Norm(config.norm)
        self.heads = Heads(config)
        if config.language_head:
            self.declare_language_head()

    def declare_language_head(self):
        config = self.config
        if config.head_transform:
            self.head_transform = Transform(config)
        if not config.tied_head:
            std = 0.5 * config.embed_dim**-0.5 if config.init.head_std is None else config.init.head_std
            shape = (config.embed_dim, config.padded_vocab_size)
            declaration = Declaration(shape, ("embed", "vocab"), "kernel", (0,), (1,))
            self.head = declare(self, "head", declaration, normal(std, config.init.truncation))
        if config.head_bias:
            declaration = Declaration((config.padded_vocab_size,), ("vocab",), "bias")
            self.head_bias = declare(self, "head_bias", declaration, constant(0.0))

    def __call__(self, batch: dict, key=None, cache: dict | None = None):
        """Final hidden states of `batch` (`tokens`, `positions`, `segment_ids`, int32 `[B, L]`).

        With `config.token_types` the batch holds `token_types` too, with `config.attention.prefix` `order`: a token
        sees those of its segment whose order is not above its own.

        Returns (`[B, L, D]` in the compute dtype, aux, cache). `key` draws all dropout, None: none. `cache`
        is None or what `model.generate.empty_cache` makes; then `batch` holds the tokens that follow it.
        """
        config = self.config
        ordered = config.attention.prefix
        places = Places(batch["positions"], batch["segment_ids"], batch["order"] if ordered else None)
        x_BxLxD = self.embedding(batch)
        embedding_key = None if key is None else jax.random.fold_in(key, EMBEDDING_KEY)
        x_BxLxD = dropout(x_BxLxD, config.dropout, embedding_key)
        x_BxLxD = self.constrain(x_BxLxD, ("batch", "length", "activation_embed"))
        shared = Shared(places, self.rotary_tables(places.positions))
        if cache is not None:
            prefixes = cache["prefix"] if ordered else None
            shared = shared._replace(lengths=cache["length"], prefixes=prefixes)
        auxes, caches = [], []
        for name, part in self.stacks().items():
            slots = slice(part.first, part.first + part.num_layers)
            old = None if cache is None else (cache["k"][slots], cache["v"][slots])
            x_BxLxD, aux, new = part.apply(getattr(self, name), x_BxLxD, shared, key, old)
            auxes.append(aux)
            caches.append(new)
        if config.norm.placement != "post":
            x_BxLxD = self.final_norm(x_BxLxD)
        if self.is_initializing():  # what is not called has no parameters
            self.heads.all(x_BxLxD)
            self.output(x_BxLxD)
        if cache is not None:
            k, v = (jnp.concatenate(parts) for parts in zip(*caches, strict=True))
            added = jnp.sum(places.segments > 0, axis=1, dtype=jnp.int32)
            cache = {**cache, "k": k, "v": v, "length": cache["length"] + added}
        aux = jax.tree.map(lambda *parts: jnp.concatenate(parts), *auxes)
        return x_BxLxD, aux, cache

    def stacks(self) -> dict[str, Stack]:
        """The stack of whole periods, and that of the layers left over, where they have layers."""
        config = self.config
        blocks = tuple(Block(config, layer, self.constrain, parent=None) for layer in config.pattern)
        periods, left = divmod(config.num_layers, len(blocks))
        stacks = {
            "stack": Stack(config, blocks, periods, first=0),
            "remainder": Stack(config, blocks[:left], 1, first=periods * len(blocks)),
        }
        return {name: stack for name, stack in stacks.items() if stack.num_layers > 0}

    def rotary_tables(self, positions_BxL) -> tuple:
        """One table a pattern entry; entries with equal settings share theirs."""
        if not isinstance(self.config.positions, cfg.RotaryPositions):
            return (None,) * len(self.config.pattern)
        tables = {}
        for layer in self.config.pattern:
            setting = (layer.rotary_base, layer.rotary_scaling)
            if setting not in tables:
                tables[setting] = rotary_table(positions_BxL, layer, self.config.head_dim)
        return tuple(tables[layer.rotary_base, layer.rotary_scaling] for layer in self.config.pattern)

    def unembedding(self) -> Unembedding:
        """The head, float32: kernel `[D, V]`, bias `[V]` or None."""
        kernel_DxV = self.embedding.token.T if self.config.tied_head else self.head
        return Unembedding(kernel_DxV, self.head_bias if self.config.head_bias else None)

    @property
    def logit_rule(self) -> LogitRule:
        return LogitRule(self.config.vocab_size, self.config.logit_soft_cap)

    def output(self, hidden_BxLxD):
        """What the unembedding reads: hidden states `[..., D]`, transformed where the configuration says so."""
        return self.head_transform(hidden_BxLxD) if self.config.head_transform else hidden_BxLxD

    def logits(self, hidden_BxLxD):
        """Float32 logits `[..., V]` over the stored vocabulary."""
        return logits(self.output(hidden_BxLxD), self.unembedding(), self.logit_rule)


def initialise(model: Transformer, key) -> dict:
    """Fresh parameters: a tree of `Declared` float32 arrays. Under `jax.eval_shape` nothing is allocated."""
    token = jnp.zeros((1, 1), jnp.int32)
    batch = dict.fromkeys(("tokens", "positions", "segment_ids", "token_types", "order"), token)
    return model.init(key, batch)["params"]
