"""A stack of equal periods of blocks: parameters stacked over periods, applied by a plain `jax.lax.scan`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from model import config as cfg
from model.attention import Memory, Shared, memory_heads
from model.block import Block
from model.ops.attention import Places
from model.parameters import stack
from model.placement import identity

REMAT_POLICIES: dict[str, Callable] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclass(frozen=True)
class Stack:
    """`periods` turns of `blocks`; `first` is the index in the model of its first layer."""

    config: cfg.Model
    blocks: tuple[Block, ...]
    periods: int
    first: int

    @property
    def num_layers(self) -> int:
        return self.periods * len(self.blocks)

    def initialise(self, key) -> dict:
        """Parameters `{entry of the period: tree of Declared}`, each with a leading axis of `periods`.

        Every layer draws from its own index, so that no layer depends on how layers are grouped.
        """
        nothing = jnp.zeros((1, 1), jnp.int32)
        places = Places(nothing, nothing)
        x_BxLxD = jnp.zeros((1, 1, self.config.embed_dim), self.config.dtype)
        shared = Shared(places, (), memory=Memory(places, x_BxLxD))
        table = (jnp.zeros((1, 1, self.config.head_dim // 2)),) * 2
        table = table if isinstance(self.config.positions, cfg.RotaryPositions) else None
        if isinstance(self.config.positions, cfg.DisentangledPositions):
            shared = shared._replace(relations=x_BxLxD[0])
        params = {}
        for entry, block in enumerate(self.blocks):
            layers = self.first + entry + len(self.blocks) * jnp.arange(self.periods)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, layers)
            free = block.clone(constrain=identity)  # one row and one position divide by no mesh
            boxed = jax.vmap(lambda key, free=free: free.init(key, x_BxLxD, shared, table)["params"])(keys)
            params[str(entry)] = stack(boxed)
        return params

    def apply(self, params, x_BxLxD, shared: Shared, key=None, cache=None):
        """Returns (`[B, L, D]`, aux, cache), the cache with a leading axis of `num_layers`, as it has it given.

        aux holds what the layers that have any give, by name, with a leading axis of so many layers.
        """

        def period(x_BxLxD, per_period):
            params, indices, cache = per_period
            per_entry = []
            for entry, block in enumerate(self.blocks):
                layer_key = None if key is None else jax.random.fold_in(key, indices[entry])
                own = shared._replace(row_keys=folded(shared.row_keys, indices[entry]))
                layer_cache = jax.tree.map(lambda part, entry=entry: part[entry], cache)
                arguments = (x_BxLxD, own, shared.tables[entry], layer_key, layer_cache)
                x_BxLxD, aux, layer_cache = block.apply({"params": params[str(entry)]}, *arguments)
                per_entry.append((aux, layer_cache))
            auxes, caches = zip(*per_entry, strict=True)
            return x_BxLxD, (_stacked([aux for aux in auxes if aux]), _stacked(caches))

        if self.config.remat != "none":
            policy = REMAT_POLICIES[self.config.remat]
            period = jax.checkpoint(period, policy=policy, prevent_cse=self.config.unroll > 1)
        indices = jnp.arange(self.num_layers, dtype=jnp.int32) + self.first
        by_period = jax.tree.map(self._by_period, (indices, cache))
        x_BxLxD, per_period = jax.lax.scan(
            period, x_BxLxD, (params, *by_period), length=self.periods, unroll=min(self.config.unroll, self.periods)
        )
        aux, cache = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), per_period)
        return x_BxLxD, aux, cache

    def part(self, params, start: int, stop: int) -> tuple[Stack, dict]:
        """The periods from `start` up to `stop`, as a stack, and their parameters."""
        part = replace(self, periods=stop - start, first=self.first + start * len(self.blocks))
        return part, jax.tree.map(lambda leaf: leaf[start:stop], params)

    def memory(self, params, states_BxSxD) -> tuple:
        """(keys, values), `[num_layers, B, K, S, C]` each, that cross-attention reads of an encoder's output."""

        def of_a_period(params):
            heads = [
                memory_heads(self.config, params[str(entry)]["cross_attention"], states_BxSxD)
                for entry in range(len(self.blocks))
            ]
            return _stacked(heads)

        found = jax.lax.map(of_a_period, params)
        return jax.tree.map(lambda part: part.reshape(self.num_layers, *part.shape[2:]), found)

    def _by_period(self, part):
        return part.reshape(self.periods, len(self.blocks), *part.shape[1:])


def _stacked(trees) -> dict | tuple | None:
    """Trees of one structure as one, each leaf with a leading axis; of none an empty dict."""
    return jax.tree.map(lambda *parts: jnp.stack(parts), *trees) if trees else {}


def folded(keys, index):
    """`index` folded into each of an array of keys; None of None."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, index)
