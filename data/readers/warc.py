"""WARC files, ISO 28500: the text of WET conversions, and the pages of HTTP responses as they are."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from data.errors import DataError
from data.readers.base import REMEDY
from data.readers.fields import Malformed, Place
from data.readers.file_reader import FileReader
from data.readers.files import opened

TEXT_TYPES = ("text/", "application/xhtml+xml", "application/json", "application/xml")
WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": 32 + zlib.MAX_WBITS}


class _Raw(NamedTuple):
    where: Place
    headers: dict[str, str]  # names in lower case
    block: bytes


class WarcReader(FileReader):
    """A document is the text of a `conversion` record, or of a successful `response` that is text.

    A response's body is given as it is, markup included, decoded as its header says; extraction is for `data.curate`.
    Fields are text, url, date and type (of the content). Other records hold no documents.
    """

    suffix = ".warc.gz"
    field = "text"
    named = "its text"

    def records(self, part):
        with opened(part.path) as file:
            for raw in _records(file, part.path):
                kind = raw.headers.get("warc-type")
                if kind not in ("conversion", "response"):
                    continue
                try:
                    fields = _conversion(raw) if kind == "conversion" else _response(raw)
                except Malformed as error:
                    yield DataError(f"{raw.where}{error} {REMEDY}")
                    continue
                yield None if fields is None else self.document(_about(raw.headers) | fields, raw.where)


def _about(headers: dict[str, str]) -> dict[str, str]:
    return {"url": headers.get("warc-target-uri", ""), "date": headers.get("warc-date", "")}


def _records(file: BinaryIO, path: str) -> Iterator[_Raw]:
    """The records of an open WARC file. Raises DataError where its framing breaks."""
    number = 0
    while line := file.readline(1 << 16):
        if not line.strip():  # records end in two empty lines
            continue
        number += 1
        where = Place(path, "record", number)
        if not line.startswith(b"WARC/"):
            raise DataError(
                f"{where} does not begin with WARC/, but {line[:40]!r}. Restore the file, or remove it from "
                "data.source."
            )
        headers = _headers(iter(lambda: file.readline(1 << 16), b""))
        length = headers.get("content-length", "")
        if not length.isdecimal():
            raise DataError(f"{where} has Content-Length {length!r}. Restore the file, or remove it from data.source.")
        block = file.read(int(length))
        if len(block) < int(length):
            raise DataError(
                f"{where} ends after {len(block)} of {length} bytes: the file is cut. Restore it, or remove it from "
                "data.source."
            )
        yield _Raw(where, headers, block)


def _headers(lines: Iterator[bytes]) -> dict[str, str]:
    """Fields up to an empty line, by name in lower case; of fields that come twice, the first."""
    headers: dict[str, str] = {}
    for line in lines:
        if not line.strip():
            break
        name, _, value = line.decode(errors="replace").partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    return headers


def _conversion(raw: _Raw) -> dict[str, str]:
    return {"text": _decoded(raw.block, "utf-8"), "type": raw.headers.get("content-type", "")}


def _response(raw: _Raw) -> dict[str, str] | None:
    """The body of an HTTP response; None where it is an error's, or no text."""
    head, _, body = raw.block.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = _headers(iter(lines))
    kind = headers.get("content-type", "text/html").lower()
    succeeded = status.startswith(b"HTTP/") and status.split(b" ", 1)[-1].strip().startswith(b"2")
    if not succeeded or not kind.startswith(TEXT_TYPES) or not body:
        return None
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = _unchunked(body)
    for encoding in reversed(headers.get("content-encoding", "identity").lower().split(",")):
        body = _uncompressed(body, encoding.strip())
    charset = kind.partition("charset=")[2].split(";")[0].strip(" \"'")
    return {"text": _decoded(body, charset or "utf-8"), "type": kind.split(";")[0].strip()}


def _unchunked(body: bytes) -> bytes:
    """RFC 9112, section 7.1."""
    found, place = [], 0
    while True:
        end = body.find(b"\r\n", place)
        try:
            size = int(body[place : max(end, place)].split(b";")[0], 16)
        except ValueError:
            raise Malformed(f": the chunk at byte {place} of its body has no length.") from None
        if size == 0:
            return b"".join(found)
        found.append(body[end + 2 : end + 2 + size])
        if len(found[-1]) < size:
            raise Malformed(": its body is cut.")
        place = end + 2 + size + 2


def _uncompressed(body: bytes, encoding: str) -> bytes:
    if encoding in ("identity", ""):
        return body
    if encoding not in WINDOWS:
        raise Malformed(f": its body is encoded as {encoding}, which is not read.")
    try:
        return zlib.decompress(body, WINDOWS[encoding])
    except zlib.error as error:
        raise Malformed(f": its body is no valid {encoding}: {error}.") from error


def _decoded(content: bytes, charset: str) -> str:
    try:
        return content.decode(charset).removeprefix("\ufeff")
    except LookupError:
        raise Malformed(f" is said to be {charset}, which Python cannot decode.") from None
    except UnicodeDecodeError as error:
        named = "UTF-8" if charset == "utf-8" else charset
        raise Malformed(
            f" is not {named}: byte {error.start} of its content is 0x{content[error.start]:02x}."
        ) from error
