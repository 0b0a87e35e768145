"""Checkpoints: asynchronous, atomic, digested. The only module that knows Orbax.

Orbax writes `<directory>/.incoming/<step>`; a thread of ours waits for it, hashes the files, writes the
manifest last, forces all of it onto the device and renames the folder to `<directory>/<step>`. Whatever has
no valid manifest is no checkpoint. Retention runs after the rename, and removes by renaming away first.

A state is a tree of arrays. What Orbax stores is flat, `{leaf path: array}`: empty subtrees and None come
back from the template, and arrays without elements, which Orbax refuses, from their shape.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from data.errors import ConfigError, HungError, StorageError
from data.files import storage_error, storage_errors, sync
from model.parameters import path_name
from train import manifest as manifests
from train.errors import CheckpointError, MismatchError
from train.manifest import DELETING, INCOMING, Manifest, read_manifest, steps, verify
from train.quorum import collect_digests, share, wait_for_commit, write_digests

__all__ = [
    "Checkpointer",
    "Manifest",
    "load_params",
    "restore",
    "restore_newest",
    "restore_subset",
    "steps",
    "verify",
]

# Orbax logs a failed save as several tracebacks, beside the exception that says the same.
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)

DISCARD_TRIES = 20  # a tenth of a second apart


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def leaf_dict(tree) -> dict:
    """`{leaf path: leaf}`; ValueError where two leaves have one path."""
    leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    if len(named := dict(leaves)) != len(leaves):
        raise ValueError("two leaves of the state have the same path")
    return named


def describe(leaves: dict) -> dict[str, dict]:
    """Shapes and dtypes of leaves, as a manifest keeps them."""
    return {name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for name, leaf in leaves.items()}


def as_array(leaf, name: str) -> jax.Array:
    """A leaf as a JAX array; TypeError where that would change its dtype, or where it is no array."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise TypeError(f"leaf {name} of the state is a {type(leaf).__name__}, not an array")
    if (array := jnp.asarray(leaf)).dtype != leaf.dtype:
        raise TypeError(f"leaf {name} of the state is {leaf.dtype}, which this JAX would store as {array.dtype}")
    return array


