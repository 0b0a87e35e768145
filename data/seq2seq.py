"""The objective seq2seq: a target is predicted from its source, by an encoder and a decoder. A row is one pair.

The encoder reads the source and the token that ends texts; the decoder reads the end of text, which begins it, and the
target, and predicts the target and the token that ends it (Sutskever et al. 2014, section 2). Both sides are encoded by
themselves.

A source, with its end, longer than `data.length`, or a target longer than `target_length`, is cut there under
`data.long_documents=split`, and a target that is cut has no end to predict; under drop its pair is left out. Both are
counted. A stored document is the source and the target behind it, with the mark `answers` on the target.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from data import arrangements
from data.config import Data
from data.errors import DataError
from data.files import canonical_json
from data.kinds import Spec
from data.marks import ANSWERS
from data.objective_config import Seq2SeqObjective
from data.readers.base import Record
from data.readers.fields import text_of
from data.record_encoder import Example, RecordEncoder, check_refused, stop_of
from data.schema import to_plain
from data.store import SHARD_TOKENS, Store
from data.tokenizer import Tokenizer

ENDS = 1  # tokens behind a source, and behind a target


class Pairs:
    """Records to documents: the source, and the target behind it."""

    mark = ANSWERS

    def __init__(self, tokenizer: Tokenizer, source: str, target: str):
        """`source`, `target`: the columns."""
        self.tokenizer, self.source, self.target = tokenizer, source, target

    def identity(self):
        return {"source": self.source, "target": self.target}

    def __call__(self, fields):
        both = [text_of(fields[name], repr(name)) for name in (self.source, self.target)]
        source, target = self.tokenizer.encode_batch(both)
        marked = np.arange(source.size + target.size) >= source.size
        return Example(np.concatenate([source, target]), marked, "".join(both))


class PairRows:
    """A row for each pair, in the order of the store.

    Attributes:
      cut_sources, cut_targets, dropped: how many are longer than their side: cut, or left out with their pairs.
    """

    def __init__(self, store: Store, length: int, target_length: int, end: int, drop: bool):
        """`end`: the token behind each side. DataError where every pair is left out."""
        self.store, self.length, self.target_length = store, length, target_length
        self.start, self.end = store.end_of_text, end
        self.spec = arrangements.spec("encoder_decoder", length, target_length)
        self.fingerprint = hashlib.sha256(
            canonical_json([store.fingerprint, "seq2seq 1", length, target_length, end, drop])
        ).hexdigest()
        targets = _marked(store)
        sources = np.diff(store.document_starts.astype(np.int64), append=store.num_tokens) - 1 - targets
        long_source, long_target = sources + ENDS > length, targets + ENDS > target_length
        self._targets, self._kept = targets, np.arange(store.num_documents)
        self.cut_sources, self.cut_targets, self.dropped = int(long_source.sum()), int(long_target.sum()), 0
        if drop:
            self._kept = np.flatnonzero(~(long_source | long_target))
            self.cut_sources, self.cut_targets, self.dropped = 0, 0, store.num_documents - self._kept.size
        if not self._kept.size:
            raise DataError(
                f"Every pair of {store.directory} has more than data.length={length} tokens in its source or "
                f"data.objective.target_length={target_length} in its target, ends included, and "
                "data.long_documents=drop leaves these out. Raise one, or set data.long_documents=split."
            )

    def __len__(self) -> int:
        return int(self._kept.size)

    def describe(self) -> str:
        return (
            f"{len(self):,} pairs; {self.cut_sources:,} sources cut, {self.cut_targets:,} targets cut, "
            f"{self.dropped:,} pairs dropped"
        )

    def row(self, index: int) -> arrangements.Row:
        """One row, without padding."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        document = int(self._kept[index])
        ids = self.store.document(document)[1:].astype(np.int32)
        border = ids.size - int(self._targets[document])
        source = np.append(ids[:border][: self.length - ENDS], np.int32(self.end))
        target = np.append(ids[border:], np.int32(self.end))[: self.target_length]
        return arrangements.arrange("encoder_decoder", source, target, self.start)

    def rows(
        self, indices: Sequence[int] | np.ndarray, count: int | None = None, epochs: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The rows `indices`, then padding up to `count` rows; the same in all `epochs`."""
        count = len(indices) if count is None else count
        batch = {key: np.zeros((count, *shape), dtype) for key, (shape, dtype, _) in self.spec.items()}
        for place, index in enumerate(indices):
            for key, value in self.row(int(index)).items():
                batch[key][place, : value.size] = value
        return batch


def _marked(store: Store) -> np.ndarray:
    """int64 [documents]: how many tokens of each are of its target."""
    starts, found = store.document_starts.astype(np.int64), np.zeros(store.num_documents, np.int64)
    for start in range(0, store.num_tokens, SHARD_TOKENS):
        stop = min(start + SHARD_TOKENS, store.num_tokens)
        places = np.flatnonzero(store.marked(ANSWERS, start, stop)) + start
        places = places[~np.isin(places, starts)]  # the ends of text before the documents are marked, too
        found += np.bincount(np.searchsorted(starts, places, side="right") - 1, minlength=store.num_documents)
    return found


def spec(config: Data) -> Spec:
    """The keys of `PairRows.rows`."""
    return arrangements.spec("encoder_decoder", config.length, config.objective.target_length)


def rows(config: Data, store: Store, seed: int, held_out: bool) -> PairRows:
    """The pairs of a store. DataError where too many records were refused."""
    check_refused(config, store)
    end, drop = stop_of(config, store.tokenizer), config.long_documents == "drop"
    return PairRows(store, config.length, config.objective.target_length, end, drop)


def marks_of(objective: Seq2SeqObjective) -> tuple[str, ...]:
    return (ANSWERS,)


def columns(objective: Seq2SeqObjective) -> tuple[str, ...]:
    return objective.source, objective.target


def stored(config: Data) -> dict:
    """What decides, beside source and tokenizer, what a store holds."""
    return {key: value for key, value in to_plain(config.objective).items() if key != "target_length"}


def encoder(config: Data, tokenizer: Tokenizer) -> RecordEncoder:
    objective = config.objective
    return RecordEncoder(Pairs(tokenizer, objective.source, objective.target), config.source.tolerance)


def texts(objective: Seq2SeqObjective, record: Record) -> Iterator[str]:
    """What a tokenizer is trained on of a record."""
    yield from (str(record.fields[name]) for name in columns(objective))
