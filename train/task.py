"""What is trained: a model joined with an objective, as the functions that a step and an evaluation call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from data.objectives import Spec, batch_spec
from model.ops.cross_entropy import fused
from model.transformer import Transformer, identity, initialise
from train.config import Config

Sums = dict[str, jax.Array]  # float32 scalars by name


@dataclass(frozen=True)
class Task:
    """loss = sum over terms of `coefficients[term]` * sum(term) / weight(term).

    The weight of a term is a function of the batch alone, so that it can be totalled over the global batch
    before the first micro-batch. `sums` is additive over rows; the first entry of its metrics is what the
    log calls the loss, and every metric is divided by the weight of its term.
    """

    spec: Spec  # keys of a batch
    init: Callable[[jax.Array], dict]  # key -> tree of Declared
    weights: Callable[[dict], Sums]  # batch -> {term: total weight}
    sums: Callable[[dict, dict, jax.Array | None], tuple[Sums, Sums]]  # params, batch, key -> terms, metrics
    coefficients: dict[str, float]  # {term: coefficient}
    metrics: dict[str, str]  # {metric: the term whose weight divides it}
    dropout: bool = False  # whether `sums` draws from its key


def causal(config: Config, constrain: Callable = identity) -> Task:
    """Next-token prediction: the term `tokens` is cross entropy, plus the z-loss where it is asked for."""
    model = Transformer(config.model, constrain)
    z_loss, chunks = config.train.z_loss, config.train.loss_chunks

    def weights(batch):
        return {"tokens": jnp.sum(batch["weights"])}

    def sums(params, batch, key):
        def run(model):
            hidden_BxLxD, _, _ = model(batch, key)
            unembedding, rule = model.unembedding(), model.logit_rule
            return fused(hidden_BxLxD, unembedding, batch["targets"], batch["weights"], rule, z_loss, chunks)

        objective, found = nn.apply(run, model)({"params": params})
        return {"tokens": objective}, {"loss": found["nll"]} | ({"z_loss": found["z"]} if z_loss else {})

    return Task(
        spec=batch_spec(config.data),
        init=lambda key: initialise(Transformer(config.model), key),  # its one row divides by no mesh
        weights=weights,
        sums=sums,
        coefficients={"tokens": 1.0},
        metrics={"loss": "tokens"} | ({"z_loss": "tokens"} if z_loss else {}),
        dropout=config.model.dropout > 0 or config.model.attention.dropout > 0,
    )


TASKS: dict[str, Callable[..., Task]] = {"causal": causal}


def make_task(config: Config, constrain: Callable = identity) -> Task:
    """The task of the configured objective; `constrain(x, names)` holds activations to the mesh."""
    return TASKS[config.data.objective.name](config, constrain)
