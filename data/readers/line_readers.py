"""Text and JSON lines: files that are read by lines, and from the middle where they are not compressed."""

from __future__ import annotations

import json
from collections.abc import Iterator

from data.errors import ConfigError, DataError
from data.readers.base import REMEDY, Part
from data.readers.file_reader import FileReader
from data.readers.files import Line, lines


class LineReader(FileReader):
    """Files of lines. A line belongs to the part in which it starts."""

    def file_parts(self, file):
        size = self.part_bytes
        if file.size <= size or not file.has_middle():
            return [Part(file.path, 0, -1)]
        return [Part(file.path, start, min(start + size, file.size)) for start in range(0, file.size, size)]


class TextReader(LineReader):
    """UTF-8 text; a document is a file, a paragraph between blank lines, or a line that is not blank.

    A byte-order mark is dropped, and so are the line ends that close a paragraph or a line. A paragraph belongs to
    the part in which the blank line before it starts; the first of a file to the first.
    """

    suffix = ".txt"

    def __init__(self, config, cache_dir, columns, part_bytes):
        if columns is not None:
            raise ConfigError(
                f"data.source.name=text has no columns, but {', '.join(columns)} are asked for. Take a source of "
                "records, such as jsonl, parquet or csv."
            )
        super().__init__(config, cache_dir, columns, part_bytes)

    def file_parts(self, file):
        return [Part(file.path, 0, -1)] if self.config.document == "file" else super().file_parts(file)

    def records(self, part):
        if self.config.document == "line":
            return _single(part)
        return _paragraphs(part) if self.config.document == "paragraph" else _whole(part)


def _text(gathered: list[Line]) -> str | DataError:
    try:
        return "".join([line.text() for line in gathered])
    except DataError as error:
        return error


def _whole(part: Part) -> Iterator[str | DataError]:
    yield _text(list(lines(part.path)))


def _single(part: Part) -> Iterator[str | DataError]:
    for line in lines(*part):
        try:
            text = line.text()
        except DataError as error:
            yield error
            continue
        if text.strip():
            yield text.rstrip("\r\n")


def _paragraphs(part: Part) -> Iterator[str | DataError]:
    gathered: list[Line] = []
    mine = part.start == 0
    for line in lines(part.path, part.start):
        if not _is_blank(line):
            if mine:
                gathered.append(line)
            continue
        if gathered:
            yield _closed(gathered)
            gathered = []
        if 0 <= part.stop <= line.offset:
            return
        mine = True
    if gathered:
        yield _closed(gathered)


def _closed(paragraph: list[Line]) -> str | DataError:
    text = _text(paragraph)
    return text if isinstance(text, DataError) else text.rstrip("\r\n")


def _is_blank(line: Line) -> bool:
    content = line.content.lstrip()
    if not content or 32 < content[0] < 128:  # most lines: no need to decode
        return not content
    return not content.decode(errors="replace").removeprefix("\ufeff").strip()


class JsonlReader(LineReader):
    """JSON lines; a document is the text in `field` of each object. Blank lines are passed over."""

    suffix = ".jsonl"

    def records(self, part):
        for line in lines(*part):
            try:
                text = line.text()
            except DataError as error:
                yield error
                continue
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                yield DataError(f"{line.where} is not valid JSON: {error}. {REMEDY}")
                continue
            yield self.document(record, line.where)
