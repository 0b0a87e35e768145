"""Files that survive a crash: atomic replacement."""

from __future__ import annotations

import os
from pathlib import Path

from data.files import sync


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
