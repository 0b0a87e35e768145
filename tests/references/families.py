"""Tiny randomly initialised models of transformers, one a family or variant, and the rows that they are fed.

Nothing here imports PyTorch until a reference is built, so that the cases can be listed without it. Every
parameter is drawn anew, norm scales and biases too, and the numbers of each configuration are such that a part
that is left out or misread changes the logits: short windows, small caps, large epsilons, rotary bases within
reach of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

LENGTH = 14  # of a row, beyond every window below
VOCABULARY = 61  # no multiple of anything
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": 20,
    "n_embd": 16,
    "n_head": 4,
    "n_layer": 2,
    "layer_norm_epsilon": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
WIDTHS = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GEMMA = {**WIDTHS, "head_dim": 6, "pad_token_id": 0}
MIXTRAL = {
    **WIDTHS,
    "num_hidden_layers": 2,
    "num_local_experts": 5,
    "router_aux_loss_coef": 0.0,  # of a loss that transformers takes over a whole batch: test_experts.py
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
}
WINDOW = {"num_experts_per_tok": 3, "sliding_window": 5, "head_dim": 6}
CAPS = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 10}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 20,
    "layer_norm_eps": 0.02,
}


def rotary(theta: float, rope_type: str = "default", **scaling) -> dict:
    return {"rope_theta": theta, "rope_type": rope_type, **scaling}


LLAMA3 = rotary(
    100.0,
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "layer_norm_epsilon": 0.02,
    "decoder_start_token_id": 0,
}
MARIAN = {
    "vocab_size": VOCABULARY + 1,  # the last id is padding, whose embedding has no gradient
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    **{f"{stack}_attention_heads": 4 for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_dim": 24 for stack in ("encoder", "decoder")},
    "activation_function": "swish",
    "scale_embedding": True,
    "max_position_embeddings": 20,
    "pad_token_id": VOCABULARY,
    "decoder_start_token_id": VOCABULARY,
    "forced_eos_token_id": None,
}
DEBERTA = {
    **BERT,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": "c2p|p2c",
    "max_relative_positions": 5,
}
DEBERTA2 = {
    **DEBERTA,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 6,
    "max_relative_positions": 10,
    "pos_att_type": "p2c|c2p",
}
# By what an encoder's class is for, our names of its outputs.
ENCODER_OUTPUTS = {
    "PreTraining": ("logits", "next_sentence"),
    "MaskedLM": ("logits",),
    "QuestionAnswering": ("spans",),
    "SequenceClassification": ("sequence",),
    "TokenClassification": ("token",),
}


@dataclass(frozen=True)
class Case:
    """A reference: the class of transformers that computes it, and its configuration."""

    architecture: str
    settings: dict = field(hash=False)
    unit_offset: bool = False  # norms multiply by 1 + weight
    dead: tuple[str, ...] = ()  # how parameters' names end whose gradient is zero for any loss
    saving: dict = field(default_factory=dict, hash=False)  # what `save_pretrained` is told beside the directory

    @property
    def encoder(self) -> bool:
        return self.architecture.startswith(("Bert", "Deberta"))

    @property
    def encoder_decoder(self) -> bool:
        return self.architecture.endswith(("ForConditionalGeneration", "MTModel"))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs compared, by our names; `logits` are those over the vocabulary."""
        return ENCODER_OUTPUTS[self.architecture.partition("For")[2]] if self.encoder else ("logits",)

    @property
    def pretrained(self) -> bool:
        """Whether its loss is one of pre-training."""
        return "logits" in self.outputs


