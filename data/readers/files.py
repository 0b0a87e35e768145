"""Files of a source: matched in a fixed order, opened whatever their compression, read by lines."""

from __future__ import annotations

import bz2
import contextlib
import glob
import gzip
import importlib
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from data.errors import DataError, UserError
from data.readers import remote
from data.readers.fields import Place


class File(NamedTuple):
    path: str  # absolute, or a URL
    size: int  # bytes; -1: a server does not say
    facts: list  # JSON-able; others when the content is another

    def has_middle(self) -> bool:
        """Whether it can be read from its middle: not what is compressed, or on a server that answers no ranges."""
        return self.size > 0 and _suffix(self.path) not in DECOMPRESSORS and remote.has_ranges(self.path)


def matching(key: str, patterns: tuple[str, ...], suffix: str) -> list[File]:
    """The files that match, each once, sorted by path, so that no file system's own order shows.

    `key` names the setting in errors, `suffix` is that of such files.
    """
    found: dict[str, File] = {}
    for pattern in patterns:
        files = _remote(key, pattern, suffix) if remote.is_remote(pattern) else _local(key, pattern, suffix)
        found.update({file.path: file for file in files})
    for file in found.values():
        if file.size == 0:
            raise DataError(f"{file.path} in {key} is empty. Remove it, or narrow the glob.")
    return [found[path] for path in sorted(found)]


def _local(key: str, pattern: str, suffix: str) -> list[File]:
    expanded = os.path.expanduser(pattern.removeprefix("file://"))
    literal = os.path.exists(expanded)  # a name may hold the characters of a glob
    if literal and os.path.isdir(expanded):
        raise DataError(_directory(key, pattern, suffix))
    matches = [expanded] if literal else glob.glob(expanded, recursive=True)
    paths = {os.path.abspath(path) for path in matches if os.path.isfile(path)}
    if not paths:
        raise DataError(f"{pattern} in {key} matches no file, seen from {os.getcwd()}.")
    files = []
    for path in paths:
        if any(0xD800 <= ord(character) < 0xE000 for character in path):  # what stands for bytes of no character
            raise DataError(f"{path!r} in {key} has a name that is not UTF-8. Rename it.")
        status = os.stat(path)
        files.append(File(path, status.st_size, [path, status.st_size, status.st_mtime_ns]))
    return files


def _remote(key: str, pattern: str, suffix: str) -> list[File]:
    files = []
    for url, info in remote.infos(key, pattern).items():
        if info["type"] == "directory":
            raise DataError(_directory(key, pattern, suffix))
        size = -1 if info.get("size") is None else info["size"]
        files.append(File(url, size, [url, size, remote.facts(info)]))
    if not files:
        raise DataError(f"{pattern} in {key} matches no file there.")
    return files


def _directory(key: str, pattern: str, suffix: str) -> str:
    return f"{pattern} in {key} is a directory; write a glob such as {pattern.rstrip('/')}/**/*{suffix}."


def _zstd(file: BinaryIO) -> BinaryIO:
    arrow = importlib.import_module("pyarrow")
    return io.BufferedReader(arrow.CompressedInputStream(arrow.PythonFile(file, mode="r"), "zstd"))


# By the end of a file's name. Each reads concatenated streams to the end, and fails on one that is cut.
DECOMPRESSORS = {".gz": gzip.open, ".zst": _zstd, ".bz2": bz2.open, ".xz": lzma.open}


def _suffix(path: str) -> str:
    return os.path.splitext(path.partition("::")[0])[1].lower()


@contextlib.contextmanager
def opened(path: str, from_start: bool = True) -> Iterator[BinaryIO]:
    """A file's content, decompressed by its name's end; what cannot be read is a DataError that names the file.

    `from_start`: it is read from the start on, without a seek, which every server can answer.
    """
    try:
        with remote.opened(path, from_start) if remote.is_remote(path) else open(path, "rb") as file:
            decompress = DECOMPRESSORS.get(_suffix(path))
            with decompress(file) if decompress else contextlib.nullcontext(file) as content:
                yield content
    except UserError:
        raise
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(_unreadable(path, error)) from error
    except Exception as error:
        if not remote.is_remote(path):
            raise
        raise DataError(_unreadable(path, error)) from error  # of classes that each file system has of its own


def _unreadable(path: str, error: Exception) -> str:
    return f"{path} cannot be read: {remote.told(error)} Restore it, or remove it from data.source."


class Line(NamedTuple):
    content: bytes  # with its line end
    offset: int  # of its start, in bytes
    number: int  # from 1, of those read
    first: int  # offset of the first that was read
    path: str

    @property
    def where(self) -> Place:
        return Place(self.path, "line", self.number, self.first)

    def text(self) -> str:
        """Decoded strictly, without a byte-order mark. Raises DataError that names the byte."""
        try:
            text = self.content.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path} is not UTF-8: byte {self.offset + error.start}, in {self.where.spot()}, is "
                f"0x{self.content[error.start]:02x}. {_advice(self.content if self.offset == 0 else b'')}"
            ) from error
        return text if self.offset else text.removeprefix("\ufeff")


def _advice(beginning: bytes) -> str:
    """What to do with a file that is not UTF-8."""
    for magic, suffix in {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\xfd7zXZ": ".xz"}.items():
        if beginning.startswith(magic):
            return f"It begins as a compressed file does; let its name end in {suffix}."
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "It begins as UTF-16 does: convert it with iconv -f UTF-16 -t UTF-8."
    return (
        "Convert it, for instance with iconv -f ENCODING -t UTF-8, where ENCODING is what it was written in: GB18030 "
        "for much Chinese text."
    )


def lines(path: str, start: int = 0, stop: int = -1) -> Iterator[Line]:
    """The lines, each up to its line feed, that start in bytes `start` to `stop`; -1: to the end.

    Raises DataError where the file is empty.
    """
    with opened(path, from_start=start == 0) as file:
        offset = start
        if start:  # a line that starts before belongs to whoever reads that
            file.seek(start - 1)
            offset += len(file.readline()) - 1
        first = offset
        for number, content in enumerate(file, 1):
            if 0 <= stop <= offset:
                break
            yield Line(content, offset, number, first, path)
            offset += len(content)
        if not offset:
            raise DataError(f"{path} is empty. Remove it, or narrow the glob in data.source.")
