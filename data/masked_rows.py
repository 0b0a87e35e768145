"""The masked objective: rows of clean tokens or pairs of sentences, masked by `data.masking`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data import marks
from data.config import Data
from data.errors import ConfigError
from data.kinds import Spec, drawing_seed, sequence
from data.masking import Vocabulary, keys, mask, unslotted
from data.objective_config import MaskedObjective
from data.packing import Rows, make_rows
from data.sentence_pairs import PairRows, pair_index
from data.store import Store
from data.tokenizer import Tokenizer

INPUTS = dict.fromkeys(("tokens", "token_types", "segment_ids", "positions"), np.int32)  # [length]
PREDICTIONS = {"masked_positions": np.int32, "targets": np.int32, "weights": np.float32}  # [max_predictions]


def spec(config: Data) -> Spec:
    """The keys of `MaskedRows.rows`: predict masked tokens, and whether sentences are neighbours."""
    slots = (config.objective.max_predictions,)
    predictions = {key: (slots, np.dtype(dtype), ("batch", "predictions")) for key, dtype in PREDICTIONS.items()}
    pairs = {"next_sentence": ((), np.dtype(np.int32), ("batch",))} if config.objective.next_sentence else {}
    return {**sequence(config.length, INPUTS), **predictions, **pairs}


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
        shown = f"{len(self):,} rows of at most {self.objective.max_predictions} predictions"
        left = unslotted(self.objective, self.inputs.length)
        return f"{shown}; {left:.3g} tokens of a row more are chosen in the mean, and find no slot" if left else shown

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
            begins = self._word_starts(kept["positions"], indices)
        return {**kept, **mask(self.objective, self.vocabulary, kept["tokens"], lengths, begins, found)}

    def _word_starts(self, positions: np.ndarray, indices) -> np.ndarray:
        """bool [rows, length]: where words begin; the rest of a cut document goes on with no neighbour's word."""
        begins = positions == 0
        begins[: len(indices)] |= self.inputs.marked(marks.WORDS, indices)
        return begins

    def _copies(self, indices, epochs) -> Sequence[int]:
        """Which of its sets of masks each row takes. Pairs have one a row, their copies being rows of their own."""
        if epochs is None or (self.objective.next_sentence and self.objective.copies is not None):
            return [0] * len(indices)
        return epochs if self.objective.copies is None else epochs % self.objective.copies


def rows(config: Data, store: Store, seed: int, held_out: bool) -> MaskedRows:
    """The masked rows of a store; those of one that is held out have one copy."""
    return MaskedRows(*parts(config, store, seed, held_out))


def parts(config: Data, store: Store, seed: int, held_out: bool) -> tuple:
    """What `MaskedRows` is made of, for a store under a masked objective."""
    objective, tokenizer = config.objective, store.tokenizer
    seed, copies = drawing_seed(seed, held_out), 1 if held_out else objective.copies or 1
    inputs: Rows | PairRows
    if objective.next_sentence:
        index = pair_index(store, config.length, objective.short_rate, copies, seed)
        inputs = PairRows(store, config.length, index)
    else:
        inputs = make_rows(store, config.length, config.packing, config.long_documents)
    special = {tokenizer.cls, tokenizer.sep, tokenizer.mask, tokenizer.pad, tokenizer.end_of_text} - {None}
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.mask, tuple(sorted(special)))
    return inputs, objective, vocabulary, seed


def marks_of(objective: MaskedObjective) -> tuple[str, ...]:
    """The marks that a store must hold."""
    wanted = {marks.SENTENCES: objective.next_sentence, marks.WORDS: objective.whole_word}
    return tuple(name for name, asked in wanted.items() if asked)


def check_tokenizer(config: Data, tokenizer: Tokenizer, vocab_size: int, name: str = "masked"):
    """Raises ConfigError where the tokenizer lacks a token that rows hold, or the model has too few ids.

    `name` is that of the objective.
    """
    wanted = ("mask", "cls", "sep") if config.objective.next_sentence else ("mask",)
    missing = [name for name in wanted if getattr(tokenizer, name) is None]
    if missing:
        raise ConfigError(
            f"The tokenizer of data.tokenizer.name={config.tokenizer.name} has no {' and no '.join(missing)} token, "
            f"which data.objective.name={name} needs. Take an encoder's tokenizer, or data.tokenizer.name=wordpiece."
        )
    if tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            f"model.vocab_size is {vocab_size}, but rows of {name} hold any of the tokenizer's {tokenizer.vocab_size} "
            "ids; the model needs as many."
        )
