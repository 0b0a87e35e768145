"""Words and sentences of any script without a model, for the rules and n-grams that count them.

datatrove's own tokenizers are spaCy's and others, one a language, some of which fetch a model as they start.
"""

from __future__ import annotations

import unicodedata

import regex
from datatrove.utils.word_tokenizers import WordTokenizer

# Scripts that put no space between words: each character is a word.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}"
LETTERS = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]]"
WORD = regex.compile(rf"[{UNSPACED}]|{LETTERS}+(?:['’]{LETTERS}+)*", regex.V1)
TOKEN = regex.compile(rf"{WORD.pattern}|[^\s]", regex.V1)
# A sentence ends after its stop and closing quotes; Latin stops need a space behind, since 3.14 has none.
SENTENCE = regex.compile(r"[^\s].*?(?:[。！？]+[”’」』）]*|[.!?…]+[\"'”’)]*(?=\s|$)|$)", regex.DOTALL)


def normalized(text: str) -> str:
    """`text` in one case and one spelling of each character (NFKC)."""
    return unicodedata.normalize("NFKC", text).casefold()


def words(text: str) -> list[str]:
    """The words of a normalized text: runs of letters and digits; Han and kana characters one by one."""
    return WORD.findall(text)


class Words(WordTokenizer):
    """What datatrove's filters and MinHash count: words, and each punctuation character."""

    def word_tokenize(self, text: str) -> list[str]:
        return TOKEN.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[start:stop] for start, stop in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in SENTENCE.finditer(text)]

    def __eq__(self, other) -> bool:
        return type(other) is Words

    def __hash__(self) -> int:
        return hash(Words)
