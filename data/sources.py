"""Sources of text: each yields the documents of a split in one fixed order, or says why it cannot.

Which side a document of files is on, training or validation, follows from the SHA-256 of its text: copies of
a document are never on both sides, and adding files moves no other document. A new source is one class and
one entry in READERS.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Protocol

from data.errors import DataError
from data.source_config import JsonlSource, TextSource, TfdsSource
from data.tfds_source import TfdsReader

READER_VERSION = 1  # of what a document is below; stores prepared under another are rebuilt
BYTE_ORDER_MARK = "\ufeff"

Source = TextSource | JsonlSource | TfdsSource


class Reader(Protocol):
    """What a source is to the rest of the data path.

    Attributes:
      left_out: documents of the last pass that were passed over, being held out for validation as well.
    """

    left_out: int

    def has_validation(self) -> bool:
        """Whether documents are held out."""

    def check(self):
        """Raises DataError when the input cannot give its first documents; writes nothing."""

    def identity(self) -> dict:
        """JSON-able facts that change when the documents do."""

    def documents(self, split: str) -> Iterator[str]:
        """The documents of 'train' or 'validation'; DataError names file and place of what cannot be read."""


class FileReader:
    """What text and JSON lines share: which files, and which side a document is on."""

    def __init__(self, config: TextSource | JsonlSource, cache_dir: str):
        """Finds the files. Raises DataError when a path matches none, or a file is empty."""
        self.config, self.left_out = config, 0
        if not config.paths:
            raise DataError("data.source.paths is empty; name the files or globs that hold the text.")
        self.held_out = _matching("data.source.validation_paths", config.validation_paths)
        found = _matching("data.source.paths", config.paths)
        self.paths = [path for path in found if path not in set(self.held_out)]
        if not self.paths:
            raise DataError(
                "data.source.validation_paths holds every file of data.source.paths, so none is left to "
                "train on. Narrow one of them."
            )

    def has_validation(self):
        return bool(self.held_out) or self.config.validation_fraction > 0

    def check(self):
        for split in ("train", "validation") if self.has_validation() else ("train",):
            next(self.documents(split))

    def identity(self):
        def facts(path):
            status = os.stat(path)
            return [path, status.st_size, status.st_mtime_ns]

        return {
            "paths": [facts(path) for path in self.paths],
            "validation_paths": [facts(path) for path in self.held_out],
        }

    def documents(self, split):
        if split == "validation" and not self.has_validation():
            return
        count = 0
        for text in self._side(split):
            count += 1
            yield text
        if not count:
            raise DataError(self._none(split))

    def read(self, path: str) -> Iterator[str]:
        """The documents of one file, in order."""
        raise NotImplementedError

    def _all(self, paths: list[str]) -> Iterator[str]:
        return chain.from_iterable(map(self.read, paths))

    def _side(self, split: str) -> Iterator[str]:
        self.left_out = 0
        if self.held_out:
            return self._all(self.held_out) if split == "validation" else self._unlike_held_out()
        threshold = int(self.config.validation_fraction * 2**64)
        wanted = split == "validation"
        return (text for text in self._all(self.paths) if (_hash(text) < threshold) == wanted)

    def _unlike_held_out(self) -> Iterator[str]:
        """The documents of `paths` that are not, word for word, in `validation_paths` too."""
        held_out = {_hash(text) for text in self._all(self.held_out)}
        for text in self._all(self.paths):
            if _hash(text) in held_out:
                self.left_out += 1
            else:
                yield text

    def _none(self, split: str) -> str:
        files = self.held_out if self.held_out and split == "validation" else self.paths
        where = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        share = self.config.validation_fraction
        if self.held_out or share == 0:
            apart = f" but what is held out for validation ({self.left_out})" if self.left_out else ""
            return f"{where} of data.source holds no document{apart}. Check data.source."
        smaller = ""
        if isinstance(self.config, TextSource) and self.config.document == "file":
            smaller = "data.source.document=paragraph for smaller documents, "
        return (
            f"No document of {where} is on the {split} side: a hash of each holds out "
            f"data.source.validation_fraction={share:g} of them, and there are too few. Set {smaller}"
            "data.source.validation_paths to files of their own, or data.source.validation_fraction=0 for no "
            "validation."
        )


def _hash(text: str) -> int:
    """The first 64 bits of the SHA-256 of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class TextReader(FileReader):
    """UTF-8 text; a document is a file, a paragraph between blank lines, or a line that is not blank.

    A byte-order mark is dropped, and so are the line ends that close a paragraph or a line.
    """

    def read(self, path):
        if self.config.document == "file":
            yield "".join(text for _, text in _lines(path))
            return
        paragraph: list[str] = []
        for _, text in _lines(path):
            if text.strip():
                paragraph.append(text)
            if paragraph and (self.config.document == "line" or not text.strip()):
                yield "".join(paragraph).rstrip("\r\n")
                paragraph = []
        if paragraph:
            yield "".join(paragraph).rstrip("\r\n")


