"""A run's directory: who holds it, the configuration it was run with, and where and by what it was run.

config.json            the resolved configuration
config-history.jsonl   schedule fields that a resume has changed: step, path, old, new
environment.json       versions, devices, code, and so the scope within which a resume is bit for bit
.lock                  while a process runs, held by it; the kernel releases it, however the process ends
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from pathlib import Path

from data.errors import ConfigError
from data.files import storage_errors
from data.schema import from_plain, to_plain
from train.config import Config
from train.resume import ABSENT, SCHEDULE, Change, changes
from train.storage import write_atomic

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
PROBE_BYTES = 65536


class RunDirectory:
    """The directory of one run, held by one launch at a time. Only process 0 writes; in the others all is a no-op.

    A context manager. Opening makes the directory, takes the lock and writes a probe: ConfigError where
    another process holds it, StorageError where it cannot be written. Closing leaves what was there before,
    and what the launch has written: of a launch that was refused, nothing.
    """

    def __init__(self, path: Path, primary: bool):
        self.path = Path(path).absolute()
        self.primary = primary
        self._lock: int | None = None
        self._made: list[Path] = []  # directories that were not there, the innermost first

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def __enter__(self) -> RunDirectory:
        if self.primary:
            try:
                with storage_errors(self.path, "use the run directory"):
                    self._take_lock()
                self._probe()
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory: without the lock, and without what was made to hold it and stayed empty."""
        if self._lock is not None:
            (self.path / ".lock").unlink(missing_ok=True)
        for directory in self._made:
            with contextlib.suppress(OSError):  # something was written there
                directory.rmdir()
        self._forget()

    def _forget(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        self._made = [place for place in (self.path, *self.path.parents) if not place.exists()]
        while self._lock is None:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process"
                os.close(lock)
                raise ConfigError(
                    f"The run directory {self.path} is in use by {holder}. Wait for it to end, stop it, or give "
                    "another --workdir."
                ) from None
            self._lock = lock
            if not self._lock_lies_there():  # a launch that ended meanwhile has removed it
                self._forget()
        # A forked child shares the lock, and would hold it after this process was killed.
        os.register_at_fork(after_in_child=self._forget)

    def _lock_lies_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._lock), os.stat(self.path / ".lock"))
        except FileNotFoundError:
            return False

    def _probe(self) -> None:
        probe = self.path / ".probe"
        with storage_errors(self.path, "write to the run directory"):
            try:
                with open(probe, "wb") as file:
                    file.write(bytes(PROBE_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                probe.unlink(missing_ok=True)
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def read_config(self) -> dict | None:
        """The configuration of the last launch; None before the first. ConfigError where it cannot be read."""
        return read_json(self.path / "config.json")

    def write_config(self, plain: dict, step: int = 0) -> None:
        """Write config.json. Schedule fields that differ from the last launch's go into the history, at `step`."""
        if not self.primary:
            return
        with storage_errors(self.path / "config.json", "write"):
            self._record_changes(plain, step)
            write_atomic(self.path / "config.json", json.dumps(plain, indent=1).encode() + b"\n")

    def _record_changes(self, plain: dict, step: int) -> None:
        if (saved := self.read_config()) is None:
            return
        path = self.path / "config-history.jsonl"
        known = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in known if line.endswith(b"\n")]  # a launch killed here may have torn the last
        lines = [history_line(step, change) for change in schedule_changes(saved, plain)]
        if new := [line for line in lines if line not in kept]:
            write_atomic(path, b"".join(kept + new))

    def read_environment(self) -> dict | None:
        """What `environment` returned in the last launch; None before the first."""
        return read_json(self.path / "environment.json")

    def write_environment(self) -> dict:
        """Write environment.json; returns what is in it."""
        now = environment()
        if self.primary:
            with storage_errors(self.path / "environment.json", "write"):
                write_atomic(self.path / "environment.json", json.dumps(now, indent=1).encode() + b"\n")
        return now


def schedule_changes(saved: dict, given: dict) -> list[Change]:
    """The schedule fields in which two configurations differ; fields that the saved one lacks count as defaults."""
    complete = to_plain(from_plain(Config, saved))
    return [change for change in changes(complete, given) if change.kind == SCHEDULE]


def history_line(step: int, change: Change) -> bytes:
    """One change as JSON. A side on which the field does not exist is left out."""
    sides = {"old": change.saved, "new": change.given}
    present = {side: value for side, value in sides.items() if value is not ABSENT}
    return json.dumps({"step": step, "path": change.path, **present}).encode() + b"\n"


def open_run(path: Path, primary: bool | None = None) -> RunDirectory:
    """`with open_run(path) as run:`. `primary`: whether this process writes; None: whether it is JAX's process 0."""
    if primary is None:
        import jax  # starts the devices: left to whoever does not already know

        primary = jax.process_index() == 0
    return RunDirectory(path, primary)


def read_json(path: Path) -> dict | None:
    """The object in a file of the run directory; None where there is none, ConfigError where it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}). Restore it from a copy, or use another --workdir.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is damaged: not a JSON object. Restore it from a copy, or use another --workdir.")
    return value


def environment() -> dict:
    """Everything outside the configuration that could change a result: plain values, ready for JSON."""
    import jax

    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "backend": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "visible_cpus": visible_cpus(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "code": code_digest(),
        **git_state(),
    }


def visible_cpus() -> int:
    """CPUs that this process may run on: XLA splits its reductions by their number."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def code_digest() -> str:
    """SHA-256 over the source of model, data and train: the code of a step, committed or not."""
    digest = hashlib.sha256()
    for package in ("data", "model", "train"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def git_state() -> dict:
    """Revision, and whether tracked files differ from it; None where the code is not a git repository of its own."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return {"revision": None, "dirty": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"revision": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


SCOPE = ("code", "jaxlib", "backend", "device_kind", "device_count", "visible_cpus")


def scope(environment: dict) -> dict:
    """The part of an environment within which a resumed run has the same bits."""
    return {name: environment.get(name) for name in SCOPE}


def scope_difference(saved: dict | None, now: dict) -> str | None:
    """One line that says what a resume does not share with the launch before it; None where it shares the scope."""
    if saved is None:
        return None
    before, after = scope(saved), scope(now)
    if different := [name for name in SCOPE if before[name] != after[name]]:
        changes = ", ".join(f"{name} {short(before[name])} -> {short(after[name])}" for name in different)
        return f"Resuming in another environment ({changes}): equal to about 1e-6, not bit for bit."
    return None


def short(value) -> str:
    return value[:12] if isinstance(value, str) else str(value)
