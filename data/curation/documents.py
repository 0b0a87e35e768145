"""The first and last blocks of a step: documents read from the source or from the step before, and written.

Between two steps documents lie as gzipped JSON lines, one file a task, with a note of its size, digest and number of
documents. A reader checks all three, so a file that a full disk or a crash cut short is never taken for a whole one.
datatrove's own writer is not used: its gzip files hold the time, and what its last flush cannot write is lost without
an error. Nor is its reader, which passes over lines that are no JSON and what follows a byte that is no UTF-8.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data import sources
from data.curation.config import Curation
from data.curation.folders import completed, put, task_name
from data.curation.tally import Tally
from data.errors import ConfigError, DataError
from data.files import canonical_json, sha256_file, sync

LEVEL = 6  # of gzip; the bytes are those of one zlib
ID, TEXT = "id", "text"


class Gate(PipelineStep):
    """Stops a task while any task of the step before is not done, whatever the engine believes."""

    type, name = "gate", "the step before is whole"

    def __init__(self, before: str, tasks: int):
        super().__init__()
        self.before, self.tasks = before, tasks

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        done = len(completed(Path(self.before), self.tasks))
        if done < self.tasks:
            raise DataError(
                f"{self.before} has {self.tasks - done} of {self.tasks} tasks that are not done, so the next step does "
                "not begin. Look at its logs, mend the cause and run the same command again."
            )
        return data


class ReadSource(PipelineStep):
    """The documents of this task's parts of the source, in their order."""

    type, name = "read", "source"

    def __init__(self, config: Curation, tally: str):
        super().__init__()
        self.config, self.tally = config, tally

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        keep, tally, field = self.config.keep, Tally(self.config.samples), text_field(self.config)
        with source_errors():
            reader = open_source(self.config)
            parts = reader.parts("train")
            for part in parts[rank * len(parts) // world_size : (rank + 1) * len(parts) // world_size]:
                place = f"{os.path.basename(part.path)}:{part.start}"
                for index, found in enumerate(reader.read(part, "train")):
                    text = found.fields[field] if keep else found
                    if not isinstance(text, str):
                        raise DataError(f"{found.where}: {field!r} (source.field) is no text.")
                    tally.enters(text)
                    tally.leaves(text)
                    kept = {key: found.fields[key] for key in keep} if keep else {}
                    yield Document(text=text, id=f"{place}:{index}", metadata=kept)
        for reason, count in reader.counts.items():
            tally.dropped[reason] += count
            tally.totals["documents_in"] += count
        tally.write(Path(self.tally) / f"{task_name(rank)}.json")


def text_field(config: Curation) -> str:
    """The column that holds the text; a crawl's is always the same."""
    return getattr(config.source, "field", TEXT)


def open_source(config: Curation) -> sources.Reader:
    """The reader of a recipe's source. Raises DataError where there is nothing to read."""
    columns = (text_field(config), *config.keep) if config.keep else None
    return sources.reader(config.source, os.path.abspath(config.cache_dir), columns, config.part_bytes)


@contextlib.contextmanager
def source_errors() -> Iterator[None]:
    """Readers name keys as a training recipe has them; here they stand without `data.`."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(str(error).replace("data.source", "source")) from error


def path_of(folder: Path, rank: int, compress: bool = True) -> Path:
    return folder / f"{task_name(rank)}.jsonl{'.gz' if compress else ''}"


def note_of(notes: Path, rank: int) -> Path:
    return notes / f"{task_name(rank)}.json"


class WriteDocuments(PipelineStep):
    """Writes the documents to this task's file, durably, and the note that tells a whole file from others."""

    type, name = "write", "JSON lines"

    def __init__(self, folder: str, notes: str, compress: bool = True):
        super().__init__()
        self.folder, self.notes, self.compress = folder, notes, compress

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        path = path_of(Path(self.folder), rank, self.compress)
        path.parent.mkdir(parents=True, exist_ok=True)
        for stray in path.parent.glob(f".{path.name}.*"):  # of a task that was killed
            stray.unlink(missing_ok=True)
        passing, count = path.with_name(f".{path.name}.{os.getpid()}.tmp"), 0
        try:
            with open(passing, "wb") as file:
                # No name and no time: equal documents are equal bytes.
                packed = gzip.GzipFile("", "wb", LEVEL, file, mtime=0) if self.compress else file
                for document in data:
                    packed.write(_line(document))
                    count += 1
                    yield document
                if self.compress:
                    packed.close()
                file.flush()
                os.fsync(file.fileno())
            passing.replace(path)
            sync(path.parent)
        finally:
            passing.unlink(missing_ok=True)
        note = {"documents": count, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        put(note_of(Path(self.notes), rank), canonical_json(note))


class ReadDocuments(PipelineStep):
    """The documents that the same task of an earlier step wrote. Raises DataError unless they are whole."""

    type, name = "read", "JSON lines"

    def __init__(self, folder: str, notes: str):
        super().__init__()
        self.folder, self.notes = folder, notes

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        path = path_of(Path(self.folder), rank)
        count = verify(path, note_of(Path(self.notes), rank))
        with gzip.open(path, "rb") as file:
            found = 0
            for line in io.BufferedReader(file, 1 << 20):
                record = json.loads(line)
                found += 1
                yield Document(text=record.pop(TEXT), id=record.pop(ID), metadata=record)
        if found != count:
            raise _damaged(path, f"it holds {found} documents, not {count}")


def verify(path: Path, note: Path) -> int:
    """The number of documents of a file that is as it was written. Raises DataError otherwise."""
    try:
        wanted = json.loads(note.read_bytes())
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if size != wanted["bytes"]:
        raise _damaged(path, f"it has {size} bytes, not {wanted['bytes']}")
    if sha256_file(path) != wanted["sha256"]:
        raise _damaged(path, "its SHA-256 is another")
    return wanted["documents"]


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is not as a step of this curation wrote it: {why}. Remove the folder of `output` and curate again."
    )


def _line(document: Document) -> bytes:
    record = {TEXT: document.text, ID: document.id, **document.metadata}
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
