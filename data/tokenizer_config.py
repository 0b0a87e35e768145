"""How text becomes ids, as data. One dataclass a tokenizer; its maker stands in `data.tokenizer.BUILDERS`."""

from __future__ import annotations

from dataclasses import dataclass

from data.schema import COUNT, Rule


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


TokenizerConfig = BpeTokenizer | WordPieceTokenizer | FileTokenizer | ByteTokenizer

SMALLEST_BPE = 257  # 256 bytes and the end of text; also the vocabulary of raw bytes
SPECIAL_PIECES = 5  # [PAD] [UNK] [CLS] [SEP] [MASK]

RULES = {
    "vocab_size": Rule(lambda size: size >= SMALLEST_BPE, f"at least {SMALLEST_BPE}"),
    "max_characters": COUNT,
}


def check(tokenizer: TokenizerConfig) -> list[tuple[str, str]]:
    """What no field's type can refuse, as (key below `data.tokenizer`, clash) pairs."""
    if isinstance(tokenizer, WordPieceTokenizer):
        # A character is a piece twice: where a word begins, and inside one.
        smallest = SPECIAL_PIECES + 2 * tokenizer.max_characters
        if tokenizer.vocab_size < smallest:
            clash = f"is {tokenizer.vocab_size}, but {tokenizer.max_characters} characters take up to {smallest} pieces"
            return [("vocab_size", f"{clash}; raise it or lower data.tokenizer.max_characters")]
    if isinstance(tokenizer, FileTokenizer) and tokenizer.path.endswith(".txt") and tokenizer.lowercase is None:
        return [("lowercase", "is null, but a vocab.txt does not say whether text is lower-cased: true or false")]
    return []


def missing(tokenizer: TokenizerConfig) -> list[tuple[str, str]]:
    """The file that a recipe leaves for its user to name, as (key below `data.tokenizer`, clash) pairs."""
    if isinstance(tokenizer, FileTokenizer) and not tokenizer.path:
        clash = "is empty, must name the model's tokenizer"
        fix = "--config.data.tokenizer.path=FILE.json, or train one: --config.data.tokenizer.name=bpe"
        return [("path", f"{clash}: {fix}")]
    return []
