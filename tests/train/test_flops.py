"""FLOPs are counted twice over: by hand, and from what is traced."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from model.config import (
    Attention,
    CapacityExperts,
    Convolution,
    DisentangledPositions,
    DroplessExperts,
    Layer,
    Model,
    Norm,
)
from model.transformer import Transformer
from tests.model.jaxprs import dot_flops
from tests.model.small import GEMMA, GPT2, LLAMA, declared, draw, loss_of, pack, sourced, tokens, with_targets
from train import flops
from train.checks import load


def test_flops_of_gpt2_debug_are_those_counted_by_hand():
    """Two layers x 64, four heads x 16, hidden 256, rows of 64, 512 tokens in a tied head."""
    config = load("configs/gpt2.py:debug").model
    projections = 2 * (4 * 64 * 64 + 2 * 64 * 256) + 512 * 64
    scores_and_mixing = 2 * 2 * (4 * 16) * 32.5  # a query sees 1 to 64 keys
    expected = 3 * 2 * (projections + scores_and_mixing)  # a product and a sum, forward and twice backward
    assert flops.flops_per_token(config, declared(config), 64) == expected


@pytest.mark.parametrize("config", (GPT2, LLAMA, GEMMA), ids=("gpt2", "llama", "gemma"))
def test_flops_are_the_products_that_are_traced(config):
    """All but the scores that a mask hides: the reference kernel forms those of a whole row."""
    config, length = replace(config, attention=replace(config.attention, kernel="reference")), 12
    batch = pack([tokens(length, 1)])
    hidden = jax.make_jaxpr(lambda params: Transformer(config).apply({"params": params}, batch)[0])(draw(config))
    head = 2 * length * config.padded_vocab_size * config.embed_dim
    widest, layers = config.attention.num_heads * config.head_dim, range(config.num_layers)
    seen = sum(flops.keys_seen(length, config.pattern[layer % len(config.pattern)].window) for layer in layers)
    unseen = 4 * widest * length * (config.num_layers * length - seen)
    counted = flops.flops_per_token(config, declared(config), length)
    assert counted * length / 3 == pytest.approx(dot_flops(hidden) + head - unseen)


def test_a_step_has_three_times_the_products_of_a_forward_pass():
    batch = with_targets(pack([tokens(12, 1)]))
    config = replace(LLAMA, attention=replace(LLAMA.attention, kernel="reference"))
    forward = jax.make_jaxpr(loss_of(config))(draw(config), batch, None)
    step = jax.make_jaxpr(jax.grad(loss_of(config)))(draw(config), batch, None)
    assert dot_flops(step) == 3 * dot_flops(forward)


@pytest.mark.parametrize("window", (None, 1, 3, 10, 11))
def test_keys_seen_are_those_of_the_mask(window):
    seen = [min(query + 1, window or 10) for query in range(10)]
    assert flops.keys_seen(10, window) == pytest.approx(np.mean(seen))


def test_a_window_saves_what_it_hides():
    full = Model(num_layers=4, pattern=(Layer(),))
    mixed = replace(full, pattern=(Layer(window=64), Layer()))
    saved = flops.flops_per_token(full, declared(full), 1024) - flops.flops_per_token(mixed, declared(mixed), 1024)
    assert saved == pytest.approx(2 * 12 * 256 * (512.5 - flops.keys_seen(1024, 64)))


@pytest.mark.parametrize(("recipe", "parameters"), (("gpt2.py:124m", 124_439_808), ("llama.py:8b", 8_030_261_248)))
def test_flops_are_close_to_six_for_each_parameter(recipe, parameters):
    """6 N a token (Kaplan et al. 2020), at a length whose attention is a small part."""
    config = load(f"configs/{recipe}").model
    assert flops.flops_per_token(config, declared(config), 512) == pytest.approx(6 * parameters, rel=0.08)


def test_embeddings_are_counted_as_a_head_alone():
    tied, untied = (replace(LLAMA, tied_head=tied) for tied in (True, False))
    assert flops.flops_per_token(tied, declared(tied), 12) == flops.flops_per_token(untied, declared(untied), 12)
    assert flops.parameter_count(declared(untied)) - flops.parameter_count(declared(tied)) == 128 * 16


def test_the_peak_is_the_makers_where_it_is_known_and_measured_elsewhere():
    class Known:
        device_kind = "NVIDIA H100 80GB HBM3"

    assert flops.peak_flops(Known(), "bfloat16") == (989e12, "NVIDIA H100 80GB HBM3, bfloat16, as its maker states")
    peak, how = flops.peak_flops(jax.devices()[0], "float32")
    assert 1e8 < peak < 1e15 and "measured" in how


def test_flops_of_bert_debug_are_those_counted_by_hand():
    """Every query sees the row of 64; 10 of its tokens go through the head, its first alone through the others."""
    config = load("configs/bert.py:debug")
    layers = 2 * (4 * 64 * 64 + 2 * 64 * 256 + 2 * 64 * 64)
    heads = 10 / 64 * (64 * 64 + 64 * 1024) + 1 / 64 * (64 * 64 + 64 * 2)
    assert flops.of_training(config, declared(config.model)) == pytest.approx(6 * (layers + heads))


PAIR = replace(LLAMA, encoder_layers=3, attention=replace(LLAMA.attention, kernel="reference"))


def test_flops_of_an_encoder_decoder_are_the_products_that_are_traced():
    """A decoder's rows of 12 tokens, an encoder's of 20, all of which every query sees."""
    length, source_length = 12, 20
    sources = pack([tokens(source_length, 2)], length=source_length)
    batch = sourced(pack([tokens(length, 1)]), sources)
    hidden = jax.make_jaxpr(lambda params: Transformer(PAIR).apply({"params": params}, batch)[0])(draw(PAIR))
    head = 2 * length * PAIR.padded_vocab_size * PAIR.embed_dim
    hidden_scores = length * (length - flops.keys_seen(length, None)) * PAIR.num_layers
    unseen = 4 * PAIR.attention.num_heads * PAIR.head_dim * hidden_scores
    counted = flops.flops_per_token(PAIR, declared(PAIR), length, source_length=source_length)
    assert counted * length / 3 == pytest.approx(dot_flops(hidden) + head - unseen)


EXPERTS = (CapacityExperts(num_experts=8, top_k=1), CapacityExperts(num_experts=4), DroplessExperts(num_experts=4))


@pytest.mark.parametrize("experts", EXPERTS)
def test_of_experts_those_that_a_token_goes_to_are_counted(experts):
    """As many dense networks, and the router."""
    mixed = replace(LLAMA, pattern=(Layer(), Layer(experts=True)), experts=experts)
    counted, dense = (flops.flops_per_token(config, declared(config), 12) for config in (mixed, LLAMA))
    network, router = 3 * 16 * 24, 16 * experts.num_experts
    assert LLAMA.num_layers == 2 and counted - dense == 6 * ((experts.top_k - 1) * network + router)


@pytest.mark.parametrize("size", ("debug", "debug-2"))
def test_flops_of_deberta_debug_are_those_counted_by_hand(size):
    """Two layers x 64, the last of them twice; rows of 64, 10 of whose tokens go through the head."""
    config = load(f"configs/deberta.py:{size}")
    layers = 3 * (4 * 64 * 64 + 2 * 64 * 256)
    scores = 3 * 4 * 64 * 64  # of content, of each position, and the mixing
    convolution = 3 * 64 * 64 if size == "debug-2" else 0
    head = 10 / 64 * (64 * 64 + 64 * 1024)
    expected = 6 * (layers + scores + convolution + head)
    assert flops.of_training(config, declared(config.model)) == pytest.approx(expected)


@pytest.mark.parametrize("convolution", (Convolution(), Convolution(3)))
def test_flops_of_deberta_are_the_products_that_are_traced(convolution):
    """But for those of the table of relative positions, of whose 8 rows the reference kernel forms scores."""
    length, rows, width = 8, 8, 16
    positions = DisentangledPositions(span=4, mask_decoder_passes=2, absolute_length=length)
    attention = Attention(num_heads=4, causal=False, kernel="reference")
    norm = Norm("layernorm", placement="post")
    config = replace(LLAMA, positions=positions, attention=attention, norm=norm, convolution=convolution)
    batch = pack([tokens(length, 1)], length=length)
    hidden = jax.make_jaxpr(lambda params: Transformer(config).apply({"params": params}, batch)[0])(draw(config))
    applied = config.num_layers + 1
    tables = applied * 2 * (2 * rows * width * width)  # as keys and as queries
    head = 2 * length * config.padded_vocab_size * width
    counted = flops.flops_per_token(config, declared(config), length)
    assert counted * length / 3 == pytest.approx(dot_flops(hidden) + head - tables)
