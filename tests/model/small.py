"""Small models that together use all a configuration can say, their parameters, and rows to feed them."""

from dataclasses import replace
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model.config import (
    Attention,
    FeedForward,
    Initialization,
    Layer,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    Model,
    NoPositions,
    Norm,
)
from model.ops.cross_entropy import fused
from model.parameters import declarations
from model.transformer import Transformer, initialise

LENGTH = 12  # of a row

# LLVM's optimisations change no meaning here, and take most of the time of a test.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

GPT2 = Model(
    vocab_size=100,
    num_layers=2,
    embed_dim=16,
    attention=Attention(num_heads=4, qkv_bias=True, output_bias=True),
    feed_forward=FeedForward(24, "gelu_tanh", gated=False, bias=True),
    norm=Norm("layernorm", bias=True),
    positions=LearnedPositions(length=LENGTH),
)
LLAMA = replace(
    Model(),
    vocab_size=100,
    num_layers=2,
    embed_dim=16,
    attention=Attention(num_heads=4, num_kv_heads=2),
    feed_forward=FeedForward(24, "silu"),
    pattern=(Layer(rotary_base=50.0, rotary_scaling=Llama3Scaling(original_length=32)),),
    tied_head=False,
)
# A pattern of two over five layers: two periods, and one layer left over.
GEMMA = Model(
    vocab_size=100,
    num_layers=5,
    embed_dim=16,
    attention=Attention(num_heads=4, num_kv_heads=2, head_dim=6, qk_norm=True, scale=0.3, soft_cap=1.5),
    feed_forward=FeedForward(24, "gelu_tanh"),
    norm=Norm(placement="both", unit_offset=True),
    pattern=(Layer(window=3, rotary_base=10.0), Layer(rotary_base=1000.0, rotary_scaling=LinearScaling(factor=2.0))),
    embedding_scale=4.0,
    logit_soft_cap=3.0,
)
POST = Model(
    vocab_size=100,
    num_layers=2,
    embed_dim=16,
    attention=Attention(num_heads=2, num_kv_heads=1),
    feed_forward=FeedForward(24, "gelu", gated=False),
    norm=Norm("layernorm", placement="post"),
    positions=NoPositions(),
    tied_head=False,
    head_bias=True,
    init=Initialization(kernel_std=None),
)
# An encoder of two periods beside a decoder of one and a layer.
PAIR = Model(
    vocab_size=100,
    num_layers=3,
    encoder_layers=4,
    embed_dim=16,
    attention=Attention(num_heads=4, num_kv_heads=2, qkv_bias=True),
    feed_forward=FeedForward(24, "relu", gated=False, bias=True),
    norm=Norm("layernorm", bias=True),
    pattern=(Layer(window=5, rotary_base=10.0), Layer(rotary_base=50.0)),
    output_scale=0.25,
)
MODELS = {"gpt2": GPT2, "llama": LLAMA, "gemma": GEMMA, "post": POST}


@cache
def declared(config: Model) -> dict:
    """The declarations of all parameters; allocates nothing."""
    return declarations(jax.eval_shape(lambda key: initialise(Transformer(config), key), jax.random.key(0)))


def initialiser(config: Model):
    """`key -> parameters as initialised`."""
    return lambda key: nn.meta.unbox(initialise(Transformer(config), key))


@cache
def _compiled_initialiser(config: Model):
    return jit(initialiser(config))


@cache
def fresh(config: Model, seed: int = 0) -> dict:
    """Parameters as initialised."""
    return _compiled_initialiser(config)(jax.random.key(seed))


@cache
def draw(config: Model, seed: int = 0) -> dict:
    """Parameters of which none is 0 or 1, so that none can be left out unnoticed; logits of order 1."""
    generator = np.random.default_rng(seed)

    def value(declaration):
        noise = generator.standard_normal(declaration.shape).astype(np.float32)
        if declaration.kind == "kernel":
            return noise * np.float32(declaration.fan_in**-0.5)
        offset = 1.0 if declaration.kind == "scale" and not config.norm.unit_offset else 0.0
        return offset + np.float32(0.3) * noise

    return jax.tree.map(value, declared(config))


def pack(*rows: list[list[int]], length: int = LENGTH) -> dict:
    """A batch of rows, each a list of segments, each a list of tokens; padded at the right with zeros."""
    batch = {key: np.zeros((len(rows), length), np.int32) for key in ("tokens", "positions", "segment_ids")}
    for row, segments in enumerate(rows):
        start = 0
        for number, tokens in enumerate(segments, 1):
            place = slice(start, start + len(tokens))
            batch["tokens"][row, place] = tokens
            batch["positions"][row, place] = range(len(tokens))
            batch["segment_ids"][row, place] = number
            start += len(tokens)
    return batch


def sourced(batch: dict, sources: dict | None = None) -> dict:
    """`batch` with what an encoder reads: the rows of `sources`, or of the batch itself as other tokens."""
    if sources is None:
        sources = {**batch, "tokens": np.where(batch["segment_ids"] > 0, (7 * batch["tokens"] + 3) % 97 + 1, 0)}
    return {**batch, **{f"source_{key}": sources[key] for key in ("tokens", "positions", "segment_ids")}}


def tokens(count: int, seed: int, low: int = 1, high: int = 100) -> list[int]:
    return np.random.default_rng(seed).integers(low, high, count).tolist()


@cache
def logits(config: Model):
    """Compiled `(params, batch) -> float32 logits [B, L, stored vocabulary]`."""

    def run(params, batch):
        return nn.apply(lambda model: model.logits(model(batch)[0]), Transformer(config))({"params": params})

    return jit(run)


def loss_of(config: Model):
    """`(params, batch, key) -> summed loss`; the batch has `targets` and `weights` too."""

    def run(params, batch, key):
        def sums(model):
            states = model.output(model(batch, key)[0])
            rule = model.logit_rule
            return fused(states, model.unembedding(), batch["targets"], batch["weights"], rule, 1e-2)[0]

        return nn.apply(sums, Transformer(config))({"params": params})

    return run


@cache
def gradients(config: Model):
    """Compiled `(params, batch, key) -> (loss, gradient)`."""
    return jit(jax.value_and_grad(loss_of(config)))


def with_targets(batch: dict, seed: int = 0) -> dict:
    """`batch` with random targets, each real token weighted 1."""
    shape = batch["tokens"].shape
    targets = np.random.default_rng(seed).integers(1, 100, shape).astype(np.int32)
    return {**batch, "targets": targets, "weights": (batch["segment_ids"] > 0).astype(np.float32)}


def close(actual, expected, tolerance: float) -> None:
    """Every array of two trees agrees within `tolerance` of the largest value of the expected one."""

    def check(path, expected, actual):
        expected, actual = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
        assert expected.shape == actual.shape, path
        scale = max(np.max(np.abs(expected), initial=0.0), 1e-30)
        error = np.max(np.abs(actual - expected), initial=0.0) / scale
        assert error <= tolerance, f"{jax.tree_util.keystr(path)}: {error:.3g} of the largest value"

    jax.tree_util.tree_map_with_path(check, expected, actual)


def same(actual, expected) -> None:
    """Two trees are equal bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def as_bfloat16(x):
    return jnp.asarray(x, jnp.bfloat16)
