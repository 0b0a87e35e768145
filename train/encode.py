"""What an encoder answers: candidates for the masked tokens of a text, and one vector for a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from data.errors import ConfigError
from data.tokenizer import Tokenizer
from model.transformer import Transformer

PAD_TO = 32  # texts are padded to a multiple, so that similar ones share a compilation
ROWS = 32  # texts read at a time

Run = tuple[Transformer, dict, Tokenizer]  # what train.generate.load_run gives


def mean(hidden_BxLxD, real_BxL, model):
    """The mean over each row's tokens, its special ones included (Reimers and Gurevych 2019)."""
    weights_BxLx1 = real_BxL[..., None].astype(jnp.float32)
    return jnp.sum(hidden_BxLxD * weights_BxLx1, axis=1) / jnp.sum(weights_BxLx1, axis=1)


def highest(hidden_BxLxD, real_BxL, model):
    """The maximum over each row's tokens, feature by feature."""
    return jnp.max(jnp.where(real_BxL[..., None], hidden_BxLxD, -jnp.inf), axis=1)


def first(hidden_BxLxD, real_BxL, model):
    """The first token, [CLS] of an encoder."""
    return hidden_BxLxD[:, 0]


def pooler(hidden_BxLxD, real_BxL, model):
    """BERT's pooler."""
    return model.heads.pooled(hidden_BxLxD)


POOLINGS: dict[str, Callable] = {"mean": mean, "max": highest, "cls": first, "pooler": pooler}


@partial(jax.jit, static_argnums=(0, 3))
def _vectors(model: Transformer, params, batch: dict, pooling: str):
    """Float32 `[B, D]`, each of length 1."""

    def run(model):
        hidden_BxLxD, _, _ = model(batch)
        return POOLINGS[pooling](hidden_BxLxD.astype(jnp.float32), batch["segment_ids"] > 0, model)

    pooled_BxD = nn.apply(run, model)({"params": params}).astype(jnp.float32)
    return pooled_BxD / jnp.maximum(jnp.linalg.norm(pooled_BxD, axis=-1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnums=(0, 4, 5))
def _candidates(model: Transformer, params, batch: dict, places_BxM, known: int, count: int):
    """(probabilities, ids) `[B, M, count]` of the likeliest of the ids below `known` at `places_BxM`, in order."""

    def run(model):
        hidden_BxLxD, _, _ = model(batch)
        return model.logits(jnp.take_along_axis(hidden_BxLxD, places_BxM[..., None], axis=1))

    probs_BxMxV = jax.nn.softmax(nn.apply(run, model)({"params": params}), axis=-1)
    return jax.lax.top_k(probs_BxMxV[..., :known], count)


def embed(run: Run, texts: Sequence[str], pooling: str = "mean") -> list[dict]:
    """{"text", "tokens", "embedding"} of each text, in order: `embedding` is its pooled vector of length 1.

    ConfigError where a text is longer than the model's positions, or the model lacks the pooling or has two stacks.
    """
    model, params, tokenizer = run
    if model.config.encoder_layers:
        raise ConfigError(
            "--embed wants an encoder or a decoder by itself, and this run's model is both, which writes a text for a "
            "source: leave --embed out"
        )
    if pooling == "pooler" and not model.config.heads.pooler:
        raise ConfigError(f"--pooling is pooler, which this model lacks; choose one of {', '.join(POOLINGS)}")
    rows = [framed(model, tokenizer, ids.tolist()) for ids in tokenizer.encode_batch(texts)]
    check_lengths(model, rows)
    model = undecoded(model)
    vectors = [
        vector
        for start in range(0, len(rows), ROWS)
        for vector in np.asarray(_vectors(model, params, batch_of(model, rows[start : start + ROWS]), pooling))
    ]
    return [
        {"text": text, "tokens": row, "embedding": vector[: model.config.embed_dim].tolist()}
        for text, row, vector in zip(texts, rows, vectors, strict=False)
    ]


def undecoded(model: Transformer) -> Transformer:
    """The model without DeBERTa's mask decoder, which its parameters serve as well: states are the last layer's."""
    if not model.config.mask_decoder_passes:
        return model
    return model.clone(config=replace(model.config, positions=replace(model.config.positions, mask_decoder_passes=0)))


def fill(run: Run, texts: Sequence[str], count: int = 5) -> list[dict]:
    """{"text", "masks"} of each text: for each of its mask tokens the `count` likeliest ids.

    A candidate is {"token", "id", "probability"}. ConfigError where the model has no masked-token head, its
    tokenizer no mask, or a text none.
    """
    model, params, tokenizer = run
    if tokenizer.mask is None or model.config.attention.causal or not model.config.language_head:
        raise ConfigError(
            "--fill wants an encoder that predicts masked tokens: this run's "
            + ("tokenizer has no mask token" if tokenizer.mask is None else "model is none")
            + ". Train one with data.objective.name=masked, or continue text with --prompt"
        )
    rows = [framed(model, tokenizer, tokenizer.encode_with_masks(text)) for text in texts]
    check_lengths(model, rows)
    known = min(tokenizer.vocab_size, model.config.vocab_size)  # a model may have more ids than its tokenizer
    found = []
    for text, row in zip(texts, rows, strict=True):
        places = [place for place, token in enumerate(row) if token == tokenizer.mask]
        if not places:
            raise ConfigError(f"--fill {ascii(text)} has no {tokenizer.name_of(tokenizer.mask)} to be filled")
        batch = batch_of(model, [row])
        padded = np.asarray([places + [0] * (-len(places) % 8)], np.int32)
        chances, ids = jax.device_get(_candidates(model, params, batch, padded, known, min(count, known)))
        masks = [
            [
                {"token": tokenizer.name_of(int(i)), "id": int(i), "probability": float(p)}
                for i, p in zip(ids[0, place], chances[0, place], strict=True)
            ]
            for place in range(len(places))
        ]
        found.append({"text": text, "masks": masks})
    return found


def framed(model: Transformer, tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The ids as a model has seen texts begin and end: [CLS] ... [SEP] of an encoder, else behind an end of text."""
    if model.config.attention.causal or tokenizer.cls is None or tokenizer.sep is None:
        return [tokenizer.end_of_text, *ids]
    return [tokenizer.cls, *ids, tokenizer.sep]


def check_lengths(model: Transformer, rows: list[list[int]]) -> None:
    longest, limit = max(map(len, rows)), model.config.max_length
    if limit is not None and longest > limit:
        raise ConfigError(f"a text has {longest} tokens, more than the {limit} positions of the model. Shorten it")


def batch_of(model: Transformer, rows: list[list[int]]) -> dict:
    """Model inputs, int32 `[rows, length]`, padded to a multiple of PAD_TO where the model's positions allow it."""
    limit = model.config.max_length
    length = -(-max(map(len, rows)) // PAD_TO) * PAD_TO
    length = length if limit is None else min(length, limit)
    shape = (len(rows), length)
    batch = {key: np.zeros(shape, np.int32) for key in ("tokens", "positions", "segment_ids", "token_types")}
    for place, row in enumerate(rows):
        batch["tokens"][place, : len(row)] = row
        batch["positions"][place, : len(row)] = np.arange(len(row))
        batch["segment_ids"][place, : len(row)] = 1
    return batch
