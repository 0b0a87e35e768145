"""The token store: documents as ids on disk, written once, checksummed, read at random.

A store is a directory:

    header.json        counts, widths, the digest of every other file; written last
    tokens-00000.bin   little-endian ids of all documents, one after the other, SHARD_TOKENS a file
    documents.bin      little-endian uint64: the offset in tokens at which each document starts
    words.bin, sentences.bin   where they were asked for: a bit a token, whether it begins one (data.marks)
    tokenizer.json     what made the ids

    appended-00001/    where documents were appended (data.store_append): their ids, and the offsets and marks of
                       all documents up to them, which then count instead of those above

A stored document is `<end of text> t1 ... tn`, n >= 1. Boundaries are recorded, never guessed from ids. A
store is made in a sibling directory and renamed when it is whole, so one that is there is whole.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from data import marks as mark_files
from data import verified
from data.encoding import TextEncoder, batches
from data.errors import DataError
from data.store_format import (
    DOCUMENTS,
    HEADER,
    TOKENIZER,
    appended_name,
    check_size,
    read_header,
    remedy,
    shard_name,
)
from data.store_writer import pieces, write_store
from data.tokenizer import Tokenizer, load

SHARD_TOKENS = 1 << 28  # a constant of the format: the fingerprint is taken of whole shards


def write(
    directory: str | os.PathLike,
    documents: Iterable[str],
    tokenizer: Tokenizer,
    *,
    about: dict,
    marks: tuple[str, ...] = (),
):
    """Tokenizes `documents`, in this process, into a new store at `directory`, whole or not at all.

    An older store there is replaced once the new one is whole. Documents without a token hold nothing to
    learn: they are left out and counted in the header. `about` is kept in the header as it is, `marks` names
    those of `data.marks` that the store shall hold. `data.build` makes stores of sources, on many processes.

    Raises DataError when there is no document, StorageError when the disk refuses.
    """
    encoder = TextEncoder(tokenizer, marks)
    write_store(directory, pieces(encoder, batches(documents)), encoder, about, SHARD_TOKENS)


class Stream:
    """Documents one after the other, each `<end of text> t1 ... tn`; `Store` says what the attributes are."""

    directory: Path
    header: dict
    num_tokens: int
    num_documents: int
    text_bytes: int | None
    max_token: int
    end_of_text: int
    marks: tuple[str, ...]
    fingerprint: str
    dtype: np.dtype
    document_starts: np.ndarray
    tokenizer: Tokenizer

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Ids [stop - start] of the stream, in `dtype`; a view of the disk where they lie together there.

        Raises IndexError outside 0 <= start <= stop <= num_tokens.
        """
        raise NotImplementedError

    def _check(self, start: int, stop: int):
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.num_tokens} in {self.directory}")

    def bounds(self, index: int) -> tuple[int, int]:
        """Offsets in tokens at which a document starts and ends."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents} in {self.directory}")
        last = index + 1 == self.num_documents
        stop = self.num_tokens if last else int(self.document_starts[index + 1])
        return int(self.document_starts[index]), stop

    def document(self, index: int) -> np.ndarray:
        """Ids of a document, its leading end of text included."""
        return self.tokens(*self.bounds(index))

    def verify(self, every_byte: bool = True):
        """Raises DataError that names each file that is changed, missing or foreign.

        Reads every byte; unless `every_byte`, those files of a large store that `data.verified` remembers are not read.
        """
        raise NotImplementedError


class Store(Stream):
    """A store, opened: sizes, format and the header's own digest are checked now, contents by `verify`.

    Attributes:
      directory: where it lies.    header: what header.json says.
      num_tokens, num_documents, text_bytes, max_token, end_of_text: Python integers; text_bytes, of UTF-8, is
        None where nobody knows.
      marks: the names of those it holds.
      fingerprint: hexadecimal SHA-256 of tokens, boundaries, marks and tokenizer.
      document_starts: uint64 [num_documents], memory-mapped: the offset of each document's end of text.
    """

    def __init__(self, directory: str | os.PathLike):
        """Raises DataError that names the file when anything is not as the header says."""
        self.directory = Path(directory)
        self.header = read_header(self.directory / HEADER)
        for name, record in self.header["files"].items():
            check_size(self.directory / name, record["bytes"])
        self.num_tokens: int = self.header["num_tokens"]
        self.num_documents: int = self.header["num_documents"]
        self.text_bytes: int = self.header["text_bytes"]
        self.max_token: int = self.header["max_token"]
        self.end_of_text: int = self.header["end_of_text"]
        self.fingerprint: str = self.header["fingerprint"]
        self.dtype = np.dtype(self.header["dtype"]).newbyteorder("<")
        folders = ["", *(part["folder"] for part in self.header.get("appended", ()))]
        sizes = [part["num_tokens"] for part in self.header.get("appended", ())]
        newest, size = folders[-1], self.header["shard_tokens"]
        self.document_starts = self._map(newest, DOCUMENTS, np.dtype("<u8"))
        # All of them now: files opened later could be those of a store that replaced this one.
        self._shards, self._starts, start = [], [], 0
        for folder, count in zip(folders, [self.num_tokens - sum(sizes), *sizes], strict=True):
            self._shards += [self._map(folder, shard_name(index), self.dtype) for index in range(-(-count // size))]
            self._starts += range(start, start + count, size)
            start += count
        self.marks: tuple[str, ...] = tuple(self.header.get("marks", ()))  # stores had none before there were any
        self._marks = {name: self._map(newest, mark_files.file_name(name), np.dtype("u1")) for name in self.marks}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids. Raises DataError when its file is not the one the header means."""
        path = self.directory / TOKENIZER
        loaded = load(path, self.header["end_of_text_token"])
        if loaded.fingerprint != self.header["tokenizer_fingerprint"]:
            raise DataError(f"{path} is damaged. {remedy(self.directory)}")
        return loaded

    def tokens(self, start, stop):
        self._check(start, stop)
        index = bisect.bisect_right(self._starts, start) - 1
        offset = start - self._starts[index]
        found = self._shards[index][offset : offset + stop - start]
        if found.size == stop - start:
            return found
        parts = [found]
        while (start := start + parts[-1].size) < stop:
            index += 1
            parts.append(self._shards[index][: stop - start])
        return np.concatenate(parts)

    def marked(self, name: str, start: int, stop: int) -> np.ndarray:
        """bool [stop - start]: whether each token of the stream begins a word, or a sentence."""
        return mark_files.read(self._marks[name], start, stop)

    def verify(self, every_byte=True):
        found = problems(self.directory, self.header, every_byte)
        if found:
            raise DataError(f"{' '.join(found)} {remedy(self.directory)}")

    def _map(self, folder: str, name: str, dtype: np.dtype) -> np.ndarray:
        # Slices of a plain array are several times cheaper than slices of numpy's memmap class.
        return np.memmap(self.directory / folder / name, dtype=dtype, mode="r").view(np.ndarray)


