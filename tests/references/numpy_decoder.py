"""A decoder in float64 NumPy, row by row and head by head, written from the papers and not from `model`.

It reads parameters by path (`stack/0/attention/query/kernel`, stacked over layers) and the configuration's
numbers; it shares no code with what it checks. For the classes of GPT-2 (Radford et al. 2019) and Llama 3
(Llama Team 2024): no windows, no caps, one pattern entry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from model.config import Llama3Scaling, Model


def mean_loss(config: Model, params: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]) -> float:
    """Mean over weighted positions of -log p(target), nats; `batch` has `[rows, length]` arrays."""
    total = weight = 0.0
    for row in range(len(batch["tokens"])):
        one = {key: np.asarray(value[row]) for key, value in batch.items()}
        for logits, target, share in zip(row_logits(config, params, one), one["targets"], one["weights"], strict=True):
            highest = logits.max()
            total += share * (highest + math.log(np.exp(logits - highest).sum()) - logits[target])
            weight += share
    return float(total / weight)


def row_logits(config: Model, params: Mapping[str, np.ndarray], row: Mapping[str, np.ndarray]):
    """`[length, vocab_size]` of one row of a batch."""
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    hidden_LxD = final_states(config, params, row["tokens"], row["positions"], row["segment_ids"])
    head = params["embedding/token"].T if config.tied_head else params["head"]
    return (hidden_LxD @ head)[:, : config.vocab_size]


def final_states(config: Model, params: dict, tokens, positions, segments):
    """`[length, embed_dim]` of one row."""
    x_LxD = params["embedding/token"][tokens]
    if config.positions.name == "learned":
        x_LxD = x_LxD + params["embedding/position"][positions]
    for layer in range(config.num_layers):
        own = {name[len("stack/0/") :]: value[layer] for name, value in params.items() if name.startswith("stack/0/")}
        x_LxD = x_LxD + attention(config, own, norm(config, own, "attention_norm", x_LxD), positions, segments)
        x_LxD = x_LxD + feed_forward(config, own, norm(config, own, "feed_forward_norm", x_LxD))
    return norm(config, params, "final_norm", x_LxD)


def norm(config: Model, params: dict, name: str, x_LxD):
    if config.norm.name == "layernorm":
        x_LxD = x_LxD - x_LxD.mean(-1, keepdims=True)
        x_LxD = x_LxD / np.sqrt(x_LxD.var(-1, keepdims=True) + config.norm.epsilon)
    else:
        x_LxD = x_LxD / np.sqrt((x_LxD**2).mean(-1, keepdims=True) + config.norm.epsilon)
    x_LxD = x_LxD * params[f"{name}/scale"]
    return x_LxD + params[f"{name}/bias"] if config.norm.bias else x_LxD


def attention(config: Model, params: dict, x_LxD, positions, segments):
    """Causal softmax attention, a head and a query at a time."""
    heads, kv_heads = config.attention.num_heads, config.attention.num_kv_heads or config.attention.num_heads
    out_LxD = np.zeros_like(x_LxD)
    for head in range(heads):
        kv_head = head // (heads // kv_heads)
        q, k, v = (
            x_LxD @ params[f"attention/{name}/kernel"][:, index]
            + (params[f"attention/{name}/bias"][index] if config.attention.qkv_bias else 0.0)
            for name, index in (("query", head), ("key", kv_head), ("value", kv_head))
        )
        if config.positions.name == "rotary":
            q, k = turned(config, q, positions), turned(config, k, positions)
        mixed = np.zeros_like(v)
        for query in range(len(q)):
            seen = [key for key in range(query + 1) if segments[key] == segments[query]]
            scores = np.array([q[query] @ k[key] for key in seen]) / math.sqrt(q.shape[-1])
            shares = np.exp(scores - scores.max())
            mixed[query] = (shares / shares.sum()) @ v[seen]
        out_LxD += mixed @ params["attention/output/kernel"][head]
    return out_LxD + params["attention/output/bias"] if config.attention.output_bias else out_LxD


def turned(config: Model, x_LxC, positions):
    """Each pair (x_i, x_{i + C/2}) as a complex number, times e^(i position frequency) (Su et al. 2021)."""
    layer, half = config.pattern[0], x_LxC.shape[-1] // 2
    frequencies = np.array([layer.rotary_base ** (-2 * i / (2 * half)) for i in range(half)])
    if isinstance(layer.rotary_scaling, Llama3Scaling):
        frequencies = np.array([stretched(frequency, layer.rotary_scaling) for frequency in frequencies])
    complex_LxH = (x_LxC[:, :half] + 1j * x_LxC[:, half:]) * np.exp(1j * np.outer(positions, frequencies))
    return np.concatenate([complex_LxH.real, complex_LxH.imag], axis=-1)


def stretched(frequency: float, scaling: Llama3Scaling) -> float:
    """Llama 3.1: wavelengths beyond original / low are stretched by `factor`, below original / high are kept."""
    wavelength = 2 * math.pi / frequency
    longest = scaling.original_length / scaling.low_frequency_factor
    shortest = scaling.original_length / scaling.high_frequency_factor
    if wavelength < shortest:
        return frequency
    if wavelength > longest:
        return frequency / scaling.factor
    span = scaling.high_frequency_factor - scaling.low_frequency_factor
    share = (scaling.original_length / wavelength - scaling.low_frequency_factor) / span
    return (1 - share) * frequency / scaling.factor + share * frequency


def feed_forward(config: Model, params: dict, x_LxD):
    bias = config.feed_forward.bias
    h = x_LxD @ params["feed_forward/up/kernel"] + (params["feed_forward/up/bias"] if bias else 0.0)
    if config.feed_forward.gated:
        gate = x_LxD @ params["feed_forward/gate/kernel"]
        h = activation(config.feed_forward.activation, gate) * h
    else:
        h = activation(config.feed_forward.activation, h)
    return h @ params["feed_forward/down/kernel"] + (params["feed_forward/down/bias"] if bias else 0.0)


def activation(name: str, x):
    if name == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "silu":
        return x / (1 + np.exp(-x))
    raise ValueError(f"this reference has no activation {name}")
