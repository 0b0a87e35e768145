"""The safetensors format: read without trust and mapped from the file, written in shards.

    u64 length of the header, little-endian; the header, JSON {name: {"dtype", "shape", "data_offsets"}} with an
    optional "__metadata__"; then the tensors one after another, little-endian, without gaps.

Nothing is executed, and nothing is read beyond the header before its offsets were checked against the file.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from data.errors import DataError
from data.files import storage_errors, write_durably
from train.hub.tensors import ArrayTensor, Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000  # bytes
MAX_AXES, LARGEST = 16, 1 << 40  # axes of a tensor, and size of one
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # dtypes an export may have
ALIGNMENT = 8  # bytes: where a header ends


def refused(path: Path, why: str) -> DataError:
    return DataError(f"{path} is not a sound safetensors file: {why}. Get another copy of it.")


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, none of them read yet. DataError where the file is malformed."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or start[:2] in (b"\x80\x02", b"PK"):
                raise refused(path, "it does not begin with the length of a header")
            if length > MAX_HEADER:
                raise refused(path, f"its header would take {length} bytes, more than {MAX_HEADER}")
            if length > size - 8:
                raise refused(path, f"it has {size} bytes, and a header of {length} should begin at byte 8")
            header = parse(path, file.read(length))
        entries = check(path, header, size - 8 - length)
        if not entries:
            return {}
        data = np.memmap(path, np.uint8, mode="r", offset=0)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    return {
        name: ArrayTensor(np.ndarray(shape, dtype, data, 8 + length + begin))
        for name, (dtype, shape, begin, _) in entries.items()
    }


def parse(path: Path, text: bytes) -> dict:
    def unique(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands in it twice")
        return found

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise refused(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise refused(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    return header


def check(path: Path, header: dict, size: int) -> dict[str, tuple]:
    """`{name: (dtype, shape, first byte, byte behind the last)}`, which tile the `size` bytes of data."""
    entries = {name: entry_of(path, name, fields) for name, fields in header.items()}
    end, last = 0, None
    for name, (_, _, begin, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if stop > size:
            raise refused(path, f"{name} ends at byte {stop} of {size} bytes of data; the file is cut short")
        if begin < end:
            raise refused(path, f"{name} begins at byte {begin}, inside {last}")
        if begin > end:
            raise refused(path, f"no tensor holds the bytes {end} to {begin}, before {name}")
        end, last = stop, name
    if end != size:
        raise refused(path, f"its tensors end at byte {end} of {size} bytes of data")
    return entries


def entry_of(path: Path, name: str, fields) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """One entry of a header, its offsets being what its shape needs."""
    try:
        code, shape, (begin, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise refused(path, f"{name} lacks its dtype, shape or two data_offsets") from error
    if not isinstance(shape, list) or not all(natural(number) for number in (*shape, begin, stop)):
        raise refused(path, f"{name} has shape {shape} and offsets {begin}, {stop}, must be whole numbers from 0")
    if len(shape) > MAX_AXES or any(number > LARGEST for number in shape):
        raise refused(path, f"{name} has shape {shape}, more than any tensor has")
    if code not in DTYPES:
        raise refused(path, f"{name} has dtype {code!r}, must be one of {', '.join(DTYPES)}")
    needed = math.prod(shape) * DTYPES[code].itemsize
    if stop - begin != needed:
        raise refused(path, f"{name} has {stop - begin} bytes, and {code} of shape {shape} needs {needed}")
    return DTYPES[code], tuple(shape), begin, stop


def natural(number) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def read_directory(directory: Path) -> dict[str, Tensor]:
    """The tensors of a directory's one file, or of all files that its index names."""
    index = directory / INDEX
    if not index.exists():
        return read(directory / SINGLE)
    weight_map = read_index(index)
    files = {name: read(directory / name) for name in sorted(set(weight_map.values()))}
    lacking = [name for name, file in weight_map.items() if name not in files[file]]
    if lacking:
        raise DataError(f"{index} says that {weight_map[lacking[0]]} holds {lacking[0]}, and it does not.")
    extra = sorted(name for file, held in files.items() for name in held if weight_map.get(name) != file)
    if extra:
        raise DataError(f"{index} does not say where {extra[0]} is, which one of its files holds.")
    return {name: files[file][name] for name, file in weight_map.items()}


def read_index(index: Path) -> dict[str, str]:
    """The `weight_map` of an index, `{tensor's name: file's name}`; the files lie beside it."""
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        entries = dict(weight_map.items())
    except OSError as error:
        raise DataError(f"{index} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{index} is not an index of safetensors files: it has no weight_map.") from error
    for file in entries.values():
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", file):
            raise DataError(f"{index} names the file {file!r}; it must be a .safetensors file in the same directory.")
    return entries


class Writer:
    """Files of tensors whose shapes are known before their values: each is written as it comes.

    Makes `model.safetensors`, or, where `max_shard_bytes` is too small for one file, numbered ones and an index.
    """

    def __init__(self, directory: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, max_shard_bytes: int):
        self.directory, self.dtype = directory, dtype
        self.numpy_dtype = DTYPES[NAMES[dtype]]
        sizes = {name: math.prod(shape) * self.numpy_dtype.itemsize for name, shape in shapes.items()}
        self.shards = divide(sizes, max_shard_bytes)
        self.shapes, self.sizes = shapes, sizes

    def write(self, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
        """Write `(name, array)` pairs that come in the order of the shapes given."""
        count, weight_map = len(self.shards), {}
        for number, names in enumerate(self.shards, 1):
            file_name = SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            with storage_errors(self.directory / file_name, "write"), open(self.directory / file_name, "wb") as file:
                file.write(self.header(names))
                for wanted in names:
                    name, value = next(tensors)
                    if name != wanted or value.shape != self.shapes[name]:
                        raise ValueError(f"{name} of shape {value.shape} comes in place of {wanted}")
                    file.write(memoryview(self.encoded(name, value)).cast("B"))
                    weight_map[name] = file_name
                file.flush()
                os.fsync(file.fileno())
        if count > 1:
            index = {
                "metadata": {"total_size": sum(self.sizes.values())},
                "weight_map": dict(sorted(weight_map.items())),
            }
            with storage_errors(self.directory / INDEX, "write"):
                write_durably(self.directory / INDEX, json.dumps(index, indent=1).encode() + b"\n")

    def header(self, names: list[str]) -> bytes:
        entries, end = {"__metadata__": {"format": "pt"}}, 0
        for name in names:
            offsets = [end, end + self.sizes[name]]
            entries[name] = {"dtype": NAMES[self.dtype], "shape": list(self.shapes[name]), "data_offsets": offsets}
            end += self.sizes[name]
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    def encoded(self, name: str, value: np.ndarray) -> np.ndarray:
        """The bytes of a tensor; DataError where the dtype cannot hold a finite number of it."""
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(value.astype(self.numpy_dtype))
        if not np.all(np.isfinite(cast.astype(np.float32))):
            largest = f"{np.abs(value).max():.3g}"
            raise DataError(f"{name} holds numbers up to {largest}, which {self.dtype} cannot. Choose another --dtype.")
        return (cast.byteswap() if sys.byteorder == "big" else cast).reshape(-1).view(np.uint8)


def divide(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in order, in shards of at most `most` bytes; a larger tensor is a shard by itself."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > most:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards
