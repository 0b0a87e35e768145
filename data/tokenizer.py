"""Text to ids and back: byte-level BPE or WordPiece trained here, any tokenizer.json, or the raw bytes.

Every tokenizer is held as the content of a tokenizer.json, so that one digest covers it and one file
carries it. Text never becomes a special token: what spells `<|endoftext|>` in a document is
encoded as ordinary text, and the end of text is put between documents by the token store alone. An
encoder's tokenizer, one with a mask token, has the token that begins its inputs, [CLS], in that place.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers

from data import bpe, pretokens, sentencepiece_file, special_tokens, tokenizer_formats, unigram, wordpiece
from data.cli import run_command
from data.errors import ConfigError, DataError
from data.files import canonical_json, storage_errors, write_durably
from data.pretokens import Pretokens
from data.special_tokens import END_OF_TEXT
from data.text_sample import sample
from data.tokenizer_config import (
    SMALLEST_BPE,
    FileTokenizer,
    TokenizerConfig,
    TrainedTokenizer,
    UnigramTokenizer,
    WordPieceTokenizer,
    expanded,
)

PIECE = 1 << 16  # characters; longer texts are encoded in parts where that changes no id
GROUP = 1 << 21  # characters encoded at a time
BORDER = re.compile(r"\S(?=\n)")  # no pre-token of GPT-2, and no word of BERT, holds text and then space
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eos|>")
CLS_NAMES, SEP_NAMES = (wordpiece.CLS, "<s>"), (wordpiece.SEP, "</s>")  # BERT's and RoBERTa's
MASK_NAMES, PAD_NAMES = (wordpiece.MASK, "<mask>"), (wordpiece.PAD, "<pad>")


class Tokenizer:
    """Encodes and decodes without special tokens.

    Attributes:
      vocab_size: largest id + 1.
      end_of_text: the id that begins every stored document.
      end_of_text_token: how that id is spelt in the tokenizer.json.
      stop: the id that ends a text in decoding.
      cls, sep, mask, pad: the ids of an encoder's special tokens; None where the vocabulary lacks one.
      fingerprint: hexadecimal SHA-256 of everything that decides an id.
    """

    def __init__(self, content: dict, end_of_text_token: str, stop_token: str | None = None):
        """`content` is a parsed tokenizer.json, of which truncation, padding and post-processor are dropped.

        `end_of_text_token` must be in its vocabulary, and `stop_token` too; None: the same.
        """
        vocabulary = tokenizers.Tokenizer.from_str(json.dumps(content)).get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values()) + 1
        self.end_of_text_token = end_of_text_token
        self.end_of_text: int = vocabulary[end_of_text_token]
        self.stop: int = vocabulary[stop_token or end_of_text_token]
        self.cls, self.sep, self.mask, self.pad = (
            next((vocabulary[name] for name in names if name in vocabulary), None)
            for names in (CLS_NAMES, SEP_NAMES, MASK_NAMES, PAD_NAMES)
        )
        self._content = {
            **content,
            **{"truncation": None, "padding": None, "post_processor": None},
            "added_tokens": special_tokens.with_special(
                content.get("added_tokens") or [], end_of_text_token, self.end_of_text
            ),
        }
        self._tokenizer = _distrusting(self._content)
        guarded = special_tokens.guarded(self._content, self._tokenizer)
        if guarded is not self._content:
            self._content, self._tokenizer = guarded, _distrusting(guarded)
        self.fingerprint: str = hashlib.sha256(canonical_json([self._content, end_of_text_token])).hexdigest()
        self._border = _border(self._content)
        self._pretokens = Pretokens(self._tokenizer) if _is_gpt2(self._content) else None

    @property
    def text_vocab_size(self) -> int:
        """Largest id that a stored document can hold, + 1: special tokens do not come out of text."""
        special, vocabulary = self.special_tokens, self._tokenizer.get_vocab(with_added_tokens=True)
        return max(self.end_of_text, *(i for token, i in vocabulary.items() if token not in special)) + 1

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One uint32 array of ids for each text."""
        if self._pretokens is None or not pretokens.worthwhile():
            return self._encoded(texts)
        places = [(index, piece) for index, text in enumerate(texts) for _, piece in self._pieces(text)]
        parts = [(index, *part) for index, piece in places for part in pretokens.stretches(piece)]
        others = iter(self._encoded([part for _, is_plain, part in parts if not is_plain]))
        ids: list[list[np.ndarray]] = [[] for _ in texts]
        for index, is_plain, part in parts:
            ids[index].append(self._pretokens.ids(part) if is_plain else next(others))
        return [joined(found) for found in ids]

    def _encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One uint32 array of ids for each text, made by the library on all cores."""
        ids: list[list[np.ndarray]] = [[] for _ in texts]
        for index, _, encoding in self._encodings(texts, self._tokenizer.encode_batch_fast):
            ids[index].append(_ids(encoding))
        return [joined(parts) for parts in ids]

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(the ids that `encode_batch` gives, int64 [ids, 2]: the characters of the text each is from and up to)."""
        ids: list[list[np.ndarray]] = [[] for _ in texts]
        offsets: list[list[np.ndarray]] = [[] for _ in texts]
        for index, start, encoding in self._encodings(texts, self._tokenizer.encode_batch):
            ids[index].append(_ids(encoding))
            offsets[index].append(_offsets(encoding) + start)
        return [(joined(parts), joined(places)) for parts, places in zip(ids, offsets, strict=True)]

    def _encodings(self, texts: Sequence[str], encode: Callable) -> Iterator[tuple[int, int, tokenizers.Encoding]]:
        """(index of a text, where in it a piece starts, the piece's encoding), piece after piece."""
        pieces = [(index, *piece) for index, text in enumerate(texts) for piece in self._pieces(text)]
        for group in _groups(pieces):
            encodings = encode([piece for _, _, piece in group], add_special_tokens=False)
            for (index, start, _), encoding in zip(group, encodings, strict=True):
                yield index, start, encoding

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without an end of text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_trusted(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(uint32 [ids], int64 [ids, 2]) of a text whose author may write special tokens, such as a chat template.

        What spells a special token is that token, all else as `encode` has it; the second array says which
        characters of the text each id is from and up to. Never for text that others wrote.
        """
        encoding = self._trusting.encode(text, add_special_tokens=False)
        return _ids(encoding), _offsets(encoding)

    @cached_property
    def _trusting(self) -> tokenizers.Tokenizer:
        """The same rules, under which text can spell a special token."""
        return tokenizers.Tokenizer.from_str(json.dumps(self._content))

    def encode_with_masks(self, text: str) -> list[int]:
        """The ids of `text`, in which what spells the mask token is that token; ValueError where there is none."""
        if self.mask is None:
            raise ValueError("this tokenizer has no mask token")
        name = self.name_of(self.mask)
        entry = next((entry for entry in self._content["added_tokens"] if entry["content"] == name), {})
        before, after = (r"\s*" if entry.get(side) else "" for side in ("lstrip", "rstrip"))
        ids: list[int] = []
        for part in re.split(f"{before}{re.escape(name)}{after}", text):
            ids += [self.mask, *self.encode(part)]
        return ids[1:]

    @property
    def special_tokens(self) -> dict[str, int]:
        """{name: id} of the tokens that text never becomes, in the order of their ids."""
        entries = sorted(self._content["added_tokens"], key=lambda entry: entry["id"])
        return {entry["content"]: entry["id"] for entry in entries if entry["special"]}

    @property
    def unknown(self) -> int | None:
        """The id of what the vocabulary cannot spell; None where it can spell everything, or leaves that out."""
        model = self._content["model"]
        name = model.get("unk_token")
        return self._tokenizer.token_to_id(name) if name is not None else model.get("unk_id")

    @property
    def fallback_bytes(self) -> list[int]:
        """The ids of single bytes, of which characters are made that are no piece; empty where that is not done."""
        if not self._content["model"].get("byte_fallback"):
            return []
        found = (self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return [index for index in found if index is not None]

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary, special or not; None where it has no such token."""
        return self._tokenizer.token_to_id(token)

    def name_of(self, index: int) -> str:
        """How an id is spelt in the vocabulary; empty where it has no such id."""
        return self._tokenizer.id_to_token(index) or ""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens, and ids that the vocabulary lacks, are left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, path: str | os.PathLike):
        """Writes a tokenizer.json that `load`, and the `tokenizers` library, read back."""
        with storage_errors(path):
            write_durably(Path(path), json.dumps(self._content, ensure_ascii=False, indent=1).encode())

    def _pieces(self, text: str) -> Iterator[tuple[int, str]]:
        """(start, part) for parts of `text` whose ids in order are its own: for all cores, in bounded memory."""
        start = 0
        while self._border and len(text) - start > 2 * PIECE:
            border = self._border.search(text, start + PIECE)
            if border is None:
                break
            yield start, text[start : border.end()]
            start = border.end()
        yield start, text[start:]


