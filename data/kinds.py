"""What an objective is made of: the functions that `data.objectives.OBJECTIVES` holds for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data.config import Data
from data.encoding import Encoder
from data.objective_config import Objective
from data.readers.base import Document
from data.store import Store
from data.tokenizer import Tokenizer

# {key of a batch: (shape without the batch axis, numpy dtype, logical axes with the batch axis)}
Spec = dict[str, tuple[tuple[int, ...], np.dtype, tuple[str, ...]]]

VALIDATION_SEED = 0  # of what is drawn for held-out rows, whatever the seed of the run


class ObjectiveRows(Protocol):
    """Rows with the keys of an objective, read at random. `fingerprint` is what their order depends on."""

    store: Store
    fingerprint: str

    def __len__(self) -> int: ...

    def describe(self) -> str: ...

    def rows(
        self, indices: Sequence[int] | np.ndarray, count: int | None = None, epochs: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The rows `indices`, each as its epoch draws it (None: the first), then rows of zeros up to `count`."""
        ...


def no_marks(objective: Objective) -> tuple[str, ...]:
    return ()


def plain_text(objective: Objective) -> None:
    return None


def nothing_else(config: Data) -> dict:
    return {}


def itself(objective: Objective, document: str) -> Iterable[str]:
    return (document,)


def any_tokenizer(config: Data, tokenizer: Tokenizer, vocab_size: int) -> None:
    return None


@dataclass(frozen=True)
class Kind:
    """One objective. A row of its batches is a pure function of (store, seed, row, epoch)."""

    spec: Callable[[Data], Spec]  # the keys of a batch
    rows: Callable[[Data, Store, int, bool], ObjectiveRows]  # config, store, seed, whether it is held out
    marks: Callable[[Objective], tuple[str, ...]] = no_marks  # names of the marks that a store must hold
    # The columns that documents are made of where they are records; None: they are plain texts.
    columns: Callable[[Objective], tuple[str, ...] | None] = plain_text
    # What decides, beside source, tokenizer and marks, what a store of its documents holds; JSON-able.
    stored: Callable[[Data], dict] = nothing_else
    # What a tokenizer is trained on of a document.
    texts: Callable[[Objective, Document], Iterable[str]] = itself
    # What makes ids and marks of its documents; None: `TextEncoder`, with its marks.
    encoder: Callable[[Data, Tokenizer], Encoder] | None = None
    # Config, tokenizer, ids of the model: ConfigError where the tokenizer lacks what rows hold, or the model ids.
    check_tokenizer: Callable[[Data, Tokenizer, int], None] = any_tokenizer


def sequence(length: int, dtypes: dict[str, type]) -> Spec:
    """The declaration of keys that have one value a token of a row."""
    return {key: ((length,), np.dtype(dtype), ("batch", "length")) for key, dtype in dtypes.items()}


def drawing_seed(seed: int, held_out: bool) -> int:
    """The seed that rows draw from: held-out rows are the same under any."""
    return VALIDATION_SEED if held_out else seed
