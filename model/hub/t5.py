"""T5 (Raffel et al. 2019) in its first form and in version 1.1, and mT5 (Xue et al. 2020), which is version 1.1."""

from __future__ import annotations

from collections.abc import Collection

from model.config import Attention, Initialization, Model, Norm, RelativePositions
from model.hub.family import ACTIVATIONS, Config, Family, Field, HubError, fixed, layer_count, same, value_of
from model.hub.layout import Tensor, linear, plain

BIAS = "SelfAttention.relative_attention_bias.weight"  # of a stack's first layer, for all of its layers
HEAD = "lm_head.weight"


def block(stack: str, *sublayers: tuple[str, str]) -> dict[str, Tensor]:
    """The tensors of a layer; `sublayers` are (our name, theirs) in order, each behind its norm."""
    found = {}
    for index, (ours, theirs) in enumerate(sublayers):
        place = f"{stack}.block.{{}}.layer.{index}"
        found[f"{ours}_norm"] = plain(f"{place}.layer_norm")
        if ours == "feed_forward":
            names = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
        else:
            names = {"query": "q", "key": "k", "value": "v", "output": "o"}
        found |= {f"{ours}/{name}": linear(f"{place}.{theirs}.{letter}") for name, letter in names.items()}
    return found


FEED_FORWARD = ("feed_forward", "DenseReluDense")
ENCODER = block("encoder", ("attention", "SelfAttention"), FEED_FORWARD)
DECODER = block("decoder", ("attention", "SelfAttention"), ("cross_attention", "EncDecAttention"), FEED_FORWARD)
TENSORS = {
    "embedding/token": plain("shared.weight"),
    **{f"encoder/{ours}": tensor for ours, tensor in ENCODER.items()},
    "encoder_relative_bias/table": plain(f"encoder.block.0.layer.0.{BIAS}"),
    "encoder_final_norm": plain("encoder.final_layer_norm"),
    **DECODER,
    "relative_bias/table": plain(f"decoder.block.0.layer.0.{BIAS}"),
    "final_norm": plain("decoder.final_layer_norm"),
    "head": linear(HEAD),
}
BASE = Model(
    attention=Attention(scale=1.0),
    norm=Norm("rmsnorm", epsilon=1e-6),
    positions=RelativePositions(),
    init=Initialization(kernel_std=None, embedding_std=1.0, scale_query=True),
)
GATED = "gated-"


def exported(model: Model, name: str) -> str:
    """A feed-forward without a gate has one projection, without a number."""
    return name if model.feed_forward.gated else name.replace("DenseReluDense.wi_1.", "DenseReluDense.wi.")


def decoder_depth(config: Config) -> int:
    return layer_count(config, "num_layers" if config.get("num_decoder_layers") is None else "num_decoder_layers")


def activation(config: Config) -> str:
    """Of `feed_forward_proj`, in which gated-gelu has always meant the tanh form."""
    found = value_of(config, "feed_forward_proj", "relu")
    name = "gelu_new" if found == "gated-gelu" else found.removeprefix(GATED)
    if name not in ACTIVATIONS:
        raise HubError(
            f"config.json has feed_forward_proj {found!r}, must be one of {', '.join(ACTIVATIONS)}, or gated-"
        )
    return ACTIVATIONS[name]


def gated(config: Config) -> bool:
    return value_of(config, "feed_forward_proj", "relu").startswith(GATED)


def feed_forward(model: Model) -> dict:
    settings = model.feed_forward
    if not settings.gated:
        return {"feed_forward_proj": "gelu_new" if settings.activation == "gelu_tanh" else settings.activation}
    if settings.activation == "gelu":
        raise HubError("gated-gelu is its tanh form, and the model's feed_forward.activation is gelu")
    return {"feed_forward_proj": GATED + ("gelu" if settings.activation == "gelu_tanh" else settings.activation)}


def scales(config: Config) -> bool:
    """Whether hidden states are scaled before the logits: in the first form, whose embeddings are tied."""
    first = config.get("model_type") != "mt5" and config.get("tie_word_embeddings") is not False
    return config.get("scale_decoder_outputs", first)


def output_scale(config: Config) -> float | None:
    return value_of(config, "d_model") ** -0.5 if scales(config) else None


def tied(model: Model) -> dict:
    return {"tie_word_embeddings": model.tied_head, "scale_decoder_outputs": model.output_scale is not None}


def heads(config: Config, names: Collection[str]) -> dict:
    """Version 5 of transformers says of any model that its head is tied, and stores it where it is not."""
    return {"tied_head": False} if HEAD in names and not scales(config) else {}


def spread(path: str) -> Field:
    """A standard deviation of initial values that the width gives."""
    return Field(path, lambda config: value_of(config, "d_model") ** -0.5, lambda model: {})


def rate(path: str) -> Field:
    """A rate of dropout, which is one for all places."""
    return same("dropout_rate", path, 0.1, float)._replace(write=lambda model: {"dropout_rate": model.dropout})


T5 = Family(
    model_type="t5",
    base=BASE,
    fields=(
        same("vocab_size", "vocab_size"),
        same("d_model", "embed_dim"),
        same("d_kv", "attention.head_dim")._replace(write=lambda model: {"d_kv": model.head_dim}),
        same("d_ff", "feed_forward.hidden_dim"),
        same("num_heads", "attention.num_heads"),
        Field(
            "encoder_layers",
            lambda config: layer_count(config, "num_layers"),
            lambda model: {"num_layers": model.encoder_layers},
        ),
        Field("num_layers", decoder_depth, lambda model: {"num_decoder_layers": model.num_layers}),
        same("relative_attention_num_buckets", "positions.buckets", 32),
        same("relative_attention_max_distance", "positions.max_distance", 128),
        same("layer_norm_epsilon", "norm.epsilon", 1e-6, float),
        *(rate(path) for path in ("dropout", "output_dropout", "attention.dropout", "feed_forward.dropout")),
        Field("feed_forward.activation", activation, feed_forward),
        Field("feed_forward.gated", gated, lambda model: {}),
        Field("tied_head", lambda config: config.get("tie_word_embeddings") is not False, tied),
        Field("output_scale", output_scale, lambda model: {}),
        *(spread(path) for path in ("init.position_std", "init.head_std")),
        fixed("is_encoder_decoder", True),
        fixed("is_decoder", False),
        Field("", lambda config: None, lambda model: {"decoder_start_token_id": 0}),
    ),
    length_key="n_positions",
    tensors=TENSORS,
    prefix="",
    architecture=lambda model: "T5ForConditionalGeneration",
    ignored=r"EncDecAttention\.relative_attention_bias\.weight$",
    aliases=dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", HEAD), "shared.weight"),
    renamed=((r"DenseReluDense\.wi\.", "DenseReluDense.wi_1."),),
    exported=exported,
    heads=heads,
)
