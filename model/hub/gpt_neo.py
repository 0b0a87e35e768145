"""GPT-Neo (Black et al. 2021): every other layer sees a band of the last tokens, and scores are not scaled."""

from __future__ import annotations

from model.config import Attention, FeedForward, Layer, LearnedPositions, Model, Norm
from model.hub.family import (
    Config,
    Family,
    Field,
    HubError,
    activation,
    depth,
    derived,
    deviations,
    fixed,
    layer_count,
    layers,
    same,
    shortest,
)
from model.hub.gpt2 import four_times
from model.hub.layout import linear, plain

TENSORS = {
    "embedding/token": plain("wte.weight"),
    "embedding/position": plain("wpe.weight"),
    "attention_norm": plain("h.{}.ln_1"),
    "attention/query": linear("h.{}.attn.attention.q_proj"),
    "attention/key": linear("h.{}.attn.attention.k_proj"),
    "attention/value": linear("h.{}.attn.attention.v_proj"),
    "attention/output": linear("h.{}.attn.attention.out_proj"),
    "feed_forward_norm": plain("h.{}.ln_2"),
    "feed_forward/up": linear("h.{}.mlp.c_fc"),
    "feed_forward/down": linear("h.{}.mlp.c_proj"),
    "final_norm": plain("ln_f"),
}
BASE = Model(
    attention=Attention(output_bias=True, scale=1.0),
    feed_forward=FeedForward(activation="gelu_tanh", gated=False, bias=True),
    norm=Norm("layernorm", bias=True),
    positions=LearnedPositions(),
)


def read_pattern(config: Config) -> tuple[Layer, ...]:
    types, count = config.get("attention_types") or [[["global", "local"], 12]], layer_count(config, "num_layers")
    if sum(len(entry) * times for entry, times in types) != count:
        raise HubError(f"config.json has attention_types {types}, which are not the {count} of num_layers")
    kinds = [kind for entry, times in types for kind in entry * times]
    if set(kinds) - {"global", "local"}:
        raise HubError(f"config.json has attention_types {types}, must be of global and local")
    window = config.get("window_size", 256)
    return shortest([Layer(window if kind == "local" else None) for kind in kinds])


def write_pattern(model: Model) -> dict:
    windows = [layer.window for layer in layers(model)]
    kinds = ["global" if window is None else "local" for window in windows]
    return {"attention_types": [[kinds, 1]], "window_size": next(filter(None, windows), 256)}


FIELDS = (
    same("vocab_size", "vocab_size"),
    depth("num_layers"),
    same("hidden_size", "embed_dim"),
    same("num_heads", "attention.num_heads"),
    derived("intermediate_size", "feed_forward.hidden_dim", four_times("hidden_size"), "feed_forward.hidden_dim"),
    same("max_position_embeddings", "positions.length", 2048),
    activation("activation_function", "gelu_new", "gelu_new"),
    same("layer_norm_epsilon", "norm.epsilon", 1e-5, float),
    same("resid_dropout", "dropout", 0.0, float),
    Field("", lambda config: None, lambda model: {"embed_dropout": model.dropout}),
    same("attention_dropout", "attention.dropout", 0.0, float),
    Field("pattern", read_pattern, write_pattern),
    fixed("tie_word_embeddings", True),
    *deviations(),
)
GPT_NEO = Family(
    model_type="gpt_neo",
    base=BASE,
    fields=FIELDS,
    length_key="max_position_embeddings",
    tensors=TENSORS,
    prefix="transformer.",
    architecture=lambda model: "GPTNeoForCausalLM",
    ignored=r"\.attn\.attention\.(bias|masked_bias)$",
    aliases={"lm_head.weight": "wte.weight"},
)
