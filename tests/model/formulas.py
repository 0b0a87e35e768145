"""The decoder once more, in NumPy's float64 and plain loops, from the published formulas: slow, and apart from `model`.

A row at a time: x `[L, D]`, q `[L, H, C]`, k and v `[S, K, C]`. Places are (positions, segments) of one row.
"""

import math

import numpy as np

from model import config as cfg
from model.ops.attention import Rule

ERF = np.vectorize(math.erf)


def activation(name: str, x):
    if name == "gelu":  # x times the normal distribution function (Hendrycks and Gimpel 2016)
        return x * (1 + ERF(x / math.sqrt(2))) / 2
    if name == "gelu_tanh":  # the same paper's approximation
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    if name == "silu":
        return x / (1 + np.exp(-x))
    return np.maximum(x, 0)


def norm(x, params, config: cfg.Norm):
    x = np.asarray(x, np.float64)
    if config.name == "layernorm":
        spread = np.sqrt(x.var(axis=-1, keepdims=True) + config.epsilon)
        x = (x - x.mean(axis=-1, keepdims=True)) / spread
    else:
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.epsilon)
    scale = np.asarray(params["scale"], np.float64)
    x = x * (1 + scale if config.unit_offset else scale)
    return x + np.asarray(params["bias"], np.float64) if config.bias else x


def sees(query: int, key: int, queries, keys, causal: bool, window: int | None) -> bool:
    """Of places (positions, segments) or, where a prefix sees itself, (positions, segments, order)."""
    if queries[1][query] != keys[1][key]:
        return False
    distance = int(queries[0][query]) - int(keys[0][key])
    if causal and (distance < 0 if len(keys) == 2 else keys[2][key] > queries[2][query]):
        return False
    return window is None or abs(distance) <= window - 1


