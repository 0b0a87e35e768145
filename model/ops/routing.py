"""Which tokens an expert takes: gating with capacity, as pure functions of a router's float32 logits.

A group of S tokens shares out C places at each of E experts. Two rules for two choices a token, top-2 gating:

- paper: Lepikhin et al. 2020, algorithm 1. A second choice that the draw leaves out counts as if it stood in its place.
- code: `Top2GatingOnLogits` of lingvo, and `_top_2_gating` of Mesh TensorFlow from which it comes, with the paper's
  probability of a second choice. One that the draw leaves out takes no place; the auxiliary loss is E^2 times the
  paper's, 1 for even gates; places are rounded up to a multiple of 4, as lingvo does.

One choice a token is Switch (Fedus et al. 2021, section 2.2): its weight is the gate as it is, its auxiliary loss the
code's. All first choices of a group come before all second ones, each in the order of the tokens. So where places run
out, a token's second place depends on first choices after it.

Tokens of padding take no place and are in no mean; a group of nothing else adds 0 to every sum.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

MULTIPLE = 4  # of places, by the code's rule
EPSILON = 1e-9  # beside the two gates by which the code's rule divides


class Routes(NamedTuple):
    """Where tokens go, and with which weight what comes back is added up, `[G, S, E, C]`."""

    dispatch: jax.Array  # int32: 1 where a token has a place, otherwise 0
    combine: jax.Array  # float32


class Gating(NamedTuple):
    """How tokens choose."""

    top_k: int = 2  # choices of a token: 2, or 1
    rule: str = "paper"  # paper, code: of two choices


def capacity(tokens: int, experts: int, factor: float, least: int, gating: Gating) -> int:
    """Places of an expert in a group of `tokens`, padding included: tokens * factor / experts, rounded down.

    At least `least`, of which the paper knows nothing (1 is its rule, whose division has no remainder); by the code's
    rule then rounded up to a multiple of 4. No more than `tokens`, since an expert takes none twice.
    """
    places = max(int(tokens * factor / experts), least)
    if gating.rule == "code" and gating.top_k == 2:
        places = -(-places // MULTIPLE) * MULTIPLE
    return min(places, tokens)


def route(logits_GxSxE, real_GxS, gating: Gating, places: int, draws_GxS=None) -> tuple[Routes, dict]:
    """(routes, statistics) of groups of tokens.

    `real_GxS` is false for padding. `draws_GxS`, uniform on [0, 1), decide which second choices count: each with
    probability min(1, 2 * its share of the two gates), the policy `random`. None: all do, the policy `all`.

    The statistics are float32 scalars, sums over groups that hold a token: `balance`, the auxiliary loss; `load`, E
    times the busiest expert's share of first choices; or sums over tokens: `z` and `entropy`, of `router_statistics`;
    `dropped`, the share of a token's choices that found no place.
    """
    gates_GxSxE = jax.nn.softmax(logits_GxSxE, axis=-1)
    choices = _top_2(gates_GxSxE, real_GxS, gating, draws_GxS) if gating.top_k == 2 else _top_1(gates_GxSxE, real_GxS)
    placed = [_place(choice, places) for choice in choices]
    weights = [choice.weight_GxS[..., None, None] for choice in choices]
    routes = Routes(sum(placed), sum(weight * place for weight, place in zip(weights, placed, strict=True)))

    found_GxS = jnp.sum(routes.dispatch, axis=(2, 3))
    wanted_GxS = sum(jnp.sum(choice.expert_GxSxE, axis=2) for choice in choices)
    first_GxSxE = choices[0].expert_GxSxE
    statistics = {
        "balance": _balance(gates_GxSxE, first_GxSxE, real_GxS, gating),
        "load": busiest(first_GxSxE, real_GxS),
        "dropped": jnp.sum((wanted_GxS - found_GxS) / jnp.maximum(wanted_GxS, 1), dtype=jnp.float32),
        **router_statistics(logits_GxSxE, real_GxS),
    }
    return routes, statistics


class Choice(NamedTuple):
    """A choice of every token, the n-th of all."""

    expert_GxSxE: jax.Array  # int32, 1 at the expert; nowhere for padding and what does not count
    before_GxSxE: jax.Array  # int32: how many stand before the token at each expert
    weight_GxS: jax.Array  # float32


def _top_2(gates_GxSxE, real_GxS, gating: Gating, draws_GxS) -> tuple[Choice, Choice]:
    experts = gates_GxSxE.shape[-1]
    first_GxSxE = jax.nn.one_hot(jnp.argmax(gates_GxSxE, axis=-1), experts, dtype=jnp.int32)
    others_GxSxE = jnp.where(first_GxSxE > 0, -1.0, gates_GxSxE)  # below a gate of 0, which may be another's
    second_GxSxE = jax.nn.one_hot(jnp.argmax(others_GxSxE, axis=-1), experts, dtype=jnp.int32)
    first_GxS, second_GxS = (jnp.sum(gates_GxSxE * mask, axis=-1) for mask in (first_GxSxE, second_GxSxE))
    both_GxS = first_GxS + second_GxS + (EPSILON if gating.rule == "code" else 0.0)
    first_GxS, second_GxS = first_GxS / both_GxS, second_GxS / both_GxS

    real_GxSx1 = real_GxS[..., None].astype(jnp.int32)
    first_GxSxE, second_GxSxE = first_GxSxE * real_GxSx1, second_GxSxE * real_GxSx1
    counted_GxSxE = second_GxSxE
    if draws_GxS is not None:
        second_GxSxE = second_GxSxE * (2 * second_GxS > draws_GxS)[..., None]
    if gating.rule == "code":
        counted_GxSxE = second_GxSxE
    all_first_Gx1xE = jnp.sum(first_GxSxE, axis=1, keepdims=True)
    return (
        Choice(first_GxSxE, _before(first_GxSxE), first_GxS),
        Choice(second_GxSxE, all_first_Gx1xE + _before(counted_GxSxE), second_GxS),
    )


def _top_1(gates_GxSxE, real_GxS) -> tuple[Choice]:
    first_GxSxE = jax.nn.one_hot(jnp.argmax(gates_GxSxE, axis=-1), gates_GxSxE.shape[-1], dtype=jnp.int32)
    first_GxSxE = first_GxSxE * real_GxS[..., None].astype(jnp.int32)
    return (Choice(first_GxSxE, _before(first_GxSxE), jnp.max(gates_GxSxE, axis=-1)),)


def _before(mask_GxSxE):
    """How many tokens of the group before each have chosen each expert."""
    return jnp.cumsum(mask_GxSxE, axis=1) - mask_GxSxE


def _place(choice: Choice, places: int):
    """1 at the expert and the place of each token, int32 `[G, S, E, C]`; nowhere beyond the last place."""
    place_GxS = jnp.sum(choice.before_GxSxE * choice.expert_GxSxE, axis=-1)
    place_GxSxC = jax.nn.one_hot(place_GxS, places, dtype=jnp.int32)
    return choice.expert_GxSxE[..., None] * place_GxSxC[:, :, None, :]


def _balance(gates_GxSxE, first_GxSxE, real_GxS, gating: Gating):
    """Algorithm 1, line 13: mean over experts of (share of first choices) * (mean gate); by the code's rule * E^2."""
    product_GxE = group_mean(first_GxSxE, real_GxS) * group_mean(gates_GxSxE, real_GxS)
    experts, paper = product_GxE.shape[-1], gating == Gating(top_k=2, rule="paper")
    return jnp.sum(product_GxE) * (1 / experts if paper else experts)


