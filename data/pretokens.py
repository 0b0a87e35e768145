"""GPT-2's pre-tokens of ASCII text, looked up: the ids that the library gives, on one core several times as fast.

The ids of a pre-token follow from it alone, and a few thousand of them make up most of any text. What is not ASCII
goes to the library, which knows the classes of all of Unicode.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from itertools import groupby

import numpy as np
import tokenizers

from data.workers import usable_cpus

# Radford et al. 2019, within ASCII; blanks are the six that Unicode calls white space.
PATTERN = re.compile(
    r" ?[A-Za-z]++|'(?:[sdmt]|ll|ve|re)| ?(?:[0-9]++|[^\t-\r A-Za-z0-9]++)|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]++"
)
BORDERS = re.compile(r"(?<=\S)(?=\n)")  # where no pre-token reaches across
KEPT, LONGEST = 1 << 17, 64  # pre-tokens that are remembered, and their characters: some 30 MB
FASTER = 5  # threads on which the library overtakes


class Pretokens(dict):
    """{pre-token: its ids, uint32, as bytes} of those that were met. Pickled, it is empty."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        """`tokenizer` cuts text as GPT-2 does, and takes what spells a special token for text."""
        self._tokenizer = tokenizer

    def __reduce__(self):
        return Pretokens, (self._tokenizer,)

    def __missing__(self, pretoken: str) -> bytes:
        ids = array("I", self._tokenizer.encode(pretoken, add_special_tokens=False).ids).tobytes()
        if len(self) < KEPT and len(pretoken) <= LONGEST:
            self[pretoken] = ids
        return ids

    def ids(self, text: str) -> np.ndarray:
        """uint32 [ids] of an ASCII text. A list of its pre-tokens is held meanwhile, some 20 bytes a character."""
        return np.frombuffer(bytearray().join(map(self.__getitem__, PATTERN.findall(text))), np.uint32)


def stretches(text: str) -> Iterator[tuple[bool, str]]:
    """(whether it is ASCII, a part of `text`), in order; the ids of the parts are together those of the text."""
    if text.isascii():
        yield True, text
    else:
        for plain, lines in groupby(BORDERS.split(text), str.isascii):
            yield plain, "".join(lines)


def worthwhile() -> bool:
    """Whether looking up is faster than the threads that the library may use here."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("off", "false", "f", "no", "n", "0"):
        return True
    threads = os.environ.get("RAYON_NUM_THREADS", "")
    return (int(threads) if threads.isdecimal() and int(threads) else usable_cpus()) < FASTER
