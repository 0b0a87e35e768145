"""Files of a source: matched in a fixed order, opened whatever their compression, read by lines."""

from __future__ import annotations

import contextlib
import glob
import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from data.errors import DataError
from data.readers.fields import Place

DECOMPRESSORS: dict[str, Callable[[BinaryIO], BinaryIO]] = {".gz": gzip.open}


class File(NamedTuple):
    path: str  # absolute
    size: int  # bytes
    facts: list  # JSON-able; others when the content is another


def matching(key: str, patterns: tuple[str, ...], suffix: str) -> list[File]:
    """The files that match, each once, sorted by path, so that no file system's own order shows.

    `key` names the setting in errors, `suffix` is that of such files.
    """
    found: dict[str, File] = {}
    for pattern in patterns:
        files = _local(key, pattern, suffix)
        if not files:
            raise DataError(f"{pattern} in {key} matches no file, seen from {os.getcwd()}.")
        found.update({file.path: file for file in files})
    for file in found.values():
        if file.size == 0:
            raise DataError(f"{file.path} in {key} is empty. Remove it, or narrow the glob.")
    return [found[path] for path in sorted(found)]


def _local(key: str, pattern: str, suffix: str) -> list[File]:
    expanded = os.path.expanduser(pattern)
    literal = os.path.exists(expanded)  # a name may hold the characters of a glob
    if literal and os.path.isdir(expanded):
        raise DataError(f"{pattern} in {key} is a directory; write a glob such as {pattern.rstrip('/')}/**/*{suffix}.")
    matches = [expanded] if literal else glob.glob(expanded, recursive=True)
    files = []
    for path in sorted({os.path.abspath(path) for path in matches if os.path.isfile(path)}):
        status = os.stat(path)
        files.append(File(path, status.st_size, [path, status.st_size, status.st_mtime_ns]))
    return files


def compressed(path: str) -> bool:
    """Whether a file can only be read from its start."""
    return path.endswith(tuple(DECOMPRESSORS))


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A file's content, decompressed by its name's end; what cannot be read is a DataError that names the file."""
    try:
        with open(path, "rb") as file, _decompressed(path, file) as content:
            yield content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Restore it, or remove it from data.source.") from error


def _decompressed(path: str, file: BinaryIO) -> BinaryIO:
    opener = DECOMPRESSORS.get(os.path.splitext(path)[1])
    return opener(file) if opener else contextlib.nullcontext(file)


class Line(NamedTuple):
    where: Place
    offset: int  # of its start, in bytes
    content: bytes  # with its line end

    def text(self) -> str:
        """Decoded strictly, without a byte-order mark. Raises DataError that names the byte."""
        try:
            text = self.content.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.where.path} is not UTF-8: byte {self.offset + error.start}, in {self.where.spot()}, is "
                f"0x{self.content[error.start]:02x}. Convert it, for instance with iconv."
            ) from error
        return text if self.offset else text.removeprefix("\ufeff")


def lines(path: str, start: int = 0) -> Iterator[Line]:
    """The lines, each up to its line feed, that start at byte `start` or behind it. An empty file is a DataError."""
    with opened(path) as file:
        offset = start
        if start:  # a line that starts before belongs to whoever reads that
            file.seek(start - 1)
            offset += len(file.readline()) - 1
        first = offset
        for number, content in enumerate(file, 1):
            yield Line(Place(path, "line", number, first), offset, content)
            offset += len(content)
        if not offset:
            raise DataError(f"{path} is empty. Remove it, or narrow the glob in data.source.")
