"""Tiny models as others publish them: directories in the Hugging Face layout, and a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from data.tokenizer import byte_tokenizer
from model.hub.families import from_config
from tests.model.hub.small import CONFIGS, LLAMA3_ROPE, parameters
from tests.train.hub.gguf_files import f32, gguf
from train.hub.exporter import to_memory
from train.hub.safetensors import Writer

VOCAB = 260  # the bytes, the end of text, and ids that the tokenizer does not have
DECODER = {**CONFIGS["llama"], "vocab_size": VOCAB, "rope_scaling": LLAMA3_ROPE}
PLAIN = {**DECODER, "rope_scaling": None}  # a GGUF file says no more
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Hello", "hello", "wor", "##ld", "中"]


def arrays_of(config: dict) -> dict[str, np.ndarray]:
    model = from_config(config)
    return to_memory(model, parameters(model), 64)[1]


def publish(directory: Path, config: dict, arrays: dict[str, np.ndarray], shard: int = 10**9) -> Path:
    """A directory with config.json and safetensors."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    writer = Writer(directory, {name: array.shape for name, array in arrays.items()}, "float32", shard)
    writer.write(iter(arrays.items()))
    return directory


def publish_decoder(directory: Path, config: dict = DECODER, shard: int = 10**9) -> Path:
    """A decoder whose tokenizer is that of the raw bytes."""
    publish(directory, config, arrays_of(config), shard)
    byte_tokenizer().save(directory / "tokenizer.json")
    return directory


def publish_encoder(directory: Path, name: str, lowercase: bool | None = None) -> Path:
    """A BERT with a vocab.txt, as Google's releases have it; `lowercase` None: no tokenizer_config.json."""
    publish(directory, CONFIGS[name], arrays_of(CONFIGS[name]))
    (directory / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    if lowercase is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    return directory


def publish_gguf(path: Path, config: dict = PLAIN) -> Path:
    """The decoder as llama.cpp stores it: other names, the rows of queries and keys in another order."""
    tensors = {}
    for name, array in arrays_of(config).items():
        module = name.removesuffix(".weight").removeprefix("model.layers.")
        layer, _, part = module.partition(".")
        if part in ("self_attn.q_proj", "self_attn.k_proj") and layer.isdecimal():
            heads, width = array.shape[0] // config["head_dim"], config["head_dim"]
            array = array.reshape(heads, 2, width // 2, -1).swapaxes(1, 2).reshape(array.shape)
        named = f"blk.{layer}.{GGUF_NAMES[part]}" if layer.isdecimal() else GGUF_NAMES[module]
        tensors[f"{named}.weight"] = f32(array)
    vocabulary = json.loads(byte_tokenizer()._tokenizer.to_str())["model"]["vocab"]
    tokens = [*sorted(vocabulary, key=vocabulary.get), "<|endoftext|>", "x1", "x2", "x3"]
    metadata = {
        "general.architecture": "llama",
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": config["head_dim"],
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.rope.freq_base": config["rope_theta"],
        "llama.context_length": config["max_position_embeddings"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["x 1"],
        "tokenizer.ggml.token_type": [1] * 256 + [3] + [1] * 3,
    }
    path.write_bytes(gguf(metadata, tensors))
    return path
