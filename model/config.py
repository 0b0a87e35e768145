"""The architecture as data: frozen dataclasses. What they cannot refuse by their types, `model.checks` does.

A choice is a dataclass with a `name` and the fields of that variant. Nothing here imports JAX, so a
configuration is read, changed and refused without starting an accelerator.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

VOCAB_MULTIPLE = 128  # the stored vocabulary is rounded up to this, whatever the mesh

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
OUTER_ACTIVATIONS = (*ACTIVATIONS, "tanh")  # outside of feed-forward networks
NORMS = ("layernorm", "rmsnorm")
PLACEMENTS = ("pre", "post", "both")
DTYPES = ("float32", "bfloat16")
REMAT = ("none", "full", "dots", "dots_no_batch")
ATTENTION_KERNELS = ("auto", "reference")
SINUSOIDS = ("interleaved", "halves", "timescales")
EXPERT_RULES = ("paper", "code")
SECOND_POLICIES = ("random", "all")


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
    dropout: float = 0.0  # on the hidden units


@dataclass(frozen=True)
class NoExperts:
    name: str = "none"


@dataclass(frozen=True)
class CapacityExperts:
    """GShard (Lepikhin et al. 2020, algorithm 1) with two choices, Switch (Fedus et al. 2021) with one.

    A group is a row, or an equal part of one. An expert takes at most so many tokens of a group; the others pass by
    the residual alone.
    """

    name: str = "capacity"
    num_experts: int = 8
    top_k: int = 2  # experts of a token: 2 (GShard), 1 (Switch)
    rule: str = "paper"  # paper (algorithm 1), code (lingvo's and mesh-tensorflow's); of top_k 2
    second_policy: str = "random"  # random (with probability 2 * gate, in training), all
    groups: int = 1  # equal parts of a row that share out an expert's places among themselves
    capacity_factor: float = 2.0  # places of an expert in a group: tokens of the group * this / num_experts
    eval_capacity_factor: float | None = None  # in evaluation; None: the same
    min_capacity: int = 4  # places of an expert at the least
    balance_coefficient: float = 0.01  # of the auxiliary loss that spreads the tokens
    z_coefficient: float = 0.0  # of the squared log-partition of the router
    jitter: float = 0.0  # in training the router's inputs are times uniform draws of 1 -/+ this


@dataclass(frozen=True)
class DroplessExperts:
    """Mixtral (Jiang et al. 2024): the `top_k` likeliest experts of each token, all of which take it."""

    name: str = "dropless"
    num_experts: int = 8
    top_k: int = 2
    groups: int = 1  # equal parts of a row over which the auxiliary loss balances
    balance_coefficient: float = 0.02  # of the auxiliary loss that spreads the tokens
    z_coefficient: float = 0.0  # of the squared log-partition of the router


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
class SinusoidalPositions:
    """Vaswani et al. 2017, section 3.5: a fixed vector for each position, added to the embedding."""

    name: str = "sinusoidal"
    # interleaved: sin and cos by turns (the paper); halves: all sines, then all cosines (Marian); timescales: halves
    # whose slowest turn is 10000 itself (tensor2tensor, M2M100)
    layout: str = "interleaved"
    offset: int = 0  # added to each position (M2M100: 2)


@dataclass(frozen=True)
class RelativePositions:
    """Raffel et al. 2019, section 2.1: a bias on scores by distance and head, for all layers of a stack."""

    name: str = "relative"
    buckets: int = 32  # half of them for what stands behind, in an encoder
    max_distance: int = 128  # tokens from which on all are in the last bucket


@dataclass(frozen=True)
class DisentangledPositions:
    """He et al. 2020, section 3: scores of content and relative position as well, in `model.deberta`."""

    name: str = "disentangled"
    span: int = 512  # k: distances from here on count as the last; the table has 2 k rows
    buckets: int | None = None  # rows a side of a table by logarithmic buckets of distances up to `span` (v2); None: k
    content_to_position: bool = True
    position_to_content: bool = True
    # Whether the positions' queries and keys are projected as the content's are, all with a bias where qkv_bias says
    # so (v2); else they have projections of their own, and no key has a bias (v1).
    shared_projections: bool = False
    norm: bool = False  # the model's norm on the table (v2)
    # The enhanced mask decoder: the last layer so many times over, from the hidden states before it and a table of
    # absolute positions; 0: there is none, and no such table.
    mask_decoder_passes: int = 0
    absolute_length: int = 512  # rows of that table; longer contexts are refused


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
    experts: bool = False  # its feed-forward is a mixture of `model.experts`, each of the size of model.feed_forward


@dataclass(frozen=True)
class Initialization:
    kernel_std: float | None = 0.02  # None: fan_in ** -0.5
    embedding_std: float = 0.02
    position_std: float = 0.01
    head_std: float | None = None  # None: 0.5 * embed_dim ** -0.5, an initial loss of ln V + 1/8
    scale_residual: bool = False  # output projections times (2 * num_layers) ** -0.5 (GPT-2)
    scale_query: bool = False  # queries' projections times head_dim ** -0.5, where scores are not scaled (T5)
    truncation: float | None = None  # in standard deviations, beyond which a value is drawn again (BERT: 2)


@dataclass(frozen=True)
class Convolution:
    """DeBERTa v2's: of the embeddings, added to what the first layer gives, before a norm."""

    size: int = 0  # tokens that an output reads, an odd number; 0: there is none
    activation: str = "tanh"  # tanh, or one of the feed-forward's


