"""The same documents in every format that a source reads, written by each format's own library."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
from array_record.python.array_record_module import ArrayRecordWriter

from data import sources
from data.source_config import (
    ArrayRecordSource,
    CsvSource,
    FileSource,
    JsonlSource,
    ParquetSource,
    TextSource,
    WarcSource,
)


def write_parquet(path: Path, documents: list, group: int = 3, **columns: list):
    table = pyarrow.table({"text": documents, **columns})
    pyarrow.parquet.write_table(table, path, row_group_size=group)


def write_csv(path: Path, documents: list[str]):
    text = io.StringIO()
    csv.writer(text).writerows([["id", "text"], *enumerate(documents)])
    path.write_bytes(text.getvalue().encode())


def write_array_record(path: Path, records: list[bytes]):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def warc_record(kind: str, block: bytes, **headers: str) -> bytes:
    lines = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, f"Content-Length: {len(block)}", "", ""]).encode() + block + b"\r\n\r\n"


def _json(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents).encode()


# By the source's name: how documents become a file, and the source that reads them.
WRITERS = {
    "paragraph": lambda path, found: path.write_bytes("\n\n\n".join(found).encode()),
    "jsonl": lambda path, found: path.write_bytes(_json(found)),
    "parquet": write_parquet,
    "csv": write_csv,
    "warc": lambda path, found: path.write_bytes(b"".join(warc_record("conversion", text.encode()) for text in found)),
    "array_record": lambda path, found: write_array_record(path, [text.encode() for text in found]),
}
SOURCES: dict[str, tuple[type[FileSource], dict]] = {
    "paragraph": (TextSource, {"document": "paragraph"}),
    "jsonl": (JsonlSource, {}),
    "parquet": (ParquetSource, {}),
    "csv": (CsvSource, {}),
    "warc": (WarcSource, {}),
    "array_record": (ArrayRecordSource, {}),
}


def source(name: str, *paths: Path | str, **fields) -> FileSource:
    """A source of files that holds nothing out, unless `fields` say so."""
    kind, own = SOURCES[name]
    return kind(paths=tuple(map(str, paths)), **{"validation_fraction": 0.0, **own, **fields})


def train(config, **options) -> list:
    return list(sources.reader(config, "unused", **options).documents("train"))