# Without rotary positions a key's bias adds the same to all scores of a query, which softmax takes out.
UNSEEN = ("self.key.bias",)
# With positions as keys alone, neither does a bias of all positions.
UNSEEN_ALONE = ("self.key_proj.bias", "encoder.LayerNorm.bias")
CASES = {
    "gpt2": Case("GPT2LMHeadModel", GPT2),
    "gpt_neo": Case(
        "GPTNeoForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 20,
            "hidden_size": 16,
            "num_layers": 4,
            "num_heads": 4,
            "intermediate_size": 24,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 5,
            "layer_norm_epsilon": 0.02,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
    "llama": Case("LlamaForCausalLM", {**WIDTHS, "num_hidden_layers": 2, "rope_parameters": rotary(100.0)}),
    "llama3": Case(
        "LlamaForCausalLM",
        {**WIDTHS, "head_dim": 8, "num_hidden_layers": 2, "rope_parameters": LLAMA3, "tie_word_embeddings": True},
    ),
    "llama_linear": Case(
        "LlamaForCausalLM",
        {
            **WIDTHS,
            "num_hidden_layers": 2,
            "rope_parameters": rotary(50.0, rope_type="linear", factor=2.5),
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "mistral": Case(
        "MistralForCausalLM",
        {**WIDTHS, "num_hidden_layers": 2, "head_dim": 6, "sliding_window": 5, "rope_parameters": rotary(100.0)},
    ),
    "qwen2": Case(
        "Qwen2ForCausalLM",
        {**WIDTHS, "num_hidden_layers": 2, "rope_parameters": rotary(100.0), "tie_word_embeddings": True},
    ),
    "qwen2_window": Case(
        "Qwen2ForCausalLM",
        {
            **WIDTHS,
            "num_hidden_layers": 3,
            "rope_parameters": rotary(100.0),
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
        },
    ),
    "qwen3": Case(
        "Qwen3ForCausalLM", {**WIDTHS, "num_hidden_layers": 2, "head_dim": 6, "rope_parameters": rotary(100.0)}
    ),
    "gemma": Case(
        "GemmaForCausalLM",
        {**GEMMA, "num_key_value_heads": 1, "num_hidden_layers": 2, "rope_parameters": rotary(100.0)},
        unit_offset=True,
    ),
    "gemma2": Case(
        "Gemma2ForCausalLM",
        {**GEMMA, **CAPS, "num_hidden_layers": 3, "sliding_window": 5, "rope_parameters": rotary(100.0)},
        unit_offset=True,
    ),
    "gemma3": Case(
        "Gemma3ForCausalLM",
        {
            **GEMMA,
            "num_hidden_layers": 7,
            "sliding_window": 5,
            "query_pre_attn_scalar": 10,
            "rope_parameters": {
                "sliding_attention": rotary(20.0),
                "full_attention": rotary(500.0, rope_type="linear", factor=2.5),
            },
        },
        unit_offset=True,
    ),
    "mixtral": Case("MixtralForCausalLM", MIXTRAL),
    "mixtral_stacked": Case("MixtralForCausalLM", {**MIXTRAL, **WINDOW}, saving={"save_original_format": False}),
    "t5": Case("T5ForConditionalGeneration", T5),
    "t5_1.1": Case(
        "T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    ),
    "marian": Case("MarianMTModel", MARIAN, dead=("k_proj.bias",)),
    "bert": Case("BertForPreTraining", BERT, dead=UNSEEN),
    "bert_mlm": Case("BertForMaskedLM", BERT, dead=UNSEEN),
    "bert_qa": Case("BertForQuestionAnswering", BERT, dead=UNSEEN),
    "bert_sequence": Case("BertForSequenceClassification", {**BERT, "num_labels": 3}, dead=UNSEEN),
    "bert_token": Case("BertForTokenClassification", {**BERT, "num_labels": 5}, dead=UNSEEN),
    "deberta_v1": Case("DebertaForMaskedLM", {**DEBERTA, "type_vocab_size": 2}),
    "deberta_v1_lm_head": Case("DebertaForMaskedLM", {**DEBERTA, "legacy": False, "pos_att_type": ["p2c"]}),
    "deberta_v1_sequence": Case("DebertaForSequenceClassification", {**DEBERTA, "num_labels": 3}),
    "deberta_v2": Case("DebertaV2ForMaskedLM", {**DEBERTA2, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta_v2_token": Case("DebertaV2ForTokenClassification", {**DEBERTA2, "conv_kernel_size": 5, "num_labels": 5}),
    "deberta_v3": Case("DebertaV2ForMaskedLM", {**DEBERTA2, "legacy": False}),
    "deberta_v3_qa": Case("DebertaV2ForQuestionAnswering", {**DEBERTA2, "pos_att_type": ["c2p"]}, dead=UNSEEN_ALONE),
    "deberta_v3_sequence": Case(
        "DebertaV2ForSequenceClassification", {**DEBERTA2, "num_labels": 3, "pooler_hidden_act": "tanh"}
    ),
}


def rows(case: Case) -> dict:
    """A batch of three rows, with the keys that pre-training reads; `segment_ids` 0 is padding.

    One row is full and one is padded at its right; a decoder's third is padded at its left, all others at
    their right. No real token is id 0, whose embedding some references hold to zero gradient, but what a decoder
    beside an encoder reads first.
    """
    generator = np.random.default_rng(7)
    real = np.ones((3, LENGTH), bool)
    real[1, 9:] = False
    real[2, slice(11, None) if case.encoder or case.encoder_decoder else slice(0, 3)] = False
    tokens = np.where(real, generator.integers(1, VOCABULARY, real.shape), 0)
    positions = np.where(real, np.cumsum(real, axis=1) - 1, 0)
    batch = {"tokens": tokens, "positions": positions, "segment_ids": real}
    if case.encoder:
        batch["token_types"] = np.where(real, np.arange(LENGTH) >= 6, 0)
        batch["masked_positions"] = np.array([[1, 4, 5, 13], [0, 8, 0, 0], [3, 9, 10, 0]])
        batch["targets"] = generator.integers(1, VOCABULARY, (3, 4))
        batch["next_sentence"] = np.array([0, 1, 1])
        weights = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    elif case.encoder_decoder:
        batch |= {f"source_{name}": value for name, value in batch.items()}
        lengths = np.array([[6], [LENGTH - 2], [9]])
        weights = np.broadcast_to(np.arange(LENGTH - 2) < lengths, (3, LENGTH - 2))
        batch["targets"] = np.where(weights, generator.integers(1, VOCABULARY, weights.shape), 0)
        batch["tokens"] = np.where(weights, np.pad(batch["targets"], ((0, 0), (1, 0)))[:, :-1], 0)
        batch |= {"positions": np.where(weights, np.arange(LENGTH - 2), 0), "segment_ids": weights}
    else:
        batch["targets"] = np.pad(tokens[:, 1:], ((0, 0), (0, 1)))
        weights = real & (batch["targets"] > 0)
    return {name: value.astype(np.int32) for name, value in batch.items()} | {"weights": weights.astype(np.float32)}


def cotangents(outputs: dict, batch: dict) -> dict:
    """Random weights, 0 where a token is padding, of outputs without a loss: their weighted sum is differentiated."""
    generator = np.random.default_rng(8)
    found = {name: generator.standard_normal(outputs[name].shape).astype(np.float32) for name in sorted(outputs)}
    real = batch["segment_ids"] > 0
    return {name: weight * real[..., None] if weight.ndim == 3 else weight for name, weight in found.items()}


def trained(model) -> dict:
    """The reference's parameters by name, without Marian's table of sinusoids."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def build(case: Case, seed: int = 0):
    """The reference in evaluation, with every parameter drawn by NumPy, the same on every machine."""
    import torch
    import transformers

    torch.manual_seed(0)
    architecture = getattr(transformers, case.architecture)
    model = architecture(architecture.config_class(**case.settings, attn_implementation="eager")).eval()
    if case.encoder_decoder and case.settings.get("tie_word_embeddings") is False:  # version 5 ties it nevertheless
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    if hasattr(model, "final_logits_bias"):  # a buffer to them, which no gradient reaches
        bias = torch.nn.Parameter(model._buffers.pop("final_logits_bias"))
        model.register_parameter("final_logits_bias", bias)
    generator = np.random.default_rng(seed)
    for name, parameter in sorted(trained(model).items()):
        noise = generator.standard_normal(tuple(parameter.shape))
        if name in ("final_logits_bias", "model.shared.weight"):  # Marian's
            value = 0.6 * noise
        elif name == "shared.weight":  # T5's, which its logits scale down
            value = noise
        elif ".experts." in name:  # [experts, outputs, inputs]
            value = noise * parameter.shape[-1] ** -0.5
        elif parameter.ndim >= 2:
            embeds = "embed" in name or ".wte." in name or ".wpe." in name
            value = noise * (0.5 if embeds else parameter[0].numel() ** -0.5)
        elif name.endswith("bias") or case.unit_offset:
            value = 0.3 * noise
        else:
            value = 1 + 0.3 * noise
        parameter.data.copy_(torch.from_numpy(value))
    return model
