"""Numbers as GGUF files store them: plain, or in blocks that share a scale, made float32 a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from train.hub.tensors import Selector

ELEMENTS = 1 << 20  # made float32 at a time


class PlainType(NamedTuple):
    name: str
    dtype: np.dtype


class BlockType(NamedTuple):
    """Blocks of `length` numbers along the last axis; `decode` gives float32 `[..., length]` of blocks `[...]`."""

    name: str
    dtype: np.dtype
    length: int
    decode: Callable[[np.ndarray], np.ndarray]


def nibbles(blocks: np.ndarray) -> np.ndarray:
    """The sixteen low halves of the bytes `q`, then the sixteen high ones, as float32."""
    return np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=-1).astype(np.float32)


def scaled(values: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    return values * blocks["d"][..., None].astype(np.float32)


PLAIN_TYPES = {
    0: PlainType("F32", np.dtype("<f4")),
    1: PlainType("F16", np.dtype("<f2")),
    30: PlainType("BF16", np.dtype(jnp.bfloat16)),
}
BLOCK_TYPES = {
    2: BlockType("Q4_0", np.dtype([("d", "<f2"), ("q", "u1", 16)]), 32, lambda b: scaled(nibbles(b) - 8, b)),
    3: BlockType(
        "Q4_1",
        np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)]),
        32,
        lambda b: scaled(nibbles(b), b) + b["m"][..., None].astype(np.float32),
    ),
    8: BlockType("Q8_0", np.dtype([("d", "<f2"), ("q", "i1", 32)]), 32, lambda b: scaled(b["q"].astype(np.float32), b)),
}


class Quantized:
    """A matrix of blocks `[rows, blocks]`, or a vector `[blocks]`."""

    floating = True

    def __init__(self, blocks: np.ndarray, kind: BlockType):
        self.blocks, self.kind = blocks, kind
        self.shape = (*blocks.shape[:-1], blocks.shape[-1] * kind.length)

    def take(self, *selectors: Selector) -> np.ndarray:
        *rows, columns = selectors
        blocks = self.blocks[tuple(rows)] if rows else self.blocks
        blocks = blocks.reshape(-1, blocks.shape[-1])
        columns = np.arange(self.shape[-1])[columns]
        out = np.empty((len(blocks), len(columns)), np.float32)
        if not out.size:
            return out.reshape(-1) if not rows else out
        first, last = columns.min() // self.kind.length, columns.max() // self.kind.length + 1
        step = max(1, ELEMENTS // ((last - first) * self.kind.length))
        for start in range(0, len(blocks), step):
            decoded = self.kind.decode(blocks[start : start + step, first:last])
            out[start : start + step] = decoded.reshape(len(decoded), -1)[:, columns - first * self.kind.length]
        return out if rows else out[0]
