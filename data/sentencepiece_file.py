"""SentencePiece models (Kudo and Richardson 2018) as the content of a tokenizer.json.

A `.model` file is one protocol buffer, read here without its library: pieces with scores, how they were trained,
and how text is normalised. Unigram models keep their scores. Those of BPE say which pieces exist, and a merge is
as early as the piece that it makes has a high score.

What `sentencepiece` does to text is spelt in the parts of a tokenizer.json. Two things come out otherwise, both
rare: under a table of characters (nmt_nfkc and its like) a sequence seen as one that no accent composes, such as a
full-width letter and an accent; and in very long texts of unigram models two ways to cut that are equally likely
but for the rounding of the sum, which sentencepiece makes of float32 over the whole text.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from data import special_tokens
from data.errors import DataError

SPACE = "\u2581"  # how a space is written inside pieces
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
KINDS = {3: "words", 4: "characters"}
WORDS, LINES = f"{SPACE}+", "\n+"  # what a part of a text begins with, and ends with
BORDERS = {WORDS: rf"[^\s{SPACE}](?= )", LINES: r"\n(?=[^\n])"}
TO_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
BONUS = 0.1  # for each byte behind the first of a user-defined piece, as sentencepiece 0.2.3 has it


@dataclass(frozen=True)
class Model:
    """What a file says. `pieces` are (text, score, type) by id."""

    pieces: list[tuple[str, float, int]]
    kind: int
    charsmap: bytes
    dummy_prefix: bool
    remove_extra_spaces: bool
    byte_fallback: bool

    def texts(self, *kinds: int) -> list[str]:
        return [text for text, _, kind in self.pieces if kind in kinds]


def content(data: bytes, path: str | Path) -> dict:
    """A parsed tokenizer.json that gives the ids of the model in `data`, which was found at `path`.

    Raises DataError where `data` is no SentencePiece model, or one of words or characters.
    """
    model = read(data, path)
    try:
        return converted(model)
    except Exception as error:  # the library raises Exception itself
        raise _damaged(path, error) from error


def converted(model: Model, nfkc: bool = False) -> dict:
    """A parsed tokenizer.json that gives the ids of `model`; with `nfkc`, of text that is put into that form."""
    tokenizer = tokenizers.Tokenizer(_unigram(model) if model.kind == UNIGRAM else _bpe(model))
    tokenizer.normalizer = _normalizer(model, nfkc)
    splits = _splits(model)
    if splits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if model.dummy_prefix else [])
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in model.texts(UNKNOWN, CONTROL)])
    return json.loads(tokenizer.to_str())


def read(data: bytes, path: str | Path) -> Model:
    """The parts of a SentencePiece model that decide an id; DataError where it is none, or cannot be converted."""
    try:
        pieces, trainer, normalizer = [], {}, {}
        for number, value in _fields(data):
            if number == 1:
                pieces.append(_piece(value))
            elif number in (2, 3):
                (trainer if number == 2 else normalizer).update(_fields(value))
        if not any(kind == NORMAL for _, _, kind in pieces):
            raise ValueError("it holds no pieces")
        if sum(kind == UNKNOWN for _, _, kind in pieces) != 1:
            raise ValueError("it holds no piece for what is unknown")
        charsmap = normalizer.get(2, b"")
        if not isinstance(charsmap, bytes):
            raise ValueError("its table of characters is a number")
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    model = Model(
        pieces=pieces,
        kind=trainer.get(3, UNIGRAM),
        charsmap=charsmap,
        dummy_prefix=bool(normalizer.get(3, True)),
        remove_extra_spaces=bool(normalizer.get(4, True)),
        byte_fallback=bool(trainer.get(35, False)),
    )
    refused = {
        f"its pieces are {KINDS.get(model.kind, 'unknown')}, not unigram or BPE": model.kind not in (UNIGRAM, BPE),
        "it writes spaces behind words (treat_whitespace_as_suffix)": bool(trainer.get(24, False)),
        "it leaves spaces as they are (escape_whitespaces=false)": not normalizer.get(5, True),
    }
    for reason, holds in refused.items():
        if holds:
            raise DataError(f"The SentencePiece model {path} cannot be read: {reason}. Choose another tokenizer.")
    return model


def _damaged(path: str | Path, error: Exception) -> DataError:
    return DataError(f"The tokenizer {path} is no SentencePiece model: {error}. Get another copy of it.")


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    return fields[1].decode() if 1 in fields else "", struct.unpack("<f", fields.get(2, bytes(4)))[0], fields.get(3, 1)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protocol buffer; ValueError where it is none."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind, size = key & 7, {1: 8, 5: 4}.get(key & 7)
        if kind in (0, 2):
            size, place = _varint(data, place)
        elif size is None:
            raise ValueError(f"byte {place} begins no field")
        if kind == 0:
            yield key >> 3, size
            continue
        if place + size > len(data):
            raise ValueError(f"it ends inside a field of {size} bytes, at byte {len(data)}")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError(f"it ends inside a number, at byte {place}")
        byte = data[place]
        value, place = value | (byte & 0x7F) << shift, place + 1
        if byte < 0x80:
            return value, place
    raise ValueError(f"byte {place} continues a number that is too long")


def _unigram(model: Model) -> models.Unigram:
    """Pieces with their scores. One not in use keeps its id under a name that no text has: one with a space."""
    vocabulary = []
    for text, score, kind in model.pieces:
        if kind == USER_DEFINED:
            score = BONUS * (len(text.encode()) - 1)
        vocabulary.append((f" {text}" if kind == UNUSED else text, score))
    unknown = next(index for index, (_, _, kind) in enumerate(model.pieces) if kind == UNKNOWN)
    return models.Unigram(vocabulary, unknown, model.byte_fallback)


def _bpe(model: Model) -> models.BPE:
    """Every way in which two pieces make a third is a merge, in the order of the third's score."""
    scores = {text: score for text, score, kind in model.pieces if kind == NORMAL}
    ranks = {text: index for index, (text, _, _) in enumerate(model.pieces)}
    merges = []
    for text in sorted(scores, key=lambda text: (-scores[text], ranks[text])):
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        pairs = [pair for pair in pairs if pair[0] in scores and pair[1] in scores]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return models.BPE(
        ranks,
        merges,
        unk_token=model.texts(UNKNOWN)[0],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=bool(model.texts(USER_DEFINED)),
    )


