"""Beam search over the explicit cache of model/generate.py, for decoders and for decoders beside an encoder.

Rows are independent, as in sampling. Sizes in names: B rows, K beams, N = 2 K candidates (fewer of a tiny vocabulary),
R = B K hypotheses read at a time, T new tokens, L prompt length, V stored vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.generate import extend, read_prompts
from model.transformer import layer_caches


class BeamSearch(NamedTuple):
    """How a text is searched for."""

    beams: int = 4  # hypotheses that go on side by side
    length_penalty: float = 0.6  # alpha, at least 0, of Wu et al. 2016; 0: the likeliest text, which tends to be short
    vocab_size: int | None = None  # only ids below it are written; None: all of the model's


class Hypotheses(NamedTuple):
    tokens_BxKxT: Any  # int32; what is not written yet is the end
    scores_BxK: Any  # float32; -inf: there is none in this place
    counts_BxK: Any  # int32, of tokens, an end included


def penalty(count, alpha: float):
    """What divides the log-probability of a text of `count` tokens (Wu et al. 2016, equation 14, without coverage)."""
    return ((5.0 + count) / 6.0) ** alpha


@partial(jax.jit, static_argnums=(0, 5, 6, 7))
def beam_search(
    model, params, prompts_BxL, lengths_B, limits_B, max_new_tokens: int, end: int, search: BeamSearch, source=None
):
    """(int32 tokens `[B, T]`, int32 counts `[B]`, float32 scores `[B]`) behind prompts of `lengths_B` >= 1 tokens.

    Tokens, counts, prompts and `source` are those of `model.generate.generate`; a row writes at most `limits_B` of the
    T tokens, int32 from 1 to T. A score is the text's log-probability divided by `penalty`; log-probabilities of texts
    that go on are compared as they are.

    The K likeliest continuations without an end go on. One with an end is kept as ended where it is among the K
    likeliest of all, so that one beam is the greedy text. A row is done when K have ended, or when none that goes on
    could still beat the best that has: were all its further tokens certain, and it as long as can be. What has not
    ended at a row's limit counts only where nothing has.
    """
    rows, length = prompts_BxL.shape
    beams = search.beams
    known = min(model.config.vocab_size, search.vocab_size or model.config.vocab_size)
    logits_BxV, cache = read_prompts(model, params, prompts_BxL, lengths_B, length + max_new_tokens, source)
    by_layer = layer_caches(model.config)
    cache = {key: jnp.repeat(part, beams, axis=int(key in by_layer)) for key, part in cache.items()}

    def unfinished(carry):
        t, _, _, done_B, _, _ = carry
        return (t < max_new_tokens) & ~jnp.all(done_B)

    def add(carry):
        t, alive, ended, done_B, logits_RxV, cache = carry
        logits_BxKxV = logits_RxV.reshape(rows, beams, -1)[..., :known]
        alive, ended, done_B, parents_BxK = advance(t, logits_BxKxV, alive, ended, done_B, limits_B, end, search)
        last = (t + 1 == max_new_tokens) | jnp.all(done_B)

        def read():
            parents_R = (parents_BxK + beams * jnp.arange(rows)[:, None]).reshape(-1)
            own = {key: jnp.take(cache[key], parents_R, axis=1) for key in ("k", "v")}  # the rest is one of a row's
            given_Rx1 = alive.tokens_BxKxT[:, :, t].reshape(-1, 1)
            return extend(model, params, {**cache, **own}, given_Rx1, jnp.ones_like(parents_R))

        logits_RxV, cache = jax.lax.cond(last, lambda: (logits_RxV, cache), read)
        return t + 1, alive, ended, done_B, logits_RxV, cache

    blank = jnp.full((rows, beams, max_new_tokens), end, jnp.int32)
    none = Hypotheses(blank, jnp.full((rows, beams), -jnp.inf), jnp.zeros((rows, beams), jnp.int32))
    one = none._replace(scores_BxK=none.scores_BxK.at[:, 0].set(0.0))  # or every beam would write the same
    start = (jnp.int32(0), one, none, jnp.zeros((rows,), bool), jnp.repeat(logits_BxV, beams, axis=0), cache)
    _, alive, ended, _, _, _ = jax.lax.while_loop(unfinished, add, start)
    alive = alive._replace(scores_BxK=alive.scores_BxK / penalty(limits_B, search.length_penalty)[:, None])
    ended_B = ended.scores_BxK[:, 0] > -jnp.inf
    tokens_BxT, scores_B, counts_B = (
        jnp.where(_like(ended_B, whole[:, 0]), whole[:, 0], part[:, 0])
        for whole, part in zip(ended, alive, strict=True)
    )
    return tokens_BxT, counts_B, scores_B


def _like(condition_B, array):
    """A condition on rows in the shape of an array `[B, ...]`."""
    return jnp.broadcast_to(jnp.expand_dims(condition_B, tuple(range(1, array.ndim))), array.shape)


def advance(
    t, logits_BxKxV, alive: Hypotheses, ended: Hypotheses, done_B, limits_B, end: int, search: BeamSearch
) -> tuple[Hypotheses, Hypotheses, Any, Any]:
    """(alive, ended, done, parents int32 `[B, K]`) after token t; a parent is the beam that one alive continues."""
    beams, alpha = search.beams, search.length_penalty
    scores_BxN, parents_BxN, next_BxN = candidates(logits_BxKxV, alive.scores_BxK)
    tokens_BxNxT = jnp.take_along_axis(alive.tokens_BxKxT, parents_BxN[..., None], axis=1)
    tokens_BxNxT = tokens_BxNxT.at[:, :, t].set(next_BxN)
    new = Hypotheses(tokens_BxNxT, scores_BxN, jnp.full_like(next_BxN, t + 1))
    ends_BxN = next_BxN == end
    likely_BxN = jnp.broadcast_to(jnp.arange(next_BxN.shape[1]) < beams, next_BxN.shape)
    finishing_BxN = ends_BxN & likely_BxN & ~done_B[:, None]
    normalised_BxN = jnp.where(finishing_BxN, scores_BxN / penalty(t + 1.0, alpha), -jnp.inf)
    ended, _ = best(joined(ended, new._replace(scores_BxK=normalised_BxN)), beams)
    going, places_BxK = best(new._replace(scores_BxK=jnp.where(ends_BxN, -jnp.inf, scores_BxN)), beams)
    alive = Hypotheses(*(jnp.where(_like(done_B, old), old, now) for old, now in zip(alive, going, strict=True)))
    full_B = jnp.all(ended.scores_BxK > -jnp.inf, axis=1)
    hope_B = alive.scores_BxK[:, 0] / penalty(limits_B, alpha)
    done_B = done_B | full_B | (ended.scores_BxK[:, 0] >= hope_B) | (t + 1 >= limits_B)
    return alive, ended, done_B, jnp.take_along_axis(parents_BxN, places_BxK, axis=1)


def candidates(logits_BxKxV, scores_BxK):
    """The N likeliest continuations of a row, best first: scores `[B, N]`, beams `[B, N]`, int32 tokens `[B, N]`.

    Twice as many as beams, of which each gives one end at most, so that as many as beams go on.
    """
    rows, beams, known = logits_BxKxV.shape
    # Chosen by logits first: sums with a score round, and of two that round to one the likelier is to be the first.
    count = min(2 * beams, known)
    top_BxKxN, tokens_BxKxN = jax.lax.top_k(logits_BxKxV, count)
    logs_BxKxN = top_BxKxN - jax.nn.logsumexp(logits_BxKxV, axis=-1, keepdims=True)
    sums_BxKN = (scores_BxK[..., None] + logs_BxKxN).reshape(rows, -1)
    found_BxN, places_BxN = jax.lax.top_k(sums_BxKN, min(2 * beams, beams * known))
    tokens_BxN = jnp.take_along_axis(tokens_BxKxN.reshape(rows, -1), places_BxN, axis=1)
    return found_BxN, places_BxN // count, tokens_BxN


def best(hypotheses: Hypotheses, count: int) -> tuple[Hypotheses, Any]:
    """(the `count` of a row with the highest scores, best first, their places int32 `[B, count]`)."""
    scores, places = jax.lax.top_k(hypotheses.scores_BxK, count)
    tokens = jnp.take_along_axis(hypotheses.tokens_BxKxT, places[..., None], axis=1)
    return Hypotheses(tokens, scores, jnp.take_along_axis(hypotheses.counts_BxK, places, axis=1)), places


def joined(first: Hypotheses, second: Hypotheses) -> Hypotheses:
    """Those of both, row by row; of equal scores the first ones stay ahead."""
    return Hypotheses(*(jnp.concatenate(parts, axis=1) for parts in zip(first, second, strict=True)))
