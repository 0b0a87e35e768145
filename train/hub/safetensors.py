"""Safetensors files through the safetensors library: read in parts, written in shards of a bounded size.

The library checks a header's length, its names, shapes and offsets against the file before it reads a tensor, and
executes nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from data.errors import DataError
from data.files import storage_errors, sync
from train.hub.tensors import Selector, Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATING = ("F64", "F32", "F16", "BF16")
DTYPES = {  # dtypes an export may have
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(jnp.bfloat16),
}


class FileTensor:
    """A tensor of an open file, of which `take` reads the rows and columns between the first and last chosen."""

    def __init__(self, part):
        """`part`: what the library's `get_slice` gives."""
        self.part = part
        self.shape = tuple(part.get_shape())
        self.floating = part.get_dtype() in FLOATING

    def take(self, *selectors: Selector) -> np.ndarray:
        if not math.prod(self.shape):
            return np.zeros(self.shape, np.float32)[tuple(selectors)]
        spans = [s if isinstance(s, slice) else slice(int(s.min()), int(s.max()) + 1) for s in selectors]
        found = self.part[tuple(spans)] if spans else self.part[...]
        for axis, (selector, span) in enumerate(zip(selectors, spans, strict=True)):
            if not isinstance(selector, slice):
                found = np.take(found, selector - span.start, axis)
        return found


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, none of them read yet. DataError where the file is malformed."""
    try:
        file = safe_open(path, framework="numpy")
        return {name: FileTensor(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except SafetensorError as error:
        raise DataError(f"{path} is not a sound safetensors file: {error}. Get another copy of it.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


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
    """Files of tensors whose shapes are known before their values: a shard at a time is in memory.

    Makes `model.safetensors`, or, where `max_shard_bytes` is too small for one file, numbered ones and an index.
    """

    def __init__(self, directory: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, max_shard_bytes: int):
        self.directory, self.dtype, self.shapes = directory, dtype, shapes
        self.sizes = {name: math.prod(shape) * DTYPES[dtype].itemsize for name, shape in shapes.items()}
        self.shards = divide(self.sizes, max_shard_bytes)

    def write(self, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
        """Write `(name, array)` pairs that come in the order of the shapes given."""
        count, weight_map = len(self.shards), {}
        for number, names in enumerate(self.shards, 1):
            file_name = SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            held = {}
            for wanted in names:
                name, value = next(tensors)
                if name != wanted or value.shape != self.shapes[name]:
                    raise ValueError(f"{name} of shape {value.shape} comes in place of {wanted}")
                held[name] = self.encoded(name, value)
                weight_map[name] = file_name
            with storage_errors(self.directory / file_name, "write"):
                safetensors.numpy.save_file(held, self.directory / file_name, metadata={"format": "pt"})
                sync(self.directory / file_name)
        if count > 1:
            index = {
                "metadata": {"total_size": sum(self.sizes.values())},
                "weight_map": dict(sorted(weight_map.items())),
            }
            with storage_errors(self.directory / INDEX, "write"):
                (self.directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def encoded(self, name: str, value: np.ndarray) -> np.ndarray:
        """A tensor in the dtype of the files; DataError where that cannot hold a finite number of it."""
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(value.astype(DTYPES[self.dtype]))
        if not np.all(np.isfinite(cast.astype(np.float32))):
            largest = f"{np.abs(value).max():.3g}"
            raise DataError(f"{name} holds numbers up to {largest}, which {self.dtype} cannot. Choose another --dtype.")
        return cast


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
