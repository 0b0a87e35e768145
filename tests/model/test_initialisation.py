"""A new model knows nothing and is not sure of it: its loss is ln V, its spreads are the published ones."""

import math
from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest

from model import config as cfg
from model.ops.cross_entropy import reference
from model.parameters import path_name
from model.transformer import Transformer
from tests.model.small import declared, fresh, jit, pack, same, tokens, with_targets
from train.checks import load

GPT2, LLAMA = (load(f"configs/{name}.py:debug").model for name in ("gpt2", "llama"))


def sized(config: cfg.Model, width: int, heads: int, vocab_size: int, **changes) -> cfg.Model:
    attention = replace(config.attention, num_heads=heads, num_kv_heads=None, head_dim=64, dropout=0.0)
    feed_forward = replace(config.feed_forward, hidden_dim=1024)
    shape = {"embed_dim": width, "vocab_size": vocab_size, "attention": attention, "feed_forward": feed_forward}
    return replace(config, dropout=0.0, **shape, **changes)


INITIAL = {
    "gpt2 debug": GPT2,
    "gpt2 124m's width": sized(GPT2, 768, 12, 8192),
    "llama debug": LLAMA,
    "llama 1b's width, tied": sized(LLAMA, 2048, 2, 16384),
    "llama 8b's width, untied": sized(LLAMA, 4096, 2, 2048, num_layers=1, tied_head=False),
    "kernels by fan-in": replace(LLAMA, init=cfg.Initialization(kernel_std=None)),
}


SAMPLING = 0.04  # several standard errors of the spread of 4,096 numbers, the fewest there are


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=name, marks=(pytest.mark.slow,) if "width" in name else ())
        for name, config in INITIAL.items()
    ],
)
def test_the_initial_loss_is_ln_of_the_vocabulary(config):
    inputs, targets = ([tokens(64, seed + row, high=config.vocab_size) for row in range(4)] for seed in (0, 9))
    batch = {**with_targets(pack(*([row] for row in inputs), length=64)), "targets": np.array(targets, np.int32)}
    found = jit(loss_of_tokens(config))(fresh(config), batch)
    assert float(found) == pytest.approx(math.log(config.vocab_size), rel=0.05)


def loss_of_tokens(config: cfg.Model):
    """`(params, batch) -> mean loss in nats`, without z-loss."""

    def run(params, batch):
        def sums(model):
            states = model.output(model(batch)[0])
            return reference(states, model.unembedding(), batch["targets"], batch["weights"], model.logit_rule)[0]

        return nn.apply(sums, Transformer(config))({"params": params}) / batch["weights"].sum()

    return run


def spreads(config: cfg.Model) -> dict[str, tuple[float, float]]:
    """{path: (mean, standard deviation)} of every initial parameter."""
    leaves = jax.tree_util.tree_leaves_with_path(fresh(config))
    return {path_name(path): (float(np.mean(leaf)), float(np.std(leaf))) for path, leaf in leaves}


def test_gpt2_begins_as_published():
    """N(0, .02), positions N(0, .01), writers to the residual stream divided by sqrt(2 layers), biases 0, scales 1."""
    kinds = {path_name(path): leaf.kind for path, leaf in jax.tree_util.tree_leaves_with_path(declared(GPT2))}
    for path, (mean, std) in spreads(GPT2).items():
        if kinds[path] in ("bias", "scale"):
            assert (mean, std) == (1.0 if kinds[path] == "scale" else 0.0, 0.0), path
            continue
        writes = path.endswith(("attention/output/kernel", "feed_forward/down/kernel"))
        expected = 0.02 / math.sqrt(2 * 2) if writes else 0.01 if kinds[path] == "table" else 0.02
        assert std == pytest.approx(expected, rel=SAMPLING), path
        assert abs(mean) < 2 * SAMPLING * expected, path


def test_llama_begins_without_residual_scaling():
    for path, (_, std) in spreads(LLAMA).items():
        if path.endswith("kernel"):
            assert std == pytest.approx(0.02, rel=SAMPLING), path


def test_an_untied_head_begins_at_half_its_fan_in():
    config = INITIAL["llama 8b's width, untied"]
    assert spreads(config)["head"][1] == pytest.approx(0.5 * 4096**-0.5, rel=SAMPLING)


def test_without_a_spread_kernels_begin_by_their_fan_in():
    config = INITIAL["kernels by fan-in"]
    found = spreads(config)
    for path, leaf in jax.tree_util.tree_leaves_with_path(declared(config)):
        if leaf.kind == "kernel":
            assert found[path_name(path)][1] == pytest.approx(leaf.fan_in**-0.5, rel=SAMPLING), path_name(path)


def test_another_seed_gives_another_model_and_the_same_seed_the_same():
    first, other = fresh(LLAMA), fresh(LLAMA, seed=1)
    assert np.any(first["embedding"]["token"] != other["embedding"]["token"])
    fresh.cache_clear()
    same(fresh(LLAMA), first)
