"""Documents that share an n-gram of words with an evaluation set are dropped (Brown et al. 2020, appendix C).

An n-gram is n words in a row of a text in one case and Unicode spelling, punctuation passed over; a Han or kana
character is a word. datatrove's blocks for this are not used: they read evaluation sets through lighteval, which
fetches them.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.pipeline.base import PipelineStep

from data.curation import config as asked
from data.curation.folders import put
from data.curation.stages import Stage
from data.curation.words import normalized, words
from data.errors import DataError

INDEX = "index.npz"


class IndexEvaluation(PipelineStep):
    """Writes the hashes of the evaluation sets' n-grams, and how many texts are too short. Runs as one task."""

    type, name = "decontaminate", "index"

    def __init__(self, folder: str, stage: asked.Decontaminate):
        super().__init__()
        self.folder, self.stage = folder, stage

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        found: dict[tuple[int, int], int] = {}  # (words of the n-gram, hash): number of the first file that has it
        files, short, texts = matching(self.stage.paths), 0, 0
        for number, path in enumerate(files):
            for text in read_texts(path, self.stage.fields):
                parts = words(normalized(text))
                length = min(self.stage.n, len(parts))
                texts += 1
                short += length < self.stage.shortest
                if length >= self.stage.shortest:
                    for value in hashes(parts, length):
                        found.setdefault((length, value), number)
        if not found:
            raise DataError(
                f"The evaluation sets {', '.join(self.stage.paths)} (paths of decontaminate) hold no text of at least "
                f"{self.stage.shortest} words in their fields ({', '.join(self.stage.fields) or 'all'}), so nothing "
                "could be found. Check fields, or lower shortest."
            )
        keys = sorted(found)
        content = io.BytesIO()
        np.savez(
            content,
            lengths=np.array([length for length, _ in keys], np.uint32),
            hashes=np.array([value for _, value in keys], np.uint64),
            files=np.array([found[key] for key in keys], np.uint32),
            names=np.array([os.path.basename(path) for path in files]),
            texts=np.array([texts, short]),
        )
        put(Path(self.folder) / INDEX, content.getvalue())


class DecontaminateStage(Stage):
    name = "decontaminate"

    def __init__(self, tally: str, samples: int, folder: str):
        super().__init__(tally, samples)
        self.folder = folder

    def begin(self, rank):
        with np.load(Path(self.folder) / INDEX) as found:
            self.names = found["names"].tolist()
            lengths, values, files = found["lengths"], found["hashes"], found["files"]
        self.index = {
            int(length): (values[lengths == length], files[lengths == length]) for length in np.unique(lengths)
        }

    def judge(self, document):
        parts = words(normalized(document.text))
        for length, (known, files) in self.index.items():
            mine = np.array(hashes(parts, length), np.uint64)
            places = np.minimum(np.searchsorted(known, mine), len(known) - 1)
            hits = np.flatnonzero(known[places] == mine)
            if len(hits):
                first = int(hits[0])
                shared = " ".join(parts[first : first + length])
                return f"in_{self.names[files[places[first]]]}", shared
        return None


def hashes(parts: Sequence[str], length: int) -> list[int]:
    """64-bit hashes of each `length` words in a row."""
    return [
        xxhash.xxh64_intdigest(" ".join(parts[start : start + length]).encode("utf-8", "surrogatepass"))
        for start in range(len(parts) - length + 1)
    ]


def matching(patterns: Sequence[str]) -> list[str]:
    """The files that match, sorted, each once. Raises DataError when a pattern matches none."""
    found: set[str] = set()
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)
        paths = [expanded] if os.path.exists(expanded) else glob.glob(expanded, recursive=True)
        files = [os.path.abspath(path) for path in paths if os.path.isfile(path)]
        if not files:
            raise DataError(f"{pattern} (paths of decontaminate) matches no file, seen from {os.getcwd()}.")
        found.update(files)
    return sorted(found)


def read_texts(path: str, fields: Sequence[str]) -> Iterator[str]:
    """The texts of an evaluation set: of the keys `fields` at any depth of its JSON, or all; or its paragraphs."""
    kind = Path(path.removesuffix(".gz")).suffix
    if kind == ".jsonl":
        for number, line in _lines(path):
            if line.strip():
                yield from _strings(_parsed(line, f"{path}, line {number}"), fields)
        return
    text = "".join(line for _, line in _lines(path))
    if kind == ".json":
        yield from _strings(_parsed(text, path), fields)
    else:
        yield from re.split(r"\n\s*\n", text)


def _strings(value: Any, fields: Sequence[str], wanted: bool = False) -> Iterator[str]:
    wanted = wanted or not fields
    if isinstance(value, str):
        if wanted:
            yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, fields, wanted or key in fields)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, fields, wanted)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} (paths of decontaminate) is not valid JSON: {error}.") from error


def _lines(path: str) -> Iterator[tuple[int, str]]:
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}, line {number} (paths of decontaminate) is not UTF-8: {error}.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} (paths of decontaminate) cannot be read: {error}.") from error
