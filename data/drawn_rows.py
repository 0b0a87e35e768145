"""Rows that a function makes of packed ones and of a key: what spans, prefixes and denoisers have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from data import draws
from data.kinds import Spec
from data.packing import Rows

Row = dict[str, np.ndarray]


class DrawnRows:
    """Packed rows, each made into another by a pure function of it and of the key of (name, seed, row, epoch).

    An epoch has as many rows as the packed ones, in whose order they stand, and draws anew.
    """

    def __init__(self, inputs: Rows, spec: Spec, name: str, seed: int, make: Callable[[Row, int], Row]):
        """`make(row, key)`: of a packed row without its padding the keys of `spec`, each no longer than declared."""
        self.inputs, self.spec, self.name, self.seed, self.make = inputs, spec, name, seed, make
        self.fingerprint, self.store = inputs.fingerprint, inputs.store

    def __len__(self) -> int:
        return len(self.inputs)

    def describe(self) -> str:
        return f"{len(self):,} rows of {self.name}, made of {self.inputs.length} tokens of text at the most"

    def rows(
        self, indices: Sequence[int] | np.ndarray, count: int | None = None, epochs: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The rows `indices`, each as its epoch draws it (None: the first), then padding up to `count` rows."""
        clean, count = self.inputs.rows(indices), len(indices) if count is None else count
        batch = {key: np.zeros((count, *shape), dtype) for key, (shape, dtype, _) in self.spec.items()}
        lengths = (clean["segment_ids"] > 0).sum(axis=1)
        for place, index in enumerate(indices):
            row = {key: value[place, : lengths[place]] for key, value in clean.items()}
            for key, value in self.make(row, self.key(int(index), 0 if epochs is None else int(epochs[place]))).items():
                batch[key][place, : value.size] = value
        return batch

    def key(self, row: int, epoch: int) -> int:
        return draws.key(f"plumbline {self.name} 1:{self.seed}:{row}:{epoch}")