class JsonlReader(FileReader):
    """JSON lines, plain or .gz; a document is the text in `field` of each object.

    Blank lines are passed over.
    """

    def read(self, path):
        for line, text in _lines(path):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {line} is not valid JSON: {error}. Mend or remove the line.") from error
            yield self._text(record, f"{path}, line {line}")

    def _text(self, record: object, where: str) -> str:
        field = self.config.field
        if not isinstance(record, dict):
            raise DataError(f"{where} holds a JSON {type(record).__name__}, expected an object with a key {field!r}.")
        if field not in record:
            raise DataError(
                f"{where} has no key {field!r} (data.source.field); its keys are "
                f"{', '.join(map(repr, record)) or 'none'}."
            )
        text = record[field]
        if not isinstance(text, str):
            raise DataError(f"{where}: {field!r} (data.source.field) is {json.dumps(text)[:80]}, expected text.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: {field!r} holds half of a surrogate pair at character {error.start}, which is no "
                "text. Mend or remove the line."
            ) from error
        return text


def _matching(key: str, patterns: tuple[str, ...]) -> list[str]:
    """Absolute paths of the files that match, sorted, each once."""
    found: set[str] = set()
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)
        literal = os.path.exists(expanded)  # a name may hold the characters of a glob
        if literal and os.path.isdir(expanded):
            raise DataError(f"{pattern} in {key} is a directory; write a glob such as {pattern.rstrip('/')}/**/*.txt.")
        matches = [expanded] if literal else glob.glob(expanded, recursive=True)
        files = [os.path.abspath(path) for path in matches if os.path.isfile(path)]
        if not files:
            raise DataError(f"{pattern} in {key} matches no file, seen from {os.getcwd()}.")
        found.update(files)
    for path in sorted(found):
        if os.path.getsize(path) == 0:
            raise DataError(f"{path} in {key} is empty. Remove it, or narrow the glob.")
    return sorted(found)


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text with its line end) of each line that ends in a line feed, decoded strictly."""
    opened = gzip.open if path.endswith(".gz") else open
    offset = 0
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path} is not UTF-8: byte {offset + error.start}, in line {number}, is "
                        f"0x{line[error.start]:02x}. Convert it, for instance with iconv."
                    ) from error
                yield number, text.removeprefix(BYTE_ORDER_MARK) if number == 1 else text
                offset += len(line)
        if not offset:
            raise DataError(f"{path} is empty. Remove it, or narrow the glob in data.source.")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Restore it, or remove it from data.source.") from error


READERS = {"text": TextReader, "jsonl": JsonlReader, "tfds": TfdsReader}


def reader(source: Source, cache_dir: str) -> Reader:
    """The reader of a source; `cache_dir` is where it may keep what it prepares."""
    return READERS[source.name](source, cache_dir)


def documents(source: Source, split: str, cache_dir: str) -> Iterator[str]:
    """The documents of `split`, 'train' or 'validation', in a fixed order; none where nothing is held out."""
    return reader(source, cache_dir).documents(split)


def identity(source: Source, cache_dir: str) -> dict:
    """JSON-able facts that decide whether a store prepared from `source` is still current."""
    return {"reader_version": READER_VERSION, **reader(source, cache_dir).identity()}
