"""What a worker makes of one part of a source: a file of ids that a store is put together from.

    ids              as the store holds them
    lengths          little-endian uint64 a document, in ids
    marks            of each name in order, a bit an id
    footer           JSON: counts, and what the reader passed over
    8 bytes, 32      the footer's length, little-endian; the SHA-256 of everything before it

A file is written under a passing name and renamed when it is on the disk, so one that is there is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data.files import sync
from data.marks import Bits, read
from data.store_writer import Piece

CHUNK = 1 << 22  # ids read at a time
DIGEST = hashlib.sha256().digest_size


class _Memory:
    """Arrays of bytes, one after the other."""

    def __init__(self):
        self.content = bytearray()

    def write(self, values: np.ndarray):
        self.content += values.data

    def close(self):
        pass


def write_part(
    path: Path, found: Iterable[Piece], dtype: str, marks: Sequence[str], passed_over: Callable[[], dict[str, int]]
):
    """Writes pieces durably to a part file; `passed_over` is asked for its counts once they are all read."""
    passing = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    lengths, bits = _Memory(), {name: Bits(_Memory()) for name in marks}
    counts = {"ids": 0, "documents": 0, "max_token": 0, "text_bytes": 0, "left_out": 0}
    digest = hashlib.sha256()
    try:
        with open(passing, "wb") as file:

            def put(content):
                file.write(content)
                digest.update(content)

            for part in found:
                put(part.ids.data.cast("B") if part.ids.size else b"")
                lengths.write(part.lengths.astype("<u8"))
                for name, writer in bits.items():
                    writer.write(part.marks[name])
                counts["ids"] += part.ids.size
                counts["documents"] += part.lengths.size
                counts["max_token"] = max(counts["max_token"], part.max_token)
                counts["text_bytes"] += part.text_bytes
                counts["left_out"] += part.left_out
            put(lengths.content)
            for writer in bits.values():
                writer.close()
                put(writer.file.content)
            footer = {**counts, "dtype": dtype, "marks": list(marks), "passed_over": passed_over()}
            text = json.dumps(footer).encode()
            put(text + len(text).to_bytes(8, "little"))
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        passing.rename(path)
        sync(path.parent)
    finally:
        passing.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether every byte of a part file is as it was written."""
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size - DIGEST
        digest = hashlib.sha256()
        while left > 0 and (content := file.read(min(left, 1 << 20))):
            digest.update(content)
            left -= len(content)
        return file.read(DIGEST) == digest.digest()


def read_footer(path: Path) -> dict:
    """The counts of a part file that `is_whole`."""
    with open(path, "rb") as file:
        file.seek(-DIGEST - 8, os.SEEK_END)
        length = int.from_bytes(file.read(8), "little")
        file.seek(-DIGEST - 8 - length, os.SEEK_END)
        return json.loads(file.read(length))


def read_part(path: Path) -> Iterator[Piece]:
    """The documents of a part file, about CHUNK ids at a time; what was left out is counted in the first."""
    footer = read_footer(path)
    dtype = np.dtype(footer["dtype"]).newbyteorder("<")
    content = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    place = footer["ids"] * dtype.itemsize
    ids = content[:place].view(dtype)
    lengths = np.frombuffer(content[place : place + 8 * footer["documents"]].tobytes(), "<u8")
    place += lengths.nbytes
    packed, size = {}, -(-footer["ids"] // 8)
    for name in footer["marks"]:
        packed[name] = content[place : place + size]
        place += size
    borders = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    first, left_out = 0, footer["left_out"]
    text_bytes = footer["text_bytes"]
    while first < lengths.size or left_out:
        last = max(first + 1, int(np.searchsorted(borders, borders[first] + CHUNK, "right")) - 1) if lengths.size else 0
        start, stop = int(borders[first]), int(borders[last])
        marks = {name: read(bits, start, stop) for name, bits in packed.items()}
        yield Piece(ids[start:stop], lengths[first:last], marks, footer["max_token"], text_bytes, left_out)
        first, left_out, text_bytes = last, 0, 0


def sweep(directory: Path):
    """Removes what workers that were killed left unfinished."""
    for stray in directory.glob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            stray.unlink()
