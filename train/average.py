"""The mean of several checkpoints of a run, as a run directory of its own (Vaswani et al. 2017, section 6.1).

python -m train.average --run DIR --last 5 --workdir OUT
python -m train.average --run DIR --steps 96000,98000,100000 --workdir OUT

Generation, export and `train.init_from` read OUT as they read any run; nothing trains in it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from data.cli import Parser, run_command
from data.errors import ConfigError
from data.files import storage_errors, write_durably
from data.schema import from_plain, to_plain
from train import checkpoint, manifest
from train.config import Config
from train.errors import CheckpointError, MismatchError
from train.hub.runs import place_for, save_weights
from train.inspect import merged_paths
from train.manifest import Manifest
from train.resume import FIXED, changes

Found = tuple[Path, Manifest]  # a checkpoint's folder, and what it holds


def average_run(run: Path, workdir: Path, last: int | None, asked: Sequence[int]) -> list[str]:
    """Make the run directory `workdir` of the mean of checkpoints of `run`; returns lines for its user.

    They are its newest `last`, or those of the steps `asked`. ConfigError: no such run or steps, an occupied `workdir`,
    checkpoints of several configurations; CheckpointError: damage.
    """
    directory = run / "checkpoints"
    steps = chosen_steps(run, manifest.steps(directory), last, asked)
    found = [(directory / str(step), manifest.verify(directory / str(step))) for step in steps]
    newest = check_alike(found)
    with place_for(workdir, "--workdir") as building:
        building.mkdir()
        config = from_plain(Config, newest.metadata["config"])
        tokenizer = run / "tokenizer.json"
        if tokenizer.exists():
            with storage_errors(building, "write"):
                write_durably(building / tokenizer.name, tokenizer.read_bytes())
        fingerprint = newest.metadata["tokenizer_fingerprint"]
        save_weights(building, config, fingerprint, mean(found), newest.step, {"averaged_steps": steps})
    return [f"the mean of the checkpoints at steps {', '.join(map(str, steps))} of {run}"]


def chosen_steps(run: Path, committed: list[int], last: int | None, asked: Sequence[int]) -> list[int]:
    """The steps to average, ascending. ConfigError where `run` has them not; CheckpointError where it has none."""
    if not committed:
        raise CheckpointError(f"No checkpoint in {run}: give --run the directory of a run that has saved some.")
    listed = ", ".join(map(str, committed))
    if last is not None:
        if last > len(committed):
            raise ConfigError(
                f"--last is {last}, but {run} has checkpoints at {len(committed)} steps: {listed}. Ask for fewer; a "
                "run keeps as many as its checkpoint.keep"
            )
        return committed[-last:]
    missing = sorted(set(asked) - set(committed))
    if missing:
        raise ConfigError(f"--steps has {', '.join(map(str, missing))}, where {run} has checkpoints at {listed}.")
    return sorted(asked)


def check_alike(found: list[Found]) -> Manifest:
    """The newest of the checkpoints. MismatchError where another has other parameters or was trained otherwise."""
    *others, (folder, newest) = found
    shapes, plain = parameters(newest), complete(newest)
    for path, other in others:
        theirs = parameters(other)
        differing = [change.path for change in changes(complete(other), plain) if change.kind == FIXED]
        differing += [name for name in sorted({*shapes, *theirs}) if shapes.get(name) != theirs.get(name)]
        if other.metadata["tokenizer_fingerprint"] != newest.metadata["tokenizer_fingerprint"]:
            differing.append("the tokenizer")
        if differing:
            raise MismatchError(
                f"{path} and {folder} are not of one run: {', '.join(differing[:20])} differ. Average checkpoints that "
                "one run has saved."
            )
    return newest


def complete(saved: Manifest) -> dict:
    """The plain configuration of a checkpoint, with the defaults of fields that an earlier version did not know."""
    return to_plain(from_plain(Config, saved.metadata["config"]))


def parameters(saved: Manifest) -> dict[str, dict]:
    """Shape and dtype of each parameter of a checkpoint, trained or frozen, by its path."""
    return {name: saved.leaves[place] for name, place in merged_paths(saved, ("params", "frozen")).items()}


def mean(found: list[Found]) -> dict:
    """The tree of the parameters' means, each summed in float64 and rounded once; one parameter is read at a time."""
    means = {}
    for name, leaf in parameters(found[-1][1]).items():
        abstract = jax.ShapeDtypeStruct(tuple(leaf["shape"]), np.dtype(leaf["dtype"]))
        values = (read(*place, name, abstract) for place in found)
        means[tuple(name.split("/"))] = np.asarray(reduce(np.add, values) / len(found), abstract.dtype)
    return unflatten_dict(means)


def read(folder: Path, saved: Manifest, name: str, abstract: jax.ShapeDtypeStruct) -> np.ndarray:
    """A parameter of a checkpoint in float64."""
    place = merged_paths(saved, ("params", "frozen"))[name]
    return np.asarray(checkpoint.read(folder, {place: abstract})[place], np.float64)


def parse_steps(text: str) -> list[int]:
    if not re.fullmatch(r"[0-9]{1,18}(,[0-9]{1,18})*", text):
        raise ConfigError(f"--steps is {text!r}, must be steps with commas between them, such as 900,1000")
    steps = [int(step) for step in text.split(",")]
    if len(set(steps)) < len(steps):
        raise ConfigError(f"--steps is {text}, which names a step twice")
    return steps


def main(arguments: Sequence[str]) -> None:
    parser = Parser("train.average", __doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run's directory")
    parser.add_argument("--last", type=int, help="how many of the newest checkpoints")
    parser.add_argument("--steps", help="the steps of the checkpoints, with commas between them")
    parser.add_argument("--workdir", type=Path, required=True, help="the directory of the mean, which is made")
    known = parser.parse_args(arguments)
    if (known.last is None) == (known.steps is None):
        raise ConfigError("give either --last N or --steps A,B,C: which checkpoints to average")
    if known.last is not None and known.last < 1:
        raise ConfigError(f"--last is {known.last}, must be at least 1")
    asked = [] if known.steps is None else parse_steps(known.steps)
    jax.config.update("jax_platforms", "cpu")  # what is computed here is done in float64, by NumPy
    for line in (*average_run(known.run, known.workdir, known.last, asked), f"made {known.workdir}"):
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
