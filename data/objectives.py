"""What each objective makes of a store: rows, and the keys of a batch, so that shapes are known without data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from data import marks
from data.config import Data
from data.errors import ConfigError
from data.masking import Vocabulary, keys, mask
from data.objective_config import CausalObjective, MaskedObjective
from data.packing import DTYPES, Rows, make_rows
from data.sentence_pairs import PairRows, pair_index
from data.store import Store
from data.tokenizer import Tokenizer

Spec = dict[str, tuple[tuple[int, ...], np.dtype, tuple[str, ...]]]

VALIDATION_SEED = 0
INPUTS = ("tokens", "token_types", "segment_ids", "positions")  # int32 [length]
PREDICTIONS = {"masked_positions": np.int32, "targets": np.int32, "weights": np.float32}  # [max_predictions]


def causal_spec(config: Data) -> Spec:
    """The keys of `data.packing.Rows.row`: predict the next token."""
    return {key: ((config.length,), np.dtype(dtype), ("batch", "length")) for key, dtype in DTYPES.items()}


def masked_spec(config: Data) -> Spec:
    """The keys of `MaskedRows.rows`: predict masked tokens, and whether sentences are neighbours."""
    inputs = {key: ((config.length,), np.dtype(np.int32), ("batch", "length")) for key in INPUTS}
    slots = (config.objective.max_predictions,)
    predictions = {key: (slots, np.dtype(dtype), ("batch", "predictions")) for key, dtype in PREDICTIONS.items()}
    pairs = {"next_sentence": ((), np.dtype(np.int32), ("batch",))} if config.objective.next_sentence else {}
    return {**inputs, **predictions, **pairs}


class MaskedRows:
    """Rows of clean tokens, masked.

    `inputs` are those of data.packing or data.sentence_pairs. As there, padding is 0 in every key.
    """

    def __init__(self, inputs: Rows | PairRows, objective: MaskedObjective, vocabulary: Vocabulary, seed: int):
        self.inputs, self.objective, self.vocabulary, self.seed = inputs, objective, vocabulary, seed
        self.fingerprint, self.store = inputs.fingerprint, inputs.store

    def __len__(self) -> int:
        return len(self.inputs)

    def describe(self) -> str:
        return f"{len(self):,} rows of at most {self.objective.max_predictions} predictions"

    def rows(
        self, indices: Sequence[int] | np.ndarray, count: int | None = None, epochs: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The rows `indices`, each as its epoch masks it (None: the first), then padding up to `count` rows."""
        batch = self.inputs.rows(indices, count)
        kept = {key: batch[key] for key in (*INPUTS, "next_sentence") if key in batch}
        if "token_types" not in kept:
            kept["token_types"] = np.zeros_like(kept["tokens"])
        lengths = (kept["segment_ids"] > 0).sum(axis=1)
        found, begins = np.zeros(len(lengths), np.uint64), None
        found[: len(indices)] = keys(self.seed, indices, self._copies(indices, epochs))
        if self.objective.whole_word:
            begins = np.zeros(kept["tokens"].shape, bool)
            begins[: len(indices)] = self.inputs.marked(marks.WORDS, indices)
        return {**kept, **mask(self.objective, self.vocabulary, kept["tokens"], lengths, begins, found)}

    def _copies(self, indices, epochs) -> Sequence[int]:
        """Which of its sets of masks each row takes. Pairs have one a row, their copies being rows of their own."""
        if epochs is None or (self.objective.next_sentence and self.objective.copies is not None):
            return [0] * len(indices)
        return epochs if self.objective.copies is None else epochs % self.objective.copies


def marks_of(objective: CausalObjective | MaskedObjective) -> tuple[str, ...]:
    """The marks that a store must hold for an objective."""
    if not isinstance(objective, MaskedObjective):
        return ()
    wanted = {marks.SENTENCES: objective.next_sentence, marks.WORDS: objective.whole_word}
    return tuple(name for name, asked in wanted.items() if asked)


def check_tokenizer(config: Data, tokenizer: Tokenizer, vocab_size: int):
    """Raises ConfigError where the tokenizer lacks what the objective puts into rows, or the model has too few ids."""
    if not isinstance(config.objective, MaskedObjective):
        return
    wanted = ("mask", "cls", "sep") if config.objective.next_sentence else ("mask",)
    missing = [name for name in wanted if getattr(tokenizer, name) is None]
    if missing:
        raise ConfigError(
            f"The tokenizer of data.tokenizer.name={config.tokenizer.name} has no {' and no '.join(missing)} token, "
            "which data.objective.name=masked needs. Take an encoder's tokenizer, or data.tokenizer.name=wordpiece."
        )
    if tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            f"model.vocab_size is {vocab_size}, but masked rows hold any of the tokenizer's {tokenizer.vocab_size} "
            "ids; the model needs as many."
        )


def objective_rows(config: Data, store: Store, seed: int, held_out: bool = False) -> Rows | MaskedRows:
    """The rows of `store` under the objective; those of a `held_out` store have one copy, the same under any seed."""
    objective, tokenizer = config.objective, store.tokenizer
    if not isinstance(objective, MaskedObjective):
        return make_rows(store, config.length, config.packing)
    seed, copies = (VALIDATION_SEED, 1) if held_out else (seed, objective.copies or 1)
    inputs: Rows | PairRows
    if objective.next_sentence:
        index = pair_index(store, config.length, objective.short_rate, copies, seed)
        inputs = PairRows(store, config.length, index)
    else:
        inputs = make_rows(store, config.length, config.packing)
    special = {tokenizer.cls, tokenizer.sep, tokenizer.mask, tokenizer.pad, tokenizer.end_of_text} - {None}
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.mask, tuple(sorted(special)))
    return MaskedRows(inputs, objective, vocabulary, seed)


SPECS: dict[str, Callable[[Data], Spec]] = {"causal": causal_spec, "masked": masked_spec}


def batch_spec(config: Data) -> Spec:
    """{key: (shape without the batch axis, numpy dtype, logical axes with the batch axis)} of a batch."""
    return SPECS[config.objective.name](config)
