"""Plans of rows, made once and kept beside their store: which stretches of its stream each row holds.

A plan is a directory, `<store>.packing-<hash of store and settings>`:

    pieces.bin   data.best_fit.PIECE, row after row
    rows.bin     little-endian uint64 [rows + 1]: the first piece of each row, and the number of pieces
    plan.json    counts, and the SHA-256 of both; written last

Both files are read where they lie, so that a loader's memory does not grow with the store.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import verified
from data.best_fit import BLOCK, PIECE, best_fit, pieces
from data.errors import DataError
from data.files import canonical_json, locked, sha256_file, storage_errors, sync, write_durably
from data.store import Store

VERSION = 1  # of how rows are planned
HASH_DIGITS = 16
FILES = {"pieces.bin": PIECE, "rows.bin": np.dtype("<u8")}

Planner = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def apart(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Every piece in a row of its own, in the order of the store."""
    order = np.arange(sizes.size)
    return order, order


PLANNERS: dict[str, Planner] = {"best_fit": best_fit, "unpacked": apart}


@dataclass(frozen=True)
class Plan:
    """A plan, opened.

    Attributes:
      pieces, rows: the arrays of its files, memory-mapped.
      facts: `tokens` that rows hold, `dropped_documents` and `dropped_tokens` that none does, `cut_documents`.
      fingerprint: of the store and of what row i holds.
    """

    pieces: np.ndarray
    rows: np.ndarray
    facts: dict[str, int]
    fingerprint: str


def plan(store: Store, length: int, packing: str, drop: bool) -> Plan:
    """The rows of `length` of a store under a packing of PLANNERS, from its kept plan or made and kept now.

    A plan is written whole or not at all, by one of the processes that ask for it; one that is damaged is made
    again. Raises DataError where all documents are dropped, StorageError when the disk refuses.
    """
    settings = [VERSION, BLOCK, store.fingerprint, length, packing, drop]
    name = hashlib.sha256(canonical_json(settings)).hexdigest()[:HASH_DIGITS]
    directory = store.directory.with_name(f"{store.directory.name}.packing-{name}")
    found = _opened(directory)
    if found is None:
        waiting = f"prepare: waiting for another process that plans {directory}"
        with locked(directory.with_name(f".{directory.name}.lock"), waiting):
            found = _opened(directory)
            if found is None:
                with storage_errors(directory):
                    _write(directory, store, length, packing, drop)
                found = _opened(directory)
                print(f"prepare: {len(found.rows) - 1:,} rows planned in {directory}", file=sys.stderr, flush=True)
    return found


def _opened(directory: Path) -> Plan | None:
    """The plan of a directory; None where it is missing or damaged."""
    try:
        facts = json.loads((directory / "plan.json").read_bytes())
        sizes = {name: (directory / name).stat().st_size for name in FILES}
        files = {name: {"bytes": size, "sha256": facts["files"][name]} for name, size in sizes.items()}
        if verified.problems(directory, files, every_byte=False):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    arrays = [np.memmap(directory / name, dtype, mode="r").view(np.ndarray) for name, dtype in FILES.items()]
    return Plan(*arrays, facts["facts"], hashlib.sha256(canonical_json(facts)).hexdigest())


def _write(directory: Path, store: Store, length: int, packing: str, drop: bool):
    incoming = directory.with_name(f".{directory.name}.incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    facts = dict.fromkeys(("tokens", "dropped_documents", "dropped_tokens", "cut_documents"), 0)
    with ExitStack() as stack:
        files = [stack.enter_context(open(incoming / name, "wb")) for name in FILES]
        count = 0
        for starts, stops in _blocks(store):
            placed, first = _planned(starts, stops, length, packing, drop, facts)
            files[0].write(placed.tobytes())
            files[1].write((first + count).astype("<u8").tobytes())
            count += placed.size
        files[1].write(np.array([count], "<u8").tobytes())
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    if not count:
        shutil.rmtree(incoming)
        raise DataError(
            f"Every document of {store.directory} is longer than a row of {length} tokens, and "
            "data.long_documents=drop leaves them out. Raise data.length, or take data.long_documents=split."
        )
    digests = {name: sha256_file(incoming / name) for name in FILES}
    fingerprint = {"store": store.fingerprint, "facts": facts, "files": digests}
    write_durably(incoming / "plan.json", json.dumps(fingerprint, indent=1).encode())
    sync(incoming)
    shutil.rmtree(directory, ignore_errors=True)
    incoming.rename(directory)
    sync(directory.parent)


def _blocks(store: Store) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(starts, stops) int64 of the documents of each block."""
    for first in range(0, store.num_documents, BLOCK):
        bounds = store.document_starts[first : first + BLOCK + 1].astype(np.int64)
        if first + BLOCK >= store.num_documents:
            bounds = np.append(bounds, store.num_tokens)
        yield bounds[:-1], bounds[1:]


def _planned(starts, stops, length: int, packing: str, drop: bool, facts: dict) -> tuple[np.ndarray, np.ndarray]:
    """(pieces of a block, row after row; the first piece of each of its rows), the block added to `facts`."""
    sizes = stops - starts
    found = pieces(starts, stops, length, drop)
    order, rows = PLANNERS[packing](found["length"].astype(np.int64), length)
    long = sizes > length
    facts["dropped_documents" if drop else "cut_documents"] += int(long.sum())
    facts["dropped_tokens"] += int(sizes[long].sum()) if drop else 0
    facts["tokens"] += int(found["length"].sum())
    return found[order], np.flatnonzero(np.diff(rows, prepend=-1))
