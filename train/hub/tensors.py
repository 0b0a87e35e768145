"""Tensors of a checkpoint that are read in parts: what every reader of a file format gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

Selector = slice | np.ndarray  # places on one axis
BLOCK = 1 << 22  # elements compared at a time


class Tensor(Protocol):
    shape: tuple[int, ...]
    floating: bool  # whether its elements are floating-point numbers

    def take(self, *selectors: Selector) -> np.ndarray:
        """The elements at the places chosen on each axis: only these are read."""
        ...


class ArrayTensor:
    """A numpy array, in memory or mapped from a file."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.shape = array.shape
        # bfloat16 is no floating type to numpy, but of the kind of foreign types.
        self.floating = array.dtype.kind in "fV"

    def take(self, *selectors: Selector) -> np.ndarray:
        found = self.array
        for axis, selector in enumerate(selectors):
            found = found[(slice(None),) * axis + (selector,)]
        return found


def in_memory(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Tensors of arrays by name, such as those of a PyTorch `state_dict` made numpy arrays."""
    return {name: ArrayTensor(np.asarray(array)) for name, array in arrays.items()}


def equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same numbers; reads a block of rows at a time."""
    if first.shape != second.shape:
        return False
    rows = max(1, BLOCK // max(1, int(np.prod(first.shape[1:]))))
    others = (slice(None),) * (len(first.shape) - 1)
    starts = range(0, first.shape[0], rows) if first.shape else []
    parts = (slice(start, start + rows) for start in starts)
    return all(np.array_equal(first.take(part, *others), second.take(part, *others)) for part in parts)
