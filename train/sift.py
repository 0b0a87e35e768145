"""Scale-invariant fine-tuning (He et al. 2020, arXiv 2006.03654, section 5): a task's outputs must hardly change when
its embeddings do.

What is changed are embeddings that their norm has normalised, before its scale and bias, so that a change of one size
is of one meaning whatever the embeddings' size. It is drawn, then takes one step up the gradient of the symmetric
KL divergence from the unchanged outputs, and their divergence under it is added to the loss.
Sizes in names: B batch, L length, D embed_dim, C classes of an output.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from train.config import Sift

EPSILON = 1e-6  # under the largest element of a token's gradient; that of DeBERTa's code
KEY = 0x51F7  # folded into the keys of rows, from which experts draw too

Outputs = Callable[[dict, jax.Array], jax.Array]  # params, change [B, L, D] -> float32 logits [..., C]


def divergence(logits, others, weights) -> jax.Array:
    """Sum of weight * (KL(p || q) + KL(q || p)) = weight * sum over classes of (p - q)(log p - log q), float32 scalar.

    p and q are the distributions of `logits` and `others`, float32 `[..., C]`; `weights` `[...]`. An output of
    weight 0 adds nothing, whatever its logits.
    """
    seen = weights[..., None] > 0
    log_p, log_q = (jax.nn.log_softmax(jnp.where(seen, values, 0.0), axis=-1) for values in (logits, others))
    return jnp.sum(weights * jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), axis=-1))


def noise(std: float, row_keys, shape: tuple[int, int]) -> jax.Array:
    """Float32 `[B, L, D]` of N(0, std^2) cut at two `std`; `shape` is (L, D), each row's drawn from its own key."""

    def draw(key):
        return jax.random.normal(jax.random.fold_in(key, KEY), shape, jnp.float32)

    return std * jnp.clip(jax.vmap(draw)(row_keys), -2.0, 2.0)


def ascended(config: Sift, outputs: Outputs, params: dict, clean, weights, change) -> jax.Array:
    """`change` after a step up the divergence, as long in each token's largest element as `config.step`.

    Neither parameters nor clean outputs are differentiated, in it or through it.
    """
    params, clean = jax.lax.stop_gradient((params, clean))
    gradient = jax.grad(lambda change: divergence(outputs(params, change), clean, weights))(change)
    largest = jnp.max(jnp.abs(gradient), axis=-1, keepdims=True)
    return jax.lax.stop_gradient(change + config.step * gradient / (EPSILON + largest))


def penalty(config: Sift, outputs: Outputs, params: dict, clean, weights, row_keys, shape: tuple[int, int]):
    """The `divergence` of the outputs under a change of embeddings `shape` = (L, D) from the clean ones.

    It is a sum over outputs, weighted as those of the task's loss, and each row's change is its own: what it is does
    not depend on which rows stand together.
    """
    change = ascended(config, outputs, params, clean, weights, noise(config.std, row_keys, shape))
    return divergence(outputs(params, change), clean, weights)
