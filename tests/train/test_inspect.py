"""What inspect says of a run depends on the values alone, and asking changes nothing."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from data.cli import exit_code
from train import inspect
from train.checkpoint import Checkpointer
from train.inspect import digest, digest_leaves, main
from train.manifest import Manifest

ROOT = Path(__file__).resolve().parents[2]
PARAMS = {"block": {"kernel": jnp.arange(64.0).reshape(8, 8)}, "head": jnp.ones((3,), jnp.bfloat16)}
METADATA = {"tokens": 10**12, "config_hash": "abc", "store_fingerprint": "def", "tokenizer_fingerprint": "ghi"}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    checkpointer = Checkpointer(run / "checkpoints", keep=9)
    for step, loss in ((9, 2.0), (10, 3.0), (11, 2.5)):
        params = jax.tree.map(lambda x, step=step: x + (step - 9), PARAMS)
        state = {
            "params": {"block": params["block"]},
            "frozen": {"head": params["head"]},
            "opt_state": ({"mu": params["block"]},),
            "ema": None,
            "step": jnp.int32(step),
            "skipped": jnp.int32(step - 9),
        }
        checkpointer.save(step, state, METADATA, {"eval/validation/loss": loss, "accuracy": -loss})
    checkpointer.close()
    return run


@pytest.fixture
def run(pristine, tmp_path) -> Path:
    return shutil.copytree(pristine, tmp_path / "run")


def asked(capsys, *arguments) -> dict:
    assert exit_code(main, [str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_digests_are_of_the_values(pristine, capsys):
    got = asked(capsys, "--run", pristine, "--step", 9)
    assert got["params_sha256"] == digest(PARAMS)
    assert got["opt_state_sha256"] == digest(({"mu": PARAMS["block"]},))
    assert (got["parameter_count"], got["skipped"], got["step"]) == (67, 0, 9)
    assert {name: got[name] for name in METADATA} == METADATA


def test_the_digest_is_defined(capsys):
    """Written out once more, for whoever computes it elsewhere."""
    expected = hashlib.sha256()
    for path, leaf in (("block/kernel", PARAMS["block"]["kernel"]), ("head", PARAMS["head"])):
        expected.update(f"{path}\0{leaf.dtype}\0{list(leaf.shape)}\0".encode() + np.asarray(leaf).tobytes())
    assert digest(PARAMS) == expected.hexdigest()
    assert list(inspect.merged_paths(Manifest(0, {}, {"a/b/c": {}, "a/b-c": {}}, {}, {}), ("a",))) == ["b-c", "b/c"]
    nested = {"b": {"c": PARAMS["head"]}, "b-c": PARAMS["head"]}
    assert digest(nested) == digest_leaves([("b-c", PARAMS["head"]), ("b/c", PARAMS["head"])])


def test_the_digest_does_not_see_shardings_or_batches(monkeypatch, pristine, capsys):
    mesh = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(PARAMS["block"]["kernel"], NamedSharding(mesh, PartitionSpec(None, "a")))
    assert digest({**PARAMS, "block": {"kernel": split}}) == digest(PARAMS)
    whole = asked(capsys, "--run", pristine)
    monkeypatch.setattr(inspect, "BATCH_BYTES", 1)
    assert asked(capsys, "--run", pristine) == whole


@pytest.mark.parametrize(
    "other",
    [
        {**PARAMS, "head": PARAMS["head"].view(jnp.float16)},
        {**PARAMS, "head": PARAMS["head"].reshape(3, 1)},
        {**PARAMS, "head": -PARAMS["head"]},
        {"block": PARAMS["block"], "tail": PARAMS["head"]},
    ],
    ids=["dtype", "shape", "value", "path"],
)
def test_the_digest_sees_everything_else(other):
    assert digest(other) != digest(PARAMS)


def test_steps_newest_and_best(pristine, capsys):
    got = asked(capsys, "--run", pristine)
    assert (got["steps"], got["newest"], got["step"]) == ([9, 10, 11], 11, 11)
    assert got["best"] == {"eval/validation/loss": {"step": 9, "value": 2.0}, "accuracy": {"step": 10, "value": -3.0}}


def contents(directory: Path) -> dict:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*")}


def test_asking_changes_nothing_and_takes_no_lock(run, capsys):
    (run / "checkpoints" / ".incoming" / "12").mkdir()
    (run / "checkpoints" / ".deleting" / "8").mkdir()
    before = contents(run)
    asked(capsys, "--run", run)
    assert contents(run) == before


def test_a_damaged_newest_is_passed_over(run, capsys):
    (run / "checkpoints" / "11" / "_CHECKPOINT_METADATA").write_bytes(b"")
    assert exit_code(main, ["--run", str(run)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["step"] == 10 and "11/_CHECKPOINT_METADATA is damaged" in said.err


def test_a_checkpoint_that_vanishes_meanwhile_is_passed_over(run, capsys, monkeypatch):
    verified = inspect.chosen

    def chosen(directory, step):
        found = verified(directory, step)
        shutil.rmtree(directory / "11", ignore_errors=True)
        return found

    monkeypatch.setattr(inspect, "chosen", chosen)
    assert asked(capsys, "--run", run)["step"] == 10


def test_exit_codes(run, tmp_path, capsys):
    assert exit_code(main, ["--run", str(tmp_path)]) == 2
    assert "not the directory of a run" in capsys.readouterr().err
    assert exit_code(main, ["--run", str(run), "--step", "12"]) == 5
    for step in (9, 10, 11):
        (run / "checkpoints" / str(step) / "MANIFEST.json").unlink()
    assert exit_code(main, ["--run", str(run)]) == 5
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text("{}")
    assert exit_code(main, ["--run", str(tmp_path / "new")]) == 5
    assert "has not saved one yet" in capsys.readouterr().err


def test_the_command_refuses_what_it_does_not_know(tmp_path):
    command = [sys.executable, "-m", "train.inspect", "--run", str(tmp_path), "--other", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "--other" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
