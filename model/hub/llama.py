"""Llama 2 and 3 (Touvron et al. 2023, Llama Team 2024), Mistral (Jiang et al. 2023), Qwen 2 and 3."""

from __future__ import annotations

from dataclasses import replace

from model.config import Layer, Model
from model.hub.family import (
    Config,
    Family,
    Field,
    activation,
    depth,
    derived,
    deviations,
    layer_count,
    layer_types,
    layers,
    rope_scaling,
    rotary,
    same,
    shortest,
    value_of,
    window_keys,
)
from model.hub.layout import linear, plain

TENSORS = {
    "embedding/token": plain("embed_tokens.weight"),
    "attention_norm": plain("layers.{}.input_layernorm"),
    "attention/query": linear("layers.{}.self_attn.q_proj"),
    "attention/key": linear("layers.{}.self_attn.k_proj"),
    "attention/value": linear("layers.{}.self_attn.v_proj"),
    "attention/query_norm": plain("layers.{}.self_attn.q_norm"),
    "attention/key_norm": plain("layers.{}.self_attn.k_norm"),
    "attention/output": linear("layers.{}.self_attn.o_proj"),
    "feed_forward_norm": plain("layers.{}.post_attention_layernorm"),
    "feed_forward/gate": linear("layers.{}.mlp.gate_proj"),
    "feed_forward/up": linear("layers.{}.mlp.up_proj"),
    "feed_forward/down": linear("layers.{}.mlp.down_proj"),
    "final_norm": plain("norm"),
    "head": linear("lm_head.weight"),
}
BUFFERS = r"(^|\.)rotary_emb\.inv_freq$"
TIED = {"lm_head.weight": "embed_tokens.weight"}

SIZES = (
    same("vocab_size", "vocab_size"),
    depth("num_hidden_layers"),
    same("hidden_size", "embed_dim"),
    same("intermediate_size", "feed_forward.hidden_dim"),
    same("num_attention_heads", "attention.num_heads"),
    derived(
        "num_key_value_heads",
        "attention.num_kv_heads",
        lambda config: value_of(config, "num_attention_heads"),
        "num_kv_heads",
    ),
    same("rms_norm_eps", "norm.epsilon", 1e-6, float),
    same("attention_dropout", "attention.dropout", 0.0, float),
    *deviations(),
)


def head_dim(default: int | None = None) -> Field:
    """The size of a head; absent it is `default`, or what divides `hidden_size` among the heads."""

    def divided(config):
        return default or value_of(config, "hidden_size") // value_of(config, "num_attention_heads")

    return derived("head_dim", "attention.head_dim", divided, "head_dim")


def pattern(windows) -> Field:
    """Rotary settings that all layers share, and the window of each by `windows(config)`."""

    def read(config: Config):
        base, scaling = rotary(config, "full_attention", 10_000.0)
        return shortest([Layer(window, base, scaling) for window in windows(config)])

    def write(model: Model):
        layer = model.pattern[0]
        return {"rope_theta": layer.rotary_base, "rope_scaling": rope_scaling(layer.rotary_scaling)}

    return Field("pattern", read, write)


def no_windows(config: Config) -> list:
    return [None] * layer_count(config, "num_hidden_layers")


def mistral_windows(config: Config) -> list:
    return [config.get("sliding_window", 4096)] * layer_count(config, "num_hidden_layers")


def qwen_windows(config: Config) -> list:
    if not config.get("use_sliding_window", False):
        return no_windows(config)
    first = config.get("max_window_layers", 28)
    return [config.get("sliding_window", 4096) if on else None for on in layer_types(config, lambda i: i >= first)]


def qwen_window_keys(model: Model) -> dict:
    keys = window_keys(model)
    plain_layers = keys["layer_types"].count("full_attention")
    return {**keys, "use_sliding_window": keys["sliding_window"] is not None, "max_window_layers": plain_layers}


def family(model_type: str, architecture: str, fields: tuple[Field, ...], base: Model) -> Family:
    return Family(
        model_type=model_type,
        base=base,
        fields=(*SIZES, same("tie_word_embeddings", "tied_head", False), *fields),
        length_key="max_position_embeddings",
        tensors=TENSORS,
        prefix="model.",
        architecture=lambda model: architecture,
        ignored=BUFFERS,
        aliases=TIED,
    )


SILU = activation("hidden_act", "gelu_pytorch_tanh", "silu")
BIASES = (
    same("attention_bias", "attention.qkv_bias", False),
    same("attention_bias", "attention.output_bias", False)._replace(write=lambda model: {}),
)
BASE = Model()
WITH_BIAS = replace(BASE, attention=replace(BASE.attention, qkv_bias=True))
WITH_NORM = replace(BASE, attention=replace(BASE.attention, qk_norm=True))
QWEN = (SILU, pattern(qwen_windows), Field("", lambda config: None, qwen_window_keys))

LLAMA = family(
    "llama",
    "LlamaForCausalLM",
    (SILU, head_dim(), *BIASES, same("mlp_bias", "feed_forward.bias", False), pattern(no_windows)),
    BASE,
)
MISTRAL = family(
    "mistral",
    "MistralForCausalLM",
    (
        SILU,
        head_dim(),
        pattern(mistral_windows),
        Field("", lambda config: None, lambda model: {"sliding_window": layers(model)[0].window}),
    ),
    BASE,
)
QWEN2 = family("qwen2", "Qwen2ForCausalLM", (*QWEN, head_dim()), WITH_BIAS)
QWEN3 = family("qwen3", "Qwen3ForCausalLM", (*QWEN, head_dim(128), *BIASES), WITH_NORM)
