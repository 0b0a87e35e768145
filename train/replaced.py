"""Replaced-token detection (Clark et al. 2020; DeBERTa v3, He et al. 2021): both losses of a batch in one step.

A generator predicts masked tokens; samples of what it predicts stand in their places, and a discriminator tells, token
by token, which are not the text's. A sample that is right is the text's. No gradient goes through the samples, nor, by
`model.replaced`, from the discriminator into the generator's embeddings: so the parameters of the two are disjoint
branches, each with its own loss. Both read the parameters from before the step, where DeBERTa's code lets the
discriminator read the generator's embeddings after their update.
Sizes in names: B batch, L length, D embed_dim, P predictions of a row, V stored vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from data.replaced import replace
from model.config import Model
from model.replaced import BRANCHES, DISCRIMINATOR, GENERATOR, discriminator, generator, initialise_both, merged
from model.transformer import Transformer
from train.config import Train
from train.predictions import metrics_of, predicted

GOLDEN = 0x9E3779B1  # an odd number near 2^32 over the golden ratio, for Fibonacci hashing


def sample(logits_BxPxV, row_keys):
    """A token for each prediction, int32 `[B, P]`, of softmax(logits), without gradient: Gumbel's argmax.

    A row is drawn from its own key, so that its samples do not depend on the rows beside it.
    """
    shape = logits_BxPxV.shape[1:]
    noise_BxPxV = jax.vmap(lambda key: jax.random.gumbel(key, shape, jnp.float32))(row_keys)
    return jnp.argmax(jax.lax.stop_gradient(logits_BxPxV) + noise_BxPxV, axis=-1).astype(jnp.int32)


def content_keys(tokens_BxL):
    """A key for each row, of its tokens alone: an evaluation draws the same of a row in any batch, padded or not."""
    factors_L = jnp.uint32(GOLDEN) * (2 * jnp.arange(tokens_BxL.shape[1], dtype=jnp.uint32) + 1)
    hashes_B = jnp.sum(tokens_BxL.astype(jnp.uint32) * factors_L[None, :], axis=1, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), hashes_B)


def detected(logits_BxL, labels_BxL, weights_BxL) -> tuple[jax.Array, jax.Array]:
    """(binary cross entropy, hits): sums over the tokens of weight times value, float32 scalars.

    A token is said to be replaced where its probability is above a half.
    """
    nll_BxL = jax.nn.softplus(logits_BxL) - labels_BxL * logits_BxL
    hits_BxL = (logits_BxL > 0) == (labels_BxL > 0)
    return jnp.sum(jnp.where(weights_BxL > 0, weights_BxL * nll_BxL, 0.0)), jnp.sum(weights_BxL * hits_BxL)


@dataclass(frozen=True)
class ReplacedTokens:
    """The terms `masked`, over predictions, and `replaced`, over tokens that are no padding, of both branches."""

    model: Model
    train: Train
    constrain: Callable

    def init(self, key) -> dict:
        return initialise_both(self.model, key)

    def weights(self, batch: dict) -> dict[str, jax.Array]:
        return {"masked": jnp.sum(batch["weights"]), "replaced": jnp.sum(batch["label_weights"])}

    def coefficients(self) -> dict[str, float]:
        return {"masked": 1.0, "replaced": self.train.replaced_coefficient}

    def metrics(self) -> dict[str, str]:
        """The generator's, then the discriminator's; `replaced_share`: of its tokens those that are not the text's."""
        names = ("replaced_loss", "replaced_accuracy", "replaced_share")
        return dict.fromkeys(metrics_of(self.train), "masked") | dict.fromkeys(names, "replaced")

    def sums(self, params: dict, batch: dict, key, row_keys=None) -> tuple[dict, dict]:
        """(terms, metrics): `row_keys` draw the samples, None: each row's own tokens do; `key` draws dropout."""
        keys = dict.fromkeys(BRANCHES) if key is None else dict(zip(BRANCHES, jax.random.split(key), strict=True))
        objective, metrics, logits_BxPxV = self.generated(params[GENERATOR], batch, keys[GENERATOR])
        row_keys = content_keys(batch["tokens"]) if row_keys is None else row_keys
        places, targets, weights = batch["masked_positions"], batch["targets"], batch["weights"]
        read_BxL, labels_BxL = replace(batch["tokens"], places, targets, weights, sample(logits_BxPxV, row_keys))
        logits_BxL = self.judged(merged(params), {**batch, "tokens": read_BxL}, keys[DISCRIMINATOR])
        weights_BxL = batch["label_weights"]
        loss, hits = detected(logits_BxL, labels_BxL, weights_BxL)
        metrics |= {
            "replaced_loss": loss,
            "replaced_accuracy": hits,
            "replaced_share": jnp.sum(weights_BxL * labels_BxL),
        }
        return {"masked": objective, "replaced": loss}, metrics

    def generated(self, params: dict, batch: dict, key):
        """(objective, metrics, logits `[B, P, V]`) of the generator's predictions."""

        def run(model):
            hidden_BxLxD, _, _ = model(batch, key)
            return predicted(model, hidden_BxLxD, batch, self.train, self.constrain)

        return nn.apply(run, Transformer(generator(self.model), self.constrain))({"params": params})

    def judged(self, params: dict, batch: dict, key):
        """The discriminator's logits `[B, L]` that the tokens of `batch` are not the text's."""

        def run(model):
            hidden_BxLxD, _, _ = model(batch, key)
            firsts_BxL = jnp.arange(hidden_BxLxD.shape[1], dtype=jnp.int32)[None, :] - batch["positions"]
            first_BxLxD = jnp.take_along_axis(hidden_BxLxD, firsts_BxL[..., None], axis=1)
            # As in train.predictions: gathered states lie as all activations do.
            first_BxLxD = self.constrain(first_BxLxD, ("batch", "length", "activation_embed"))
            return model.heads.replaced_logits(hidden_BxLxD, first_BxLxD)

        return nn.apply(run, Transformer(discriminator(self.model), self.constrain))({"params": params})
