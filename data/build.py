"""Builds token stores of sources."""

from __future__ import annotations

import os

from data import store
from data.encoding import Encoder, batches
from data.sources import Reader
from data.store_writer import pieces, write_store


def build(
    directory: str | os.PathLike, reader: Reader, split: str, encoder: Encoder, about: dict, workers: int | None = None
):
    """Makes the store of a reader's `split` at `directory`, whole or not at all; `about` is kept in its header.

    Raises DataError where the documents cannot be read, StorageError when the disk refuses.
    """
    write_store(directory, pieces(encoder, batches(reader.documents(split))), encoder, about, store.SHARD_TOKENS)
