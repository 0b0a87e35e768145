"""What every layout of other tools comes down to: files of ids, and where the documents in them lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import DataError

CHUNK = 1 << 24  # ids looked at at a time
# (first ids [n], one past the last ids [n]) of some documents, int64, in order
Spans = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Raw:
    """One file of ids.

    `spans` gives the documents where the layout records them; None: they stand between ends of text.
    """

    path: Path
    ids: np.ndarray  # [n], memory-mapped
    beside: tuple[Path, ...] = ()  # other files that say what it holds
    spans: Callable[[], Iterator[Spans]] | None = None


def mapped(path: Path, dtype: np.dtype, offset: int = 0) -> np.ndarray:
    """The ids of a file from byte `offset` on; DataError where there are none, or the last one is cut off."""
    size = path.stat().st_size - offset
    if size <= 0:
        raise DataError(f"{path} holds no ids. Restore it, or narrow data.source.path.")
    if size % dtype.itemsize:
        raise DataError(
            f"{path} has {size} bytes of ids, which is no multiple of the {dtype.itemsize} of a {dtype.name}. "
            "It is cut off, or data.source.dtype is another."
        )
    return np.memmap(path, dtype=dtype, mode="r", offset=offset).view(np.ndarray)


def between_ends(ids: np.ndarray, end_of_text: int) -> Iterator[Spans]:
    """The documents between ends of text; several in a row enclose empty ones."""
    first = 0
    for start in range(0, ids.size, CHUNK):
        ends = np.flatnonzero(ids[start : start + CHUNK] == end_of_text).astype(np.int64) + start
        if ends.size:
            starts = np.concatenate([[first], ends[:-1] + 1])
            begun = int(first == 0 and ends[0] == 0)  # by an end of text that closes nothing
            yield starts[begun:], ends[begun:]
            first = int(ends[-1]) + 1
    if first < ids.size:
        yield np.array([first], np.int64), np.array([ids.size], np.int64)


def spans(raw: Raw, end_of_text: int) -> Iterator[Spans]:
    """The documents of a file without the end of text that a document may carry at its end."""
    if raw.spans is None:
        yield from between_ends(raw.ids, end_of_text)
        return
    for starts, stops in raw.spans():
        last = raw.ids[np.maximum(stops - 1, 0)]
        yield starts, stops - ((stops > starts) & (last == end_of_text))


def check_ids(raw: Raw, vocab_size: int) -> int:
    """The largest id of a file; DataError that names the first one that is not below `vocab_size`."""
    top = 0
    for start in range(0, raw.ids.size, CHUNK):
        ids = raw.ids[start : start + CHUNK]
        highest = int(ids.max())
        if highest >= vocab_size or int(ids.min()) < 0:
            place = int(np.flatnonzero((ids < 0) | (ids >= vocab_size))[0])
            raise DataError(
                f"Id {start + place} of {raw.path} is {int(ids[place])}, but data.tokenizer has ids below "
                f"{vocab_size}. Give the tokenizer that made the file, or another data.source.layout or dtype."
            )
        top = max(top, highest)
    return top
