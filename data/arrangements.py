"""An input and its output as the keys of one row: for an encoder and a decoder, or for a decoder alone.

    encoder_decoder  the encoder reads the input; the decoder predicts the output, of which it reads what came before
    decoder          the output stands behind the input in one row, and alone is predicted
    prefix_decoder   the same, the tokens of the input seeing one another: `order` as in data.prefix

A row is one segment, whose positions count from 0; padding is 0 in every key.
"""

from __future__ import annotations

import numpy as np

from data.kinds import Spec, sequence
from data.packing import DTYPES

SOURCE = dict.fromkeys(("source_tokens", "source_segment_ids", "source_positions"), np.int32)
ORDER = {"order": np.int32}

Row = dict[str, np.ndarray]  # [length] each, without padding


def spec(arrangement: str, length: int, target_length: int) -> Spec:
    """The keys of a batch, `target_length` being that of a decoder beside an encoder of `length`."""
    if arrangement == "encoder_decoder":
        return {**sequence(length, SOURCE), **sequence(target_length, DTYPES)}
    return sequence(length, {**DTYPES, **ORDER} if arrangement == "prefix_decoder" else DTYPES)


def arrange(arrangement: str, inputs: np.ndarray, outputs: np.ndarray, start: int) -> Row:
    """The row of `inputs` and `outputs`, int32 both; `start` is what a decoder beside an encoder reads first."""
    if arrangement == "encoder_decoder":
        source = (inputs, np.ones_like(inputs), np.arange(inputs.size, dtype=np.int32))
        read = np.concatenate(([start], outputs[:-1])).astype(np.int32)
        return {**dict(zip(SOURCE, source, strict=True)), **_decoded(read, outputs, np.ones(outputs.size, np.float32))}
    tokens = np.concatenate((inputs, outputs))
    weights = np.arange(1, tokens.size) >= inputs.size
    row = _decoded(tokens[:-1], tokens[1:], weights.astype(np.float32))
    if arrangement == "prefix_decoder":
        row["order"] = np.maximum(row["positions"], inputs.size - 1)
    return row


def _decoded(tokens: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Row:
    positions = np.arange(tokens.size, dtype=np.int32)
    return dict(zip(DTYPES, (tokens, targets, weights, np.ones_like(tokens), positions), strict=True))
