"""Where text comes from and how it becomes rows, as data. Imports neither JAX nor a reader."""

from __future__ import annotations

from dataclasses import dataclass

from data.schema import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, Rule, one_of, refusals


@dataclass(frozen=True)
class TextSource:
    """UTF-8 text files."""

    name: str = "text"
    paths: tuple[str, ...] = ()  # files or globs
    document: str = "file"  # what one document is: file, paragraph (blank lines), line
    validation_paths: tuple[str, ...] = ()  # files or globs held out; empty: a share of `paths`
    validation_fraction: float = 0.05  # of the documents, chosen by a hash of each; 0: no validation


@dataclass(frozen=True)
class JsonlSource:
    """JSON lines, plain or .gz, one object a document."""

    name: str = "jsonl"
    paths: tuple[str, ...] = ()
    field: str = "text"  # the key that holds the text
    validation_paths: tuple[str, ...] = ()
    validation_fraction: float = 0.05


@dataclass(frozen=True)
class TfdsSource:
    """A TFDS data set by name, read as ArrayRecord without TensorFlow."""

    name: str = "tfds"
    dataset: str = "python_library"  # python_library is the corpus that every Python carries
    field: str = "text"
    train_split: str = "train"
    validation_split: str = "validation"  # empty: no validation
    directory: str | None = None  # where TFDS keeps its data; None: inside data.cache_dir


@dataclass(frozen=True)
class BpeTokenizer:
    """Byte-level BPE trained on the training documents."""

    name: str = "bpe"
    vocab_size: int = 4096  # 256 bytes + the end of text + merges


@dataclass(frozen=True)
class FileTokenizer:
    """Any tokenizer.json."""

    name: str = "file"
    path: str = ""
    end_of_text: str | None = None  # the token that begins a document; None: found by its usual names


@dataclass(frozen=True)
class ByteTokenizer:
    """Ids 0-255 are the bytes, 256 is the end of text."""

    name: str = "bytes"


@dataclass(frozen=True)
class CausalObjective:
    """Predict the next token."""

    name: str = "causal"


@dataclass(frozen=True)
class Data:
    source: TextSource | JsonlSource | TfdsSource = TfdsSource()
    tokenizer: BpeTokenizer | FileTokenizer | ByteTokenizer = BpeTokenizer()
    objective: CausalObjective = CausalObjective()
    length: int = 256  # tokens a row
    packing: str = "concat"  # concat (concatenate, then split), unpacked (documents apart, padded)
    shuffle: bool = True  # a new permutation of the rows each epoch, from train.seed
    cache_dir: str = ".cache"  # prepared corpora, tokenizers and token stores
    prefetch: int = 2  # batches made ahead in the background
    timeout: float = 300.0  # seconds to wait for a batch before the run ends as hung
    verify: bool = True  # check the store's digests before the first step


PACKINGS = ("concat", "unpacked")
DOCUMENTS = ("file", "paragraph", "line")
OBJECTIVES = ("causal",)
SMALLEST_BPE = 257  # 256 bytes and the end of text; also the vocabulary of raw bytes

RULES = {
    "source.document": one_of(*DOCUMENTS),
    "source.validation_fraction": BELOW_ONE,
    "tokenizer.vocab_size": Rule(lambda size: size >= SMALLEST_BPE, f"at least {SMALLEST_BPE}"),
    "objective.name": one_of(*OBJECTIVES),
    "length": COUNT,
    "packing": one_of(*PACKINGS),
    "cache_dir": Rule(bool, "a directory"),
    "prefetch": NOT_NEGATIVE,
    "timeout": POSITIVE,
}


def check(config: Data) -> list[tuple[str, str]]:
    """What no field's type can refuse, as (key below `data`, clash) pairs; empty when sound."""
    return refusals(config, RULES)


def missing_inputs(config: Data) -> list[tuple[str, str]]:
    """The text and the tokenizer that a recipe leaves for its user to name, as `check` puts it.

    Apart from `check`, because what needs no text (sizes, dry runs, compiling for a topology) goes without.
    """
    source, tokenizer, missing = config.source, config.tokenizer, []
    if isinstance(source, TextSource | JsonlSource) and not source.paths:
        clash = "is empty, must name the files or globs that hold the text"
        missing.append(("source.paths", f"{clash}: --config.data.source.paths=FILE,GLOB"))
    if isinstance(tokenizer, FileTokenizer) and not tokenizer.path:
        clash = "is empty, must name the model's tokenizer"
        fix = "--config.data.tokenizer.path=FILE.json, or train one: --config.data.tokenizer.name=bpe"
        missing.append(("tokenizer.path", f"{clash}: {fix}"))
    return missing
