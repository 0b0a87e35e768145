"""Where text comes from, as data. One dataclass a source; its reader stands in `data.sources.READERS`."""

from __future__ import annotations

from dataclasses import dataclass

from data.schema import BELOW_ONE, Rule, one_of


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


@dataclass(frozen=True)
class ParquetSource(FileSource):
    """Parquet files, one row a document."""

    name: str = "parquet"
    field: str = "text"  # the column that holds the text; a.b is the field b of the column a of structs


@dataclass(frozen=True)
class CsvSource(FileSource):
    """CSV or TSV files, plain or compressed, one row a document."""

    name: str = "csv"
    field: str = "text"  # the column that holds the text
    delimiter: str = ""  # one character, or tab; empty: tab in files named .tsv, a comma in others
    quote: str = '"'  # around values that hold delimiters or line ends; empty: quotes are plain characters
    header: tuple[str, ...] = ()  # the columns' names where files have none; empty: their first line has them


@dataclass(frozen=True)
class SquadSource(FileSource):
    """SQuAD's JSON, versions 1.1 and 2.0, one question a document."""

    name: str = "squad"
    validation_fraction: float = 0.0  # of the questions; those on one paragraph would be on both sides


@dataclass(frozen=True)
class WarcSource(FileSource):
    """WARC files of a crawl, plain or compressed: conversions (WET) and responses that are text, one a document."""

    name: str = "warc"


@dataclass(frozen=True)
class ArrayRecordSource(FileSource):
    """ArrayRecord files, one record a document."""

    name: str = "array_record"
    content: str = "text"  # what a record is: text (UTF-8), json (an object)
    field: str = "text"  # the key that holds the text, where content is json


@dataclass(frozen=True)
class HuggingFaceSource:
    """A data set of Hugging Face `datasets`: a folder, or a name on the hub."""

    name: str = "huggingface"
    dataset: str = ""  # a folder (saved by save_to_disk, or of data files), or a name on the hub
    config: str | None = None  # the data set's configuration
    revision: str | None = None  # of a name on the hub
    field: str = "text"
    train_split: str = "train"  # or a slice, train[:95%]
    validation_split: str = "validation"  # empty: no validation
    tolerance: float = 0.0  # share of the rows of a part that may be empty or no text: passed over and counted


@dataclass(frozen=True)
class StoredSource:
    """What is tokenized already, read where it lies: a token store, or ids as other tools lay them out.

    A token store brings its tokenizer, which data.tokenizer, if it is a file, must equal. Other files need one of name
    file; its end of text is what stands between documents.
    """

    name: str = "store"
    path: str = ""  # a directory, a file or a glob, or a URL of one
    validation_path: str | None = None  # the same, of what is held out; None: nothing is
    layout: str = "auto"  # auto (by the names of files), plumbline, megatron, nanogpt, llmc, numpy, datatrove
    dtype: str | None = None  # of ids, where no file says it: uint8, uint16, uint32; None: the layout's own rule


Source = (
    TextSource
    | JsonlSource
    | ParquetSource
    | CsvSource
    | WarcSource
    | SquadSource
    | ArrayRecordSource
    | TfdsSource
    | HuggingFaceSource
    | StoredSource
)

DOCUMENTS = ("file", "paragraph", "line")
CONTENTS = ("text", "json")
LAYOUTS = ("auto", "plumbline", "megatron", "nanogpt", "llmc", "numpy", "datatrove")
TYPED = ("plumbline", "megatron", "llmc")  # layouts whose files say of which type ids are
DTYPES = ("uint8", "uint16", "uint32")

RULES = {
    "document": one_of(*DOCUMENTS),
    "validation_fraction": BELOW_ONE,
    "tolerance": BELOW_ONE,
    "content": one_of(*CONTENTS),
    "layout": one_of(*LAYOUTS),
    "dtype": one_of(*DTYPES),
    "delimiter": Rule(lambda value: value in ("", "tab") or _is_mark(value), "one character, tab or empty"),
    "quote": Rule(lambda value: not value or _is_mark(value), "one character or empty"),
}


def _is_mark(value: str) -> bool:
    return len(value) == 1 and value not in "\r\n"


def check(source: Source) -> list[tuple[str, str]]:
    """What no field's type can refuse, as (key below `data.source`, clash) pairs."""
    if isinstance(source, TextSource) and source.document == "file" and source.tolerance:
        clash = f"is {source.tolerance:g}, a share of a file's records, but document is file; take paragraph or line"
        return [("tolerance", clash)]
    if isinstance(source, TfdsSource) and source.dataset.startswith("huggingface:"):
        rest = source.dataset.removeprefix("huggingface:")
        return [("dataset", f"is {source.dataset!r}; take data.source.name=huggingface and data.source.dataset={rest}")]
    if isinstance(source, CsvSource) and source.quote and source.quote == (source.delimiter or ","):
        return [("quote", f"is {source.quote!r}, and so is the delimiter")]
    if isinstance(source, StoredSource) and source.dtype and source.layout in TYPED:
        return [("dtype", f"is {source.dtype}, but files of data.source.layout={source.layout} say it; leave it null")]
    return []


def missing(source: Source) -> list[tuple[str, str]]:
    """The text that a recipe leaves for its user to name, as (key below `data.source`, clash) pairs."""
    if isinstance(source, FileSource) and not source.paths:
        clash = "is empty, must name the files or globs that hold the text"
        return [("paths", f"{clash}: --config.data.source.paths=FILE,GLOB")]
    if isinstance(source, HuggingFaceSource) and not source.dataset:
        clash = "is empty, must be a folder or the name of a data set"
        return [("dataset", f"{clash}: --config.data.source.dataset=FOLDER")]
    if isinstance(source, StoredSource) and not source.path:
        clash = "is empty, must name a token store, or files of ids"
        return [("path", f"{clash}: --config.data.source.path=DIR")]
    return []