@dataclass(frozen=True)
class Heads:
    """What else reads the final hidden states, beside the logits over the vocabulary."""

    pooler: bool = False  # an activation of a projection of each row's first token
    pooler_activation: str = "tanh"  # tanh (BERT), or one of the feed-forward's (DeBERTa: gelu)
    next_sentence: bool = False  # 2 logits from the pooler
    spans: bool = False  # 2 logits a token: an answer's start and its end
    sequence_classes: int = 0  # logits from the pooler, or from the first token where there is none
    token_classes: int = 0  # logits a token
    replaced: bool = False  # a logit a token: that it is not the text's (ELECTRA, DeBERTa v3)


@dataclass(frozen=True)
class Model:
    vocab_size: int = 4096  # ids the model may read and predict
    num_layers: int = 4  # of the decoder, where there is an encoder beside it
    encoder_layers: int = 0  # of an encoder whose output every layer of the decoder reads; 0: there is none
    generator_layers: int = 0  # of an encoder that replaces tokens for this one to find; 0: there is none
    embed_dim: int = 256
    attention: Attention = Attention()
    feed_forward: FeedForward = FeedForward()
    experts: NoExperts | CapacityExperts | DroplessExperts = NoExperts()  # of the layers of the pattern that have them
    norm: Norm = Norm()
    positions: (
        LearnedPositions
        | RotaryPositions
        | SinusoidalPositions
        | RelativePositions
        | DisentangledPositions
        | NoPositions
    ) = RotaryPositions()
    pattern: tuple[Layer, ...] = field(default=(Layer(),))  # repeated until num_layers, and in an encoder
    token_types: int = 0  # rows of a third embedding (BERT's sentences A and B); 0: none
    embedding_norm: bool = False  # a norm on the sum of the embeddings (BERT)
    convolution: Convolution = Convolution()
    language_head: bool = True  # logits over the vocabulary
    tied_head: bool = True  # logits from the transposed token embedding
    head_transform: bool = False  # a projection, the activation and a norm before the logits (BERT)
    head_bias: bool = False
    heads: Heads = Heads()
    embedding_scale: float | None = None  # multiplies the embeddings; Gemma: embed_dim ** 0.5
    output_scale: float | None = None  # multiplies what the logits are made of; T5: embed_dim ** -0.5
    logit_soft_cap: float | None = None
    dropout: float = 0.0  # on embeddings and on each sublayer's output
    output_dropout: float = 0.0  # on the final hidden states of each stack (T5)
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
    def encoder(self) -> Model:
        """The configuration of the encoder beside the decoder: its layers see both sides and read no other stack."""
        attention = replace(self.attention, causal=False, prefix=False)
        return replace(self, attention=attention, num_layers=self.encoder_layers, encoder_layers=0)

    @property
    def mask_decoder_passes(self) -> int:
        """How often DeBERTa's enhanced mask decoder applies the last layer; 0: there is none."""
        return self.positions.mask_decoder_passes if isinstance(self.positions, DisentangledPositions) else 0

    @property
    def max_length(self) -> int | None:
        """Longest context in tokens, or None where positions set no bound."""
        if self.mask_decoder_passes:
            return self.positions.absolute_length
        return self.positions.length if isinstance(self.positions, LearnedPositions) else None
