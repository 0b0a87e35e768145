"""Where text comes from, as data. One dataclass a source; its reader stands in `data.sources.READERS`."""

from __future__ import annotations

from dataclasses import dataclass

from data.schema import BELOW_ONE, one_of


@dataclass(frozen=True)
class FileSource:
    """What sources of files share. A document's side, training or validation, follows from a hash of its text."""

    name: str = ""
    paths: tuple[str, ...] = ()  # files or globs
    validation_paths: tuple[str, ...] = ()  # files or globs held out; empty: a share of `paths`
    validation_fraction: float = 0.05  # of the documents, chosen by a hash of each; 0: no validation
    # Share of the records of a part (a file, or about 64 MB of one) that may be malformed, not UTF-8 or empty: they
    # are passed over and counted.
    tolerance: float = 0.0


@dataclass(frozen=True)
class TextSource(FileSource):
    """UTF-8 text files, plain or compressed."""

    name: str = "text"
    document: str = "file"  # what one document is: file, paragraph (blank lines), line


@dataclass(frozen=True)
class JsonlSource(FileSource):
    """JSON lines, plain or compressed, one object a document."""

    name: str = "jsonl"
    field: str = "text"  # the key that holds the text; a.b is the key b of the object a


@dataclass(frozen=True)
class TfdsSource:
    """A TFDS data set by name, read as ArrayRecord without TensorFlow."""

    name: str = "tfds"
    dataset: str = "python_library"  # python_library is the corpus that every Python carries
    field: str = "text"
    train_split: str = "train"
    validation_split: str = "validation"  # empty: no validation
    directory: str | None = None  # where TFDS keeps its data; None: inside data.cache_dir
    tolerance: float = 0.0  # share of the examples of a part that may be empty or no text: passed over and counted


Source = TextSource | JsonlSource | TfdsSource

DOCUMENTS = ("file", "paragraph", "line")

RULES = {
    "document": one_of(*DOCUMENTS),
    "validation_fraction": BELOW_ONE,
    "tolerance": BELOW_ONE,
}


def missing(source: Source) -> list[tuple[str, str]]:
    """The text that a recipe leaves for its user to name, as (key below `data.source`, clash) pairs."""
    if isinstance(source, FileSource) and not source.paths:
        clash = "is empty, must name the files or globs that hold the text"
        return [("paths", f"{clash}: --config.data.source.paths=FILE,GLOB")]
    return []
