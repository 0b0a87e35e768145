"""The objective replaced_token: tokens masked for a generator, whose samples a discriminator tells from the text.

Clark et al. 2020, section 2. A batch holds what the generator reads and predicts, as masked batches do, and the
weights of the discriminator's labels: 1 for each token that is no padding, special ones included. What the
discriminator reads and its labels come of the generator's samples, by `replace`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data import masked_rows
from data.config import Data
from data.kinds import Spec, sequence
from data.masked_rows import MaskedRows
from data.objective_config import MaskedObjective, ReplacedTokenObjective
from data.store import Store
from data.tokenizer import Tokenizer

LABELS = {"label_weights": np.float32}  # [length]


def masked(config: Data) -> Data:
    """The configuration under which the generator's part of a batch is masked."""
    return dataclasses.replace(config, objective=masks(config.objective))


def masks(objective: ReplacedTokenObjective) -> MaskedObjective:
    """The generator's objective."""
    return MaskedObjective(**{key: value for key, value in vars(objective).items() if key != "name"})


def spec(config: Data) -> Spec:
    """The keys of masked rows, and those of LABELS."""
    return {**masked_rows.spec(masked(config)), **sequence(config.length, LABELS)}


def rows(config: Data, store: Store, seed: int, held_out: bool) -> ReplacedRows:
    return ReplacedRows(*masked_rows.parts(masked(config), store, seed, held_out))


def marks_of(objective: ReplacedTokenObjective) -> tuple[str, ...]:
    """The marks that a store must hold."""
    return masked_rows.marks_of(masks(objective))


def check_tokenizer(config: Data, tokenizer: Tokenizer, vocab_size: int):
    """Raises ConfigError where the tokenizer has no mask, or the model too few ids."""
    masked_rows.check_tokenizer(masked(config), tokenizer, vocab_size, config.objective.name)


def replace(tokens, places, targets, weights, sampled):
    """(what the discriminator reads, its labels), int32 [rows, length]: a label is 1 where a token is not the text's.

    Of a batch `tokens`, `masked_positions`, `targets` and `weights`; `sampled` integers [rows, predictions]: the
    generator's token for each prediction. One that is right counts as the text's. All arrays are NumPy's, or all
    JAX's.
    """
    array = tokens.__array_namespace__()
    # Which token of the row each prediction is; those of no weight are none.
    here = (places[:, :, None] == array.arange(tokens.shape[1])[None, None, :]) & (weights > 0)[:, :, None]
    predicted = array.any(here, axis=1)

    def put(values):
        found = array.sum(array.where(here, values[:, :, None], 0), axis=1)
        return array.where(predicted, found, tokens).astype(tokens.dtype)

    read = put(sampled)
    return read, (read != put(targets)).astype(tokens.dtype)


class ReplacedRows(MaskedRows):
    """Masked rows with the weights of the discriminator's labels."""

    def rows(self, indices, count=None, epochs=None) -> dict[str, np.ndarray]:
        batch = super().rows(indices, count, epochs)
        return {**batch, "label_weights": (batch["segment_ids"] > 0).astype(np.float32)}
