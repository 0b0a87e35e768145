"""The architecture as data: frozen dataclasses, and the checks that no tensor can make.

A choice is a dataclass with a `name` and the fields of that variant. Nothing here imports JAX, so a
configuration is read, changed and refused without starting an accelerator.
"""

from __future__ import annotations

from dataclasses import dataclass, field

VOCAB_MULTIPLE = 128  # the stored vocabulary is rounded up to this, whatever the mesh

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
NORMS = ("layernorm", "rmsnorm")
PLACEMENTS = ("pre", "post", "both")
DTYPES = ("float32", "bfloat16")
REMAT = ("none", "full", "dots", "dots_no_batch")
ATTENTION_KERNELS = ("auto", "reference")


@dataclass(frozen=True)
class Attention:
    num_heads: int = 8
    num_kv_heads: int | None = None  # None: one per query head; fewer: grouped-query attention
    head_dim: int | None = None  # None: embed_dim / num_heads
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False  # RMSNorm over each query and key head
    causal: bool = True  # no token sees a later one; false: an encoder
    prefix: bool = False  # but those of a prefix see one another, as the `order` of a batch has it
    scale: float | None = None  # multiplies the scores; None: head_dim ** -0.5
    soft_cap: float | None = None  # cap * tanh(score / cap); None: no cap
    dropout: float = 0.0  # on the attention probabilities
    kernel: str = "auto"  # which function of model/ops/attention.py computes it


@dataclass(frozen=True)
class FeedForward:
    hidden_dim: int = 2048
    activation: str = "silu"  # gelu (erf), gelu_tanh, relu, silu
    gated: bool = True  # activation(x W_gate) * (x W_up)
    bias: bool = False


@dataclass(frozen=True)
class Norm:
    name: str = "rmsnorm"  # layernorm, rmsnorm
    placement: str = "pre"  # pre, post, both (before and after each sublayer)
    epsilon: float = 1e-5
    bias: bool = False  # layernorm only
    unit_offset: bool = False  # multiplies by 1 + scale (Gemma), the scale starting at 0


@dataclass(frozen=True)
class LearnedPositions:
    name: str = "learned"
    length: int = 1024  # rows of the table; longer contexts are refused


@dataclass(frozen=True)
class RotaryPositions:
    name: str = "rotary"  # base and scaling stand in each entry of the layer pattern


@dataclass(frozen=True)
class NoPositions:
    name: str = "none"


@dataclass(frozen=True)
class NoScaling:
    name: str = "none"


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023): positions are divided by `factor`."""

    name: str = "linear"
    factor: float = 1.0


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's rule: long wavelengths are divided by `factor`, short ones kept, a ramp between."""

    name: str = "llama3"
    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192  # tokens


@dataclass(frozen=True)
class Layer:
    """One entry of the repeating layer pattern."""

    window: int | None = None  # keys a query sees, itself included; None: all before it
    rotary_base: float = 10_000.0
    rotary_scaling: NoScaling | LinearScaling | Llama3Scaling = NoScaling()


@dataclass(frozen=True)
class Initialization:
    kernel_std: float | None = 0.02  # None: fan_in ** -0.5
    embedding_std: float = 0.02
    position_std: float = 0.01
    head_std: float | None = None  # None: 0.5 * embed_dim ** -0.5, an initial loss of ln V + 1/8
    scale_residual: bool = False  # output projections times (2 * num_layers) ** -0.5 (GPT-2)
    truncation: float | None = None  # in standard deviations, beyond which a value is drawn again (BERT: 2)


@dataclass(frozen=True)
class Heads:
    """What else reads the final hidden states, beside the logits over the vocabulary."""

    pooler: bool = False  # tanh of a projection of each row's first token (BERT)
    next_sentence: bool = False  # 2 logits from the pooler
    spans: bool = False  # 2 logits a token: an answer's start and its end
    sequence_classes: int = 0  # logits from the pooler, or from the first token where there is none
    token_classes: int = 0  # logits a token


@dataclass(frozen=True)
class Model:
    vocab_size: int = 4096  # ids the model may read and predict
    num_layers: int = 4
    embed_dim: int = 256
    attention: Attention = Attention()
    feed_forward: FeedForward = FeedForward()
    norm: Norm = Norm()
    positions: LearnedPositions | RotaryPositions | NoPositions = RotaryPositions()
    pattern: tuple[Layer, ...] = field(default=(Layer(),))  # repeated until num_layers
    token_types: int = 0  # rows of a third embedding (BERT's sentences A and B); 0: none
    embedding_norm: bool = False  # a norm on the sum of the embeddings (BERT)
    language_head: bool = True  # logits over the vocabulary
    tied_head: bool = True  # logits from the transposed token embedding
    head_transform: bool = False  # a projection, the activation and a norm before the logits (BERT)
    head_bias: bool = False
    heads: Heads = Heads()
    embedding_scale: float | None = None  # multiplies the embeddings; Gemma: embed_dim ** 0.5
    logit_soft_cap: float | None = None
    dropout: float = 0.0  # on embeddings and on each sublayer's output
    init: Initialization = Initialization()
    dtype: str = "float32"  # of the computation; parameters, softmax, norms, loss are float32
    remat: str = "none"  # what the backward pass computes again: none, full, dots, dots_no_batch
    unroll: int = 1  # periods of the pattern compiled side by side; changes no number of the model

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def head_dim(self) -> int:
        return self.attention.head_dim or self.embed_dim // self.attention.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.attention.num_kv_heads or self.attention.num_heads

    @property
    def max_length(self) -> int | None:
        """Longest context in tokens, or None where positions set no bound."""
        return self.positions.length if isinstance(self.positions, LearnedPositions) else None


