"""The Transformer's recipe is its paper, once more in NumPy, and begins with logits of variance 1."""

import math
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from model.config import Model
from tests.model.formulas import norm
from tests.model.small import close, draw, logits, pack, sourced, tokens
from tests.model.test_layers import slow_sinusoids
from tests.model.test_t5 import initial_loss
from train.checks import load

RECIPE = Path(__file__).parents[2] / "configs" / "transformer.py"
DEBUG = replace(load(f"{RECIPE}:debug").model, dropout=0.0)
SMALL = replace(DEBUG, vocab_size=50, embed_dim=16, embedding_scale=4.0, encoder_layers=1)


def sublayer(x, y, params, config: Model):
    """Section 3.1: LayerNorm(x + Sublayer(x))."""
    return norm(x + y, params, config.norm)


def attention(x, memory, params, causal: bool):
    """Section 3.2, without biases: of x `[L, D]` to memory `[S, D]`, head by head, a query at a time."""
    query, key, value, output = (
        params[name]["kernel"].astype(np.float64) for name in ("query", "key", "value", "output")
    )
    found = np.zeros_like(x)
    for head in range(query.shape[1]):
        q, k, v = x @ query[:, head], memory @ key[:, head], memory @ value[:, head]
        for place in range(len(x)):
            seen = place + 1 if causal else len(memory)
            weights = np.exp(k[:seen] @ q[place] / math.sqrt(q.shape[1]))
            found[place] += (weights / weights.sum() @ v[:seen]) @ output[head]
    return found


def feed_forward(x, params):
    """Section 3.3: max(0, x W1 + b1) W2 + b2."""
    up, down = params["up"], params["down"]
    return np.maximum(0, x @ up["kernel"] + up["bias"]) @ down["kernel"] + down["bias"]


def embedded(ids, table, config: Model):
    """Sections 3.4 and 3.5: times the root of the width, plus the positions."""
    positions = [slow_sinusoids(place, config.embed_dim, "interleaved") for place in range(len(ids))]
    return table[ids] * math.sqrt(config.embed_dim) + np.array(positions)


def layer(params, name: str, index: int):
    """The parameters of a layer, without the axis of the stack."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[index], np.float64), params[name]["0"])


def transformer(params, config: Model, source: list[int], target: list[int]):
    """float64 logits `[L, vocabulary]` of one pair."""
    table = np.asarray(params["embedding"]["token"], np.float64)
    memory = embedded(source, table, config)
    for index in range(config.encoder_layers):
        own = layer(params, "encoder_stack", index)
        memory = sublayer(memory, attention(memory, memory, own["attention"], False), own["attention_norm"], config)
        memory = sublayer(memory, feed_forward(memory, own["feed_forward"]), own["feed_forward_norm"], config)
    x = embedded(target, table, config)
    for index in range(config.num_layers):
        own = layer(params, "stack", index)
        x = sublayer(x, attention(x, x, own["attention"], True), own["attention_norm"], config)
        x = sublayer(x, attention(x, memory, own["cross_attention"], False), own["cross_attention_norm"], config)
        x = sublayer(x, feed_forward(x, own["feed_forward"]), own["feed_forward_norm"], config)
    return x @ table[: config.vocab_size].T


def test_logits_are_those_of_the_paper():
    """Two pairs in one row, and one beside them, each as if it were alone."""
    assert DEBUG.embedding_scale == math.sqrt(DEBUG.embed_dim)  # as SMALL has it, too
    params = draw(SMALL)
    pairs = [(tokens(4, 1, high=50), tokens(6, 2, high=50)), (tokens(7, 3, high=50), tokens(5, 4, high=50))]
    batch = sourced(pack([pairs[0][1], pairs[1][1]], [pairs[1][1]]), pack([pairs[0][0], pairs[1][0]], [pairs[1][0]]))
    found = np.asarray(logits(SMALL)(params, batch))[..., :50]
    first, second = (transformer(params, SMALL, source, target) for source, target in pairs)
    close(found[0, :6], first, 1e-5)
    close(found[0, 6:11], second, 1e-5)
    close(found[1, :5], second, 1e-5)


def test_the_initial_loss_is_that_of_logits_of_variance_one():
    """ln V + 1/2 nats: the last norm gives states of variance 1, the embedding has the inverse of the width."""
    assert DEBUG.init.embedding_std == DEBUG.embed_dim**-0.5
    embed = 128
    init = replace(DEBUG.init, embedding_std=embed**-0.5)
    shape = {"embed_dim": embed, "embedding_scale": embed**0.5, "num_layers": 6, "encoder_layers": 6}
    model = replace(DEBUG, vocab_size=8192, init=init, **shape)
    assert initial_loss(model) == pytest.approx(math.log(8192) + 0.5, abs=0.15)


@pytest.mark.slow
def test_the_initial_loss_of_the_base_model():
    model = replace(load(f"{RECIPE}:base").model, dropout=0.0, dtype="float32")
    assert initial_loss(model) == pytest.approx(math.log(37_000) + 0.5, abs=0.2)
