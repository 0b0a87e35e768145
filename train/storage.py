"""Files that survive a crash: synced writes, atomic replacement, and disk trouble told as a `StorageError`."""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager
from pathlib import Path

from data.errors import StorageError
from data.files import sync

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


def storage_error(error: BaseException, path: Path, doing: str) -> StorageError | None:
    """What `error` says about the disk, in a paragraph; None where it is no trouble of storage.

    TensorStore reports the system's error number in its text, not as an OSError.
    """
    if isinstance(error, OSError) and error.errno is not None:
        number, where = error.errno, error.filename or path
    elif found := re.search(r"os_error_code='(\d+)'", str(error)):
        number, where = int(found.group(1)), path
    else:
        return None
    hint = HINTS.get(number, "look at the disk")
    return StorageError(f"Cannot {doing} {where}: {os.strerror(number)} (errno {number}); {hint}.")


@contextmanager
def storage_errors(path: Path, doing: str):
    """Turn disk trouble inside the block into `StorageError`; let everything else pass."""
    try:
        yield
    except Exception as error:
        told = storage_error(error, path, doing)
        if told is None:
            raise
        raise told from error


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` with `content`: after a crash at any moment it holds the old bytes or the new ones."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)
