"""Decoders and encoders: embedding, stacks of blocks under a plain `jax.lax.scan`, final norm, heads.

A period is one turn of the layer pattern. Parameters of whole periods are stacked under `stack`, the
layers left over under `remainder`, and those of an encoder beside a decoder under the same names behind `encoder_`;
`unroll` changes only what is compiled. Sizes in names as in layers.py, and S the length of a source.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import config as cfg
from model.attention import Memory, Shared, slots
from model.block import Block
from model.deberta import Convolution, MaskDecoder, Relations
from model.heads import Heads, Transform
from model.layers import Embedding, Norm, rotary_table
from model.ops.attention import Places
from model.ops.cross_entropy import LogitRule, Unembedding, logits
from model.ops.dropout import dropout
from model.parameters import Declaration, constant, declare, normal
from model.placement import identity
from model.relative import RelativeBias
from model.stack import Stack, folded

# Folds beside the indices of layers, which their dropout and their routing fold.
EMBEDDING_KEY, OUTPUT_KEY, ENCODER_KEY, CONVOLUTION_KEY, DECODER_KEY = range(0x7FFFFFFF, 0x7FFFFFFA, -1)
ENCODER = "encoder_"  # before the names of an encoder's parameters beside a decoder


def stacks_of(config: cfg.Model, constrain: Callable) -> dict[str, Stack]:
    """The stack of whole periods, and that of the layers left over, where they have layers."""
    blocks = tuple(Block(config, layer, constrain, parent=None) for layer in config.pattern)
    periods, left = divmod(config.num_layers, len(blocks))
    stacks = {
        "stack": Stack(config, blocks, periods, first=0),
        "remainder": Stack(config, blocks[:left], 1, first=periods * len(blocks)),
    }
    return {name: stack for name, stack in stacks.items() if stack.num_layers > 0}


class Transformer(nn.Module):
    """A decoder, an encoder, or a decoder beside an encoder, as pure functions of its parameters.

    `initialise(model, key)` gives its parameters, `model.apply({"params": params}, batch, key)` hidden states.
    """

    config: cfg.Model
    constrain: Callable = identity

    def setup(self):
        config = self.config
        self.embedding = Embedding(config, self.constrain)
        # One key for both stacks, since a layer draws from its index; shapes alone need none.
        key = self.make_rng("params") if self.is_initializing() else jax.random.key(0)
        self.declare_stacks(config, "", key)
        if config.encoder_layers:
            self.declare_stacks(config.encoder, ENCODER, jax.random.fold_in(key, ENCODER_KEY))
        self.heads = Heads(config)
        if config.language_head:
            self.declare_language_head()

    def declare_stacks(self, config: cfg.Model, prefix: str, key):
        """The layers, the norm behind them, and what all of them share, of a decoder or of an encoder."""
        for name, part in stacks_of(config, self.constrain).items():
            setattr(self, prefix + name, self.param(prefix + name, lambda _, part=part: part.initialise(key)))
        if config.norm.placement != "post":
            setattr(self, f"{prefix}final_norm", Norm(config.norm))
        if isinstance(config.positions, cfg.RelativePositions):
            setattr(self, f"{prefix}relative_bias", RelativeBias(config, bidirectional=not config.attention.causal))
        if isinstance(config.positions, cfg.DisentangledPositions):
            self.relations = Relations(config, self.constrain)
        if config.convolution.size:
            self.convolution = Convolution(config)
        if config.mask_decoder_passes:
            self.mask_decoder = MaskDecoder(config, self.constrain)

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

    def __call__(self, batch: dict, key=None, cache: dict | None = None, row_keys=None, change=None):
        """Final hidden states of `batch` (`tokens`, `positions`, `segment_ids`, int32 `[B, L]`).

        With `config.token_types` the batch holds `token_types` too, with `config.attention.prefix` `order`: a token
        sees those of its segment whose order is not above its own; with `config.encoder_layers` `source_tokens`,
        `source_positions`, `source_segment_ids`, int32 `[B, S]`: a token sees the source of its segment.

        Returns (`[B, L, D]` in the compute dtype, aux, cache). `key` draws all dropout, None: none; `row_keys`, a key
        for each row, what routing draws, None: nothing. `change`, float32 `[B, L, D]` or None, is added to embeddings
        that their norm has normalised, before its scale. aux holds, for `decoder` and `encoder`, the sums that their
        layers give by name, `[layers that give any]` each. `cache` is None or what `model.generate.empty_cache` makes,
        in which `model.generate.read_source` has put the source; then `batch` holds the tokens that follow it.
        """
        config = self.config
        ordered = config.attention.prefix
        places = Places(batch["positions"], batch["segment_ids"], batch["order"] if ordered else None)
        memory, aux = None, {}
        if config.encoder_layers and cache is None:
            memory, aux["encoder"] = self.encode(batch, key, row_keys)
        elif config.encoder_layers:
            segments = cache["memory_segments"]
            memory = Memory(Places(jnp.zeros_like(segments), segments), None)
        shared = Shared(places, self.rotary_tables(places.positions), memory=memory, row_keys=row_keys)
        keys = places
        if cache is not None:
            prefixes = cache["prefix"] if ordered else None
            shared = shared._replace(lengths=cache["length"], prefixes=prefixes)
            keys = slots(cache["k"].shape[1], cache["k"].shape[3])
        x_BxLxD, aux["decoder"], cache = self.run(config, "", self.embedding(batch, change), shared, keys, key, cache)
        if self.is_initializing():  # what is not called has no parameters
            self.heads.all(x_BxLxD)
            self.output(x_BxLxD)
        return x_BxLxD, aux, cache

    def encode(self, batch: dict, key=None, row_keys=None) -> tuple[Memory, dict]:
        """(what a decoder reads of the source of `batch`, aux of the encoder's layers)."""
        places = Places(batch["source_positions"], batch["source_segment_ids"])
        key = None if key is None else jax.random.fold_in(key, ENCODER_KEY)
        tables = self.rotary_tables(places.positions)
        shared = Shared(places, tables, row_keys=folded(row_keys, ENCODER_KEY))
        x_BxSxD = self.embedding({"tokens": batch["source_tokens"], "positions": batch["source_positions"]})
        states_BxSxD, aux, _ = self.run(self.config.encoder, ENCODER, x_BxSxD, shared, places, key)
        return Memory(places, states_BxSxD), aux

    def run(self, config: cfg.Model, prefix: str, x_BxLxD, shared: Shared, keys: Places, key, cache=None):
        """(final states, aux, cache) of the layers named with `prefix`; `keys` are what self-attention may see."""
        embedding_key, output_key = (
            None if key is None else jax.random.fold_in(key, index) for index in (EMBEDDING_KEY, OUTPUT_KEY)
        )
        x_BxLxD = dropout(x_BxLxD, config.dropout, embedding_key)
        x_BxLxD = self.constrain(x_BxLxD, ("batch", "length", "activation_embed"))
        if isinstance(config.positions, cfg.RelativePositions):
            shared = shared._replace(bias_BxHxLxS=getattr(self, f"{prefix}relative_bias")(shared.places, keys))
        if isinstance(config.positions, cfg.DisentangledPositions):
            shared = shared._replace(relations=self.relations(x_BxLxD.shape[1]))
        embedded_BxLxD, auxes, caches = x_BxLxD, [], []
        for part, params in self.parts(config, prefix):
            if config.mask_decoder_passes and part.first == config.num_layers - 1:
                x_BxLxD = self.decode_masked(part, params, x_BxLxD, shared, key)
                continue
            layers = slice(part.first, part.first + part.num_layers)
            old = None if cache is None else {key: cache[key][layers] for key in layer_caches(config)}
            x_BxLxD, aux, new = part.apply(params, x_BxLxD, shared, key, old)
            auxes.append(aux)
            caches.append(new)
            if config.convolution.size and part.first == 0:
                own = None if key is None else jax.random.fold_in(key, CONVOLUTION_KEY)
                x_BxLxD = self.convolution(embedded_BxLxD, x_BxLxD, shared.places.segments, own)
        if config.norm.placement != "post":
            x_BxLxD = getattr(self, f"{prefix}final_norm")(x_BxLxD)
        x_BxLxD = dropout(x_BxLxD, config.output_dropout, output_key)
        if cache is not None:
            added = jnp.sum(shared.places.segments > 0, axis=1, dtype=jnp.int32)
            cache = {**cache, **_joined(caches), "length": cache["length"] + added}
        return x_BxLxD, _joined([aux for aux in auxes if aux]), cache

    def parts(self, config: cfg.Model, prefix: str) -> list[tuple[Stack, dict]]:
        """The stacks named with `prefix` and their parameters; those layers apart, around which something else is."""
        found = []
        for name, whole in stacks_of(config, self.constrain).items():
            params = getattr(self, prefix + name)
            cuts = {0, whole.periods} | ({1} if config.convolution.size else set())
            cuts |= {whole.periods - 1} if config.mask_decoder_passes else set()
            if len(cuts) == 2:
                found.append((whole, params))
                continue
            bounds = sorted(cuts)
            found += [whole.part(params, *pair) for pair in zip(bounds, bounds[1:], strict=False)]
        return found

    def decode_masked(self, last: Stack, params, hidden_BxLxD, shared: Shared, key):
        """DeBERTa's enhanced mask decoder (He et al. 2020, section 3.2): the last layer again and again, `[B, L, D]`.

        Keys and values are always made of the hidden states before it, queries at first of those and the absolute
        positions, then of what it gave before.
        """
        context = shared._replace(context_BxLxD=hidden_BxLxD)
        x_BxLxD = self.mask_decoder(hidden_BxLxD, shared.places)
        key = None if key is None else jax.random.fold_in(key, DECODER_KEY)
        for number in range(self.config.mask_decoder_passes):
            own = None if key is None else jax.random.fold_in(key, number)
            x_BxLxD, _, _ = last.apply(params, x_BxLxD, context, own)
        return x_BxLxD

    def read_source(self, batch: dict, cache: dict) -> dict:
        """The cache with what the decoder's layers make of the source of `batch`, which is encoded once."""
        memory, _ = self.encode(batch)
        stacks = stacks_of(self.config, self.constrain).items()
        heads = [part.memory(getattr(self, name), memory.states_BxSxD) for name, part in stacks]
        k, v = (jnp.concatenate(parts) for parts in zip(*heads, strict=True))
        return {**cache, "memory_k": k, "memory_v": v, "memory_segments": memory.places.segments}

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
        """What the unembedding reads: hidden states `[..., D]`, transformed and scaled as the configuration says."""
        config = self.config
        hidden_BxLxD = self.head_transform(hidden_BxLxD) if config.head_transform else hidden_BxLxD
        return hidden_BxLxD if config.output_scale is None else hidden_BxLxD * config.output_scale

    def logits(self, hidden_BxLxD):
        """Float32 logits `[..., V]` over the stored vocabulary."""
        return logits(self.output(hidden_BxLxD), self.unembedding(), self.logit_rule)


def layer_caches(config: cfg.Model) -> tuple[str, ...]:
    """The parts of a cache that belong to a layer each."""
    return ("k", "v", "memory_k", "memory_v") if config.encoder_layers else ("k", "v")


def _joined(trees: list) -> dict:
    """The layers of several stacks, one behind another; of none an empty dict."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *trees) if trees else {}


BATCH_KEYS = ("tokens", "positions", "segment_ids")
OTHER_KEYS = ("token_types", "order", *(f"source_{key}" for key in BATCH_KEYS))


def initialise(model: Transformer, key) -> dict:
    """Fresh parameters: a tree of `Declared` float32 arrays. Under `jax.eval_shape` nothing is allocated."""
    token = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, dict.fromkeys((*BATCH_KEYS, *OTHER_KEYS), token))["params"]