def check(config: Model) -> list[tuple[str, str]]:
    """What no single field's type can refuse, as (key below `model`, clash) pairs; empty when sound."""
    problems = [
        (key, f"is {value!r}, must be one of {', '.join(choices)}")
        for key, value, choices in (
            ("attention.kernel", config.attention.kernel, ATTENTION_KERNELS),
            ("feed_forward.activation", config.feed_forward.activation, ACTIVATIONS),
            ("norm.name", config.norm.name, NORMS),
            ("norm.placement", config.norm.placement, PLACEMENTS),
            ("dtype", config.dtype, DTYPES),
            ("remat", config.remat, REMAT),
        )
        if value not in choices
    ]
    if not config.pattern:
        problems.append(("pattern", "is empty, must hold at least one layer"))
    return problems + _check_ranges(config) or _check_shapes(config)


def _check_ranges(config: Model) -> list[tuple[str, str]]:
    attention, init = config.attention, config.init
    counts = {
        "vocab_size": config.vocab_size,
        "num_layers": config.num_layers,
        "embed_dim": config.embed_dim,
        "attention.num_heads": attention.num_heads,
        "attention.num_kv_heads": attention.num_kv_heads,
        "attention.head_dim": attention.head_dim,
        "feed_forward.hidden_dim": config.feed_forward.hidden_dim,
        "positions.length": config.max_length,
        "unroll": config.unroll,
    }
    sizes = {
        "token_types": config.token_types,
        "heads.sequence_classes": config.heads.sequence_classes,
        "heads.token_classes": config.heads.token_classes,
    }
    positive = {
        "attention.scale": attention.scale,
        "attention.soft_cap": attention.soft_cap,
        "norm.epsilon": config.norm.epsilon,
        "embedding_scale": config.embedding_scale,
        "logit_soft_cap": config.logit_soft_cap,
        "init.truncation": init.truncation,
    }
    for index, layer in enumerate(config.pattern):
        counts[f"pattern.{index}.window"] = layer.window
        positive[f"pattern.{index}.rotary_base"] = layer.rotary_base
        if not isinstance(layer.rotary_scaling, NoScaling):
            positive[f"pattern.{index}.rotary_scaling.factor"] = layer.rotary_scaling.factor
    rates = {"dropout": config.dropout, "attention.dropout": attention.dropout}
    ranges = (
        (sizes, lambda value: value >= 0, "at least 0"),
        (counts, lambda value: value >= 1, "at least 1"),
        (positive, lambda value: value > 0, "above 0"),
        (rates, lambda value: 0 <= value < 1, "at least 0 and below 1"),
        ({f"init.{key}": value for key, value in vars(init).items()}, lambda value: value >= 0, "at least 0"),
    )
    return [
        (key, f"is {value}, must be {wanted}")
        for values, holds, wanted in ranges
        for key, value in values.items()
        if value is not None and not holds(value)
    ]


def _check_shapes(config: Model) -> list[tuple[str, str]]:
    """Clashes between fields, each of which is sound by itself."""
    attention, heads, kv_heads = config.attention, config.attention.num_heads, config.num_kv_heads
    checks = (
        (
            attention.head_dim is None and config.embed_dim % heads != 0,
            "attention.num_heads",
            f"is {heads}, which does not divide embed_dim {config.embed_dim}; choose a divisor or set "
            "attention.head_dim",
        ),
        (
            heads % kv_heads != 0,
            "attention.num_kv_heads",
            f"is {kv_heads}, which does not divide num_heads {heads}",
        ),
        (
            isinstance(config.positions, RotaryPositions) and config.head_dim % 2 != 0,
            "attention.head_dim",
            f"is {config.head_dim}; rotary positions turn pairs, so it must be even",
        ),
        (
            attention.prefix and not attention.causal,
            "attention.prefix",
            "is true, but attention.causal is false: in an encoder all tokens see one another; set it to false",
        ),
        (config.norm.bias and config.norm.name == "rmsnorm", "norm.bias", "is true, but rmsnorm has no bias"),
        (
            config.heads.next_sentence and not config.heads.pooler,
            "heads.next_sentence",
            "is true, but heads.pooler, which it reads, is false",
        ),
        (
            not config.language_head and (config.head_transform or config.head_bias),
            "language_head",
            "is false, but head_transform or head_bias, which are parts of it, is true",
        ),
    )
    return [(key, clash) for bad, key, clash in checks if bad]