def _normalizer(model: Model, nfkc: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [normalizers.NFKC()] if nfkc else []
    if model.charsmap:
        steps += _charsmap(model.charsmap)
    if model.remove_extra_spaces:
        steps.append(normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if model.dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _charsmap(table: bytes) -> list[normalizers.Normalizer]:
    """The library's table, and before it what it would not do to sequences of characters that are seen as one.

    It looks up such a sequence as a whole, takes the first entry that the sequence begins with, and drops the rest.
    So a letter and its accents are composed beforehand, where the table would do so.
    """
    mapped = normalizers.Precompiled(table)
    steps: list[normalizers.Normalizer] = [normalizers.Replace("\r\n", mapped.normalize_str("\r") + "\n")]
    if mapped.normalize_str("e\u0301") == "\u00e9":
        steps.append(normalizers.NFC())
    return [*steps, mapped]


def _splits(model: Model) -> list[pre_tokenizers.PreTokenizer]:
    """Borders that no piece reaches across, so that long texts are encoded in parts; none changes an id."""
    texts = model.texts(NORMAL, USER_DEFINED)
    pairs = {text[place : place + 2] for text in texts for place in range(len(text) - 1)}
    splits = []
    defined = sorted(model.texts(USER_DEFINED), key=lambda text: (-len(text), text))
    if defined and model.kind == BPE:
        splits.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, defined))), "isolated"))
        # What stands between two of them is a piece where it spells one, also one that no text is to become.
        names = special_tokens.cut([t for t in model.texts(UNKNOWN, CONTROL, UNUSED, BYTE) if len(t) > 1], texts)
        splits.append(pre_tokenizers.Split(Regex(names), "merged_with_previous"))
    if SPACE in texts and all(pair == 2 * SPACE or pair[1] != SPACE for pair in pairs):
        splits.append(pre_tokenizers.Split(Regex(WORDS), "merged_with_next"))
    if (model.byte_fallback or "\n" in texts) and all(pair == "\n\n" or pair[0] != "\n" for pair in pairs):
        splits.append(pre_tokenizers.Split(Regex(LINES), "merged_with_previous"))
    return splits


def border(content: dict) -> re.Pattern | None:
    """Behind what a text can be cut so that its parts have its ids; None where there is nothing of the kind.

    Before spaces or behind line ends, as `content` made here has it: where nothing is put before a text, and what
    is done to a character does not depend on those beyond.
    """
    steps = (content.get("normalizer") or {}).get("normalizers") or []
    parts = (content.get("pre_tokenizer") or {}).get("pretokenizers") or []
    if not steps or any(step["type"] != "NFKC" and step != TO_SPACE for step in steps):
        return None
    patterns = {part["pattern"].get("Regex") for part in parts if part["type"] == "Split"}
    found = [BORDERS[pattern] for pattern in (WORDS, LINES) if pattern in patterns]
    return re.compile("|".join(found)) if found else None
