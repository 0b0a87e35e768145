"""Records to documents: what the objectives have in common that read records and mark some of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from data.config import Data
from data.encoding import Encoded
from data.errors import DataError
from data.mixture_config import MixtureSource
from data.readers.base import Record
from data.readers.fields import Malformed
from data.source_config import StoredSource
from data.store import Store
from data.tokenizer import Tokenizer
from data.tokenizer_config import FileTokenizer


class Example(NamedTuple):
    """A document of a store, without its end of text."""

    ids: np.ndarray  # uint32
    marked: np.ndarray  # bool, of each: what the mark says
    text: str


class Maker(Protocol):
    """Makes an example of the fields of a record."""

    tokenizer: Tokenizer
    mark: str  # the name of what an example's `marked` says

    def identity(self) -> dict:
        """JSON-able facts, beside the tokenizer, that change when the examples do."""

    def __call__(self, fields: dict[str, object]) -> Example:
        """Malformed, which completes "FILE, line 12", where there is none."""


class RecordEncoder:
    """Records to documents with one mark."""

    def __init__(self, make: Maker, tolerance: float):
        """`tolerance`: 0: the first record that is refused is an error; above: such are left out and counted."""
        self.make, self.tokenizer, self.tolerance = make, make.tokenizer, tolerance
        self.marks = (make.mark,)

    def identity(self):
        facts = {
            "encoder": f"{self.make.mark} 1",
            "tokenizer": self.tokenizer.fingerprint,
            "tolerance": self.tolerance > 0,
        }
        return {**facts, **self.make.identity()}

    def __call__(self, documents: Sequence[Record]) -> Encoded:
        found = [example for example in map(self._example, documents) if example is not None]
        return Encoded(
            [example.ids for example in found],
            {self.make.mark: [example.marked for example in found]},
            sum(len(example.text.encode()) for example in found),
            len(documents) - len(found),
        )

    def _example(self, record: Record) -> Example | None:
        try:
            return self.make(record.fields)
        except Malformed as error:
            if self.tolerance:
                return None
            raise DataError(
                f"{record.where}{error} Mend or remove it, or set data.source.tolerance to the share that may be "
                "passed over."
            ) from error


def covered(offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """bool [tokens]: whether each holds a character of a span; `offsets` int64 [tokens, 2].

    A token of no character, as some vocabularies have before a word, stands with the character behind it.
    """
    starts, stops = offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)
    found = np.zeros(len(offsets), bool)
    for start, stop in spans:
        found |= (starts < stop) & (stops > start)
    return found


def stop_of(config: Data, tokenizer: Tokenizer) -> int:
    """The token that ends texts. Of a tokenizer from a file `data.tokenizer.stop` says it, which no store keeps."""
    stop = config.tokenizer.stop if isinstance(config.tokenizer, FileTokenizer) else None
    return tokenizer.end_of_text if stop is None else tokenizer.id_of(stop)


def check_refused(config: Data, store: Store):
    """DataError where more records were left out of a store than `data.source.tolerance` allows."""
    source = config.source
    parts = [part.source for part in source.components] if isinstance(source, MixtureSource) else [source]
    tolerances = [part.tolerance for part in parts if not isinstance(part, StoredSource)]
    if not tolerances:  # whoever made the stores has judged them
        return
    refused, tolerance = store.header.get("empty_documents", 0), max(tolerances)
    whole = refused + store.num_documents
    if refused > tolerance * whole:
        raise DataError(
            f"{refused:,} of {whole:,} records of {store.directory} were refused as {config.objective.name} rows, more "
            f"than data.source.tolerance={tolerance:g} allows. Set it to 0 to be told the first of them."
        )
