"""Gemma 1, 2 and 3 (Gemma Team 2024, 2025), text only."""

from __future__ import annotations

from dataclasses import replace

from model.config import Attention, FeedForward, Layer, Model, Norm
from model.hub.family import (
    Config,
    Family,
    Field,
    HubError,
    activation,
    fixed,
    layer_types,
    layers,
    rope_scaling,
    rotary,
    same,
    shortest,
    value_of,
    window_keys,
)
from model.hub.layout import plain
from model.hub.llama import BIASES, BUFFERS, SIZES, TENSORS, TIED, head_dim, no_windows, pattern

SANDWICH = {
    **TENSORS,
    "attention_post_norm": plain("layers.{}.post_attention_layernorm"),
    "feed_forward_norm": plain("layers.{}.pre_feedforward_layernorm"),
    "feed_forward_post_norm": plain("layers.{}.post_feedforward_layernorm"),
}
BASE = Model(norm=Norm(unit_offset=True), feed_forward=FeedForward(activation="gelu_tanh"))
BOTH = replace(BASE, norm=Norm(unit_offset=True, placement="both"))

COMMON = (
    *SIZES,
    *BIASES,
    head_dim(256),
    same("tie_word_embeddings", "tied_head", True),
    Field("embedding_scale", lambda config: value_of(config, "hidden_size") ** 0.5, lambda model: {}),
    fixed("use_bidirectional_attention", None, False),
)


def read_gelu(config: Config) -> str:
    """The tanh form under every name: the first releases said `gelu` and meant it."""
    for key in ("hidden_activation", "hidden_act"):
        if config.get(key) not in (None, "gelu", "gelu_pytorch_tanh"):
            raise HubError(f"config.json has {key} {config[key]!r}; only gelu_pytorch_tanh is implemented")
    return "gelu_tanh"


def query_scale() -> Field:
    def write(model: Model) -> dict:
        scale = model.head_dim**-0.5 if model.attention.scale is None else model.attention.scale
        return {"query_pre_attn_scalar": round(scale**-2)}

    return Field("attention.scale", lambda config: config.get("query_pre_attn_scalar", 256) ** -0.5, write)


def windows(config: Config, every: int) -> list:
    """The window of each layer; where the config does not list them, every `every`th has none."""
    sliding = layer_types(config, lambda index: (index + 1) % every != 0)
    return [config.get("sliding_window", 4096) if on else None for on in sliding]


def read_gemma3_pattern(config: Config) -> tuple[Layer, ...]:
    """Layers with a window have a rotary base of their own, and no scaling."""
    local = rotary(config, "sliding_attention", 10_000.0, "rope_local_base_freq")
    whole = rotary(config, "full_attention", 1e6)
    found = windows(config, config.get("sliding_window_pattern", 6))
    return shortest([Layer(window, *(whole if window is None else local)) for window in found])


def write_gemma3_pattern(model: Model) -> dict:
    whole = next((layer for layer in layers(model) if layer.window is None), Layer(rotary_base=1e6))
    local = next((layer for layer in layers(model) if layer.window is not None), Layer())
    return {
        **window_keys(model),
        "rope_theta": whole.rotary_base,
        "rope_scaling": rope_scaling(whole.rotary_scaling),
        "rope_local_base_freq": local.rotary_base,
    }


def caps(attention: float | None, final: float | None) -> tuple[Field, Field]:
    return (
        same("attn_logit_softcapping", "attention.soft_cap", attention, float),
        same("final_logit_softcapping", "logit_soft_cap", final, float),
    )


def family(model_type: str, architecture: str, fields: tuple[Field, ...], base: Model, tensors: dict) -> Family:
    return Family(
        model_type=model_type,
        base=base,
        fields=(*COMMON, *fields),
        length_key="max_position_embeddings",
        tensors=tensors,
        prefix="model.",
        architecture=lambda model: architecture,
        ignored=BUFFERS,
        aliases=TIED,
    )


GELU = activation("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
GEMMA = family(
    "gemma",
    "GemmaForCausalLM",
    (
        Field("feed_forward.activation", read_gelu, lambda model: {"hidden_act": "gelu_pytorch_tanh"}),
        pattern(no_windows),
    ),
    BASE,
    TENSORS,
)
GEMMA2 = family(
    "gemma2",
    "Gemma2ForCausalLM",
    (
        GELU,
        query_scale(),
        *caps(50.0, 30.0),
        pattern(lambda config: windows(config, 2)),
        Field("", lambda config: None, window_keys),
    ),
    BOTH,
    SANDWICH,
)
GEMMA3 = family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    (GELU, query_scale(), *caps(None, None), Field("pattern", read_gemma3_pattern, write_gemma3_pattern)),
    replace(BOTH, attention=Attention(qk_norm=True)),
    SANDWICH,
)
