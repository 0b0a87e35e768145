"""GGUF files made by hand, from the format's description alone."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

F32, F16, Q4_0, Q4_1, Q8_0 = 0, 1, 2, 3, 8
ALIGNMENT = 32


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def typed(value: Any) -> bytes:
    """A value behind its type: text, uint32, float32, bool, or an array of text or of int32."""
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    return struct.pack("<IIQ", 9, 5, len(value)) + np.asarray(value, "<i4").tobytes()


def gguf(metadata: dict, tensors: dict[str, tuple[tuple[int, ...], int, bytes]], version: int = 3) -> bytes:
    """A file of `{name: (shape in numpy's order, type, data)}`."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + typed(value) for key, value in metadata.items())
    data = b""
    for name, (shape, code, content) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], code, len(data))
        data += content + bytes(-len(content) % ALIGNMENT)
    return head + bytes(-len(head) % ALIGNMENT) + data


def f32(array: np.ndarray) -> tuple[tuple[int, ...], int, bytes]:
    return array.shape, F32, array.astype("<f4").tobytes()


def q8_0(array: np.ndarray) -> tuple[tuple[int, ...], int, bytes]:
    """Blocks of 32 along the last axis, each a float16 scale and 32 signed bytes."""
    blocks = array.reshape(-1, 32)
    scales = np.abs(blocks).max(axis=1) / 127
    packed = b"".join(
        np.float16(scale).tobytes() + np.round(block / (scale or 1)).astype("i1").tobytes()
        for block, scale in zip(blocks, scales, strict=True)
    )
    return array.shape, Q8_0, packed
