"""What each objective makes of a store: rows, and the keys of a batch, so that shapes are known without data.

A new objective is a dataclass in `data.objective_config`, a module with its functions, and a line below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from data import denoising, fim, masked_rows, prefix, qa, replaced, seq2seq, special, supervised
from data.config import Data
from data.encoding import Encoder, TextEncoder
from data.kinds import Kind, ObjectiveRows, Spec, sequence
from data.objective_config import Objective
from data.packing import DTYPES, make_rows
from data.readers.base import Document
from data.store import Store
from data.tokenizer import Tokenizer


def causal_spec(config: Data) -> Spec:
    """The keys of `data.packing.Rows.rows`: predict the next token."""
    return sequence(config.length, DTYPES)


def causal_rows(config: Data, store: Store, seed: int, held_out: bool) -> ObjectiveRows:
    return make_rows(store, config.length, config.packing, config.long_documents)


OBJECTIVES: dict[str, Kind] = {
    "causal": Kind(causal_spec, causal_rows),
    "masked": Kind(
        masked_rows.spec,
        masked_rows.rows,
        marks=masked_rows.marks_of,
        check_tokenizer=masked_rows.check_tokenizer,
    ),
    "replaced_token": Kind(
        replaced.spec, replaced.rows, marks=replaced.marks_of, check_tokenizer=replaced.check_tokenizer
    ),
    "span_corruption": Kind(denoising.spec, denoising.rows, check_tokenizer=special.check),
    "prefix_lm": Kind(prefix.spec, prefix.rows),
    "ul2": Kind(denoising.spec, denoising.rows, check_tokenizer=special.check),
    "fim": Kind(fim.spec, fim.rows, check_tokenizer=special.check),
    "supervised": Kind(
        supervised.spec,
        supervised.rows,
        marks=supervised.marks_of,
        columns=supervised.columns,
        stored=supervised.stored,
        texts=supervised.texts,
        encoder=supervised.encoder,
        check_tokenizer=special.check,
    ),
    "seq2seq": Kind(
        seq2seq.spec,
        seq2seq.rows,
        marks=seq2seq.marks_of,
        columns=seq2seq.columns,
        stored=seq2seq.stored,
        texts=seq2seq.texts,
        encoder=seq2seq.encoder,
    ),
    "qa": Kind(
        qa.spec,
        qa.rows,
        marks=qa.marks_of,
        columns=qa.columns,
        texts=qa.texts,
        encoder=qa.encoder,
        check_tokenizer=qa.check_tokenizer,
    ),
}


def batch_spec(config: Data) -> Spec:
    """{key: (shape without the batch axis, numpy dtype, logical axes with the batch axis)} of a batch."""
    return OBJECTIVES[config.objective.name].spec(config)


def objective_rows(config: Data, store: Store, seed: int, held_out: bool = False) -> ObjectiveRows:
    """The rows of `store` under the objective; what a `held_out` store's rows draw is the same under any seed."""
    return OBJECTIVES[config.objective.name].rows(config, store, seed, held_out)


def marks_of(objective: Objective) -> tuple[str, ...]:
    """The marks that a store must hold for an objective."""
    return OBJECTIVES[objective.name].marks(objective)


def encoder_of(config: Data, tokenizer: Tokenizer) -> Encoder:
    """What makes ids and marks of the documents of a source, as the objective reads them."""
    make = OBJECTIVES[config.objective.name].encoder
    return make(config, tokenizer) if make else TextEncoder(tokenizer, marks_of(config.objective))


def columns_of(objective: Objective) -> tuple[str, ...] | None:
    """The columns of a record that an objective reads; None: its documents are plain texts."""
    return OBJECTIVES[objective.name].columns(objective)


def stored_of(config: Data) -> dict:
    """What of the objective decides, beside source, tokenizer and marks, what its stores hold."""
    return OBJECTIVES[config.objective.name].stored(config)


def texts_of(objective: Objective, documents: Iterable[Document]) -> Iterator[str]:
    """What a tokenizer is trained on of the documents of an objective."""
    return chain.from_iterable(OBJECTIVES[objective.name].texts(objective, document) for document in documents)


def check_tokenizer(config: Data, tokenizer: Tokenizer, vocab_size: int):
    """Raises ConfigError where the tokenizer lacks what the objective puts into rows, or the model has too few ids."""
    OBJECTIVES[config.objective.name].check_tokenizer(config, tokenizer, vocab_size)
