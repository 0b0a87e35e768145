"""Marks on tokens, taken from the text while it is at hand: which begin a word, and which a sentence.

They are made of the characters that a token is from, so any tokenizer has them. A token that begins inside a
word, as BERT's `##` pieces do, or inside a character continues the word before it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

import numpy as np

WORDS, SENTENCES = "words", "sentences"
ANSWERS = "answers"  # which tokens are to be predicted; data.record_encoder makes it
SPACE, LETTER, ALONE, NOTHING = range(4)
# The blocks that BERT sets apart: Chinese characters, neither kana nor hangul.
CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
LINE = re.compile(r"[^\r\n]*\S[^\r\n]*")
CLOSING = "\"'”’»」』）)\\]"
# A full stop and space after it, or a Chinese one; what closes a quotation belongs to the sentence before.
SENTENCE_END = re.compile(rf"[.!?…]+[{CLOSING}]*\s+|[。！？]+[{CLOSING}]*\s*")


@cache
def character_classes() -> np.ndarray:
    """uint8 by code point: space, part of a word, a word by itself (punctuation, Chinese), nothing (as BERT drops)."""
    classes = np.array([_class(chr(point)) for point in range(0x110000)], np.uint8)
    for first, last in CHINESE:
        classes[first : last + 1] = ALONE
    return classes


def _class(character: str) -> int:
    category = unicodedata.category(character)
    if character in " \t\n\r" or category[0] == "Z":
        return SPACE
    if category[0] == "P" or ("!" <= character <= "~" and not character.isalnum()):
        return ALONE
    # Control characters, and marks that stand on the letter before them: neither begins nor ends a word.
    return NOTHING if category[0] == "C" or category == "Mn" or character == "\ufffd" else LETTER


def words(text: str, offsets: np.ndarray) -> np.ndarray:
    """bool [tokens]: whether each token begins a word; `offsets` int64 [tokens, 2] in characters of `text`."""
    found = character_classes()[np.frombuffer(text.encode("utf-32-le"), "<u4")]
    # Of what is nothing, the class of what stands before it.
    places = np.maximum.accumulate(np.where(found != NOTHING, np.arange(found.size), -1))
    before = np.where(places >= 0, found[places], SPACE)
    inside = np.zeros(found.size + 1, bool)
    inside[1:-1] = (before[:-1] == LETTER) & (before[1:] == LETTER)
    begins = ~inside[offsets[:, 0]]
    begins[1:] &= offsets[1:, 0] >= offsets[:-1, 1]
    begins[:1] = True
    return begins


def sentences(text: str, offsets: np.ndarray) -> np.ndarray:
    """bool [tokens]: whether each token is the first of a sentence; the first token always is.

    A sentence is a line that is not blank; of a text of one line, what ends in sentence punctuation.
    """
    starts = [line.start() + len(line[0]) - len(line[0].lstrip()) for line in LINE.finditer(text)]
    if len(starts) < 2:
        starts += [end.end() for end in SENTENCE_END.finditer(text)]
    # The first begins with the text: space before it is its own.
    places = np.searchsorted(offsets[:, 1], np.array(starts[1:], np.int64), side="right")
    begins = np.zeros(len(offsets), bool)
    begins[places[places < len(offsets)]] = True
    begins[:1] = True
    return begins


MARKS: dict[str, Callable[[str, np.ndarray], np.ndarray]] = {WORDS: words, SENTENCES: sentences}
# The mark of the token that stands before each document; False where none is named.
# The end of text before a document is the end of the one before it, which an answer has too.
FIRST = {WORDS: True, SENTENCES: False, ANSWERS: True}


def file_name(name: str) -> str:
    return f"{name}.bin"


class Bits:
    """Appends marks to a file, a bit each, the first in the lowest bit of the first byte."""

    def __init__(self, file):
        """`file`: takes arrays by `write`; is closed with this."""
        self.file = file
        self._rest = np.zeros(0, bool)

    def write(self, marks: np.ndarray):
        marks = np.concatenate([self._rest, marks])
        whole = marks.size // 8 * 8
        self.file.write(np.packbits(marks[:whole], bitorder="little"))
        self._rest = marks[whole:]

    def close(self):
        self.file.write(np.packbits(self._rest, bitorder="little"))
        self.file.close()


def read(packed: np.ndarray, start: int, stop: int) -> np.ndarray:
    """bool [stop - start] of the bits that Bits has written."""
    bits = np.unpackbits(packed[start // 8 : -(-stop // 8)], bitorder="little")
    return bits[start % 8 : start % 8 + stop - start].astype(bool)
