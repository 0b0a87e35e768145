"""Decoding with an explicit cache: greedy, temperature, top-k, top-p.

Rows are independent: prompts stand at the left, each row knows its own length, and each draws from its own
key, so that a row's tokens do not depend on the other rows. Sizes in names: B rows, L prompt length (padded
at the right), V stored vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.attention import prefix_order
from model.config import Model
from model.transformer import Transformer


class Sampling(NamedTuple):
    """How a token is drawn: temperature first, then top-k, then top-p; temperature 0 takes the likeliest."""

    temperature: float = 1.0
    top_k: int | None = None  # the likeliest k stay
    top_p: float | None = None  # the smallest set of likeliest tokens whose probability reaches p stays
    vocab_size: int | None = None  # only ids below it are drawn; None: all of the model's


def empty_cache(config: Model, rows: int, capacity: int) -> dict:
    """A cache without tokens.

    `k` and `v` `[layers, rows, kv_heads, capacity, head_dim]`; int32 `[rows]` each: `length`, the tokens in it, and
    `prefix`, how many of each row see one another where `config.attention.prefix`. Beside an encoder `read_source` adds
    `memory_k` and `memory_v` `[layers, rows, kv_heads, S, head_dim]` and `memory_segments` int32 `[rows, S]`.
    """
    shape = (config.num_layers, rows, config.num_kv_heads, capacity, config.head_dim)
    zeros = partial(jnp.zeros, shape, config.dtype)
    return {"k": zeros(), "v": zeros(), **{key: jnp.zeros((rows,), jnp.int32) for key in ("length", "prefix")}}


def read_source(model: Transformer, params, cache: dict, tokens_BxS, counts_B) -> dict:
    """The cache with the sources in it, int32 `[B, S]`, of which the first `counts_B` tokens of each row are real."""
    steps_BxS = jnp.broadcast_to(jnp.arange(tokens_BxS.shape[1], dtype=jnp.int32)[None], tokens_BxS.shape)
    real_BxS = steps_BxS < counts_B[:, None]
    batch = {
        "source_tokens": tokens_BxS,
        "source_positions": jnp.where(real_BxS, steps_BxS, 0),
        "source_segment_ids": real_BxS.astype(jnp.int32),
    }
    return nn.apply(lambda model: model.read_source(batch, cache), model)({"params": params})


def extend(model: Transformer, params, cache: dict, tokens_BxL, counts_B):
    """Read up to L more tokens a row, of which the first `counts_B` are real.

    The cache must have room for all L behind each row's tokens: what has none overwrites tokens. A prefix that sees
    itself both ways (`attention.prefix`) is read in one call. Returns
    (float32 logits `[B, V]` behind each row's last real token, the cache with the tokens in it).
    """
    steps_BxL = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1], dtype=jnp.int32)[None], tokens_BxL.shape)
    real_BxL = steps_BxL < counts_B[:, None]
    # Padding may stand behind the end of a learned table, whose rows there are NaN.
    positions_BxL = jnp.where(real_BxL, cache["length"][:, None] + steps_BxL, 0)
    batch = {
        "tokens": tokens_BxL,
        "positions": positions_BxL,
        "segment_ids": real_BxL.astype(jnp.int32),
        "order": prefix_order(positions_BxL, cache["prefix"]),
    }

    def run(model):
        hidden_BxLxD, _, new_cache = model(batch, cache=cache)
        last_B = jnp.maximum(counts_B - 1, 0)
        hidden_BxD = jnp.take_along_axis(hidden_BxLxD, last_B[:, None, None], axis=1)[:, 0]
        return model.logits(hidden_BxD), new_cache

    return nn.apply(run, model)({"params": params})


def read_prompts(model: Transformer, params, prompts_BxL, lengths_B, capacity: int, source=None) -> tuple:
    """What `extend` gives behind prompts in a new cache, `source` being that of `generate`."""
    cache = {**empty_cache(model.config, prompts_BxL.shape[0], capacity), "prefix": lengths_B}
    if source is not None:
        cache = read_source(model, params, cache, *source)
    return extend(model, params, cache, prompts_BxL, lengths_B)


def choose(logits_BxV, keys_B, sampling: Sampling):
    """int32 `[B]`: the next token of each row, drawn with the row's own key.

    Among equal logits the smaller id counts as likelier, so that top-k keeps exactly k. The token that crosses
    `top_p` is kept, and at least one always is.
    """
    if sampling.temperature == 0.0:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    order_BxV = jnp.argsort(-logits_BxV, axis=-1, stable=True)
    sorted_BxV = jnp.take_along_axis(logits_BxV, order_BxV, axis=-1) / sampling.temperature
    ranks_BxV = jax.lax.broadcasted_iota(jnp.int32, sorted_BxV.shape, 1)
    if sampling.top_k is not None:
        sorted_BxV = jnp.where(ranks_BxV < sampling.top_k, sorted_BxV, -jnp.inf)
    if sampling.top_p is not None:
        probs_BxV = jax.nn.softmax(sorted_BxV, axis=-1)
        before_BxV = jnp.cumsum(probs_BxV, axis=-1) - probs_BxV
        sorted_BxV = jnp.where((before_BxV < sampling.top_p) | (ranks_BxV == 0), sorted_BxV, -jnp.inf)
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, sorted_BxV)
    return jnp.take_along_axis(order_BxV, drawn_B[:, None], axis=-1)[:, 0].astype(jnp.int32)


@partial(jax.jit, static_argnums=(0, 5, 6, 7))
def generate(
    model, params, prompts_BxL, lengths_B, keys_B, max_new_tokens: int, end: int, sampling: Sampling, source=None
):
    """(int32 tokens `[B, max_new_tokens]`, int32 counts `[B]`) behind prompts of `lengths_B` >= 1 tokens.

    A row ends with its first `end` token, which counts; what stands behind it is `end`. Token t of a row is
    drawn with `fold_in(keys_B[row], t)`, from the vocabulary without its padding and what `sampling` leaves
    out. Where the model has prefixes, each prompt is one. The last token's own keys and values are never computed.
    `source` is None, or (int32 `[B, S]`, int32 `[B]`), what an encoder reads: tokens, and how many are real.
    """
    rows, length = prompts_BxL.shape
    logits_BxV, cache = read_prompts(model, params, prompts_BxL, lengths_B, length + max_new_tokens, source)

    known = min(model.config.vocab_size, sampling.vocab_size or model.config.vocab_size)

    def draw(logits_BxV, t):
        step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, t)
        return choose(logits_BxV[:, :known], step_keys_B, sampling)

    def unfinished(carry):
        t, _, done_B, _, _ = carry
        return (t < max_new_tokens) & ~jnp.all(done_B)

    def add(carry):
        t, tokens_BxT, done_B, cache, logits_BxV = carry
        next_B = jnp.where(done_B, end, draw(logits_BxV, t))
        tokens_BxT = tokens_BxT.at[:, t].set(next_B)
        done_B |= next_B == end
        last = (t + 1 == max_new_tokens) | jnp.all(done_B)

        def read():
            return extend(model, params, cache, next_B[:, None], jnp.ones_like(next_B))

        logits_BxV, cache = jax.lax.cond(last, lambda: (logits_BxV, cache), read)
        return t + 1, tokens_BxT, done_B, cache, logits_BxV

    tokens_BxT = jnp.full((rows, max_new_tokens), end, jnp.int32)
    start = (jnp.int32(0), tokens_BxT, jnp.zeros((rows,), bool), cache, logits_BxV)
    _, tokens_BxT, _, _, _ = jax.lax.while_loop(unfinished, add, start)
    ended_BxT = jnp.cumsum(tokens_BxT == end, axis=1)
    return tokens_BxT, jnp.minimum(jnp.sum(ended_BxT == 0, axis=1) + 1, max_new_tokens).astype(jnp.int32)
