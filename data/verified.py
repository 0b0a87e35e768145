"""Whether files are as their digests say, and a memory of it, so that hours of reading are not repeated at each start.

What was read and found whole is remembered beside the files by size, times, inode and digest. A file that was written
to since, by whatever means, has another change time (ctime, which no program sets), and is read again; so one
that was exchanged, moved or copied. What changes beneath the file system, bits that rot, is found by those who
ask for every byte: `python -m data.store verify`. Files of less than REMEMBERED bytes together are read each time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.files import sha256_file, write_durably

REMEMBERED = 1 << 28  # bytes: read in under a second
SETTLED = 2 * 10**9  # nanoseconds: of a file that changed later, another change could have the same time


def digests(paths: Iterable[Path]) -> list[str]:
    """Hexadecimal SHA-256 of each file, read on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(sha256_file, paths))


def _digest(path: Path) -> str | OSError:
    try:
        return sha256_file(path)
    except OSError as error:  # a disk that fails in the middle of a file
        return error


def memory_of(directory: Path) -> Path:
    """Where it is remembered which files of `directory` are whole."""
    return directory.with_name(f".{directory.name}.verified")


def problems(directory: Path, files: Mapping[str, Mapping], every_byte: bool = True) -> list[str]:
    """What is wrong with `files`, {path below `directory`: {"bytes": size, "sha256": digest}}; empty when nothing is.

    Unless `every_byte`, those that are remembered as whole, and have not been written to since, are not read.
    """
    found, sound = [], []
    for name, record in files.items():
        try:
            size = (directory / name).stat().st_size
        except OSError as error:
            found.append(f"{directory / name} cannot be read: {error.strerror}.")
            continue
        if size != record["bytes"]:
            found.append(f"{directory / name} has {size} bytes, the header says {record['bytes']}.")
        else:
            sound.append(name)
    large = sum(record["bytes"] for record in files.values()) >= REMEMBERED
    remembered = _recall(memory_of(directory)) if large and not every_byte else {}
    facts = {name: _facts(directory / name, files[name]["sha256"]) for name in sound}
    unread = [name for name in sound if remembered.get(name) != facts[name]]
    began = time.time_ns()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        taken = list(pool.map(lambda name: _digest(directory / name), unread))
    for name, digest in zip(unread, taken, strict=True):
        if isinstance(digest, OSError):
            found.append(f"{directory / name} cannot be read: {digest.strerror}.")
        elif digest != files[name]["sha256"]:
            found.append(
                f"{directory / name} is damaged: its SHA-256 is {digest}, the header says {files[name]['sha256']}."
            )
    if large and unread and not found:
        _remember(memory_of(directory), {name: known for name, known in facts.items() if known[2] < began - SETTLED})
    return found


def _facts(path: Path, digest: str) -> list:
    """[size, time of change to the content, to anything, inode, device, digest]."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev, digest]


def _recall(path: Path) -> dict[str, list]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}  # nothing is remembered, so everything is read


def _remember(path: Path, known: dict[str, list]):
    passing = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write_durably(passing, json.dumps(known).encode())
        passing.replace(path)
    except OSError:  # a directory that may only be read: what lies in it is read at each start
        passing.unlink(missing_ok=True)
