"""tiktoken's files of ranks as the content of a tokenizer.json.

A line is a token's bytes in base 64 and its rank, which is its id. Text is cut by a pattern that the file does
not name. Inside a part, the two neighbours whose joined bytes have the lowest rank are joined, again and again;
a part that has a rank is that token at once.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from data.bpe import byte_characters
from data.errors import DataError
from data.special_tokens import END_OF_TEXT, FLAGS

LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d{1,9})\r?")
CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BEFORE = r"[^\r\n\p{L}\p{N}]?"
SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = [CONTRACTION, rf"{BEFORE}\p{{L}}+", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*"]
PATTERNS = {  # what cuts text; gpt2 is known to the library
    "cl100k": "|".join([*WORDS, r"\s+\z", SPACE]),  # space at the end of a text is one part
    "llama3": "|".join([*WORDS, SPACE]),
    "o200k": "|".join(
        [
            rf"{BEFORE}{UPPER}*{LOWER}+{CONTRACTION}?",
            rf"{BEFORE}{UPPER}+{LOWER}*{CONTRACTION}?",
            *(r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", SPACE),
        ]
    ),
}
# Special tokens that no file of ranks names: those that OpenAI publishes for its own, by pattern and number of ranks.
FIM = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
PUBLISHED = {
    ("gpt2", 50256): {END_OF_TEXT: 50256},
    ("cl100k", 100256): {END_OF_TEXT: 100257, **FIM, "<|endofprompt|>": 100276},
    ("o200k", 199998): {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
}


def matches(data: bytes) -> bool:
    """Whether a file begins as one of ranks."""
    return LINE.fullmatch(data[:4096].split(b"\n", 1)[0]) is not None


def content(data: bytes, path: str | Path, pattern: str) -> dict:
    """A parsed tokenizer.json of the ranks in `data`, found at `path`, for text that is cut by a named pattern.

    DataError names the line that is no rank, and the byte that has none: text with it could not be encoded.
    """
    characters = byte_characters()
    ranks = {"".join(characters[byte] for byte in token): rank for token, rank in read(data, path).items()}
    special = PUBLISHED.get((pattern, len(ranks)), {})
    merges = []
    for token in sorted(ranks, key=ranks.get):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    tokenizer = tokenizers.Tokenizer(models.BPE({**ranks, **special}, merges, ignore_merges=True))
    if pattern == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, rest])
    tokenizer.decoder = decoders.ByteLevel()
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = [{"id": i, "content": name, **FLAGS, "special": True} for name, i in special.items()]
    return made


def read(data: bytes, path: str | Path) -> dict[bytes, int]:
    """{token: rank} of a file; DataError where a line is none, or repeats another, or a byte is missing."""
    ranks: dict[bytes, int] = {}
    taken: dict[int, int] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        found = LINE.fullmatch(line)
        try:
            token = base64.b64decode(found[1], validate=True) if found else b""
        except binascii.Error:
            token = b""
        if not token:
            raise DataError(
                f"{path}, line {number} is {line[:60]!r}, not a token in base 64, a space and its rank. Get another "
                "copy of the file."
            )
        rank = int(found[2])
        if token in ranks or rank in taken:
            twice = f"token {token!r}" if token in ranks else f"rank {rank} of line {taken[rank]}"
            raise DataError(f"{path}, line {number} has the {twice} once more. Get another copy of the file.")
        ranks[token], taken[rank] = rank, number
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(
            f"{path} has no rank for the byte 0x{missing[0]:02x} ({len(missing)} of 256 are missing), so it cannot "
            "encode every text. Get another copy of the file."
        )
    return ranks