def attention(q, k, v, queries, keys, rule):
    """Softmax attention one query and head at a time; `rule` is a model.ops.attention.Rule."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    group = q.shape[1] // k.shape[1]
    for i in range(q.shape[0]):
        seen = [s for s in range(k.shape[0]) if sees(i, s, queries, keys, rule.causal, rule.window)]
        for h in range(q.shape[1]):
            scores = np.array([q[i, h] @ k[s, h // group] for s in seen]) * rule.scale
            if rule.soft_cap is not None:
                scores = rule.soft_cap * np.tanh(scores / rule.soft_cap)
            weights = np.exp(scores - scores.max())
            out[i, h] = sum(w * v[s, h // group] for w, s in zip(weights / weights.sum(), seen, strict=True))
    return out


def frequencies(layer: cfg.Layer, head_dim: int):
    """Angles a position, of each pair; the scalings as Llama 3.1's code and Chen et al. 2023 give them."""
    found, scaling = [], layer.rotary_scaling
    for pair in range(head_dim // 2):
        frequency = 1.0 / layer.rotary_base ** (2 * pair / head_dim)
        if isinstance(scaling, cfg.LinearScaling):
            frequency /= scaling.factor
        if isinstance(scaling, cfg.Llama3Scaling):
            wavelength = 2 * math.pi / frequency
            longest = scaling.original_length / scaling.low_frequency_factor
            shortest = scaling.original_length / scaling.high_frequency_factor
            if wavelength > longest:
                frequency = frequency / scaling.factor
            elif wavelength >= shortest:
                ramp = scaling.original_length / wavelength - scaling.low_frequency_factor
                ramp /= scaling.high_frequency_factor - scaling.low_frequency_factor
                frequency = (1 - ramp) * frequency / scaling.factor + ramp * frequency
        found.append(frequency)
    return np.array(found)


def turn(x, positions, layer: cfg.Layer):
    """Rotary positions (Su et al. 2021): pair (i, i + C / 2) of each head as one complex number."""
    half = x.shape[-1] // 2
    angles = np.asarray(positions, np.float64)[:, None, None] * frequencies(layer, x.shape[-1])
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def linear(x, params, equation: str):
    y = np.einsum(equation, x, np.asarray(params["kernel"], np.float64))
    return y + np.asarray(params["bias"], np.float64) if "bias" in params else y


def mix(x, params, config: cfg.Model, layer: cfg.Layer, places):
    settings = config.attention
    q, k, v = (linear(x, params[name], "ld,dhc->lhc") for name in ("query", "key", "value"))
    if settings.qk_norm:
        rms = cfg.Norm("rmsnorm", epsilon=config.norm.epsilon, unit_offset=config.norm.unit_offset)
        q, k = norm(q, params["query_norm"], rms), norm(k, params["key_norm"], rms)
    if config.positions.name == "rotary":
        q, k = turn(q, places[0], layer), turn(k, places[0], layer)
    scale = 1 / math.sqrt(q.shape[-1]) if settings.scale is None else settings.scale
    rule = Rule(window=layer.window, scale=scale, soft_cap=settings.soft_cap)
    return linear(attention(q, k, v, places, places, rule), params["output"], "lhc,hcd->ld")


def feed_forward(x, params, config: cfg.Model):
    settings = config.feed_forward
    up = linear(x, params["up"], "ld,df->lf")
    hidden = activation(settings.activation, linear(x, params["gate"], "ld,df->lf") if settings.gated else up)
    return linear(hidden * up if settings.gated else hidden, params["down"], "lf,fd->ld")


def block(x, params, config: cfg.Model, layer: cfg.Layer, places):
    """pre: x + f(norm(x)); post: norm(x + f(x)); both: x + norm(f(norm(x)))."""
    sublayers = {
        "attention": lambda x: mix(x, params["attention"], config, layer, places),
        "feed_forward": lambda x: feed_forward(x, params["feed_forward"], config),
    }
    for name, function in sublayers.items():
        if config.norm.placement == "pre":
            x = x + function(norm(x, params[f"{name}_norm"], config.norm))
        elif config.norm.placement == "post":
            x = norm(x + function(x), params[f"{name}_norm"], config.norm)
        else:
            y = function(norm(x, params[f"{name}_norm"], config.norm))
            x = x + norm(y, params[f"{name}_post_norm"], config.norm)
    return x


def layer_params(params: dict, config: cfg.Model, index: int) -> dict:
    """The parameters of layer `index` out of their stack."""
    period, entry = divmod(index, len(config.pattern))
    whole = config.num_layers // len(config.pattern)
    stack = params["stack"] if period < whole else params["remainder"]
    return pick(stack[str(entry)], period if period < whole else 0)


def pick(tree: dict, index: int) -> dict:
    return {key: pick(leaf, index) if isinstance(leaf, dict) else leaf[index] for key, leaf in tree.items()}


def row_logits(params: dict, config: cfg.Model, tokens, places):
    """Float64 logits `[L, vocab_size]` of one row."""
    table = np.asarray(params["embedding"]["token"], np.float64)
    x = table[tokens] * (1.0 if config.embedding_scale is None else config.embedding_scale)
    if config.positions.name == "learned":
        x = x + np.asarray(params["embedding"]["position"], np.float64)[places[0]]
    for index in range(config.num_layers):
        layer = config.pattern[index % len(config.pattern)]
        x = block(x, layer_params(params, config, index), config, layer, places)
    if config.norm.placement != "post":
        x = norm(x, params["final_norm"], config.norm)
    logits = x @ (table.T if config.tied_head else np.asarray(params["head"], np.float64))
    if config.head_bias:
        logits = logits + np.asarray(params["head_bias"], np.float64)
    cap = config.logit_soft_cap
    return (logits if cap is None else cap * np.tanh(logits / cap))[:, : config.vocab_size]


def logits(params: dict, config: cfg.Model, batch: dict):
    """Float64 logits `[B, L, vocab_size]`."""
    names = ("positions", "segment_ids", *(("order",) if config.attention.prefix else ()))
    rows = zip(batch["tokens"], *(batch[name] for name in names), strict=True)
    return np.stack([row_logits(params, config, row, places) for row, *places in rows])
