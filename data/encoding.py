"""Documents to ids: what stands between a source and a token store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from data import marks as mark_files
from data.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 21  # text handed to the tokenizer at a time


class Encoded(NamedTuple):
    documents: list[np.ndarray]  # ids, without the end of text before them
    marks: dict[str, list[np.ndarray]]  # by name, bool, of each document's ids
    text_bytes: int  # of UTF-8
    left_out: int  # documents without a token


class Encoder(Protocol):
    """Makes ids and marks of documents, each by itself; goes to worker processes as a pickle."""

    tokenizer: Tokenizer
    marks: tuple[str, ...]  # names, each of a file of the store

    def identity(self) -> dict:
        """JSON-able facts that change when what is made of a document does."""

    def __call__(self, documents: Sequence) -> Encoded:
        """The documents that hold a token, in order; DataError where one cannot be encoded."""


class TextEncoder:
    """Documents that are texts; the marks are those of `data.marks`."""

    def __init__(self, tokenizer: Tokenizer, marks: Sequence[str] = ()):
        self.tokenizer, self.marks = tokenizer, tuple(sorted(marks))

    def identity(self):
        return {"encoder": "text", "tokenizer": self.tokenizer.fingerprint, "marks": list(self.marks)}

    def __call__(self, documents):
        if self.marks:
            ids, offsets = zip(*self.tokenizer.encode_batch_with_offsets(documents), strict=True)
        else:
            ids, offsets = self.tokenizer.encode_batch(documents), [None] * len(documents)
        kept = [part for part in zip(documents, ids, offsets, strict=True) if part[1].size]
        found = {name: [mark_files.MARKS[name](text, places) for text, _, places in kept] for name in self.marks}
        size = sum(len(text.encode()) for text, _, _ in kept)
        return Encoded([ids for _, ids, _ in kept], found, size, len(documents) - len(kept))


def batches(documents: Iterable, size: int | None = None) -> Iterator[list]:
    """Documents in lists of about `size` characters (None: BATCH_CHARACTERS); what is no text, as long as it prints."""
    size = BATCH_CHARACTERS if size is None else size
    found, characters = [], 0
    for document in documents:
        found.append(document)
        characters += len(document if isinstance(document, str) else str(document))
        if characters >= size:
            yield found
            found, characters = [], 0
    if found:
        yield found
