"""What a committed checkpoint says about itself: `MANIFEST.json`, written last, and the checks against it.

    {"version": 1, "step": 40, "files": {path: {"size", "sha256"}}, "leaves": {path: {"shape", "dtype"}},
     "metadata": {...}, "metrics": {...}, "digest": SHA-256 of all the rest}

A folder is a checkpoint when its name is a step, its manifest can be read, the manifest's own digest is right
and its step is the folder's name. Imports no JAX, so that listing a run is instant.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from data.files import sync
from train.errors import CheckpointError, MismatchError

NAME = "MANIFEST.json"
VERSION = 1
INCOMING = ".incoming"  # checkpoints being written
DELETING = ".deleting"  # checkpoints being removed


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's contents."""

    step: int  # updates attempted before it was saved
    files: dict[str, dict]  # path relative to the folder: {"size": bytes, "sha256": hexadecimal}
    leaves: dict[str, dict]  # leaf's path in the state: {"shape": list, "dtype": name}
    metadata: dict  # as given to save(): config hash, counts, fingerprints
    metrics: dict[str, float]  # finite ones, at this step
    version: int = VERSION


def canonical(value) -> bytes:
    """The one JSON text of a plain value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(fields: dict) -> str:
    """The manifest's own digest, over all its other fields."""
    return hashlib.sha256(canonical(fields)).hexdigest()


def encode(manifest: Manifest) -> bytes:
    """The bytes of MANIFEST.json, the digest of everything else included."""
    fields = json.loads(canonical(asdict(manifest)))  # as it will be read: every key is text
    return json.dumps({**fields, "digest": digest(fields)}, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder; CheckpointError where it is missing, damaged or of another step."""
    path = folder / NAME
    try:
        fields = json.loads(path.read_bytes())
        if fields.pop("digest") != digest(fields):
            raise CheckpointError(f"{path} is damaged: its own digest does not match.")
        if fields["version"] > VERSION:
            raise MismatchError(f"{path} has format version {fields['version']}; this code reads {VERSION}.")
        manifest = Manifest(**fields)
    except OSError as error:
        reason = "it was never completed" if isinstance(error, FileNotFoundError) else error.strerror
        raise CheckpointError(f"{folder} is no checkpoint: {NAME} cannot be read ({reason}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is not a manifest ({error}).") from error
    if is_step_name(folder.name) and manifest.step != int(folder.name):
        raise CheckpointError(f"{path} is of step {manifest.step}, not {folder.name}: the folder was renamed.")
    return manifest


def is_step_name(name: str) -> bool:
    return re.fullmatch(r"0|[1-9][0-9]{0,17}", name) is not None


def step_folders(directory: Path) -> list[int]:
    """Ascending steps of the folders named as one, whether they are checkpoints or not. Strays are ignored."""
    try:
        with os.scandir(directory) as entries:
            return sorted(int(e.name) for e in entries if is_step_name(e.name) and e.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def steps(directory: Path) -> list[int]:
    """Ascending steps of the committed checkpoints in `directory`. Order is the number's, never the clock's."""
    committed = []
    for step in step_folders(directory):
        try:
            read_manifest(directory / str(step))
        except CheckpointError:
            continue
        committed.append(step)
    return committed


def list_files(folder: Path) -> list[str]:
    """Sorted relative paths of every file below `folder` but the manifest."""
    found = []
    for parent, _, names in os.walk(folder):
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in names]
    return sorted(name for name in found if name != NAME)


def hash_file(path: Path) -> dict:
    """`{"size": bytes, "sha256": hexadecimal}` of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": digest}


def hash_and_sync(folder: Path, names: Iterable[str]) -> dict[str, dict]:
    """Digests of the files as they are now, each forced onto the device."""
    digests = {}
    for name in names:
        sync(folder / name)
        digests[name] = hash_file(folder / name)
    return digests


def sync_folders(folder: Path) -> None:
    """Force the entries of `folder` and of every folder below it onto the device."""
    for parent, _, _ in os.walk(folder):
        sync(Path(parent))


def check_files(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Sizes and digests of `names`; CheckpointError names the first that is missing or differs."""
    names = list(names)

    def trouble(name: str) -> str | None:
        path, expected = folder / name, manifest.files[name]
        try:
            size = path.stat().st_size
            if size != expected["size"]:
                return f"{path} is damaged: {size} bytes, {expected['size']} were saved."
            if hash_file(path)["sha256"] != expected["sha256"]:
                return f"{path} is damaged: its SHA-256 is not the one that was saved."
        except OSError as error:
            return f"{path} is damaged: {error.strerror}."
        return None

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for message in pool.map(trouble, names):
            if message is not None:
                raise CheckpointError(message)


def check_listing(folder: Path, manifest: Manifest) -> None:
    """CheckpointError names a file that the manifest does not know, or one that is missing."""
    present, expected = set(list_files(folder)), set(manifest.files)
    if missing := sorted(expected - present):
        raise CheckpointError(f"{folder / missing[0]} is missing from the checkpoint.")
    if foreign := sorted(present - expected):
        raise CheckpointError(f"{folder / foreign[0]} does not belong to the checkpoint.")


def verify(folder: Path) -> Manifest:
    """The manifest, after every file's name, size and digest was found to be what was saved."""
    manifest = read_manifest(folder)
    check_listing(folder, manifest)
    check_files(folder, manifest, sorted(manifest.files))
    return manifest


def retained(steps: Iterable[int], keep: int, keep_every: int | None, scores: dict[int, float]) -> set[int]:
    """The steps that stay: the newest `keep`, multiples of `keep_every`, the lowest score (the earlier of equals)."""
    ordered = sorted(steps)
    staying = set(ordered[-max(keep, 1) :])
    if keep_every:
        staying |= {step for step in ordered if step % keep_every == 0}
    scored = [(scores[step], step) for step in ordered if step in scores]
    return staying | ({min(scored)[1]} if scored else set())
