"""What is trained: a model joined with an objective, as the functions that a step and an evaluation call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from data.objectives import Spec, batch_spec
from model.ops.cross_entropy import fused
from model.replaced import BRANCHES
from model.transformer import Transformer, identity, initialise
from train import sift
from train.config import Config
from train.predictions import metrics_of, predicted, real_rows
from train.replaced import ReplacedTokens
from train.routing import Routing

Sums = dict[str, jax.Array]  # float32 scalars by name
UNSEEN = -1e30  # the logit of a position that is padding; finite, for rows that are nothing else


def weighted(batch: dict) -> jax.Array:
    """The positions of a batch that have a target with weight, int32."""
    return jnp.sum(batch["weights"] > 0, dtype=jnp.int32)


def occupied(batch: dict) -> jax.Array:
    """The positions of a batch that are no padding, int32."""
    return jnp.sum(batch["segment_ids"] > 0, dtype=jnp.int32)


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
    # params, batch, key of dropout or None, a key for each row or None -> terms, metrics
    sums: Callable[[dict, dict, jax.Array | None, jax.Array | None], tuple[Sums, Sums]]
    coefficients: dict[str, float]  # {term: coefficient}
    metrics: dict[str, str]  # {metric: the term whose weight divides it}
    training_metrics: dict[str, str] = field(default_factory=dict)  # of these, what no evaluation gives
    branches: tuple[str, ...] = ()  # top-level keys of parameters whose gradients are clipped apart; empty: as one
    dropout: bool = False  # whether `sums` draws from its key
    draws_by_row: bool = False  # whether it draws from the keys of rows
    tokens: Callable[[dict], jax.Array] = weighted  # batch -> what the log counts as its tokens, int32
    codes_text: bool = False  # whether the losses of all rows add up to the length of a code for the text


def causal(config: Config, constrain: Callable = identity, codes_text: bool = False) -> Task:
    """Next-token prediction: the term `tokens` is cross entropy, plus the z-loss where it is asked for.

    `codes_text`: whether every token of the text is predicted once, and nothing else.
    """
    model = Transformer(config.model, constrain)
    z_loss, chunks, routing = config.train.z_loss, config.train.loss_chunks, Routing(config.model)
    smoothing = config.train.label_smoothing

    def weights(batch):
        return {"tokens": jnp.sum(batch["weights"])} | routing.weights(batch)

    def sums(params, batch, key, row_keys=None):
        def run(model):
            hidden_BxLxD, aux, _ = model(batch, key, row_keys=row_keys)
            hidden_BxLxD, unembedding, rule = model.output(hidden_BxLxD), model.unembedding(), model.logit_rule
            targets, weights = batch["targets"], batch["weights"]
            found = fused(hidden_BxLxD, unembedding, targets, weights, rule, z_loss, chunks, smoothing)
            return *found, aux

        objective, found, aux = nn.apply(run, model)({"params": params})
        metrics = {"loss": found["nll"]} | ({"z_loss": found["z"]} if z_loss else {})
        return {"tokens": objective} | routing.terms(aux), metrics | routing.values(aux)

    return Task(
        spec=batch_spec(config.data),
        init=lambda key: initialise(Transformer(config.model), key),  # its one row divides by no mesh
        weights=weights,
        sums=sums,
        coefficients={"tokens": 1.0} | routing.coefficients(),
        metrics={"loss": "tokens"} | ({"z_loss": "tokens"} if z_loss else {}) | routing.metrics(),
        dropout=has_dropout(config),
        draws_by_row=routing.draws,
        codes_text=codes_text,
    )


def has_dropout(config: Config) -> bool:
    model = config.model
    return max(model.dropout, model.output_dropout, model.attention.dropout, model.feed_forward.dropout) > 0


def masked(config: Config, constrain: Callable = identity) -> Task:
    """Masked tokens and, where the objective has it, the next sentence (Devlin et al. 2018, section 3.1).

    The term `masked` is cross entropy over the predicted positions alone, whose hidden states are gathered
    before any logits are made; `next_sentence` is cross entropy over rows. BERT adds them as they are.
    """
    model, train, routing = Transformer(config.model, constrain), config.train, Routing(config.model)
    pairs = config.data.objective.next_sentence

    def weights(batch):
        found = {"masked": jnp.sum(batch["weights"])} | routing.weights(batch)
        return found | ({"next_sentence": jnp.sum(real_rows(batch))} if pairs else {})

    def sums(params, batch, key, row_keys=None):
        def run(model, change=None):
            hidden_BxLxD, aux, _ = model(batch, key, row_keys=row_keys, change=change)
            objective, metrics, logits_BxPxV = predicted(model, hidden_BxLxD, batch, train, constrain)
            terms, metrics = {"masked": objective} | routing.terms(aux), metrics | routing.values(aux)
            if pairs:
                logits_Bx2 = model.heads.next_sentence_logits(hidden_BxLxD)
                terms["next_sentence"], hits = classified(logits_Bx2, batch["next_sentence"], real_rows(batch))
                metrics |= {"next_sentence_loss": terms["next_sentence"], "next_sentence_accuracy": hits}
            return terms, metrics, logits_BxPxV

        terms, metrics, logits_BxPxV = nn.apply(run, model)({"params": params})
        if train.sift.coefficient and row_keys is not None:

            def outputs(params, change):
                return nn.apply(run, model)({"params": params}, change)[2]

            shape = (batch["tokens"].shape[1], config.model.embed_dim)
            found = sift.penalty(train.sift, outputs, params, logits_BxPxV, batch["weights"], row_keys, shape)
            terms["masked"] = terms["masked"] + train.sift.coefficient * found
            metrics["sift"] = found
        return terms, metrics

    metrics = dict.fromkeys(metrics_of(train), "masked") | routing.metrics()
    if pairs:
        metrics |= dict.fromkeys(("next_sentence_loss", "next_sentence_accuracy"), "next_sentence")
    return Task(
        spec=batch_spec(config.data),
        init=lambda key: initialise(Transformer(config.model), key),
        weights=weights,
        sums=sums,
        coefficients={"masked": 1.0} | ({"next_sentence": 1.0} if pairs else {}) | routing.coefficients(),
        metrics=metrics,
        training_metrics=sifted(config, "masked"),
        dropout=has_dropout(config),
        draws_by_row=routing.draws or bool(train.sift.coefficient),
        tokens=occupied,
    )


def sifted(config: Config, term: str) -> dict[str, str]:
    """The metric of SiFT where there is any; `term` is that of the task's loss, which holds its penalty."""
    return {"sift": term} if config.train.sift.coefficient else {}


