"""Builds the token store of a source on many processes, so that a build that was killed goes on where it was.

A source comes in parts; small files are one part together. Each is read and encoded by a worker process into a file
of its own beside the store to be, in `.<store>.parts-<key>`; the files are put together in the order of the parts. So
the store is the same with any number of workers, and whether or not its build was interrupted. The key is of
everything that decides what the files hold: a launch with the same key checks those that are there by their digests
and makes the rest. Putting together needs room for the ids once more. A source of one part is encoded in this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from data import encoding, errors, part_files, store, store_writer
from data.build_progress import BuildProgress
from data.build_worker import Job, part_name
from data.encoding import Encoder, batches
from data.errors import DataError
from data.files import canonical_json, storage_errors
from data.sources import READER_VERSION
from data.store_writer import Piece, pieces, write_store
from data.workers import Workers, started, usable_cpus

if TYPE_CHECKING:
    from data.sources import Part, Reader

VERSION = 1  # of what a part file holds of the same documents
HASH_DIGITS = 16
MANY = 8  # parts a worker
SMALL_BYTES = 4 << 20  # of files that are read as one part


def build(
    directory: str | os.PathLike, reader: Reader, split: str, encoder: Encoder, about: dict, workers: int | None = None
):
    """Makes the store of a reader's `split` at `directory`, whole or not at all; `about` is kept in its header.

    `workers`: processes; None: one for each core that this process may use. `reader.counts` has, behind it, what
    was passed over in all parts.

    Raises DataError where the documents cannot be read or a worker dies, StorageError when the disk refuses.
    """
    with encoded(Path(directory), reader, split, encoder, workers) as found:
        write_store(directory, found, encoder, about, store.SHARD_TOKENS)


@contextlib.contextmanager
def encoded(
    directory: Path, reader: Reader, split: str, encoder: Encoder, workers: int | None
) -> Iterator[Iterator[Piece]]:
    """The pieces of a reader's `split`, to be written to `directory` in the block, kept beside it until it ends."""
    parts = _together(reader.parts(split))
    if len(parts) < 2:
        with contextlib.closing(BuildProgress(split, len(parts))) as progress:
            yield _counted(pieces(encoder, batches(reader.documents(split))), progress)
        return
    facts = [VERSION, READER_VERSION, reader.identity(), split, encoder.identity(), parts]
    key = hashlib.sha256(canonical_json(facts)).hexdigest()[:HASH_DIGITS]
    with _parts_folder(directory, key) as folder:
        finished = _finished(folder, len(parts))
        with contextlib.closing(BuildProgress(split, len(parts), len(finished))) as progress:
            if finished:
                progress.say(f"{split}: {len(finished)} of {len(parts)} parts are there from an earlier launch")
            try:
                yield _in_order(Job(folder, reader, split, encoder, parts), finished, workers, progress)
            except BaseException:
                progress.say(f"{split}: {progress.done} of {len(parts)} parts are kept; the same command goes on there")
                raise
        shutil.rmtree(folder)


def clean(directory: str | os.PathLike):
    """Removes what builders of the store at `directory` that were killed left beside it, once it is there."""
    store_writer.sweep(Path(directory), ("incoming", "replaced", "parts"))


def _together(parts: list[Part]) -> list[list[Part]]:
    """The parts of a source in order, small files together: a thousand of them shall not be a thousand part files."""
    together, size = [], 0
    for part in parts:
        whole_file = (part.start, part.stop) == (0, -1) and os.path.isfile(part.path)
        own = os.path.getsize(part.path) if whole_file else SMALL_BYTES
        if not together or size + own > SMALL_BYTES:
            together.append([])
            size = 0
        together[-1].append(part)
        size += own
    return together


def _counted(found: Iterable[Piece], progress: BuildProgress) -> Iterator[Piece]:
    for part in found:
        progress.add(part.lengths.size, part.ids.size, part.text_bytes)
        yield part


@contextlib.contextmanager
def _parts_folder(directory: Path, key: str) -> Iterator[Path]:
    """The folder of part files, locked; those of other keys, which nobody will go on with, are removed."""
    folder = directory.parent / f".{directory.name}.parts-{key}"
    while True:
        with storage_errors(directory):
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"prepare: waiting for another process that builds {directory}", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists() and os.path.samestat(os.stat(folder), os.fstat(handle)):
            break
        os.close(handle)  # whoever held it is done and has removed it
    try:
        with storage_errors(directory):
            store_writer.sweep(directory, ("parts",))
            part_files.sweep(folder)
        yield folder
    finally:
        with contextlib.suppress(OSError):  # what the workers were at; the next builder would sweep it, too
            part_files.sweep(folder)
        os.close(handle)


def _finished(folder: Path, count: int) -> set[int]:
    """The parts whose files are there and whole; a damaged file is removed."""
    there = [index for index in range(count) if (folder / part_name(index)).exists()]
    with ThreadPoolExecutor(usable_cpus()) as pool:
        whole = list(pool.map(lambda index: part_files.is_whole(folder / part_name(index)), there))
    for index, sound in zip(there, whole, strict=True):
        if not sound:
            (folder / part_name(index)).unlink()
    return {index for index, sound in zip(there, whole, strict=True) if sound}


def _in_order(job: Job, finished: set[int], workers: int | None, progress: BuildProgress) -> Iterator[Piece]:
    """The pieces of all parts in order, while workers make those that are not `finished`.

    A worker is one thread where there are many parts for each. Of few, some workers will be idle while others go on:
    then all have as many threads as there shall be workers.
    """
    missing = [index for index in range(len(job.parts)) if index not in finished]
    workers = workers or usable_cpus()
    many = len(missing) >= MANY * workers
    job = job._replace(batch_characters=encoding.BATCH_CHARACTERS // (8 if many else 1))
    count, threads = min(workers, len(missing)), 1 if many else workers
    with started("data.build_worker", job, missing, count, threads) as team:
        for index in range(len(job.parts)):
            while index not in finished:
                _take(team, job, finished, progress)
            path = job.directory / part_name(index)
            job.reader.counts.update(part_files.read_footer(path)["passed_over"])
            yield from part_files.read_part(path)


def _take(team: Workers, job: Job, finished: set[int], progress: BuildProgress):
    """Waits for an answer of a worker and heeds it."""
    answer = team.answer(timeout=1.0)
    if answer is None:
        progress.show()
    elif "done" in answer:
        finished.add(answer["done"])
        progress.part_done()
    elif "error" in answer:
        raise getattr(errors, answer["error"])(answer["text"])
    elif "bug" in answer:
        raise RuntimeError(f"in a worker process:\n{answer['bug']}")
    elif "died" in answer:
        raise DataError(_death(answer["status"], job, answer["died"]))
    else:
        progress.add(**answer)


def _death(status: int, job: Job, task: int | None) -> str:
    paths = [] if task is None else sorted({part.path for part in job.parts[task]})
    others = f" or one of {len(paths) - 1} files behind it" if len(paths) > 1 else ""
    where = f" while it read {paths[0]}{others}" if paths else ""
    if status < 0:
        how = f"was killed by {signal.Signals(-status).name}{where}, most often because memory ran out"
    else:
        how = f"ended with code {status}{where}; what it says of it stands above"
    return (
        f"A worker process that encodes data.source {how}. Set data.workers to a smaller number if memory is "
        "short, and run the same command again: it goes on behind the finished parts."
    )
