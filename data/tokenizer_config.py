"""How text becomes ids, as data. One dataclass a tokenizer; its maker stands in `data.tokenizer.BUILDERS`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from data.schema import COUNT, Rule, one_of


@dataclass(frozen=True)
class BpeTokenizer:
    """Byte-level BPE trained on the training documents."""

    name: str = "bpe"
    vocab_size: int = 4096  # the end of text + special tokens + 256 bytes + merges
    special_tokens: tuple[str, ...] = ()  # more of them, from id 1; <x_{0..99}> is a hundred
    sample_bytes: int | None = None  # train on documents of so many bytes, drawn by their hashes; None: all


@dataclass(frozen=True)
class WordPieceTokenizer:
    """BERT's tokenizer (Devlin et al. 2018), its pieces trained on the training documents."""

    name: str = "wordpiece"
    vocab_size: int = 4096  # [PAD] [UNK] [CLS] [SEP] [MASK] + characters + pieces
    lowercase: bool = True  # and without accents
    max_characters: int = 1000  # the most frequent ones that pieces are made of; the words of others are [UNK]
    special_tokens: tuple[str, ...] = ()  # more of them, from id 5; <x_{0..99}> is a hundred
    sample_bytes: int | None = None  # train on documents of so many bytes, drawn by their hashes; None: all


@dataclass(frozen=True)
class UnigramTokenizer:
    """SentencePiece's unigram pieces (Kudo 2018), trained on the training documents."""

    name: str = "unigram"
    vocab_size: int = 4096  # <unk> + the end of text + special tokens + 256 bytes + pieces
    character_coverage: float = 0.9995  # share of the text's characters, the frequent ones, that are pieces
    byte_fallback: bool = True  # characters that are no piece become their bytes; false: <unk>, and are lost
    normalization: str = "none"  # none (text comes back as it is), nfkc
    special_tokens: tuple[str, ...] = ()  # more of them, from id 2; <x_{0..99}> is a hundred
    sample_bytes: int | None = 50_000_000  # as of bpe; the trainer holds it all, at 25 bytes a character


@dataclass(frozen=True)
class FileTokenizer:
    """A tokenizer.json, a BERT's vocab.txt, a SentencePiece .model, tiktoken's ranks, or a directory with one."""

    name: str = "file"
    path: str = ""
    end_of_text: str | None = None  # the token that begins a document; None: found by its usual names
    stop: str | None = None  # the token that ends a text in decoding; None: end_of_text
    lowercase: bool | None = None  # BERT's rules only. A vocab.txt does not say; None: as tokenizer.json does
    pattern: str | None = None  # tiktoken's ranks only, which do not say how text is cut: gpt2, cl100k, llama3, o200k
    special_tokens: tuple[str, ...] = ()  # more of them, behind the largest id where the file has them not


@dataclass(frozen=True)
class ByteTokenizer:
    """Ids 0-255 are the bytes, 256 is the end of text."""

    name: str = "bytes"
    special_tokens: tuple[str, ...] = ()  # more of them, from id 257; <x_{0..99}> is a hundred


TrainedTokenizer = BpeTokenizer | WordPieceTokenizer | UnigramTokenizer
TokenizerConfig = TrainedTokenizer | FileTokenizer | ByteTokenizer

SMALLEST_BPE = 257  # 256 bytes and the end of text; also the vocabulary of raw bytes
SPECIAL_PIECES = 5  # [PAD] [UNK] [CLS] [SEP] [MASK]
PATTERNS = ("gpt2", "cl100k", "llama3", "o200k")

RULES = {
    "vocab_size": Rule(lambda size: size >= SMALLEST_BPE, f"at least {SMALLEST_BPE}"),
    "max_characters": COUNT,
    "sample_bytes": COUNT,
    "character_coverage": Rule(lambda share: 0.5 <= share <= 1, "at least 0.5 and at most 1"),
    "normalization": one_of("none", "nfkc"),
    "pattern": one_of(*PATTERNS),
}
OWN = {  # the special tokens that a tokenizer has by itself
    "bpe": ("<|endoftext|>",),
    "bytes": ("<|endoftext|>",),
    "wordpiece": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "unigram": ("<unk>", "<|endoftext|>"),
    "file": (),
}
RANGE = re.compile(r"\{(\d{1,6})\.\.(\d{1,6})\}")
# Letters or digits beside brackets, which no rule of words keeps together: text never becomes such a token.
SPECIAL = re.compile(r"<[^\s<>,]*[^\W_][^\s<>,]*>|\[[^\s\[\],]*[^\W_][^\s\[\],]*\]")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
MOST_SPECIAL = 100_000


