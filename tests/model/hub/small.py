"""A tiny config.json of every family, each of whose features is on."""

from __future__ import annotations

import numpy as np

from model.config import Model
from model.hub.families import from_config
from tests.model.small import declared, draw

LLAMA = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
BERT = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}
T5 = {
    "vocab_size": 100,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "n_positions": 64,
}
DEBERTA = {
    **{key: value for key, value in BERT.items() if key != "id2label"},
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": "c2p|p2c",
}
DEBERTA2 = {
    **DEBERTA,
    "model_type": "deberta-v2",
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 4,
    "max_relative_positions": 8,
    "pos_att_type": ["p2c", "c2p"],
}
DEBERTA_MASKED = {"model_type": "deberta", "architectures": ["DebertaForMaskedLM"], **DEBERTA}
THREE = {"id2label": BERT["id2label"]}
MARIAN = {
    "vocab_size": 100,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    **{f"{stack}_attention_heads": 4 for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_dim": 24 for stack in ("encoder", "decoder")},
    "activation_function": "swish",
    "max_position_embeddings": 64,
    "scale_embedding": True,
}
CONFIGS = {
    "bert": {"model_type": "bert", "architectures": ["BertModel"], **BERT},
    "bert_pretraining": {"model_type": "bert", "architectures": ["BertForPreTraining"], **BERT},
    "bert_masked": {"model_type": "bert", "architectures": ["BertForMaskedLM"], "tie_word_embeddings": False, **BERT},
    "bert_next": {"model_type": "bert", "architectures": ["BertForNextSentencePrediction"], **BERT},
    "bert_spans": {"model_type": "bert", "architectures": ["BertForQuestionAnswering"], **BERT},
    "bert_sequence": {"model_type": "bert", "architectures": ["BertForSequenceClassification"], **BERT},
    "bert_tokens": {"model_type": "bert", "architectures": ["BertForTokenClassification"], **BERT},
    "deberta": {"model_type": "deberta", "architectures": ["DebertaModel"], **DEBERTA, "type_vocab_size": 2},
    "deberta_masked": {**DEBERTA_MASKED, "tie_word_embeddings": False, "pos_att_type": "p2c"},
    "deberta_decoder": {**DEBERTA_MASKED, "mask_decoder_passes": 2, "max_relative_positions": 7},
    "deberta_spans": {"model_type": "deberta", "architectures": ["DebertaForQuestionAnswering"], **DEBERTA},
    "deberta_sequence": {
        **{"model_type": "deberta", "architectures": ["DebertaForSequenceClassification"], **DEBERTA, **THREE},
        "pooler_hidden_act": "tanh",
    },
    "deberta2": {
        **{**DEBERTA2, "architectures": ["DebertaV2ForMaskedLM"], "conv_kernel_size": 3},
        "conv_act": "gelu",
    },
    "deberta2_decoder": {**DEBERTA2, "architectures": ["DebertaV2ForMaskedLM"], "mask_decoder_passes": 3},
    "deberta2_tokens": {**DEBERTA2, "architectures": ["DebertaV2ForTokenClassification"], **THREE},
    "gpt2": {"model_type": "gpt2", "vocab_size": 100, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 12},
    "gpt_neo": {
        "model_type": "gpt_neo",
        "vocab_size": 100,
        "hidden_size": 16,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
        "window_size": 3,
        "max_position_embeddings": 12,
    },
    "llama": {"model_type": "llama", **LLAMA, "rope_theta": 50.0, "rope_scaling": LLAMA3_ROPE},
    "llama_biased": {
        "model_type": "llama",
        **LLAMA,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "mistral": {"model_type": "mistral", **LLAMA, "sliding_window": 3},
    "qwen2": {"model_type": "qwen2", **LLAMA, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
    "qwen3": {"model_type": "qwen3", **LLAMA, "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", **LLAMA},
    "gemma2": {
        "model_type": "gemma2",
        **LLAMA,
        "sliding_window": 3,
        "query_pre_attn_scalar": 11,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **LLAMA,
        "sliding_window": 3,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 11,
        "rope_theta": 1000.0,
        "rope_local_base_freq": 10.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "t5": {"model_type": "t5", **T5},
    "t5_1.1": {"model_type": "t5", **T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "marian": {"model_type": "marian", **MARIAN},
    "mixtral": {"model_type": "mixtral", **LLAMA, "num_local_experts": 3, "sliding_window": 3},
    "mt5": {"model_type": "mt5", **T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def model_of(name: str) -> Model:
    return from_config(CONFIGS[name])


def parameters(model: Model) -> dict:
    """Drawn parameters, of whose stored vocabulary the rows that no published file has are zero."""
    import jax

    def cut(declaration, value):
        value = np.array(value)
        if "vocab" in declaration.axes:
            axis = declaration.axes.index("vocab")
            value[(slice(None),) * axis + (slice(model.vocab_size, None),)] = 0
        return value

    return jax.tree.map(cut, declared(model), draw(model))
