"""Sources of text: each yields the documents of a split in one fixed order, or says why it cannot.

Which side a document of files is on, training or validation, follows from the SHA-256 of its text: copies of
a document are never on both sides, and adding files moves no other document. Data sets by name bring splits of
their own, which are taken as they are. A new source is one class and one entry in READERS.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence

from data.errors import ConfigError
from data.readers.base import PART_BYTES, Document, Part, Reader, Record
from data.source_config import Source, StoredSource

__all__ = ["Document", "Part", "Reader", "Record", "documents", "identity", "reader"]

READER_VERSION = 1  # of what a document is; stores prepared under another are rebuilt

# What a reader counts, as `data.prepare` says it.
PASSED_OVER = {
    "held_out": "documents were left out, since they are held out for validation too",
    "malformed": "malformed records were passed over, as data.source.tolerance allows",
    "no_text": "responses of a crawl were passed over, since they failed or hold no text",
}

# The class that reads a source of each name. Imported when it is asked for: a format's packages take time.
READERS = {
    "text": ("data.readers.line_readers", "TextReader"),
    "jsonl": ("data.readers.line_readers", "JsonlReader"),
    "parquet": ("data.readers.parquet", "ParquetReader"),
    "csv": ("data.readers.csv_text", "CsvReader"),
    "squad": ("data.readers.squad", "SquadReader"),
    "warc": ("data.readers.warc", "WarcReader"),
    "array_record": ("data.readers.arrayrecord", "ArrayRecords"),
    "huggingface": ("data.readers.hugging_face", "HuggingFaceReader"),
    "tfds": ("data.readers.tfds", "TfdsReader"),
}


def reader(
    source: Source, cache_dir: str, columns: Sequence[str] | None = None, part_bytes: int = PART_BYTES
) -> Reader:
    """The reader of a source; `cache_dir` is where it may keep what it prepares.

    `columns`: documents are Records of these fields; None: they are the text in `source.field`. `part_bytes` is about
    how much text a part holds. Raises DataError when the source is not there, ConfigError when it cannot be.
    """
    if isinstance(source, StoredSource):
        raise ConfigError(
            f"data.source.name=store, {source.path!r}, holds ids and no text, which is asked for here. Name the text, "
            "or for a mixture set data.tokenizer.name=file, so that no tokenizer is trained."
        )
    module, name = READERS[source.name]
    return getattr(importlib.import_module(module), name)(source, cache_dir, columns, part_bytes)


def documents(source: Source, split: str, cache_dir: str) -> Iterator[str]:
    """The texts of `split`, 'train' or 'validation', in a fixed order; none where nothing is held out."""
    return reader(source, cache_dir).documents(split)


def identity(reader: Reader) -> dict:
    """JSON-able facts that decide whether a store prepared from a reader's source is still current."""
    return {"reader_version": READER_VERSION, **reader.identity()}
