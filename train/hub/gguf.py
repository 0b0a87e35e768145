"""The GGUF format, versions 2 and 3, little-endian: read without trust and mapped from the file.

    "GGUF", u32 version, u64 tensors, u64 entries of metadata; the metadata; for each tensor its name, axes (the
    fastest first), type and offset; padding; the tensors, each at a multiple of `general.alignment`.

Every length is checked against what is left of the file before anything of that length is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from train.hub.quants import BLOCK_TYPES, PLAIN_TYPES, Quantized
from train.hub.tensors import ArrayTensor, Tensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
MAX_AXES = 4
SMALLEST_ENTRY = 13  # bytes of an entry of metadata: a key's length, a type, one byte
SMALLEST_TENSOR = 32  # bytes of a tensor's description: a name's length, axes, one size, type, offset


@dataclass(frozen=True)
class Gguf:
    metadata: dict[str, Any]  # numbers, text, numpy arrays of numbers, lists of text
    tensors: dict[str, Tensor]  # axes in numpy's order, the fastest last


class Cursor:
    """Reads a mapped file from front to back; DataError where it would pass the end."""

    def __init__(self, path: Path, data: np.ndarray):
        self.path, self.data, self.place = path, data, 0

    def refused(self, why: str) -> DataError:
        return DataError(f"{self.path} is not a sound GGUF file: {why}. Get another copy of it.")

    def room(self, count: int, size: int, what: str) -> None:
        """Refuse `count` things of at least `size` bytes each where the rest of the file is shorter."""
        left = len(self.data) - self.place
        if count * size > left:
            raise self.refused(f"{what} would take {count * size} bytes at byte {self.place}, and {left} are left")

    def numbers(self, code: int, count: int, what: str) -> np.ndarray:
        dtype = np.dtype(NUMBERS[code])
        self.room(count, dtype.itemsize, what)
        found = self.data[self.place : self.place + count * dtype.itemsize].view(dtype)
        self.place += count * dtype.itemsize
        return found

    def number(self, code: int, what: str) -> Any:
        return self.numbers(code, 1, what)[0].item()

    def text(self, what: str) -> str:
        length = self.number(10, f"the length of {what}")
        try:
            return self.numbers(0, length, what).tobytes().decode()
        except UnicodeDecodeError as error:
            raise self.refused(f"{what} is not UTF-8") from error

    def value(self, code: int, what: str) -> Any:
        if code == STRING:
            return self.text(what)
        if code == ARRAY:
            return self.array(what)
        if code not in NUMBERS:
            raise self.refused(f"{what} has type {code}, which does not exist")
        return self.number(code, what)

    def array(self, what: str) -> Any:
        code, count = self.number(4, what), self.number(10, what)
        if code == STRING:
            self.room(count, 8, what)
            return [self.text(what) for _ in range(count)]
        if code not in NUMBERS:  # no field that is read here is an array of arrays
            raise self.refused(f"{what} is an array of type {code}, which is none of text or numbers")
        return np.array(self.numbers(code, count, what))


def read(path: Path) -> Gguf:
    """Metadata and tensors of a file, none of them read yet. DataError where the file is malformed."""
    try:
        size = path.stat().st_size
        data = np.memmap(path, np.uint8, mode="r") if size else np.zeros(0, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    cursor = Cursor(path, data)
    if data[:4].tobytes() != MAGIC:
        raise cursor.refused("it does not begin with GGUF")
    cursor.place = 4
    version = cursor.number(4, "the version")
    if version not in VERSIONS:
        raise cursor.refused(f"its version is {version}, must be one of {', '.join(map(str, VERSIONS))}, little-endian")
    count, entries = cursor.number(10, "the number of tensors"), cursor.number(10, "the number of entries")
    metadata = read_metadata(cursor, entries)
    cursor.room(count, SMALLEST_TENSOR, f"{count} tensors")
    described = [read_description(cursor) for _ in range(count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise cursor.refused(f"general.alignment is {alignment}, must be from 1 to 2**20")
    start = -(-cursor.place // alignment) * alignment
    return Gguf(metadata, place(cursor, described, start, alignment))


def read_metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    cursor.room(count, SMALLEST_ENTRY, f"{count} entries of metadata")
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text("a key of the metadata")
        if key in metadata:
            raise cursor.refused(f"{key} stands in it twice")
        metadata[key] = cursor.value(cursor.number(4, f"the type of {key}"), key)
    return metadata


def read_description(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape in numpy's order, type, offset) of one tensor."""
    name = cursor.text("a tensor's name")
    axes = cursor.number(4, f"the axes of {name}")
    if not 1 <= axes <= MAX_AXES:
        raise cursor.refused(f"{name} has {axes} axes, must have 1 to {MAX_AXES}")
    shape = tuple(cursor.numbers(10, axes, f"the sizes of {name}").tolist())[::-1]
    if not all(shape):
        raise cursor.refused(f"{name} has shape {list(shape)}, which holds nothing")
    return name, shape, cursor.number(4, f"the type of {name}"), cursor.number(10, f"the offset of {name}")


def place(cursor: Cursor, described: list, start: int, alignment: int) -> dict[str, Tensor]:
    """The tensors at their offsets behind `start`, which must be aligned, in the file and apart from each other."""
    tensors: dict[str, Tensor] = {}
    end, last = 0, "the header"
    for name, shape, code, offset in sorted(described, key=lambda item: item[3]):
        if name in tensors:
            raise cursor.refused(f"the tensor {name} stands in it twice")
        if code not in PLAIN_TYPES and code not in BLOCK_TYPES:
            names = [kind.name for kind in (*PLAIN_TYPES.values(), *BLOCK_TYPES.values())]
            raise DataError(
                f"{cursor.path}: {name} has type {code}, and only {', '.join(names)} are read. "
                "Convert the file to one of these."
            )
        size = stored_bytes(cursor, name, shape, code)
        if offset % alignment:
            raise cursor.refused(f"{name} begins at {offset}, no multiple of {alignment}")
        if offset < end:
            raise cursor.refused(f"{name} begins at {offset}, inside {last}")
        if start + offset + size > len(cursor.data):
            raise cursor.refused(f"{name} ends at byte {start + offset + size} of {len(cursor.data)}; it is cut short")
        tensors[name] = make(cursor.data, start + offset, shape, code)
        end, last = offset + size, name
    return tensors


def stored_bytes(cursor: Cursor, name: str, shape: tuple[int, ...], code: int) -> int:
    """Bytes of a tensor, in Python's integers, which do not overflow."""
    count = math.prod(shape)
    if code in PLAIN_TYPES:
        return count * PLAIN_TYPES[code].dtype.itemsize
    kind = BLOCK_TYPES[code]
    if shape[-1] % kind.length:
        raise cursor.refused(f"{name} has rows of {shape[-1]}, which are not whole blocks of {kind.length}")
    return count // kind.length * kind.dtype.itemsize


def make(data: np.ndarray, begin: int, shape: tuple[int, ...], code: int) -> Tensor:
    if code in PLAIN_TYPES:
        return ArrayTensor(np.ndarray(shape, PLAIN_TYPES[code].dtype, data, begin))
    kind = BLOCK_TYPES[code]
    return Quantized(np.ndarray((*shape[:-1], shape[-1] // kind.length), kind.dtype, data, begin), kind)
