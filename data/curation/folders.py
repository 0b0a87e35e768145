"""Where a curation keeps what: the folders of its steps, and files that are there whole or not at all."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from data.files import sync, write_durably

DOCUMENTS, WORK = "documents", "work"  # below `output`
COMPLETIONS = "completions"  # below a step: one empty file a task, as datatrove marks them


def put(path: Path, content: bytes):
    """Writes a file under a passing name and renames it when it is on the disk; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    passing = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durably(passing, content)
        passing.replace(path)
        sync(path.parent)
    finally:
        passing.unlink(missing_ok=True)


def task_name(rank: int) -> str:
    """How a task's files are named, here and by datatrove."""
    return f"{rank:05d}"


def completed(step: Path, tasks: int) -> list[int]:
    """Which tasks of a step are done."""
    marks = step / COMPLETIONS
    return [rank for rank in range(tasks) if (marks / task_name(rank)).is_file()]


def leave_with(process: int):
    """Ends this process within a second of the end of another, however that came: no worker is left to write on.

    A timer of the main thread, since threads and forks do not go together.
    """

    def look(*_):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            os._exit(1)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
