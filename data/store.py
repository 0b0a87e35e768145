"""The token store: documents as ids on disk, written once, checksummed, read at random.

A store is a directory:

    header.json        counts, widths, the digest of every other file; written last
    tokens-00000.bin   little-endian ids of all documents, one after the other, SHARD_TOKENS a file
    documents.bin      little-endian uint64: the offset in tokens at which each document starts
    words.bin, sentences.bin   where they were asked for: a bit a token, whether it begins one (data.marks)
    tokenizer.json     what made the ids

A stored document is `<end of text> t1 ... tn`, n >= 1. Boundaries are recorded, never guessed from ids. A
store is made in a sibling directory and renamed when it is whole, so one that is there is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import marks as mark_files
from data.errors import DataError
from data.files import canonical_json, sha256_file, storage_errors, sync, write_durably
from data.tokenizer import Tokenizer, load

FORMAT = "plumbline token store"
VERSION = 1
SHARD_TOKENS = 1 << 28  # a constant of the format: the fingerprint is taken of whole shards
BATCH_CHARACTERS = 1 << 21  # text handed to the tokenizer at a time
WIDTHS = ("uint8", "uint16", "uint32")


class Encoded(NamedTuple):
    documents: list[np.ndarray]  # ids
    marks: dict[str, list[np.ndarray]]  # by name, of each document's ids
    text_bytes: int  # of UTF-8
    left_out: int  # documents without a token


def width(vocab_size: int) -> str:
    """The narrowest unsigned type that holds the ids below `vocab_size`."""
    return next(name for name in WIDTHS if vocab_size - 1 <= np.iinfo(name).max)


def write(
    directory: str | os.PathLike,
    documents: Iterable[str],
    tokenizer: Tokenizer,
    *,
    about: dict,
    marks: tuple[str, ...] = (),
):
    """Tokenizes `documents` on all cores into a new store at `directory`, whole or not at all.

    An older store there is replaced once the new one is whole. Documents without a token hold nothing to
    learn: they are left out and counted in the header. `about` is kept in the header as it is, `marks` names
    those of `data.marks` that the store shall hold.

    Raises DataError when there is no document, StorageError when the disk refuses.
    """
    directory = Path(directory)
    encoded = _encode(documents, tokenizer, marks)
    first = next(encoded, None)
    if first is None:
        raise DataError("No document to store: the source is empty. Check data.source.")
    with storage_errors(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        incoming = directory.parent / f".{directory.name}.incoming-{os.getpid()}"
        incoming.mkdir()
        handle = os.open(incoming, os.O_RDONLY)
    try:
        with storage_errors(directory):
            fcntl.flock(handle, fcntl.LOCK_EX)
            _fill(incoming, first, encoded, tokenizer, about)
            sync(incoming)
            _put(incoming, directory)
    except BaseException:
        shutil.rmtree(incoming, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def _encode(documents: Iterable[str], tokenizer: Tokenizer, marks: tuple[str, ...]) -> Iterator[Encoded]:
    """Documents in batches, the next one encoded while its reader writes the last."""

    def batches():
        texts, characters = [], 0
        for text in documents:
            texts.append(text)
            characters += len(text)
            if characters >= BATCH_CHARACTERS:
                yield texts
                texts, characters = [], 0
        if texts:
            yield texts

    def encode(texts):
        if marks:
            ids, offsets = zip(*tokenizer.encode_batch_with_offsets(texts), strict=True)
        else:
            ids, offsets = tokenizer.encode_batch(texts), [None] * len(texts)
        kept = [part for part in zip(texts, ids, offsets, strict=True) if part[1].size]
        found = {name: [mark_files.MARKS[name](text, places) for text, _, places in kept] for name in marks}
        size = sum(len(text.encode()) for text, _, _ in kept)
        return Encoded([ids for _, ids, _ in kept], found, size, len(texts) - len(kept))

    with ThreadPoolExecutor(1) as pool:
        pending = batches()
        ahead = [pool.submit(encode, texts) for texts in islice(pending, 1)]
        while ahead:
            ahead += [pool.submit(encode, texts) for texts in islice(pending, 1)]
            yield ahead.pop(0).result()


class _Shards:
    """Appends ids to tokens-*.bin, starting a new file every SHARD_TOKENS."""

    def __init__(self, directory: Path, dtype: np.dtype):
        self.directory, self.dtype = directory, dtype
        self.total, self.files = 0, []
        self._file = None

    def append(self, ids: np.ndarray):
        while ids.size:
            room = SHARD_TOKENS - self.total % SHARD_TOKENS
            if self.total % SHARD_TOKENS == 0:
                self.close()
                self.files.append(f"tokens-{len(self.files):05d}.bin")
                self._file = open(self.directory / self.files[-1], "wb")  # noqa: SIM115
            part, ids = ids[:room], ids[room:]
            self._file.write(part.astype(self.dtype, copy=False).data)
            self.total += part.size

    def close(self):
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def _fill(directory: Path, first: Encoded, encoded: Iterator[Encoded], tokenizer: Tokenizer, about: dict):
    """Writes every file of a store into `directory`, the header last."""
    shards, marks = _Shards(directory, np.dtype(width(tokenizer.vocab_size)).newbyteorder("<")), sorted(first.marks)
    try:
        counts = _write_documents(directory, shards, chain([first], encoded), tokenizer.end_of_text, marks)
    finally:
        shards.close()
    if not counts["num_documents"]:
        raise DataError(f"No document to store: all {counts['empty_documents']} of them are empty. Check data.source.")
    tokenizer.save(directory / "tokenizer.json")
    names = [*shards.files, "documents.bin", *map(mark_files.file_name, marks), "tokenizer.json"]
    files = {
        name: {"bytes": (directory / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, _digests(directory, names), strict=True)
    }
    header = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": shards.dtype.name,
        "shard_tokens": SHARD_TOKENS,
        "num_tokens": shards.total,
        **counts,
        **({"marks": marks} if marks else {}),
        "end_of_text": tokenizer.end_of_text,
        "end_of_text_token": tokenizer.end_of_text_token,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "fingerprint": _fingerprint(files, tokenizer.fingerprint),
        "files": files,
        "about": about,
    }
    write_durably(directory / "header.json", _header_bytes(header))


def _write_documents(
    directory: Path, shards: _Shards, encoded: Iterable[Encoded], end_of_text: int, marks: list[str]
) -> dict[str, int]:
    """Writes ids, boundaries and marks; what the header says of the documents."""
    end = np.array([end_of_text], dtype=np.uint32)
    counts = {"num_documents": 0, "text_bytes": 0, "empty_documents": 0, "max_token": end_of_text}
    with open(directory / "documents.bin", "wb") as boundaries, mark_files.writers(directory, marks) as writers:
        for part in encoded:
            lengths = np.array([ids.size + 1 for ids in part.documents], dtype=np.uint64)
            starts = np.uint64(shards.total) + np.cumsum(lengths) - lengths
            boundaries.write(starts.astype("<u8").data)
            if part.documents:
                ids = np.concatenate([piece for ids in part.documents for piece in (end, ids)])
                shards.append(ids)
                counts["max_token"] = max(counts["max_token"], int(ids.max()))
            for writer in writers:
                writer.append(part.marks[writer.name])
            counts["num_documents"] += len(part.documents)
            counts["text_bytes"] += part.text_bytes
            counts["empty_documents"] += part.left_out
        boundaries.flush()
        os.fsync(boundaries.fileno())
    return counts


def _fingerprint(files: dict, tokenizer_fingerprint: str) -> str:
    """SHA-256 of tokens, boundaries, marks and tokenizer; the same wherever and whenever the store is built."""
    digests = [record["sha256"] for name, record in sorted(files.items()) if name.endswith(".bin")]
    return hashlib.sha256(canonical_json([VERSION, digests, tokenizer_fingerprint])).hexdigest()


def _header_bytes(header: dict) -> bytes:
    """The only spelling of a header, its own digest included; any other byte is damage."""
    header = {key: value for key, value in header.items() if key != "sha256"}
    header["sha256"] = hashlib.sha256(canonical_json(header)).hexdigest()
    return json.dumps(header, indent=1, ensure_ascii=False).encode() + b"\n"


def _digests(directory: Path, names: list[str]) -> list[str]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda name: sha256_file(directory / name), names))


def _sweep(directory: Path):
    """Removes what writers of `directory` that died left beside it; a living one holds a lock on its own."""
    for pattern in ("incoming", "replaced"):
        for stray in directory.parent.glob(f".{directory.name}.{pattern}-*"):
            handle = os.open(stray, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stray)
            except BlockingIOError:
                continue
            finally:
                os.close(handle)


def _put(incoming: Path, directory: Path):
    """Renames `incoming` to `directory`, an older store there first moved out of the way."""
    replaced = directory.parent / f".{directory.name}.replaced-{os.getpid()}"
    if directory.exists():
        directory.rename(replaced)
    incoming.rename(directory)
    sync(directory.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


class Store:
    """A store, opened: sizes, format and the header's own digest are checked now, contents by `verify`.

    Attributes:
      directory: where it lies.    header: what header.json says.
      num_tokens, num_documents, text_bytes, max_token, end_of_text: Python integers.
      marks: the names of those it holds.
      fingerprint: hexadecimal SHA-256 of tokens, boundaries, marks and tokenizer.
      document_starts: uint64 [num_documents], memory-mapped: the offset of each document's end of text.
    """

    def __init__(self, directory: str | os.PathLike):
        """Raises DataError that names the file when anything is not as the header says."""
        self.directory = Path(directory)
        self.header = _read_header(self.directory / "header.json")
        for name, record in self.header["files"].items():
            _check_size(self.directory / name, record["bytes"])
        self.num_tokens: int = self.header["num_tokens"]
        self.num_documents: int = self.header["num_documents"]
        self.text_bytes: int = self.header["text_bytes"]
        self.max_token: int = self.header["max_token"]
        self.end_of_text: int = self.header["end_of_text"]
        self.fingerprint: str = self.header["fingerprint"]
        self.dtype = np.dtype(self.header["dtype"]).newbyteorder("<")
        self.document_starts = self._map("documents.bin", np.dtype("<u8"))
        self._shard_tokens: int = self.header["shard_tokens"]
        # All of them now: files opened later could be those of a store that replaced this one.
        count = -(-self.num_tokens // self._shard_tokens)
        self._shards = [self._map(f"tokens-{index:05d}.bin", self.dtype) for index in range(count)]
        self.marks: tuple[str, ...] = tuple(self.header.get("marks", ()))  # stores had none before there were any
        self._marks = {name: self._map(mark_files.file_name(name), np.dtype("u1")) for name in self.marks}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids. Raises DataError when its file is not the one the header means."""
        path = self.directory / "tokenizer.json"
        loaded = load(path, self.header["end_of_text_token"])
        if loaded.fingerprint != self.header["tokenizer_fingerprint"]:
            raise DataError(f"{path} is damaged. {_remedy(self.directory)}")
        return loaded

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Ids [stop - start] of the stream, in the stored type; a view of the disk, a copy across shards.

        Raises IndexError outside 0 <= start <= stop <= num_tokens.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.num_tokens} in {self.directory}")
        size = self._shard_tokens
        index, offset = divmod(start, size)
        if start < stop <= (index + 1) * size:
            return self._shards[index][offset : offset + stop - start]
        parts = [np.empty(0, self.dtype)]
        while start < stop:
            index, offset = divmod(start, size)
            parts.append(self._shards[index][offset : offset + stop - start])
            start += parts[-1].size
        return np.concatenate(parts)

    def marked(self, name: str, start: int, stop: int) -> np.ndarray:
        """bool [stop - start]: whether each token of the stream begins a word, or a sentence."""
        return mark_files.read(self._marks[name], start, stop)

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

    def verify(self):
        """Reads every byte; raises DataError that names a file that is changed, missing or foreign."""
        expected = self.header["files"]
        for path in sorted(self.directory.iterdir()):
            if path.name != "header.json" and path.name not in expected:
                raise DataError(f"{path} is no part of the token store around it. Move it elsewhere.")
        for name, digest in zip(expected, _digests(self.directory, list(expected)), strict=True):
            if digest != expected[name]["sha256"]:
                raise DataError(
                    f"{self.directory / name} is damaged: its SHA-256 is {digest}, the header says "
                    f"{expected[name]['sha256']}. {_remedy(self.directory)}"
                )

    def _map(self, name: str, dtype: np.dtype) -> np.ndarray:
        # Slices of a plain array are several times cheaper than slices of numpy's memmap class.
        return np.memmap(self.directory / name, dtype=dtype, mode="r").view(np.ndarray)


def _remedy(directory: Path) -> str:
    return f"Delete {directory} and run again to rebuild it."


def _read_header(path: Path) -> dict:
    remedy = _remedy(path.parent)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. {remedy}") from error
    try:
        header = json.loads(content)
        found = (header["format"], header["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: it is not the header of a token store ({error!r}). {remedy}") from error
    if found != (FORMAT, VERSION):
        raise DataError(f"{path} is a {found[0]!r} of version {found[1]!r}, expected {FORMAT!r} {VERSION}. {remedy}")
    if _header_bytes(header) != content:
        raise DataError(f"{path} is damaged: its content does not match its own SHA-256. {remedy}")
    return header


def _check_size(path: Path, expected: int):
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. {_remedy(path.parent)}") from error
    if actual != expected:
        raise DataError(f"{path} has {actual} bytes, the header says {expected}. {_remedy(path.parent)}")


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