def replaced(config: Config, constrain: Callable = identity) -> Task:
    """A generator of tokens and the discriminator that finds them, in one step; see `train.replaced`."""
    both = ReplacedTokens(config.model, config.train, constrain)
    return Task(
        spec=batch_spec(config.data),
        init=both.init,
        weights=both.weights,
        sums=both.sums,
        coefficients=both.coefficients(),
        metrics=both.metrics(),
        branches=BRANCHES,
        dropout=has_dropout(config),
        draws_by_row=True,
        tokens=occupied,
    )


def qa(config: Config, constrain: Callable = identity) -> Task:
    """Where answers start and end: the mean of both cross entropies over the positions of a row (run_squad.py).

    Those of padding are left out, so that a window's loss does not depend on how long its row is.
    """
    model, routing = Transformer(config.model, constrain), Routing(config.model)
    settings = config.train.sift

    def sums(params, batch, key, row_keys=None):
        def run(model, change=None):
            hidden_BxLxD, aux, _ = model(batch, key, row_keys=row_keys, change=change)
            logits_BxLx2 = model.heads.span_logits(hidden_BxLxD)
            seen_BxLx1 = batch["segment_ids"][..., None] > 0
            return jnp.moveaxis(jnp.where(seen_BxLx1, logits_BxLx2, UNSEEN), -1, 1), aux

        logits_Bx2xL, aux = nn.apply(run, model)({"params": params})
        found = [
            classified(logits_Bx2xL[:, side], batch[key], real_rows(batch))
            for side, key in enumerate(("start_positions", "end_positions"))
        ]
        (start, start_hits), (end, end_hits) = found
        loss = objective = (start + end) / 2
        metrics = {"loss": loss, "start_accuracy": start_hits, "end_accuracy": end_hits} | routing.values(aux)
        if settings.coefficient and row_keys is not None:

            def outputs(params, change):
                return nn.apply(run, model)({"params": params}, change)[0]

            weights_Bx2 = jnp.repeat(real_rows(batch)[:, None] / 2, 2, axis=1)
            shape = (batch["tokens"].shape[1], config.model.embed_dim)
            metrics["sift"] = sift.penalty(settings, outputs, params, logits_Bx2xL, weights_Bx2, row_keys, shape)
            objective = loss + settings.coefficient * metrics["sift"]
        return {"spans": objective} | routing.terms(aux), metrics

    return Task(
        spec=batch_spec(config.data),
        init=lambda key: initialise(Transformer(config.model), key),
        weights=lambda batch: {"spans": jnp.sum(real_rows(batch))} | routing.weights(batch),
        sums=sums,
        coefficients={"spans": 1.0} | routing.coefficients(),
        metrics=dict.fromkeys(("loss", "start_accuracy", "end_accuracy"), "spans") | routing.metrics(),
        training_metrics=sifted(config, "spans"),
        dropout=has_dropout(config),
        draws_by_row=routing.draws or bool(settings.coefficient),
        tokens=occupied,
    )


def classified(logits_BxC, labels_B, weights_B) -> tuple[jax.Array, jax.Array]:
    """(cross entropy, hits): weighted sums over the rows, float32 scalars."""
    chosen_B = jnp.take_along_axis(logits_BxC, labels_B[:, None], axis=1)[:, 0]
    nll_B = jax.nn.logsumexp(logits_BxC, axis=-1) - chosen_B
    hits_B = jnp.argmax(logits_BxC, axis=-1) == labels_B
    return jnp.sum(weights_B * nll_B), jnp.sum(weights_B * hits_B)


# By the name of the objective: those that a model of this version can be trained on.
TASKS: dict[str, Callable[..., Task]] = {
    "causal": partial(causal, codes_text=True),
    "masked": masked,
    "replaced_token": replaced,
    "span_corruption": causal,
    "prefix_lm": causal,
    "ul2": causal,
    "fim": causal,
    "supervised": causal,
    "seq2seq": causal,
    "qa": qa,
}


def make_task(config: Config, constrain: Callable = identity) -> Task:
    """The task of the configured objective; `constrain(x, names)` holds activations to the mesh."""
    return TASKS[config.data.objective.name](config, constrain)
