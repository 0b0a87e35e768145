"""GPT-2 (Radford et al. 2019): fused queries, keys and values, kernels stored `[inputs, outputs]`."""

from __future__ import annotations

from model.config import Attention, FeedForward, LearnedPositions, Model, Norm
from model.hub.family import Config, Family, Field, activation, depth, derived, deviations, fixed, same, value_of
from model.hub.layout import conv1d, plain

TENSORS = {
    "embedding/token": plain("wte.weight"),
    "embedding/position": plain("wpe.weight"),
    "attention_norm": plain("h.{}.ln_1"),
    "attention/query": conv1d("h.{}.attn.c_attn", 0, 3),
    "attention/key": conv1d("h.{}.attn.c_attn", 1, 3),
    "attention/value": conv1d("h.{}.attn.c_attn", 2, 3),
    "attention/output": conv1d("h.{}.attn.c_proj"),
    "feed_forward_norm": plain("h.{}.ln_2"),
    "feed_forward/up": conv1d("h.{}.mlp.c_fc"),
    "feed_forward/down": conv1d("h.{}.mlp.c_proj"),
    "final_norm": plain("ln_f"),
}
BASE = Model(
    attention=Attention(qkv_bias=True, output_bias=True),
    feed_forward=FeedForward(activation="gelu_tanh", gated=False, bias=True),
    norm=Norm("layernorm", bias=True),
    positions=LearnedPositions(),
)


def four_times(size_key: str):
    return lambda config: 4 * value_of(config, size_key)


def read_scale(config: Config) -> float | None:
    return None if config.get("scale_attn_weights", True) else 1.0


FIELDS = (
    same("vocab_size", "vocab_size"),
    depth("n_layer"),
    same("n_embd", "embed_dim"),
    same("n_head", "attention.num_heads"),
    derived("n_inner", "feed_forward.hidden_dim", four_times("n_embd"), "feed_forward.hidden_dim"),
    same("n_positions", "positions.length", 1024),
    activation("activation_function", "gelu_new", "gelu_new"),
    same("layer_norm_epsilon", "norm.epsilon", 1e-5, float),
    same("resid_pdrop", "dropout", 0.1, float),
    Field("", lambda config: None, lambda model: {"embd_pdrop": model.dropout}),
    same("attn_pdrop", "attention.dropout", 0.1, float),
    Field("attention.scale", read_scale, lambda model: {"scale_attn_weights": model.attention.scale != 1.0}),
    fixed("scale_attn_by_inverse_layer_idx", False),
    fixed("add_cross_attention", False),
    fixed("tie_word_embeddings", True),
    *deviations(),
)
GPT2 = Family(
    model_type="gpt2",
    base=BASE,
    fields=FIELDS,
    length_key="n_positions",
    tensors=TENSORS,
    prefix="transformer.",
    architecture=lambda model: "GPT2LMHeadModel",
    ignored=r"\.attn\.(bias|masked_bias)$",
    aliases={"lm_head.weight": "wte.weight"},
)
