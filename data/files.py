"""Disk primitives: digests, durable writes, locks that the kernel releases, and errors for people."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from data.errors import StorageError

HINTS = {
    errno.ENOSPC: "free some space, or give another directory",
    errno.EDQUOT: "the quota is used up: free some space, or give another directory",
    errno.EFBIG: "the limit on the size of a file was reached (ulimit -f): raise it",
    errno.EROFS: "the file system is read-only: give another directory",
    errno.EACCES: "change its permissions, or give another directory",
    errno.EPERM: "change its permissions, or give another directory",
    errno.ENOTDIR: "a part of the path is a file: give another directory",
    errno.EEXIST: "a file is in the way: remove it, or give another directory",
    errno.ENOENT: "it has vanished: something else removed it",
    errno.EIO: "the device fails: look at the kernel's log",
}


def storage_error(error: BaseException, path: str | os.PathLike, doing: str) -> StorageError | None:
    """What `error` says about the disk, in a paragraph; None where it is no trouble of storage.

    TensorStore and the safetensors library report the system's error number in their text, not as an OSError.
    """
    if isinstance(error, OSError) and error.errno is not None:
        number, where = error.errno, error.filename or path
    elif found := re.search(r"os_error_code='(\d+)'|\(os error (\d+)\)", str(error)):
        number, where = int(found[1] or found[2]), path
    else:
        return None
    hint = HINTS.get(number, "look at the disk")
    return StorageError(f"Cannot {doing} {where}: {os.strerror(number)} (errno {number}); {hint}.")


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike, doing: str = "write below") -> Iterator[None]:
    """Turn disk trouble inside the block into `StorageError`; let everything else pass."""
    try:
        yield
    except Exception as error:
        told = storage_error(error, path, doing)
        if told is None:
            raise
        raise told from error


def canonical_json(value: object) -> bytes:
    """The one spelling of `value` that digests are taken of."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def sha256_file(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: str | os.PathLike):
    """Makes a file's bytes, or a directory's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, content: bytes):
    """Writes a file and waits until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Holds an exclusive advisory lock on the file `path`, which the kernel releases when the process ends.

    `waiting` is the line written to standard error when another process holds it.
    """
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with storage_errors(path.parent):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(waiting, file=sys.stderr, flush=True)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