def expanded(special_tokens: tuple[str, ...]) -> tuple[str, ...]:
    """The tokens one by one: `<x_{0..2}>` is `<x_0>`, `<x_1>` and `<x_2>`, and `<x_{2..0}>` the same from the last."""
    found: list[str] = []
    for token in special_tokens:
        span = RANGE.search(token)
        if span is None:
            found.append(token)
        else:
            first, last = int(span[1]), int(span[2])
            step = 1 if first <= last else -1
            numbers = range(first, last + step, step)[: MOST_SPECIAL + 1]
            found += [f"{token[: span.start()]}{number}{token[span.end() :]}" for number in numbers]
    return tuple(found)


def special_names(tokenizer: TokenizerConfig) -> tuple[str, ...]:
    """The special tokens that a tokenizer has for certain, before it is trained or read."""
    return OWN[tokenizer.name] + expanded(tokenizer.special_tokens)


def vocabulary(tokenizer: TokenizerConfig) -> int | None:
    """How many ids a tokenizer has at most, before it is trained; None where a file says it."""
    if isinstance(tokenizer, FileTokenizer):
        return None
    if isinstance(tokenizer, ByteTokenizer):
        return SMALLEST_BPE + len(expanded(tokenizer.special_tokens))
    return tokenizer.vocab_size


def check(tokenizer: TokenizerConfig) -> list[tuple[str, str]]:
    """What no field's type can refuse, as (key below `data.tokenizer`, clash) pairs."""
    problems = _check_special(tokenizer)
    if problems:
        return problems
    special = len(expanded(tokenizer.special_tokens))
    if isinstance(tokenizer, WordPieceTokenizer):
        # A character is a piece twice: where a word begins, and inside one.
        smallest = SPECIAL_PIECES + special + 2 * tokenizer.max_characters
        if tokenizer.vocab_size < smallest:
            clash = f"is {tokenizer.vocab_size}, but {tokenizer.max_characters} characters take up to {smallest} pieces"
            return [("vocab_size", f"{clash}; raise it or lower data.tokenizer.max_characters")]
    if isinstance(tokenizer, BpeTokenizer | UnigramTokenizer):
        by_bytes = isinstance(tokenizer, BpeTokenizer) or tokenizer.byte_fallback
        smallest = len(OWN[tokenizer.name]) + special + 256 * by_bytes
        if tokenizer.vocab_size < smallest:
            clash = f"is {tokenizer.vocab_size}, but bytes and special tokens are {smallest} already"
            return [("vocab_size", f"{clash}; raise it or have fewer special tokens")]
    if isinstance(tokenizer, FileTokenizer) and tokenizer.path.endswith(".txt") and tokenizer.lowercase is None:
        return [("lowercase", "is null, but a vocab.txt does not say whether text is lower-cased: true or false")]
    return []


def _check_special(tokenizer: TokenizerConfig) -> list[tuple[str, str]]:
    seen = set(OWN[tokenizer.name])
    for token in expanded(tokenizer.special_tokens):
        if not SPECIAL.fullmatch(token) or BYTE.fullmatch(token):
            wanted = "a name such as <|user|> or [USER]: letters or digits in brackets, no space and no comma"
            return [("special_tokens", f"holds {json.dumps(token)}, must be {wanted}")]
        if token in seen:
            own = token in OWN[tokenizer.name]
            twice = f"which tokenizer {tokenizer.name} has by itself; leave it out" if own else "twice; keep one"
            return [("special_tokens", f"holds {json.dumps(token)}, {twice}")]
        seen.add(token)
    if len(seen) > MOST_SPECIAL:
        return [("special_tokens", f"are {len(seen):,} or more, must be at most {MOST_SPECIAL:,}")]
    return []


def missing(tokenizer: TokenizerConfig) -> list[tuple[str, str]]:
    """The file that a recipe leaves for its user to name, as (key below `data.tokenizer`, clash) pairs."""
    if isinstance(tokenizer, FileTokenizer) and not tokenizer.path:
        clash = "is empty, must name the model's tokenizer"
        fix = "--config.data.tokenizer.path=FILE, or train one: --config.data.tokenizer.name=bpe"
        return [("path", f"{clash}: {fix}")]
    return []
