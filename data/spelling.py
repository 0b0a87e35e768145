"""Ids as text that a person reads: every token's own bytes, and what cannot be seen or would disturb a line, named."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from data.bpe import byte_characters
from data.special_tokens import BYTE
from data.tokenizer import Tokenizer

SPACE_MARK = "\u2581"  # SentencePiece's for a space
CONTINUES = "##"  # WordPiece's for what goes on inside a word
PICTURES = 0x2400  # Unicode's pictures of the control characters 0 to 0x1f
JOINERS = "\u200c\u200d"  # which scripts and emoji are written with


class Token(NamedTuple):
    content: bytes  # of UTF-8, perhaps only a part of a character's
    special: bool  # what text cannot spell


class Speller:
    """Says what each token of a tokenizer stands for."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._special = set(tokenizer.special_tokens.values())
        space = tokenizer.id_of("\u0120")  # GPT-2's character for a space
        self._bytes = None
        if space is not None and tokenizer.decode([space]) == " ":
            self._bytes = {character: byte for byte, character in enumerate(byte_characters())}
        self._words = self._bytes is None and _has_words(tokenizer)

    def tokens(self, ids: Iterable[int]) -> list[Token]:
        """Each id's token; words of a vocabulary of words begin with a space where they follow another."""
        found: list[Token] = []
        for index in ids:
            name = self._tokenizer.name_of(int(index))
            if int(index) in self._special:
                found.append(Token(name.encode(), True))
                continue
            content = self._content(name)
            follows = self._words and found and not found[-1].special and not name.startswith(CONTINUES)
            found.append(Token(b" " + content if follows else content, False))
        return found

    def begins_document(self, index: int) -> bool:
        """Whether a token is the one before each document."""
        return int(index) == self._tokenizer.end_of_text

    def _content(self, name: str) -> bytes:
        if self._bytes is not None:
            if all(character in self._bytes for character in name):
                return bytes(self._bytes[character] for character in name)
            return name.encode()
        if self._words:
            return name.removeprefix(CONTINUES).encode()
        if BYTE.fullmatch(name):
            return bytes([int(name[3:5], 16)])
        return name.replace(SPACE_MARK, " ").encode()


def _has_words(tokenizer: Tokenizer) -> bool:
    """Whether `##` in a token's name says that it goes on inside a word, and is no text."""
    names = ((index, tokenizer.name_of(index)) for index in range(tokenizer.vocab_size))
    inside = next((i for i, name in names if name.startswith(CONTINUES) and name[2:3] not in ("", "#")), None)
    return inside is not None and tokenizer.decode([inside, inside]).count(CONTINUES) < 2


def legible(content: bytes) -> str:
    """The text of some bytes: parts of characters as \\xe4, controls as their pictures, a line's end before it.

    What would turn a line around or is not to be seen is named by its code point.
    """
    return "".join(map(_shown, content.decode(errors="backslashreplace")))


def _shown(character: str) -> str:
    point = ord(character)
    if character == "\n":
        return chr(PICTURES + point) + "\n"
    if point < 0x20:
        return chr(PICTURES + point)
    if point == 0x7F:
        return "\u2421"
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Co") and character not in JOINERS
    return f"\\u{{{point:x}}}" if hidden else character
