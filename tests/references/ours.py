"""What this codebase makes of the references' files, and computes of the rows that they are fed. Needs no PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from data.config import Data
from data.objective_config import CausalObjective, MaskedObjective, Seq2SeqObjective
from model.config import Model
from model.hub.families import family_of, from_config
from model.transformer import Transformer
from tests.model.small import jit
from tests.references.families import LENGTH, Case, cotangents
from train.config import Config
from train.hub.importer import declared, match, read_params
from train.hub.source import open_source
from train.task import make_task


def imported(directory: Path) -> tuple[Model, dict]:
    """(configuration, parameters on one device) of a directory in Hugging Face layout."""
    source = open_source(directory)
    model = from_config(source.config, source.tensors)
    tree = declared(model)
    matched = match(family_of(source.config), model, tree, source.tensors)
    assert not matched.unused
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return model, read_params(matched, model, tree, jax.tree.map(lambda _: device, tree))


def outputs(model: Model, params: dict, batch: dict) -> dict:
    """Float32 arrays of every head by its name; `logits` are those over the vocabulary."""
    return jax.device_get(jit(lambda params: heads(model, params, batch))(params))


def heads(model: Model, params: dict, batch: dict) -> dict:
    def run(module):
        hidden_BxLxD, _, _ = module(batch)
        found = module.heads.all(hidden_BxLxD)
        if model.language_head:
            found["logits"] = module.logits(hidden_BxLxD)[..., : model.vocab_size]
        return found

    return nn.apply(run, Transformer(model))({"params": params})


def loss_and_gradients(case: Case, model: Model, params: dict, batch: dict) -> tuple[float, dict]:
    """(loss, gradient tree): of the objective of pre-training, or for other heads of the weighted sum of outputs."""

    def weighted(params):
        found = heads(model, params, batch)
        found = {name: found[name] for name in case.outputs}
        return sum(jnp.sum(found[name] * share) for name, share in cotangents(found, batch).items())

    loss = pretraining(case, model, batch) if case.pretrained else weighted
    return jax.device_get(jit(jax.value_and_grad(loss))(params))


def pretraining(case: Case, model: Model, batch: dict):
    """params -> the loss that a run of the model's task minimises."""
    objective = Seq2SeqObjective() if case.encoder_decoder else CausalObjective()
    if case.encoder:
        objective = MaskedObjective(next_sentence="next_sentence" in case.outputs)
    data = Data(objective=objective, length=LENGTH)
    # As `train.step` adds up the terms of a task.
    task = make_task(replace(Config(), model=replace(model, dropout=0.0), data=data))

    def loss(params):
        terms, _ = task.sums(params, batch, None)
        weights = task.weights(batch)
        return sum(task.coefficients[name] * terms[name] / weights[name] for name in terms)

    return loss