def problems(directory: Path, header: dict, every_byte: bool = True) -> list[str]:
    """What is wrong with the files of a store, one sentence each: changed, missing or foreign ones.

    The folder that the next append will make is passed over: one that was killed may have left it.
    """
    known = {HEADER, *header["files"]}
    known |= {os.path.dirname(name) for name in known}
    unfinished = directory / appended_name(len(header.get("appended", ())) + 1)
    found = [
        f"{path} is no part of the token store around it: move it elsewhere."
        for path in sorted(directory.rglob("*"))
        if str(path.relative_to(directory)) not in known and unfinished not in (path, *path.parents)
    ]
    return found + verified.problems(directory, header["files"], every_byte)


def check_vocabulary(store: Store, vocab_size: int):
    """Raises DataError, naming the first offending token, when the store holds an id that the model lacks."""
    if store.max_token < vocab_size:
        return
    for start in range(0, store.num_tokens, SHARD_TOKENS):
        ids = store.tokens(start, min(start + SHARD_TOKENS, store.num_tokens))
        beyond = np.flatnonzero(ids >= vocab_size)
        if beyond.size:
            raise DataError(
                f"Token {start + int(beyond[0])} of {store.directory} is {int(ids[beyond[0]])}, but "
                f"model.vocab_size is {vocab_size}. Set model.vocab_size to at least "
                f"{store.header['vocab_size']}, or choose a smaller tokenizer."
            )


if __name__ == "__main__":
    from data import store_command
    from data.cli import run_command

    run_command(store_command.main)
