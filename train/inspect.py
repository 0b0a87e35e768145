"""`python -m train.inspect --run DIR [--step N]`: what a run has saved, as JSON on stdout.

Reads only, and takes no lock: a run that is training does not notice. A checkpoint that it removes meanwhile
is passed over for the newest one then.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data.cli import Parser, run_command
from data.errors import ConfigError
from train import checkpoint, manifest
from train.errors import CheckpointError
from train.manifest import Manifest

BATCH_BYTES = 2**28  # read at a time
COUNTS = ("tokens", "config_hash", "store_fingerprint", "tokenizer_fingerprint")  # of the metadata


def digest_leaves(leaves: Iterable[tuple[str, np.ndarray]]) -> str:
    """SHA-256 over `(path, array)` pairs in the order given: path, dtype, shape, and little-endian bytes."""
    digest = hashlib.sha256()
    for path, leaf in leaves:
        array = np.asarray(leaf)
        if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
            array = array.byteswap()
        digest.update(f"{path}\0{leaf.dtype}\0{list(leaf.shape)}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def digest(tree) -> str:
    """SHA-256 of a tree of arrays by sorted leaf path: the same for any sharding, device or file layout."""
    return digest_leaves(sorted(checkpoint.leaf_dict(tree).items()))


def merged_paths(saved: Manifest, tops: tuple[str, ...]) -> dict[str, str]:
    """Sorted `{path below one of the top-level keys `tops`: path in the checkpoint}`."""
    split = {place: place.partition("/") for place in saved.leaves}
    return dict(sorted((name, place) for place, (top, _, name) in split.items() if top in tops))


def stored_leaves(folder: Path, saved: Manifest, paths: dict[str, str]) -> Iterator[tuple[str, jax.Array]]:
    """`(path, array)` of the leaves at `paths`, a part at a time, so that a large state needs little memory."""
    part: dict[str, jax.ShapeDtypeStruct] = {}
    names: dict[str, str] = {}
    waiting = 0
    last = next(reversed(paths), None)
    for name, place in paths.items():
        leaf = saved.leaves[place]
        part[place] = jax.ShapeDtypeStruct(tuple(leaf["shape"]), jnp.dtype(leaf["dtype"]))
        names[place] = name
        waiting += part[place].size * part[place].dtype.itemsize
        if waiting >= BATCH_BYTES or name == last:
            values = checkpoint.read(folder, part)
            yield from ((names[place], values[place]) for place in part)
            part, names, waiting = {}, {}, 0


def report(run: Path, step: int | None) -> dict:
    """The command's JSON object. CheckpointError: nothing usable; ConfigError: `run` is no run's directory."""
    directory = run / "checkpoints"
    if not (run / "config.json").is_file() and not directory.is_dir():
        raise ConfigError(f"{run} is not the directory of a run: it has neither config.json nor checkpoints.")
    while True:
        folder, saved = chosen(directory, step)
        try:
            return {"run": str(run), **listing(directory), **contents(folder, saved)}
        except Exception:
            if step is not None or folder.exists():
                raise
            # the run has removed it meanwhile


def listing(directory: Path) -> dict:
    """The committed steps, the newest, and for each metric recorded the step with the lowest value."""
    committed = manifest.steps(directory)
    lowest: dict[str, dict] = {}
    for step in committed:
        for name, value in manifest.read_manifest(directory / str(step)).metrics.items():
            if name not in lowest or value < lowest[name]["value"]:
                lowest[name] = {"step": step, "value": value}
    return {"steps": committed, "newest": committed[-1], "best": lowest}


def contents(folder: Path, saved: Manifest) -> dict:
    """Digests and counts of one checkpoint."""
    params = merged_paths(saved, ("params", "frozen"))
    opt_state = merged_paths(saved, ("opt_state",))
    skipped = dict(stored_leaves(folder, saved, {name: name for name in ("skipped",) if name in saved.leaves}))
    return {
        "step": saved.step,
        "params_sha256": digest_leaves(stored_leaves(folder, saved, params)),
        "opt_state_sha256": digest_leaves(stored_leaves(folder, saved, opt_state)),
        "parameter_count": sum(math.prod(saved.leaves[place]["shape"]) for place in params.values()),
        "skipped": int(skipped["skipped"]) if skipped else None,
        **{name: saved.metadata.get(name) for name in COUNTS},
        "metadata": saved.metadata,
        "metrics": saved.metrics,
    }


def chosen(directory: Path, step: int | None) -> tuple[Path, Manifest]:
    """Folder and manifest of `step`, or of the newest usable checkpoint."""
    if step is not None:
        return directory / str(step), manifest.verify(directory / str(step))
    found = checkpoint.newest_usable(directory)
    if found is None:
        raise CheckpointError(f"No checkpoint in {directory}: the run has not saved one yet.")
    return found


def main(arguments: Sequence[str]) -> int:
    parser = Parser("train.inspect", "What a run has saved, as JSON.")
    parser.add_argument("--run", type=Path, required=True, help="the run's directory")
    parser.add_argument("--step", type=int, help="the checkpoint to look at (default: the newest usable one)")
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # the accelerator belongs to the run
    print(json.dumps(report(options.run, options.step), indent=1))
    return 0


if __name__ == "__main__":
    run_command(main)