def _distrusting(content: dict) -> tokenizers.Tokenizer:
    """The library's tokenizer, which takes what spells a special token for text."""
    made = tokenizers.Tokenizer.from_str(json.dumps(content))
    made.encode_special_tokens = True
    return made


def _ids(encoding: tokenizers.Encoding) -> np.ndarray:
    """uint32 [ids]; by way of an array, which numpy's own reading of a list takes three times as long as."""
    return np.frombuffer(array("I", encoding.ids), np.uint32)


def _offsets(encoding: tokenizers.Encoding) -> np.ndarray:
    """int64 [ids, 2]."""
    flat = chain.from_iterable(encoding.offsets)
    return np.fromiter(flat, np.int64, 2 * len(encoding)).reshape(-1, 2)


def joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _border(content: dict) -> re.Pattern | None:
    """Behind what a text can be cut so that the ids of its parts in order are its own; None where nothing is known."""
    if not all(entry["special"] for entry in content["added_tokens"]):
        return None
    normalizer, splitter = content.get("normalizer") or {}, content.get("pre_tokenizer") or {}
    bert = (normalizer.get("type"), splitter.get("type")) == ("BertNormalizer", "BertPreTokenizer")
    return BORDER if bert or _is_gpt2(content) else sentencepiece_file.border(content)


