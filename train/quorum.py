"""How several processes commit one checkpoint: through files beside it and polling, never through a collective.

A collective in a background thread could meet the step's own in another order on another process, and hang
both.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import jax

from data.errors import HungError, StorageError
from train.manifest import list_files
from train.storage import write_atomic

POLL = 0.05  # seconds
GRACE = 5.0  # seconds for a shared disk to show a rename


def share(names: list[str]) -> list[str]:
    """This process's part of a list that is the same in every process."""
    return names[jax.process_index() :: jax.process_count()]


def digests_path(folder: Path, process: int) -> Path:
    return folder.with_name(f"{folder.name}.digests.{process}")


def write_digests(folder: Path, digests: dict[str, dict]) -> None:
    """Tell process 0 what this process has hashed."""
    write_atomic(digests_path(folder, jax.process_index()), json.dumps(digests).encode())


def poll(done: Callable[[], bool], timeout: float, complaint: str) -> None:
    """Return when `done()`; HungError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            raise HungError(complaint)
        time.sleep(POLL)


def collect_digests(folder: Path, own: dict[str, dict], timeout: float) -> dict[str, dict]:
    """Every process's digests, `own` being process 0's; HungError names a process that does not deliver."""
    files = dict(own)
    for process in range(1, jax.process_count()):
        path = digests_path(folder, process)
        poll(path.exists, timeout, f"Saving {folder}: process {process} wrote no digests within {timeout:g} s.")
        files |= json.loads(path.read_bytes())
        path.unlink()
    if unknown := sorted(set(list_files(folder)) - set(files)):
        raise StorageError(
            f"Saving {folder}: no process saw {unknown[0]}. All processes must write to one shared file system."
        )
    return dict(sorted(files.items()))


def wait_for_commit(folder: Path, target: Path, timeout: float) -> None:
    """Return when process 0 has renamed `folder` to `target`; StorageError where it has given up and removed it."""
    gone_since = None

    def committed() -> bool:
        nonlocal gone_since
        if folder.exists():
            gone_since = None
            return False
        if target.exists():
            return True
        gone_since = gone_since or time.monotonic()
        if time.monotonic() - gone_since > GRACE:
            raise StorageError(f"Saving {target}: process 0 gave up and removed {folder}; its own message says why.")
        return False

    poll(committed, timeout, f"Saving {target}: process 0 did not commit it within {timeout:g} s.")
