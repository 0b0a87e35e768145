"""Trains the tokenizer of a recipe, or measures any on its held-out text: `python -m data.tokenizer train|report`.

    python -m data.tokenizer train --config C --output FILE.json [--config.data.tokenizer.vocab_size=32000 ...]
    python -m data.tokenizer report --config C [--tokenizer FILE]

Training reads the training documents of the recipe's source and writes a tokenizer.json: the same bytes on every
training. Both print a JSON report: the vocabulary, and on documents that are held out bytes per token, the share of
unknown tokens, and the share of documents that decoding gives back as they were. A FILE is what
`data.tokenizer.path` can be; other settings of it are overrides, such as --config.data.tokenizer.pattern=cl100k.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from data import sources, tokenizer
from data.cli import Parser
from data.config import Data, check, missing_inputs
from data.errors import ConfigError
from data.files import storage_errors, sync
from data.marks import CHINESE
from data.mixture_config import MixtureSource
from data.settings import load
from data.text_sample import sample
from data.tokenizer import Tokenizer
from data.tokenizer_config import ByteTokenizer, FileTokenizer

HELD_OUT_BYTES = 20_000_000  # of UTF-8, as many as are encoded for a report
GROUP = 1 << 21  # characters encoded at a time
SHOWN = 64  # special tokens that a report lists
SCRIPTS = {  # blocks of letters, by the names of Unicode
    "latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF)),
    "greek": ((0x370, 0x3FF),),
    "cyrillic": ((0x400, 0x52F),),
    "hebrew": ((0x590, 0x5FF),),
    "arabic": ((0x600, 0x6FF), (0x750, 0x77F)),
    "devanagari": ((0x900, 0x97F),),
    "thai": ((0xE00, 0xE7F),),
    "kana": ((0x3040, 0x30FF),),
    "hangul": ((0x1100, 0x11FF), (0xAC00, 0xD7A3)),
    "han": CHINESE,
    "digits": ((0x30, 0x39),),
}
OTHER = len(SCRIPTS)  # spaces, punctuation, symbols, other scripts


@dataclass(frozen=True)
class Section:
    """The part of a recipe that this command reads."""

    data: Data = Data()


@dataclass
class Counts:
    """What was met in held-out text; arrays by script, the last entry for what is of none."""

    documents: int
    returned: int  # documents that decoding gives back
    characters: int
    unknown: int  # tokens
    fallback: int  # tokens that are one byte of a character that is no piece
    bytes: np.ndarray
    tokens: np.ndarray


def report(made: Tokenizer, texts: Iterable[str]) -> dict:
    """What the command prints of a tokenizer and held-out documents."""
    special = made.special_tokens
    counts = measure(made, texts)
    size, tokens = int(counts.bytes.sum()), int(counts.tokens.sum())
    scripts = {
        name: {"bytes": int(counts.bytes[index]), "bytes_per_token": _ratio(counts.bytes[index], counts.tokens[index])}
        for index, name in enumerate([*SCRIPTS, "other"])
        if counts.tokens[index]
    }
    return {
        "vocab_size": made.vocab_size,
        "fingerprint": made.fingerprint,
        "end_of_text": made.end_of_text_token,
        "special_tokens": dict(list(special.items())[:SHOWN]),
        "special_tokens_left_out": max(0, len(special) - SHOWN),
        "held_out": {
            "documents": counts.documents,
            "bytes": size,
            "tokens": tokens,
            "bytes_per_token": _ratio(size, tokens),
            "characters_per_token": _ratio(counts.characters, tokens),
            "unknown_rate": _ratio(counts.unknown, tokens, digits=6),
            "byte_fallback_rate": _ratio(counts.fallback, tokens, digits=6),
            "documents_returned": _ratio(counts.returned, counts.documents, digits=6),
            "scripts": scripts,
        },
    }


def _ratio(part: int, whole: int, digits: int = 4) -> float | None:
    return round(float(part / whole), digits) if whole else None


def measure(made: Tokenizer, texts: Iterable[str]) -> Counts:
    """Encodes and decodes each text; a token counts for the script of its last character."""
    none = np.zeros(OTHER + 1, np.int64)
    counts = Counts(0, 0, 0, 0, 0, none, none.copy())
    kinds, table = _kinds(made), _scripts()
    for group in _groups(texts):
        for text, (ids, offsets) in zip(group, made.encode_batch_with_offsets(group), strict=True):
            counts.documents += 1
            counts.returned += made.decode(ids) == text
            counts.characters += len(text)
            counts.unknown += int((kinds[ids] == 1).sum())
            counts.fallback += int((kinds[ids] == 2).sum())
            points = np.frombuffer(text.encode("utf-32-le"), "<u4")
            if not ids.size:
                counts.bytes[OTHER] += len(text.encode())
                continue
            ends = np.maximum.accumulate(offsets[:, 1])
            ends[-1] = len(text)
            script = table[points[np.maximum(offsets[:, 1], 1) - 1]]
            before = np.concatenate([[0], np.cumsum(_utf8_bytes(points))])
            taken = np.diff(before[ends], prepend=0)
            counts.bytes += np.bincount(script, taken, OTHER + 1).astype(np.int64)
            counts.tokens += np.bincount(script, minlength=OTHER + 1)
    return counts


def _kinds(made: Tokenizer) -> np.ndarray:
    """uint8 [vocabulary]: 1 for the unknown token, 2 for single bytes of what is no piece, else 0."""
    kinds = np.zeros(made.vocab_size, np.uint8)
    if made.unknown is not None:
        kinds[made.unknown] = 1
    kinds[made.fallback_bytes] = 2
    return kinds


def _scripts() -> np.ndarray:
    """uint8 by code point: place in SCRIPTS, or OTHER."""
    table = np.full(0x110000, OTHER, np.uint8)
    for index, blocks in enumerate(SCRIPTS.values()):
        for first, last in blocks:
            table[first : last + 1] = index
    return table


def _utf8_bytes(points: np.ndarray) -> np.ndarray:
    return 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    group, characters = [], 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= GROUP:
            yield group
            group, characters = [], 0
    if group:
        yield group


def readers(config: Data) -> list[sources.Reader]:
    """One for each component of a mixture, else one; ConfigError where nothing is held out."""
    source = config.source
    parts = [part.source for part in source.components] if isinstance(source, MixtureSource) else [source]
    found = [sources.reader(part, config.cache_dir) for part in parts]
    if not any(reader.has_validation() for reader in found):
        raise ConfigError(
            f"data.source.name={source.name} holds no text out, on which a tokenizer could be measured; set "
            "data.source.validation_fraction, or files of their own."
        )
    for reader in found:
        reader.check()
    return found


def documents(found: Sequence[sources.Reader], split: str) -> Iterator[str]:
    """The texts of a split of all sources."""
    return chain.from_iterable(reader.documents(split) for reader in found)


def train(config: Data, texts: Iterable[str], output: Path, force: bool) -> Tokenizer:
    """The tokenizer of `config`, trained on `texts`, written to `output`; without `force` over no other file."""
    if isinstance(config.tokenizer, FileTokenizer | ByteTokenizer):
        raise ConfigError(
            f"data.tokenizer.name is {config.tokenizer.name}, which is not trained; set data.tokenizer.name to bpe, "
            "wordpiece or unigram."
        )
    if output.suffix != ".json" or output.is_dir():
        raise ConfigError(f"--output is {output}, must be a file that ends in .json")
    if not output.parent.is_dir():
        raise ConfigError(f"--output is {output}, and there is no directory {output.parent}; make it first")
    started = time.monotonic()
    _say(f"training {config.tokenizer.name} on data.source.name={config.source.name}")
    made = tokenizer.build(config.tokenizer, texts)
    _say(f"a vocabulary of {made.vocab_size:,} after {time.monotonic() - started:.1f} s")
    incoming = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        made.save(incoming)
        with storage_errors(output):
            if output.exists() and not force and output.read_bytes() != incoming.read_bytes():
                raise ConfigError(f"--output is {output}, which holds another tokenizer; --force writes over it")
            incoming.replace(output)
            sync(output.parent)
    finally:
        incoming.unlink(missing_ok=True)
    return made


def _say(line: str):
    print(f"tokenizer: {line}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> None:
    """Trains or reads a tokenizer, and prints what it is as JSON."""
    parser = Parser("data.tokenizer", __doc__)
    parser.add_argument("action", choices=("train", "report"))
    parser.add_argument("--config", required=True, metavar="FILE.py[:arg]", help="a recipe, or a run's config.json")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="train: where the tokenizer is written")
    parser.add_argument("--force", action="store_true", help="train: write over another tokenizer")
    parser.add_argument("--tokenizer", metavar="FILE", help="report: in place of the recipe's")
    parser.add_argument("--held_out_bytes", type=int, default=HELD_OUT_BYTES, help="most text to measure on")
    known, overrides = parser.parse_known_args(arguments)
    _check_arguments(known)
    config = load(known.config, overrides, Section, ignore_other_sections=True).data
    if known.tokenizer is not None:
        given = config.tokenizer if isinstance(config.tokenizer, FileTokenizer) else FileTokenizer()
        config = dataclasses.replace(config, tokenizer=dataclasses.replace(given, path=known.tokenizer))
    problems = check(dataclasses.replace(config, objective=Data().objective)) + missing_inputs(config)
    if problems:
        raise ConfigError(" ".join(f"data.{key} {clash}." for key, clash in problems))
    found = readers(config)
    if known.action == "train":
        made = train(config, documents(found, "train"), known.output, known.force)
        written = {"path": str(known.output)}
    elif isinstance(config.tokenizer, FileTokenizer | ByteTokenizer):
        made, written = tokenizer.build(config.tokenizer, ()), {}
    else:
        raise ConfigError("--tokenizer is missing: the recipe trains its own; name a file, or train it first")
    measured = report(made, sample(documents(found, "validation"), known.held_out_bytes))
    print(json.dumps({**written, **measured}, indent=1, ensure_ascii=False))


def _check_arguments(known) -> None:
    if known.action == "train" and known.output is None:
        raise ConfigError("--output is missing: where the trained tokenizer shall be written, FILE.json")
    if known.action == "train" and known.tokenizer is not None:
        raise ConfigError("--tokenizer belongs to report; train trains the one of data.tokenizer")
    if known.action == "report" and (known.output is not None or known.force):
        raise ConfigError("--output and --force belong to train; report writes nothing")
    if known.held_out_bytes < 1:
        raise ConfigError(f"--held_out_bytes is {known.held_out_bytes}, must be at least 1")
