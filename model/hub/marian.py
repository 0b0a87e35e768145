"""Marian (Junczys-Dowmunt et al. 2018), whose OPUS-MT models translate: the Transformer with biases everywhere.

Positions are all sines, then all cosines. What files hold of them is ignored: they follow from their formula.
"""

from __future__ import annotations

from collections.abc import Collection

from model.config import Attention, FeedForward, Model, Norm, SinusoidalPositions
from model.hub.family import Config, Family, Field, HubError, activation, deviations, fixed, layer_count, same, value_of
from model.hub.layout import Tensor, linear, plain, row

LOGIT_BIAS = "final_logits_bias"
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}


def block(stack: str, attentions: dict[str, str]) -> dict[str, Tensor]:
    """The tensors of a layer; `attentions` are {our name: theirs}."""
    place, found = f"{stack}.layers.{{}}", {}
    for ours, theirs in attentions.items():
        found |= {f"{ours}/{name}": linear(f"{place}.{theirs}.{part}") for name, part in PROJECTIONS.items()}
        found[f"{ours}_norm"] = plain(f"{place}.{theirs}_layer_norm")
    return found | {
        "feed_forward/up": linear(f"{place}.fc1"),
        "feed_forward/down": linear(f"{place}.fc2"),
        "feed_forward_norm": plain(f"{place}.final_layer_norm"),
    }


ENCODER = block("encoder", {"attention": "self_attn"})
TENSORS = {
    "embedding/token": plain("shared.weight"),
    **{f"encoder/{ours}": tensor for ours, tensor in ENCODER.items()},
    **block("decoder", {"attention": "self_attn", "cross_attention": "encoder_attn"}),
    "head_bias": row(LOGIT_BIAS),
}
BASE = Model(
    attention=Attention(qkv_bias=True, output_bias=True),
    feed_forward=FeedForward(gated=False, bias=True),
    norm=Norm("layernorm", placement="post", bias=True),
    positions=SinusoidalPositions(layout="halves"),
    head_bias=True,
)


def heads(config: Config, names: Collection[str]) -> dict:
    """Files may leave a bias of zero out."""
    return {"head_bias": LOGIT_BIAS in names} if names else {}


def both(key: str, path: str) -> Field:
    """A size of the encoder that must be the decoder's, too."""
    keys = [f"{stack}_{key}" for stack in ("encoder", "decoder")]

    def read(config):
        encoder, decoder = (value_of(config, key) for key in keys)
        if encoder != decoder:
            raise HubError(
                f"config.json has {keys[0]} {encoder} and {keys[1]} {decoder}; only equal ones are implemented"
            )
        return encoder

    size = same(keys[0], path)
    return Field(path, read, lambda model: dict.fromkeys(keys, size.write(model)[keys[0]]))


def depth(key: str, path: str) -> Field:
    return same(key, path)._replace(read=lambda config: layer_count(config, key))


def vocabulary(config: Config) -> int:
    size, decoder = value_of(config, "vocab_size"), config.get("decoder_vocab_size")
    if decoder not in (None, size):
        raise HubError(f"config.json has decoder_vocab_size {decoder} and vocab_size {size}; only one is implemented")
    return size


def scale(config: Config) -> float | None:
    return float(value_of(config, "d_model")) ** 0.5 if config.get("scale_embedding", False) else None


def ids(model: Model) -> dict:
    """As OPUS-MT's models have them, whose last id is padding and begins a text; a tokenizer may say otherwise."""
    last = model.vocab_size - 1
    return {"eos_token_id": 0, "forced_eos_token_id": None, "pad_token_id": last, "decoder_start_token_id": last}


MARIAN = Family(
    model_type="marian",
    base=BASE,
    fields=(
        Field(
            "vocab_size",
            vocabulary,
            lambda model: dict.fromkeys(("vocab_size", "decoder_vocab_size"), model.vocab_size),
        ),
        same("d_model", "embed_dim"),
        depth("encoder_layers", "encoder_layers"),
        depth("decoder_layers", "num_layers"),
        both("attention_heads", "attention.num_heads"),
        both("ffn_dim", "feed_forward.hidden_dim"),
        activation("activation_function", "gelu_new", "gelu"),
        same("dropout", "dropout", 0.1, float),
        same("attention_dropout", "attention.dropout", 0.0, float),
        same("activation_dropout", "feed_forward.dropout", 0.0, float),
        Field("embedding_scale", scale, lambda model: {"scale_embedding": model.embedding_scale is not None}),
        fixed("tie_word_embeddings", True),
        fixed("share_encoder_decoder_embeddings", True),
        fixed("is_encoder_decoder", True),
        fixed("is_decoder", False),
        fixed("static_position_embeddings", True),
        *(fixed(key, False) for key in ("normalize_before", "normalize_embedding", "add_final_layer_norm")),
        *deviations("init_std"),
        Field("", lambda config: None, ids),
    ),
    length_key="max_position_embeddings",
    tensors=TENSORS,
    prefix="model.",
    architecture=lambda model: "MarianMTModel",
    outside=("lm_head.", LOGIT_BIAS),
    logit_bias=LOGIT_BIAS,
    ignored=r"embed_positions\.weight$",
    aliases=dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), "shared.weight"
    ),
    heads=heads,
)
