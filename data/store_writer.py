"""Writes token stores: pieces of encoded documents into files, digested on their way, then one rename."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.encoding import Encoded, Encoder
from data.errors import DataError
from data.files import sha256_file, storage_errors, sync, write_durably
from data.marks import FIRST, Bits, file_name
from data.store_format import (
    DOCUMENTS,
    FORMAT,
    HEADER,
    TOKENIZER,
    VERSION,
    fingerprint,
    header_bytes,
    shard_name,
    width,
)


class Piece(NamedTuple):
    """Documents one after the other, as a store holds them."""

    ids: np.ndarray  # in the store's type, the end of text before each document's included
    lengths: np.ndarray  # uint64 [documents], in ids
    marks: dict[str, np.ndarray]  # bool [ids] by name
    max_token: int
    text_bytes: int  # of UTF-8
    left_out: int  # documents without a token


def piece(encoded: Encoded, end_of_text: int, dtype: str) -> Piece:
    """The documents of `encoded`, each behind an end of text."""
    end = np.array([end_of_text], dtype=np.uint32)
    lengths = np.array([ids.size + 1 for ids in encoded.documents], dtype=np.uint64)
    ids = np.concatenate([end[:0], *(part for ids in encoded.documents for part in (end, ids))])
    marks = {}
    for name, documents in encoded.marks.items():
        first = np.array([FIRST.get(name, False)])
        marks[name] = np.concatenate([first[:0], *(part for found in documents for part in (first, found))])
    top = int(ids.max()) if ids.size else end_of_text
    return Piece(
        ids.astype(np.dtype(dtype).newbyteorder("<")), lengths, marks, top, encoded.text_bytes, encoded.left_out
    )


def pieces(encoder: Encoder, batches: Iterable[list]) -> Iterator[Piece]:
    """A piece for each batch of documents, the next one encoded while its reader writes the last."""
    end_of_text, dtype = encoder.tokenizer.end_of_text, width(encoder.tokenizer.vocab_size)
    with ThreadPoolExecutor(1) as pool:
        pending = iter(batches)
        ahead = [pool.submit(encoder, documents) for documents in islice(pending, 1)]
        while ahead:
            ahead += [pool.submit(encoder, documents) for documents in islice(pending, 1)]
            yield piece(ahead.pop(0).result(), end_of_text, dtype)


def write_store(directory: str | os.PathLike, found: Iterable[Piece], encoder: Encoder, about: dict, shard_tokens: int):
    """Makes a store of pieces at `directory`, whole or not at all; one that is there is replaced once it is whole.

    Raises DataError when there is no document, StorageError when the disk refuses.
    """
    directory, found = Path(directory), iter(found)
    first = next(found, None)
    if first is None:
        raise DataError("No document to store: the source is empty. Check data.source.")
    with incoming(directory) as folder, storage_errors(directory):
        _fill(folder, chain([first], found), encoder, about, shard_tokens)
        sync(folder)
        _put(folder, directory)


@contextlib.contextmanager
def incoming(directory: Path) -> Iterator[Path]:
    """A new folder beside `directory`, locked as its writer's; gone behind the block, unless renamed inside it."""
    with storage_errors(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        sweep(directory)
        folder = directory.parent / f".{directory.name}.incoming-{os.getpid()}"
        folder.mkdir()
        handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


class HashedFile:
    """A new file that knows its length and digest; on the disk once it is closed."""

    def __init__(self, path: Path):
        self.name, self.bytes = path.name, 0
        self._hash = hashlib.sha256()
        self._file = open(path, "wb")  # noqa: SIM115

    def write(self, values: np.ndarray):
        content = np.ascontiguousarray(values).data.cast("B") if values.size else b""
        self._file.write(content)
        self._hash.update(content)
        self.bytes += len(content)

    def close(self):
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def record(self) -> dict:
        """What a header says of the file."""
        return {"bytes": self.bytes, "sha256": self._hash.hexdigest()}


class Shards:
    """Appends ids to tokens-*.bin in `directory`, starting a new file every `shard_tokens`."""

    def __init__(self, directory: Path, shard_tokens: int):
        self.directory, self.shard_tokens = directory, shard_tokens
        self.total, self.files = 0, []

    def write(self, ids: np.ndarray):
        while ids.size:
            room = self.shard_tokens - self.total % self.shard_tokens
            if self.total % self.shard_tokens == 0:
                self.close()
                self.files.append(HashedFile(self.directory / shard_name(len(self.files))))
            part, ids = ids[:room], ids[room:]
            self.files[-1].write(part)
            self.total += part.size

    def close(self):
        if self.files:
            self.files[-1].close()


class Writer:
    """Writes ids, borders and marks of pieces below a directory; `before` ids stand in front of them elsewhere."""

    def __init__(self, directory: Path, marks: Iterable[str], shard_tokens: int, before: int = 0):
        self.before = before
        self.shards = Shards(directory, shard_tokens)
        self.borders = HashedFile(directory / DOCUMENTS)
        self.marks = {name: Bits(HashedFile(directory / file_name(name))) for name in marks}
        self.counts = {"num_documents": 0, "text_bytes": 0, "empty_documents": 0, "max_token": 0}

    def write(self, part: Piece):
        starts = np.uint64(self.before + self.shards.total) + np.cumsum(part.lengths) - part.lengths
        self.borders.write(starts.astype("<u8"))
        self.shards.write(part.ids)
        for name, bits in self.marks.items():
            bits.write(part.marks[name])
        self.counts["num_documents"] += part.lengths.size
        self.counts["text_bytes"] += part.text_bytes
        self.counts["empty_documents"] += part.left_out
        self.counts["max_token"] = max(self.counts["max_token"], part.max_token)

    def close(self):
        for file in (self.shards, self.borders, *self.marks.values()):
            file.close()

    def files(self) -> dict[str, dict]:
        """{name: length and digest} of what was written, once it is closed."""
        written = [*self.shards.files, self.borders, *(bits.file for bits in self.marks.values())]
        return {file.name: file.record() for file in written}


def _fill(directory: Path, found: Iterable[Piece], encoder: Encoder, about: dict, shard_tokens: int):
    """Writes every file of a store into `directory`, the header last."""
    tokenizer, marks = encoder.tokenizer, sorted(encoder.marks)
    with contextlib.closing(Writer(directory, marks, shard_tokens)) as writer:
        for part in found:
            writer.write(part)
    counts = writer.counts
    if not counts["num_documents"]:
        raise DataError(f"No document to store: all {counts['empty_documents']} of them are empty. Check data.source.")
    tokenizer.save(directory / TOKENIZER)
    saved = directory / TOKENIZER
    files = {**writer.files(), TOKENIZER: {"bytes": saved.stat().st_size, "sha256": sha256_file(saved)}}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": width(tokenizer.vocab_size),
        "shard_tokens": shard_tokens,
        "num_tokens": writer.shards.total,
        **counts,
        **({"marks": marks} if marks else {}),
        "end_of_text": tokenizer.end_of_text,
        "end_of_text_token": tokenizer.end_of_text_token,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "fingerprint": fingerprint(files, tokenizer.fingerprint),
        "files": files,
        "about": about,
    }
    write_durably(directory / HEADER, header_bytes(header))


def sweep(directory: Path, kinds: tuple[str, ...] = ("incoming", "replaced")):
    """Removes what writers of `directory` that died left beside it; a living one holds a lock on its own."""
    for pattern in kinds:
        for stray in directory.parent.glob(f".{directory.name}.{pattern}-*"):
            handle = os.open(stray, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stray)
            except BlockingIOError:
                continue
            finally:
                os.close(handle)


def _put(folder: Path, directory: Path):
    """Renames `folder` to `directory`, an older store there first moved out of the way."""
    replaced = directory.parent / f".{directory.name}.replaced-{os.getpid()}"
    if directory.exists():
        directory.rename(replaced)
    folder.rename(directory)
    sync(directory.parent)
    if replaced.exists():
        shutil.rmtree(replaced)
