"""ArrayRecord files whose records are UTF-8 text or JSON objects."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from array_record.python.array_record_module import ArrayRecordReader

from data.errors import ConfigError, DataError
from data.readers import remote
from data.readers.base import REMEDY, Part
from data.readers.fields import Place
from data.readers.file_reader import FileReader
from data.readers.remote import told

BATCH = 256  # records read at a time


class ArrayRecords(FileReader):
    """ArrayRecord; a document is a record's text, or the text in `field` of its JSON object, as `content` says.

    What TFDS has prepared holds tf.Example messages instead: data.source.name=tfds reads those.
    """

    suffix = ".array_record"

    def __init__(self, config, cache_dir, columns, part_bytes):
        if columns is not None and config.content == "text":
            raise ConfigError(
                f"data.source.content is text, which has no columns, but {', '.join(columns)} are asked for. Set it "
                "to json, where records are JSON objects."
            )
        for path in (*config.paths, *config.validation_paths):
            if remote.is_remote(path):
                raise ConfigError(
                    f"data.source reads {path}, but ArrayRecord files are read from a disk alone. Copy it here and "
                    "name the copy."
                )
        super().__init__(config, cache_dir, columns, part_bytes)

    @property
    def field(self):
        return "text" if self.config.content == "text" else self.config.field

    @property
    def named(self):
        return "its text" if self.config.content == "text" else super().named

    def file_parts(self, file):
        with _opened(file.path) as records:
            count = records.num_records()
        if count == 0:
            raise DataError(f"{file.path} of data.source holds no records. Remove it, or narrow the glob.")
        step = max(1, count * self.part_bytes // file.size)
        return [Part(file.path, start, min(start + step, count)) for start in range(0, count, step)]

    def records(self, part):
        with _opened(part.path) as records:
            for first in range(part.start, part.stop, BATCH):
                contents = records.read(first, min(first + BATCH, part.stop))
                for number, content in enumerate(contents, first):
                    yield self._document(content, Place(part.path, "record", number))

    def _document(self, content: bytes, where: Place):
        if self.config.content == "text":
            return self.document({"text": content}, where)
        try:
            return self.document(json.loads(content), where)
        except (ValueError, RecursionError) as error:
            return DataError(f"{where} is not valid JSON: {error}. {REMEDY}")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[ArrayRecordReader]:
    try:
        with contextlib.closing(ArrayRecordReader(path)) as records:  # closing one that is none raises, too
            yield records
    except (ValueError, IndexError, RuntimeError) as error:
        raise DataError(
            f"{path} cannot be read as ArrayRecord: {told(error)} Restore it, or remove it from data.source."
        ) from error
