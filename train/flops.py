"""Arithmetic of a step, and how much of the machine it uses.

MFU (Chowdhery et al. 2022, appendix B) = tokens per second * FLOPs per token / peak FLOPs per second, with

    FLOPs per token = 6 * (parameters of kernels, the head included) + 12 * sum over layers of heads * head_dim * keys

`keys` is how many keys a query sees in the mean over a row: half the length under the causal mask alone, at most the
window under one, the length in an encoder. A prefix that sees itself both ways counts as causal, which is less than
it is. Where a row predicts fewer tokens than it has, its head counts for those. Of experts count those that a token
goes to, the places that stay empty and the sums that fill them not. Beside an encoder tokens are the decoder's, and
what the encoder does for a row, and the decoder with its output, is shared out among them.
Of DeBERTa each term of relative positions counts as half of what content has, a product without values; the projections
of their table, which all rows share, count not; its mask decoder counts as often as it applies the last layer.
Embeddings are not counted, and neither is recomputation under remat.
"""

from __future__ import annotations

import math
import re
import time

import jax
import jax.numpy as jnp

from data.objective_config import MaskedObjective, QaObjective, ReplacedTokenObjective
from model.config import DisentangledPositions, Model
from model.parameters import Declaration, path_name
from model.replaced import DISCRIMINATOR, GENERATOR, discriminator, generator
from train.config import Config
from train.objective_checks import target_length

# Dense bfloat16 peaks that the makers state, FLOP/s a device, by the start of JAX's device_kind.
PEAKS = {
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}
READ = re.compile("^encoder_|/cross_attention/(key|value)/")  # parameters that meet an encoder's tokens, by their paths
RELATIVE = re.compile("/attention/position_(key|query)/")  # those that meet a table of relative positions
FORMULA = "(6 * kernels + 12 * layers * heads * head_dim * mean keys seen) * tokens/s / peak"


def parameter_count(declarations) -> int:
    """All parameters, the padding of the vocabulary included."""
    return sum(math.prod(declaration.shape) for declaration in _leaves(declarations))


def _leaves(declarations) -> list[Declaration]:
    return jax.tree.leaves(declarations)


def flops_per_token(
    model: Model, declarations, length: int, predictions: int | None = None, source_length: int = 0
) -> float:
    """FLOPs of a forward and backward pass for each input position of rows of `length`, a decoder's beside an encoder.

    `predictions` of a row's positions have logits over the vocabulary, None: all. Other heads read one a row, but that
    of replaced tokens all. An encoder beside a decoder reads `source_length` tokens a row.
    """
    predicted = (length if predictions is None else predictions) / length
    shares = {"head": predicted, "head_transform": predicted, "heads": 1 / length}
    read = source_length / length
    again = max(0, model.mask_decoder_passes - 1)  # more times than once that the last layer is applied
    kernels = model.padded_vocab_size * model.embed_dim * predicted if model.tied_head else 0.0
    for path, leaf in jax.tree_util.tree_flatten_with_path(declarations)[0]:
        if leaf.kind == "kernel":
            name = path_name(path)
            share = read if READ.search(name) else shares.get(name.split("/")[0], 1.0)
            share = 1.0 if name.startswith("heads/replaced/") else share
            share = 0.0 if RELATIVE.search(name) else share * (1 + again / model.num_layers * leaf.stacked)
            active = model.experts.top_k / model.experts.num_experts if "experts" in leaf.axes else 1.0
            kernels += math.prod(leaf.shape) * share * active
    layers = [model.pattern[index % len(model.pattern)] for index in range(model.num_layers)]
    keys = sum(keys_seen(length, layer.window) if model.attention.causal else length for layer in layers)
    if isinstance(model.positions, DisentangledPositions):
        terms = model.positions.content_to_position + model.positions.position_to_content
        keys = (keys + again * length) * (1 + terms / 2)
    if model.encoder_layers:
        keys += source_length * (model.num_layers + read * model.encoder_layers)
    return 6.0 * kernels + 12.0 * keys * model.attention.num_heads * model.head_dim


def of_training(config: Config, declarations) -> float:
    """`flops_per_token` of a run under its objective."""
    objective, model = config.data.objective, config.model
    if isinstance(objective, ReplacedTokenObjective):
        length, predictions = config.data.length, objective.max_predictions
        made = flops_per_token(generator(model), declarations[GENERATOR], length, predictions)
        return made + flops_per_token(discriminator(model), declarations[DISCRIMINATOR], length, predictions=0)
    predictions = objective.max_predictions if isinstance(objective, MaskedObjective) else None
    predictions = 0 if isinstance(objective, QaObjective) else predictions
    source_length = config.data.length if model.encoder_layers else 0
    return flops_per_token(model, declarations, target_length(config), predictions, source_length)


def keys_seen(length: int, window: int | None) -> float:
    """Mean over the queries of a row of the keys that each sees: 1, 2, ... up to the window, itself included."""
    widest = min(length, window or length)
    return widest - widest * (widest - 1) / (2 * length)


def peak_flops(device: jax.Device, dtype: str) -> tuple[float, str]:
    """(FLOP/s of one device, how it is known): the maker's figure, or a matrix product timed here."""
    for kind, peak in PEAKS.items():
        if device.device_kind.startswith(kind):
            return peak, f"{device.device_kind}, bfloat16, as its maker states"
    size, runs = 1536, 3
    x = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    best = math.inf
    for _ in range(runs):
        began = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best, f"{device.device_kind}, {dtype}, a {size} x {size} product measured at start"
