"""A config.json as it was published years ago means to us what it means to transformers, which writes it anew."""

import pytest

from model.hub.families import from_config
from tests.references.families import LLAMA3

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: `make test-references` installs it beside, and runs this"
)

pytestmark = pytest.mark.references

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
}
SCALING = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
GPT2 = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4}
NEO = {"vocab_size": 100, "hidden_size": 32, "num_layers": 4, "num_heads": 4}
MISTRAL = {"model_type": "mistral", **SIZES, "num_key_value_heads": 2}
GEMMA3 = {"model_type": "gemma3_text", **SIZES, "num_key_value_heads": 1}
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2}
DEBERTA = {
    **SIZES,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": "c2p|p2c",
    "max_relative_positions": -1,
    "layer_norm_eps": 1e-7,
    "type_vocab_size": 0,
}
DEBERTA2 = {
    **DEBERTA,
    "model_type": "deberta-v2",
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pooler_hidden_act": "gelu",
}
# What the published files say, and what they leave to defaults.
PUBLISHED = {
    "bert": {"model_type": "bert", **SIZES, "hidden_act": "gelu", "pad_token_id": 0},
    "bert, tanh": {"model_type": "bert", **SIZES, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    "deberta": {**DEBERTA, "model_type": "deberta", "padding_idx": 0},
    "deberta, list": {**DEBERTA, "model_type": "deberta", "pos_att_type": ["c2p"], "max_relative_positions": 64},
    "deberta-v2": {**DEBERTA2, "conv_kernel_size": 3, "conv_act": "gelu", "attention_head_size": 8},
    "deberta-v3": {**DEBERTA2, "pos_att_type": "p2c|c2p", "pooler_dropout": 0},
    "gpt2": {"model_type": "gpt2", **GPT2, "n_ctx": 64, "n_positions": 64},
    "gpt2, inner": {"model_type": "gpt2", **GPT2, "n_inner": 40, "activation_function": "gelu"},
    "gpt_neo": {"model_type": "gpt_neo", **NEO, "attention_types": [[["global", "local"], 2]], "window_size": 8},
    "llama 1": {"model_type": "llama", **SIZES, "hidden_act": "silu"},
    "llama 2": {"model_type": "llama", **SIZES, "num_key_value_heads": 2, "rope_scaling": None, "rope_theta": 5e4},
    "llama 3": {"model_type": "llama", **SIZES, "rope_theta": 500000.0, "rope_scaling": SCALING, "head_dim": 16},
    "llama, linear": {"model_type": "llama", **SIZES, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "mistral 0.1": {**MISTRAL, "sliding_window": 16},
    "mistral 0.3": {**MISTRAL, "sliding_window": None, "rope_theta": 1e6},
    "qwen2": {
        "model_type": "qwen2",
        **SIZES,
        "num_key_value_heads": 2,
        "use_sliding_window": False,
        "sliding_window": 16,
        "max_window_layers": 6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "qwen2, windows": {
        "model_type": "qwen2",
        **SIZES,
        "num_key_value_heads": 4,
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 6,
    },
    "qwen3": {"model_type": "qwen3", **SIZES, "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 1e6},
    "qwen3, defaults": {"model_type": "qwen3", **SIZES, "num_key_value_heads": 2},
    "gemma": {"model_type": "gemma", **SIZES, "num_key_value_heads": 1, "head_dim": 16, "hidden_act": "gelu"},
    "gemma, tanh": {
        "model_type": "gemma",
        **SIZES,
        "num_key_value_heads": 4,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": None,
    },
    "gemma2": {
        "model_type": "gemma2",
        **SIZES,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": 16,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma2, defaults": {"model_type": "gemma2", **SIZES, "num_key_value_heads": 2},
    "gemma3": {
        **GEMMA3,
        "head_dim": 16,
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 16,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 16,
    },
    "t5": {"model_type": "t5", **T5, "n_positions": 512, "initializer_factor": 1.0},
    "t5, gated": {"model_type": "t5", **T5, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 3},
    "t5, silu": {"model_type": "t5", **T5, "feed_forward_proj": "silu", "dropout_rate": 0.0},
    "marian": {
        **{"model_type": "marian", "vocab_size": 101, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3},
        **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
        **{"activation_function": "swish", "scale_embedding": True, "static_position_embeddings": True},
        **{"normalize_before": False, "normalize_embedding": False, "add_final_layer_norm": False},
        "pad_token_id": 100,
    },
    "gemma3, every third": {**GEMMA3, "sliding_window_pattern": 3},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_old_config_means_what_transformers_makes_of_it(name):
    given = PUBLISHED[name]
    anew = transformers.AutoConfig.for_model(**given).to_dict()
    assert not {"rope_theta", "rope_scaling"} & anew.keys()  # it does say things otherwise
    anew.pop("sliding_window_pattern", None)  # it lists the layers instead
    assert from_config(given) == from_config(anew)
