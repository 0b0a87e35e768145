"""Megatron-LM's indexed data sets: PREFIX.bin holds ids, PREFIX.idx says where sequences and documents lie.

Borders: those of the document index. A document is its sequences one after the other; where the index has no documents
(as datatrove writes it), each sequence is one. The end of a document that was stored with it
(`--append-eod`) is the border; where none was stored, one is put there.

PREFIX.idx, little-endian: `MMIDIDX\\0\\0`, uint64 version 1, uint8 code of the type of ids, uint64 sequences, uint64
entries of the document index; int32 lengths, int64 byte offsets [sequences]; int64 [entries], the sequence at which
each document starts and, last, their number. A mode a sequence, int8, may follow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.layouts.raw import CHUNK, Raw, Spans, mapped

MAGIC = b"MMIDIDX\0\0"
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
STEP = CHUNK >> 4  # documents looked at at a time


def read(path: Path) -> Raw:
    """The data set of PREFIX.bin, PREFIX.idx or PREFIX."""
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    content, index = prefix.with_name(f"{prefix.name}.bin"), prefix.with_name(f"{prefix.name}.idx")
    for file in (content, index):
        if not file.is_file():
            raise DataError(f"{file} is missing; a Megatron data set is a .bin and an .idx. Check data.source.path.")
    dtype, lengths, pointers, documents = _index(index)
    ids = mapped(content, dtype)
    return Raw(content, ids, (index,), lambda: _spans(index, ids, lengths, pointers, documents))


def _index(path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray, np.ndarray]:
    """(type of ids, lengths, byte offsets, document index), all memory-mapped."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(HEADER.size)
    if len(start) < HEADER.size or not start.startswith(MAGIC):
        raise DataError(f"{path} is no index of Megatron: it does not begin with {MAGIC!r}. Check data.source.layout.")
    _, version, code, sequences, entries = HEADER.unpack(start)
    if version != 1 or code not in DTYPES:
        raise DataError(
            f"{path} is an index of version {version} with ids of type {code}; version 1 with one of "
            f"{', '.join(f'{key} ({name})' for key, name in DTYPES.items())} can be read."
        )
    expected = HEADER.size + 12 * sequences + 8 * entries
    if size not in (expected, expected + sequences):
        raise DataError(f"{path} has {size} bytes, {sequences} sequences need {expected}. It is damaged: restore it.")
    content = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    places = np.cumsum([HEADER.size, 4 * sequences, 8 * sequences, 8 * entries])
    parts = [content[first:last] for first, last in zip(places[:-1], places[1:], strict=True)]
    found = [part.view(dtype) for part, dtype in zip(parts, ("<i4", "<i8", "<i8"), strict=True)]
    return np.dtype(DTYPES[code]).newbyteorder("<"), *found


def _spans(
    path: Path, ids: np.ndarray, lengths: np.ndarray, pointers: np.ndarray, documents: np.ndarray
) -> Iterator[Spans]:
    listed = documents.size > 1
    if listed and (documents[0] != 0 or documents[-1] != lengths.size):
        raise DataError(f"{path} has documents from sequence {documents[0]} to {documents[-1]} of {lengths.size}.")
    count = documents.size - 1 if listed else lengths.size
    for begin in range(0, count, STEP):
        end = min(begin + STEP, count)
        borders = documents[begin : end + 1] if listed else np.arange(begin, end + 1)
        first, last = int(borders[0]), int(borders[-1])
        if (np.diff(borders) < 0).any() or not 0 <= first <= last <= lengths.size:
            raise DataError(f"{path} has a document index that is not in order. Restore it.")
        sizes = lengths[first:last]
        starts = pointers[first:last] // ids.itemsize
        stops = starts + sizes
        if first < last and (min(starts.min(), sizes.min()) < 0 or stops.max() > ids.size):
            raise DataError(f"{path} points beyond its .bin, which holds {ids.size} ids. Restore both.")
        full = borders[:-1] < borders[1:]
        firsts, lasts = borders[:-1][full] - first, borders[1:][full] - 1 - first
        continues = np.ones(last - first, bool)
        continues[firsts] = False
        apart = np.flatnonzero(continues[1:] & (starts[1:] != stops[:-1]))
        if apart.size:
            raise DataError(f"{path} has a document whose sequences {first + int(apart[0])} and the next lie apart.")
        yield starts[firsts], stops[lasts]
