"""Which kind of tokenizer a file is, told by its content, and its content as that of a tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers

from data import sentencepiece_file, tiktoken_file, wordpiece
from data.errors import ConfigError, DataError
from data.tokenizer_config import PATTERNS

# In a directory, the first that is there.
NAMES = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "*.model",
)
KINDS = "a tokenizer.json, the vocab.txt of a BERT, a SentencePiece .model, or tiktoken's ranks"


def read(path: Path, lowercase: bool | None, pattern: str | None) -> dict:
    """The content of a tokenizer.json that encodes as the tokenizer at `path`, a file or a directory, does.

    DataError where there is none; ConfigError where `lowercase` or `pattern` is missing, or has no meaning for it.
    """
    path = _inside(path) if path.is_dir() else path
    data = _bytes(path)
    ranks = path.suffix not in (".json", ".txt") and tiktoken_file.matches(data)
    if pattern is not None and not ranks:
        raise ConfigError(
            f"data.tokenizer.pattern is {pattern}, but {path} is no file of tiktoken's ranks, which alone do not say "
            "how text is cut; leave it at null."
        )
    if path.suffix == ".txt":
        if lowercase is None:
            raise ConfigError(f"{path} does not say whether text is lower-cased; set data.tokenizer.lowercase.")
        return wordpiece.content(wordpiece.read_vocabulary(path), lowercase)
    if ranks and pattern is None:
        raise ConfigError(
            f"{path} holds tiktoken's ranks, which do not say how text is cut; set data.tokenizer.pattern to one of "
            f"{', '.join(PATTERNS)}."
        )
    content = tiktoken_file.content(data, path, pattern) if ranks else _other(path, data)
    return content if lowercase is None else cased(path, content, lowercase)


def cased(path: Path | str, content: dict, lowercase: bool) -> dict:
    """A tokenizer.json, found at `path`, with lower-casing on or off; ConfigError where its rules are not BERT's."""
    rules = content.get("normalizer") or {}
    if rules.get("type") != "BertNormalizer":
        raise ConfigError(
            f"data.tokenizer.lowercase is {json.dumps(lowercase)}, but {path} does not follow BERT's rules, which "
            "alone have this switch; leave it at null."
        )
    return {**content, "normalizer": {**rules, "lowercase": lowercase}}


def _inside(directory: Path) -> Path:
    for name in NAMES:
        found = sorted(directory.glob(name))
        if len(found) > 1:
            raise DataError(f"{directory} holds {found[0].name} and {found[1].name}; name the one to read.")
        if found:
            return found[0]
    raise DataError(f"The directory {directory} holds no tokenizer: none of {', '.join(NAMES)}. Name another.")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"The tokenizer {path} cannot be read: {error.strerror}. Check data.tokenizer.path.") from error


def _other(path: Path, data: bytes) -> dict:
    if path.suffix == ".json" or data.lstrip()[:1] == b"{":
        return _json(path, data)
    if path.suffix == ".model" or data[:1] == b"\n":  # the tag of a piece
        return sentencepiece_file.content(data, path)
    begins = f"begins with {data[:16]!r}" if data else "is empty"
    raise DataError(f"{path} {begins}, so it is no tokenizer that can be read: {KINDS}. Check data.tokenizer.path.")


def _json(path: Path, data: bytes) -> dict:
    """The content of a tokenizer.json that the library reads, too."""
    try:
        content = json.loads(data)
        tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises Exception itself for a file that it does not know
        raise DataError(
            f"The tokenizer {path} is not a tokenizer.json that the tokenizers library reads: {error}. "
            "Save it with `save_pretrained` of a fast tokenizer, or choose another file."
        ) from error
    return content