def group_mean(x_GxSxE, real_GxS):
    """Mean over the tokens of each group that are no padding, float32 `[G, E]`; 0 where there is none."""
    real_GxSx1 = real_GxS[..., None].astype(jnp.float32)
    return jnp.sum(x_GxSxE * real_GxSx1, axis=1) / jnp.maximum(jnp.sum(real_GxSx1, axis=1), 1.0)


def busiest(first_GxSxE, real_GxS):
    """Sum over groups of E times the share of first choices that the busiest expert has: 1 is even, E is all."""
    return jnp.sum(jnp.max(group_mean(first_GxSxE, real_GxS), axis=-1)) * first_GxSxE.shape[-1]


def router_statistics(logits_GxSxE, real_GxS) -> dict:
    """Sums over tokens that are no padding, float32 scalars.

    `z`: the squared log of the sum of exponentials (Zoph et al. 2022, eq. 5); `entropy`: that of the gates, in nats.
    """
    log_z_GxS = jax.nn.logsumexp(logits_GxSxE, axis=-1)
    entropy_GxS = log_z_GxS - jnp.sum(jax.nn.softmax(logits_GxSxE, axis=-1) * logits_GxSxE, axis=-1)
    return {"z": jnp.sum(jnp.square(log_z_GxS) * real_GxS), "entropy": jnp.sum(entropy_GxS * real_GxS)}


def grouped(x_BxL, groups: int):
    """`[B, L, ...]` as `[B * groups, S, ...]`: rows cut into equal parts, the last filled up with zeros."""
    rows, length = x_BxL.shape[:2]
    tokens = -(-length // groups)
    padding = [(0, 0), (0, groups * tokens - length)] + [(0, 0)] * (x_BxL.ndim - 2)
    return jnp.pad(x_BxL, padding).reshape(rows * groups, tokens, *x_BxL.shape[2:])


def ungrouped(x_GxS, rows: int, length: int):
    """What `grouped` has cut, as `[B, L, ...]` again."""
    return x_GxS.reshape(rows, -1, *x_GxS.shape[2:])[:, :length]