def copied(array: jax.Array) -> jax.Array:
    """The same array in memory of its own where Orbax would look into the device's: on CPU a view is not a copy."""
    if next(iter(array.devices())).platform != "cpu":
        return array
    shards = [jax.device_put(np.array(shard.data), shard.device) for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


class Checkpointer:
    """Writes the checkpoints of one run. Make it inside the run's lock: it sweeps what a killed run left behind.

    Every process makes one and calls `save` at the same steps. `timeout`: seconds that one process waits for
    the files of another.
    """

    def __init__(
        self,
        directory: Path,
        keep: int,
        keep_every: int | None = None,
        best: str | None = None,
        timeout: float = 600.0,
    ):
        if keep < 1:
            raise ConfigError(f"checkpoint.keep is {keep}; at least 1 checkpoint must be kept.")
        self.directory = Path(directory).absolute()
        self.keep, self.keep_every, self.best, self.timeout = keep, keep_every, best, timeout
        self.primary = jax.process_index() == 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        if self.primary:
            with storage_errors(self.directory, "write checkpoints to"):
                for name in (INCOMING, DELETING):
                    shutil.rmtree(self.directory / name, ignore_errors=True)
                    (self.directory / name).mkdir(parents=True, exist_ok=True)

    def save(self, step: int, tree, metadata: dict, metrics: dict[str, float]) -> None:
        """Begin to save `tree` under `step`, after a save that is still running. Raises as `check` does.

        When it returns the arrays have been copied: the caller may donate or overwrite them. A sound
        checkpoint of this step and these shapes is kept as it is.
        """
        self.wait()
        leaves = {name: as_array(leaf, name) for name, leaf in leaf_dict(tree).items()}
        if self._already_saved(step, leaves):
            if self.primary:
                self._retire(step)  # the launch that saved it may have been killed before it did
            return
        finite = {name: float(value) for name, value in metrics.items() if np.isfinite(value)}
        manifest = Manifest(step, {}, describe(leaves), metadata, finite)
        folder = self.directory / INCOMING / str(step)
        arrays = {name: copied(leaf) for name, leaf in leaves.items() if leaf.size}
        with storage_errors(folder, "write the checkpoint"):
            if self.primary:
                folder.parent.mkdir(exist_ok=True)
            response = ocp.save_async(folder, arrays)
        self._thread = threading.Thread(
            target=self._finish, args=(response, folder, manifest), name="checkpoint", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raise, once, the error of a save that has failed: StorageError, HungError, or the bug it was."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Return when the save that is running is committed; raise as `check` does."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    close = wait

    def _already_saved(self, step: int, leaves: dict) -> bool:
        folder = self.directory / str(step)
        sound = False
        if self.primary and folder.exists():
            try:
                sound = verify(folder).leaves == describe(leaves)
            except CheckpointError:
                sound = False
        return bool(agreed(int(sound)))

    def _finish(self, response, folder: Path, manifest: Manifest) -> None:
        try:
            response.result()
            self._commit(folder, manifest)
        except Exception as error:
            if self.primary:  # what was written helps nobody, and the disk may be full
                discard(self.directory / INCOMING)
            self._error = told(error, folder)  # last: whoever sees it may end the process

    def _commit(self, folder: Path, manifest: Manifest) -> None:
        target = self.directory / folder.name
        mine = share(manifests.list_files(folder))
        digests = manifests.hash_and_sync(folder, mine)
        if not self.primary:
            write_digests(folder, digests)
            wait_for_commit(folder, target, self.timeout)
            return
        files = collect_digests(folder, digests, self.timeout)
        complete = replace(manifest, files=files)
        path = folder / manifests.NAME
        path.write_bytes(manifests.encode(complete))
        sync(path)
        manifests.sync_folders(folder)
        if target.exists():  # damaged, or of another architecture
            self._remove(target)
        os.rename(folder, target)
        sync(self.directory)
        self._retire(manifest.step)

    def _retire(self, newest: int) -> None:
        """Remove what retention does not hold. Later steps than the one just saved were passed over as unusable."""
        committed = [step for step in steps(self.directory) if step <= newest]
        scores = {}
        if self.best is not None:
            recorded = {step: read_manifest(self.directory / str(step)).metrics for step in committed}
            scores = {step: metrics[self.best] for step, metrics in recorded.items() if self.best in metrics}
        for step in set(committed) - manifests.retained(committed, self.keep, self.keep_every, scores):
            try:
                self._remove(self.directory / str(step))
            except OSError as error:
                to_stderr(f"Cannot remove the old checkpoint {self.directory / str(step)}: {error.strerror}.")

    def _remove(self, folder: Path) -> None:
        away = self.directory / DELETING / folder.name
        away.parent.mkdir(exist_ok=True)
        shutil.rmtree(away, ignore_errors=True)
        os.rename(folder, away)
        sync(self.directory)
        shutil.rmtree(away, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a folder into which writers that have not yet seen a failure may still put files."""
    for _ in range(DISCARD_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def told(error: Exception, folder: Path) -> Exception:
    """The failure of a save as one for people, where it is one."""
    if isinstance(error, StorageError | HungError):
        return error
    told = storage_error(error, folder, "write the checkpoint")
    if told is None and "DEADLINE_EXCEEDED" in str(error):
        told = HungError(f"Saving {folder}: a process did not arrive in time: {error}")
    if told is not None:
        told.__cause__ = error
        return told
    return error


def agreed(value):
    """Process 0's value, in every process. Only in the caller's own thread."""
    return value if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(np.asarray(value))


def restore(path: Path, abstract_tree):
    """The saved state in the shape of `abstract_tree`, whose leaves are `jax.ShapeDtypeStruct` with shardings.

    Files are verified and leaves compared before Orbax reads. Values are the saved ones bit for bit on any
    mesh. CheckpointError: damage; MismatchError: other leaves, shapes or dtypes than the template's.
    """
    manifest = verified(Path(path))
    compare(manifest, leaf_dict(abstract_tree), Path(path))
    return read(Path(path), abstract_tree)


def restore_subset(path: Path, abstract_tree):
    """As `restore`, for a template with some of the saved leaves: the others are not read."""
    manifest = verified(Path(path))
    compare(manifest, leaf_dict(abstract_tree), Path(path), subset=True)
    return read(Path(path), abstract_tree)


def restore_newest(
    directory: Path, abstract_tree, report: Callable[[str], None] = to_stderr
) -> tuple[object, Manifest] | None:
    """The newest usable state with its manifest, None where nothing was ever saved.

    A damaged checkpoint is reported and the one before it is used. CheckpointError: there are some, none is
    usable. MismatchError at once where a sound one does not fit: a changed architecture is not damage.
    """
    found = newest_usable(Path(directory), report)
    return None if found is None else (restore_found(*found, abstract_tree), found[1])


def restore_found(path: Path, manifest: Manifest, abstract_tree):
    """`restore`, of what `newest_usable` has found and verified: its files are not hashed again."""
    compare(manifest, leaf_dict(abstract_tree), path)
    return read(path, abstract_tree)


def newest_usable(directory: Path, report: Callable[[str], None] = to_stderr) -> tuple[Path, Manifest] | None:
    """Folder and manifest of the newest verified checkpoint; None and CheckpointError as for `restore_newest`."""
    candidates = agreed_list(manifests.step_folders(directory)[::-1])
    for step in candidates:
        path = directory / str(step)
        try:
            return path, verified(path)
        except MismatchError:
            raise
        except CheckpointError as error:
            report(f"Passing over checkpoint {step}: {error}")
    if candidates:
        raise CheckpointError(
            f"No usable checkpoint in {directory}: all of {candidates} are damaged. Restore one from a copy, or begin "
            "again in another directory."
        )
    return None


def agreed_list(candidates: list[int]) -> list[int]:
    """Process 0's list, in every process: listings of a shared disk may be stale elsewhere."""
    if jax.process_count() == 1:
        return candidates
    count = int(agreed(len(candidates)))
    padded = np.asarray((candidates + [0] * count)[:count], np.int32)
    return [int(step) for step in agreed(padded)]


def verified(path: Path) -> Manifest:
    """`verify`, each process reading its share of the files, and all agreeing on the outcome."""
    if jax.process_count() == 1:
        return verify(path)
    error = manifest = None
    try:
        manifest = read_manifest(path)
        manifests.check_listing(path, manifest)
        manifests.check_files(path, manifest, share(sorted(manifest.files)))
    except CheckpointError as found:
        error = found
    failed = np.flatnonzero(multihost_utils.process_allgather(np.asarray(error is not None)))
    if error is not None:
        raise error
    if failed.size:
        raise CheckpointError(f"{path} is damaged: process {failed[0]} found it so.")
    return manifest


def compare(manifest: Manifest, leaves: dict, path: Path, subset: bool = False) -> None:
    """MismatchError listing every leaf whose path, shape or dtype in `leaves` is not the saved one."""
    expected, saved = describe(leaves), manifest.leaves

    def text(leaf: dict | None) -> str:
        return "nothing" if leaf is None else f"{leaf['dtype']}{leaf['shape']}"

    names = expected if subset else expected | saved
    different = [
        f"{name}: saved {text(saved.get(name))}, expected {text(expected.get(name))}"
        for name in sorted(names)
        if saved.get(name) != expected.get(name)
    ]
    if different:
        more = f"; and {len(different) - 20} more" if len(different) > 20 else ""
        raise MismatchError(
            f"Checkpoint {path} is of another model, optimizer or precision. {'; '.join(different[:20])}{more}. "
            "Give the configuration it was saved with, or another directory."
        )


def read(path: Path, abstract_tree):
    """The leaves of `abstract_tree` from a verified checkpoint, directly into their shardings."""
    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or local)
        for name, leaf in leaf_dict(abstract_tree).items()
    }
    stored = {name: leaf for name, leaf in targets.items() if leaf.size}
    values = {n: jnp.zeros(x.shape, x.dtype, device=x.sharding) for n, x in targets.items() if not x.size}
    if stored:
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            values |= ocp.load(Path(path).absolute(), stored)
    return jax.tree.unflatten(jax.tree.structure(abstract_tree), [values[name] for name in targets])


def load_params(path: Path, abstract_params):
    """Only the parameters, for `init_from`, evaluation and sampling.

    `path` is a checkpoint, a run directory or its `checkpoints` (the newest usable one is taken).
    `abstract_params` is the whole parameter tree; the saved run may have had any part of it frozen. Raises as
    `restore` does.
    """
    folder = find_checkpoint(Path(path))
    manifest, named = verified(folder), leaf_dict(abstract_params)
    places = {}  # a parameter's path: where the run saved it
    for place in manifest.leaves:
        top, _, name = place.partition("/")
        if top in ("params", "frozen"):
            places[name] = place
    saved = {name: manifest.leaves[place] for name, place in places.items()}
    compare(replace(manifest, leaves=saved), named, folder)
    values = read(folder, {places[name]: leaf for name, leaf in named.items()})
    return jax.tree.unflatten(jax.tree.structure(abstract_params), [values[places[name]] for name in named])


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that `path` means; CheckpointError where there is no usable one."""
    if (path / manifests.NAME).is_file():
        return path
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = newest_usable(directory)
    if found is None:
        raise CheckpointError(
            f"No checkpoint in {path}: give a checkpoint or the directory of a run that has saved one."
        )
    return found[0]
