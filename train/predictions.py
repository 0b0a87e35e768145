"""The predictions of masked rows: what is made of the hidden states at their places, in every task that has them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from model.ops.cross_entropy import fused, logits
from model.transformer import Transformer
from train.config import Train

METRICS = ("loss", "masked_accuracy")  # and with a z-loss, `z_loss`


def metrics_of(train: Train) -> tuple[str, ...]:
    """The metrics that `predicted` gives, by name."""
    return (*METRICS, "z_loss") if train.z_loss else METRICS


def predicted(model: Transformer, hidden_BxLxD, batch: dict, train: Train, constrain: Callable):
    """(objective, metrics, logits `[B, P, V]`) of a batch's predictions, sums over them of weight times value.

    Cross entropy over the predicted positions alone, whose hidden states are gathered before any logits are made.
    """
    places_BxPx1 = batch["masked_positions"][..., None]
    hidden_BxPxD = jnp.take_along_axis(hidden_BxLxD, places_BxPx1, axis=1)
    # On their rows as all activations are: JAX 0.10's partitioner has mixed up rows that lay otherwise.
    hidden_BxPxD = model.output(constrain(hidden_BxPxD, ("batch", "predictions", "activation_embed")))
    unembedding, rule = model.unembedding(), model.logit_rule
    targets, weights = batch["targets"], batch["weights"]
    objective, found = fused(
        hidden_BxPxD, unembedding, targets, weights, rule, train.z_loss, train.loss_chunks, train.label_smoothing
    )
    logits_BxPxV = logits(hidden_BxPxD, unembedding, rule)
    hits = jnp.sum(weights * (jnp.argmax(logits_BxPxV, axis=-1) == targets))
    metrics = {"loss": found["nll"], "masked_accuracy": hits}
    return objective, metrics | ({"z_loss": found["z"]} if train.z_loss else {}), logits_BxPxV


def real_rows(batch: dict) -> jax.Array:
    """1.0 for each row that is no padding, float32 [rows]."""
    return (batch["segment_ids"][:, 0] > 0).astype(jnp.float32)
