"""A GGUF file of the llama architecture as a config.json, tensors by their Hugging Face names, and a tokenizer.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from data.errors import DataError
from train.hub.gguf import Gguf
from train.hub.tensors import Selector, Tensor
from train.hub.tokenizer_files import beginning

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.weight")
CONTROL, USER_DEFINED = 3, 4  # kinds of tokens that stand beside the merges
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


class PermutedRows:
    """A tensor whose row r stands at `order[r]` of another."""

    def __init__(self, tensor: Tensor, order: np.ndarray):
        self.tensor, self.order = tensor, order
        self.shape, self.floating = tensor.shape, tensor.floating

    def take(self, *selectors: Selector) -> np.ndarray:
        rows, *others = selectors
        return self.tensor.take(self.order[rows], *others)


def config_of(gguf: Gguf, path: Path) -> dict[str, Any]:
    """The config.json that the metadata amounts to. DataError where it is of another architecture or lacks a size."""
    metadata = gguf.metadata
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise DataError(f"{path} is of the architecture {architecture!r}, and of GGUF files only llama is read.")

    def get(key: str, kind: type, default: Any = None) -> Any:
        found = metadata.get(f"llama.{key}", default)
        if not isinstance(found, int | float) or isinstance(found, bool) or (kind is int and found != int(found)):
            raise DataError(f"{path} has llama.{key} {found!r} in its metadata, must be a number.")
        return kind(str(np.float32(found))) if kind is float else int(found)  # 1e-5, not what float32 makes of it

    heads = get("attention.head_count", int)
    if heads < 1:
        raise DataError(f"{path} has llama.attention.head_count {heads} in its metadata, must be at least 1.")
    width = get("attention.key_length", int, get("embedding_length", int) // heads)
    if get("rope.dimension_count", int, width) != width:
        raise DataError(f"{path} turns only a part of each head by its position, which is not implemented.")
    if "token_embd.weight" not in gguf.tensors:
        raise DataError(f"{path} holds no token_embd.weight, the embedding of its tokens.")
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
        "hidden_size": get("embedding_length", int),
        "num_hidden_layers": get("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", int, heads),
        "head_dim": width,
        "intermediate_size": get("feed_forward_length", int),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon", float),
        "rope_theta": get("rope.freq_base", float, 10_000.0),
        "rope_scaling": scaling_of(metadata, path),
        "max_position_embeddings": get("context_length", int),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
    }


def scaling_of(metadata: Mapping[str, Any], path: Path) -> dict | None:
    kind = metadata.get("llama.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "linear" or not isinstance(metadata.get("llama.rope.scaling.factor"), float):
        raise DataError(f"{path} scales rotary positions by {kind!r}; only linear, with a factor, is read.")
    return {"rope_type": "linear", "factor": metadata["llama.rope.scaling.factor"]}


def tensors_of(gguf: Gguf, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by their Hugging Face names; what has none keeps its own, to be refused by it.

    Files of this architecture turn neighbouring pairs by a position, Hugging Face's and ours pairs half a head
    apart: the rows of queries and keys stand in another order.
    """
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found: dict[str, Tensor] = {}
    for name, tensor in gguf.tensors.items():
        match = NAME.fullmatch(name)
        layer, part = match.groups() if match else (None, None)
        if layer is None:
            found[f"{OUTER[part]}.weight" if part in OUTER else name] = tensor
        elif part in BLOCK:
            rows = heads.get(part, 1) * config["head_dim"]
            if part in heads and tensor.shape[0] == rows:
                tensor = PermutedRows(tensor, interleaved(heads[part], config["head_dim"]))
            found[f"model.layers.{int(layer)}.{BLOCK[part]}.weight"] = tensor
        else:
            found[name] = tensor
    return found


def interleaved(heads: int, width: int) -> np.ndarray:
    """Where the row of pair i, half j of a head stands: `[heads, 2, width / 2]`, flattened, of `[.., width / 2, 2]`."""
    return np.arange(heads * width).reshape(heads, width // 2, 2).swapaxes(1, 2).reshape(-1)


def splitter(name: str) -> dict | None:
    """The pre-tokenizer that a file calls `name`; None where it is not known here."""
    digits = {"type": "Digits", "individual_digits": True}
    pattern = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
    whole = {**GPT2, "use_regex": False}
    return {
        "smollm": {"type": "Sequence", "pretokenizers": [digits, GPT2]},
        "gpt-2": GPT2,
        "llama-bpe": {"type": "Sequence", "pretokenizers": [pattern, whole]},
    }.get(name)


def tokenizer_of(gguf: Gguf, path: Path) -> tuple[dict | None, str | None]:
    """(content of a tokenizer.json, None), or (None, why there is none): byte-level BPE is read.

    DataError where its parts do not fit one another.
    """
    metadata = gguf.metadata
    kind, name = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or splitter(name) is None:
        return None, f"its tokenizer is of the kind {kind!r} with the pre-tokenizer {name!r}, which is not read"
    tokens, merges, types = (metadata.get(f"tokenizer.ggml.{part}") for part in ("tokens", "merges", "token_type"))
    if not isinstance(tokens, list) or not isinstance(merges, list) or len(set(tokens)) != len(tokens):
        raise DataError(f"{path} has no list of merges, or of tokens each of which stands in it once.")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs) or (types is not None and len(types) != len(tokens)):
        raise DataError(f"{path} has a merge that is no pair of tokens, or not as many kinds of tokens as tokens.")
    try:
        made = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
        made.decoder = decoders.ByteLevel()
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        content = json.loads(made.to_str())
    except Exception as error:  # the library raises Exception itself
        raise DataError(f"{path} holds no byte-level BPE that the tokenizers library takes: {error}.") from error
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["pre_tokenizer"] = splitter(name)
    content["added_tokens"] = [
        {"id": i, "content": token, **flags, "special": int(types[i]) == CONTROL}
        for i, token in enumerate(tokens)
        if types is not None and types[i] in (CONTROL, USER_DEFINED)
    ]
    first = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token") is True and isinstance(first, int) and 0 <= first < len(tokens):
        content["post_processor"] = beginning(tokens[first], first)
    return content, None