def _is_gpt2(content: dict) -> bool:
    """Whether the ids of a text are those of GPT-2's pre-tokens, each by itself."""
    splitter = content.get("pre_tokenizer") or {}
    return (
        not content.get("normalizer")
        and (splitter.get("type"), splitter.get("use_regex")) == ("ByteLevel", True)
        and not splitter.get("add_prefix_space")
        and not content["model"].get("dropout")
        and all(entry["special"] for entry in content["added_tokens"])
    )


def _groups(pieces: list[tuple[int, int, str]]) -> Iterator[list[tuple[int, int, str]]]:
    """Pieces in order, some at a time: the library's encodings take hundreds of bytes a token."""
    group, characters = [], 0
    for piece in pieces:
        group.append(piece)
        characters += len(piece[2])
        if characters >= GROUP:
            yield group
            group, characters = [], 0
    if group:
        yield group


def train_bpe(documents: Iterable[str], vocab_size: int, special: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokenization (Radford et al. 2019), lossless for any text.

    The same documents give the same tokenizer, byte for byte, whatever the number of threads. Text too small
    for `vocab_size` merges gives fewer. The trainer counts the distinct pre-tokens, and holds those.
    """
    if vocab_size < SMALLEST_BPE:
        raise ConfigError(
            f"data.tokenizer.vocab_size is {vocab_size}; byte-level BPE needs at least {SMALLEST_BPE}: 256 "
            "bytes and the end of text. Raise it, or set data.tokenizer.name=bytes."
        )
    return _beginning(bpe.train(documents, vocab_size, special))


def byte_tokenizer(special: Sequence[str] = ()) -> Tokenizer:
    """Ids 0-255 are the bytes of the UTF-8 text, 256 is the end of text."""
    return _beginning(bpe.raw_bytes(special))


def train_wordpiece(documents: Iterable[str], config: WordPieceTokenizer) -> Tokenizer:
    """BERT's tokenizer with pieces of its own; documents begin with [CLS]."""
    special = expanded(config.special_tokens)
    made = wordpiece.train(documents, config.vocab_size, config.lowercase, config.max_characters, special)
    return _beginning(made)


def train_unigram(documents: Iterable[str], config: UnigramTokenizer) -> Tokenizer:
    """SentencePiece's unigram pieces; see data.unigram for what comes back of a text."""
    return _beginning(unigram.train(documents, config))


def _beginning(content: dict) -> Tokenizer:
    """The tokenizer whose documents begin with the first token that its vocabulary has for that."""
    return Tokenizer(content, next(iter(_beginnings(special_tokens.vocabulary_of(content)))))


def _beginnings(vocabulary: Collection[str]) -> list[str]:
    encoder = any(name in vocabulary for name in MASK_NAMES)
    usual = (*CLS_NAMES, *END_OF_TEXT_NAMES) if encoder else END_OF_TEXT_NAMES
    return [name for name in usual if name in vocabulary]


def load(
    path: str | os.PathLike,
    end_of_text: str | None = None,
    lowercase: bool | None = None,
    stop: str | None = None,
    pattern: str | None = None,
    special: Sequence[str] = (),
) -> Tokenizer:
    """Reads a tokenizer.json, the vocab.txt of a BERT, a SentencePiece model, tiktoken's ranks, or a directory's.

    `end_of_text` is the token that begins a document; None: found by its usual names. `stop` is the one that ends
    a text in decoding; None: the same. `lowercase` is asked for by a vocab.txt, and takes the place of what a
    tokenizer.json of BERT's rules says. `pattern` is asked for by tiktoken's ranks. `special` tokens that the file
    lacks stand behind its largest id, in order. Raises DataError when the file is not a tokenizer, or has no such
    token; ConfigError when `lowercase` or `pattern` is missing or has no meaning.
    """
    content = tokenizer_formats.read(Path(path), lowercase, pattern)
    if special:
        try:
            content = special_tokens.extended(content, special)
        except ValueError as error:
            raise DataError(f"data.tokenizer.special_tokens cannot be added to {path}: {error}.") from error
    vocabulary = special_tokens.vocabulary_of(content)
    if end_of_text is None:
        found, names = _beginnings(vocabulary), (*END_OF_TEXT_NAMES,)
    else:
        found, names = [end_of_text] if end_of_text in vocabulary else [], (end_of_text,)
    if not found:
        raise DataError(
            f"The tokenizer {path} has no token {' or '.join(names)}. Set data.tokenizer.end_of_text to the token of "
            "its vocabulary that shall stand before each document, or add one with data.tokenizer.special_tokens."
        )
    if stop is not None and stop not in vocabulary:
        raise DataError(f"The tokenizer {path} has no token {stop}, which data.tokenizer.stop names. Choose another.")
    return Tokenizer(content, found[0], stop)


def build(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
    """The tokenizer that `config` describes; `documents` are read only if it must be trained."""
    if isinstance(config, TrainedTokenizer):
        documents = sample(documents, config.sample_bytes)
    return BUILDERS[config.name](config, documents)


def _load(config: FileTokenizer) -> Tokenizer:
    special = expanded(config.special_tokens)
    return load(config.path, config.end_of_text, config.lowercase, config.stop, config.pattern, special)


BUILDERS = {
    "bpe": lambda config, documents: train_bpe(documents, config.vocab_size, expanded(config.special_tokens)),
    "wordpiece": lambda config, documents: train_wordpiece(documents, config),
    "unigram": lambda config, documents: train_unigram(documents, config),
    "file": lambda config, documents: _load(config),
    "bytes": lambda config, documents: byte_tokenizer(expanded(config.special_tokens)),
}


if __name__ == "__main__":
    from data import tokenizer_report  # here, because it imports this module

    run_command(tokenizer_report.main)
