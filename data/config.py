"""Where text comes from and how it becomes rows, as data. Imports neither JAX nor a reader."""

from __future__ import annotations

from dataclasses import dataclass

from data.schema import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Rule, one_of, refusals


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
class WordPieceTokenizer:
    """BERT's tokenizer (Devlin et al. 2018), its pieces trained on the training documents."""

    name: str = "wordpiece"
    vocab_size: int = 4096  # [PAD] [UNK] [CLS] [SEP] [MASK] + characters + pieces
    lowercase: bool = True  # and without accents
    max_characters: int = 1000  # the most frequent ones that pieces are made of; the words of others are [UNK]


@dataclass(frozen=True)
class FileTokenizer:
    """Any tokenizer.json, or the vocab.txt of a BERT."""

    name: str = "file"
    path: str = ""
    end_of_text: str | None = None  # the token that begins a document; None: found by its usual names
    stop: str | None = None  # the token that ends a text in decoding; None: end_of_text
    lowercase: bool | None = None  # BERT's rules only. A vocab.txt does not say; None: as tokenizer.json does


@dataclass(frozen=True)
class ByteTokenizer:
    """Ids 0-255 are the bytes, 256 is the end of text."""

    name: str = "bytes"


@dataclass(frozen=True)
class CausalObjective:
    """Predict the next token."""

    name: str = "causal"


@dataclass(frozen=True)
class MaskedObjective:
    """Predict masked tokens and, if asked, whether one sentence follows another (Devlin et al. 2018, section 3.1)."""

    name: str = "masked"
    rate: float = 0.15  # of a row's tokens, special ones counted, that are to be predicted
    max_predictions: int = 20  # a row at the most; BERT takes 20 for rows of 128, 77 for 512
    keep_share: float = 0.1  # of the predictions whose token stays what it is
    random_share: float = 0.1  # of those whose token becomes any of the vocabulary; the others are masked
    whole_word: bool = False  # all tokens of a word are predicted, or none
    next_sentence: bool = False  # rows are pairs of sentences, half of them not neighbours
    short_rate: float = 0.1  # of the documents whose pairs are cut to a random length
    # Sets of masks (and pairs) that are drawn once, BERT's dupe_factor: the epochs take them in turn; with
    # next_sentence one epoch holds them all. None: new masks every epoch (Liu et al. 2019).
    copies: int | None = 10


@dataclass(frozen=True)
class Data:
    source: TextSource | JsonlSource | TfdsSource = TfdsSource()
    tokenizer: BpeTokenizer | WordPieceTokenizer | FileTokenizer | ByteTokenizer = BpeTokenizer()
    objective: CausalObjective | MaskedObjective = CausalObjective()
    length: int = 256  # tokens a row
    packing: str = "concat"  # concat (concatenate, then split), unpacked (documents apart, padded)
    shuffle: bool = True  # a new permutation of the rows each epoch, from train.seed
    cache_dir: str = ".cache"  # prepared corpora, tokenizers and token stores
    prefetch: int = 2  # batches made ahead in the background
    timeout: float = 300.0  # seconds to wait for a batch before the run ends as hung
    verify: bool = True  # check the store's digests before the first step


PACKINGS = ("concat", "unpacked")
DOCUMENTS = ("file", "paragraph", "line")
SMALLEST_BPE = 257  # 256 bytes and the end of text; also the vocabulary of raw bytes
SPECIAL_PIECES = 5  # [PAD] [UNK] [CLS] [SEP] [MASK]
SHORTEST_PAIR = 5  # [CLS] A [SEP] B [SEP]

RULES = {
    "source.document": one_of(*DOCUMENTS),
    "source.validation_fraction": BELOW_ONE,
    "tokenizer.vocab_size": Rule(lambda size: size >= SMALLEST_BPE, f"at least {SMALLEST_BPE}"),
    "tokenizer.max_characters": COUNT,
    "objective.rate": Rule(lambda rate: 0 < rate <= 1, "above 0 and at most 1"),
    "objective.max_predictions": COUNT,
    "objective.keep_share": SHARE,
    "objective.random_share": SHARE,
    "objective.short_rate": SHARE,
    "objective.copies": COUNT,
    "length": COUNT,
    "packing": one_of(*PACKINGS),
    "cache_dir": Rule(bool, "a directory"),
    "prefetch": NOT_NEGATIVE,
    "timeout": POSITIVE,
}


def check(config: Data) -> list[tuple[str, str]]:
    """What no field's type can refuse, as (key below `data`, clash) pairs; empty when sound."""
    return refusals(config, RULES) or _check_tokenizer(config) + _check_masked(config)


def _check_tokenizer(config: Data) -> list[tuple[str, str]]:
    tokenizer = config.tokenizer
    if isinstance(tokenizer, WordPieceTokenizer):
        # A character is a piece twice: where a word begins, and inside one.
        smallest = SPECIAL_PIECES + 2 * tokenizer.max_characters
        if tokenizer.vocab_size < smallest:
            clash = f"is {tokenizer.vocab_size}, but {tokenizer.max_characters} characters take up to {smallest} pieces"
            return [("tokenizer.vocab_size", f"{clash}; raise it or lower data.tokenizer.max_characters")]
    if isinstance(tokenizer, FileTokenizer) and tokenizer.path.endswith(".txt") and tokenizer.lowercase is None:
        return [
            ("tokenizer.lowercase", "is null, but a vocab.txt does not say whether text is lower-cased: true or false")
        ]
    return []


def _check_masked(config: Data) -> list[tuple[str, str]]:
    objective, length, problems = config.objective, config.length, []
    if not isinstance(objective, MaskedObjective):
        return problems
    if isinstance(config.tokenizer, BpeTokenizer | ByteTokenizer):
        clash = (
            f"is masked, but tokenizer {config.tokenizer.name} has no mask token; take data.tokenizer.name=wordpiece"
        )
        problems.append(("objective.name", clash))
    if objective.keep_share + objective.random_share > 1:
        clash = f"is {objective.random_share:g}, which with keep_share {objective.keep_share:g} is more than 1"
        problems.append(("objective.random_share", clash))
    if objective.max_predictions > length:
        clash = f"is {objective.max_predictions}, more than the {length} tokens of a row (data.length)"
        problems.append(("objective.max_predictions", clash))
    if objective.next_sentence and length < SHORTEST_PAIR:
        problems.append(("length", f"is {length}, too short for [CLS] A [SEP] B [SEP]; at least {SHORTEST_PAIR}"))
    return problems


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
