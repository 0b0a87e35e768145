"""`python -m train.average`: the plain mean of checkpoints, as a run that the other commands read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.cli import exit_code
from tests import helpers
from train import average, checkpoint, convert, generate, inspect, loop, main, manifest
from train.assembly import assemble

STEPS = (2, 4, 6, 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with checkpoints at STEPS."""
    directory = tmp_path_factory.mktemp("trained")
    changes = {"train.steps": STEPS[-1], "checkpoint.every": 2, "model.num_layers": 1}
    helpers.train(helpers.tiny(directory, changes), directory / "run")
    return directory / "run"


def averaged(run: Path, workdir: Path, *arguments: str) -> int:
    return exit_code(average.main, ["--run", str(run), "--workdir", str(workdir), *arguments])


def parameters(run: Path, step: int) -> dict[str, np.ndarray]:
    folder, saved = inspect.chosen(run / "checkpoints", step)
    paths = inspect.merged_paths(saved, ("params", "frozen"))
    return {name: np.asarray(leaf) for name, leaf in inspect.stored_leaves(folder, saved, paths)}


@pytest.mark.parametrize(
    ("arguments", "steps"), [(("--last", "3"), STEPS[1:]), (("--steps", "8,2"), (2, 8))], ids=("last", "steps")
)
def test_it_is_the_plain_mean(arguments, steps, run, tmp_path):
    assert averaged(run, tmp_path / "mean", *arguments) == 0
    assert helpers.steps(tmp_path / "mean") == [8]
    found, parts = parameters(tmp_path / "mean", 8), [parameters(run, step) for step in steps]
    assert found.keys() == parts[0].keys()
    for name, leaf in found.items():
        exact = np.mean(np.stack([part[name] for part in parts]), axis=0, dtype=np.float64)
        np.testing.assert_array_equal(leaf, exact.astype(np.float32), err_msg=name)
    saved = manifest.read_manifest(tmp_path / "mean" / "checkpoints" / "8")
    assert saved.metadata["averaged_steps"] == list(steps)


def test_of_one_checkpoint_it_is_the_checkpoint(run, tmp_path):
    assert averaged(run, tmp_path / "mean", "--last", "1") == 0
    expected, found = inspect.report(run, 8), inspect.report(tmp_path / "mean", None)
    assert found["params_sha256"] == expected["params_sha256"] and found["step"] == 8


def test_the_mean_is_a_run(run, tmp_path, capsys):
    """It continues texts, begins another run, is exported, and is not trained in place."""
    mean = tmp_path / "mean"
    assert averaged(run, mean, "--last", "2") == 0
    assert exit_code(generate.main, ["--run", str(mean), "--prompt", "7", "--max_new_tokens", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["prompt"] == "7"
    _, params, tokenizer = generate.load_run(mean)
    assert inspect.digest(params) == inspect.report(mean, None)["params_sha256"]
    assert tokenizer.fingerprint == generate.load_run(run)[2].fingerprint
    config = helpers.tiny(tmp_path, {"model.num_layers": 1, "train.init_from": str(mean)})
    assert inspect.digest(loop.initial(assemble(config)).params) == inspect.digest(params)
    assert exit_code(convert.main, ["export", "--run", str(mean), "--hf", str(tmp_path / "hf")]) == 0
    cache = f"--config.data.cache_dir={tmp_path / 'cache'}"
    assert exit_code(main.main, ["--config", str(mean / "config.json"), "--workdir", str(mean), cache]) == 2
    assert "train.average" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    {
        "too many": (("--last", "5"), "has checkpoints at 4 steps: 2, 4, 6, 8"),
        "none": (("--last", "0"), "--last is 0"),
        "no step": (("--steps", "2,3"), "--steps has 3"),
        "twice": (("--steps", "2,2"), "twice"),
        "no number": (("--steps", "2,"), "'2,'"),
        "neither": ((), "either --last N or --steps"),
        "both": (("--last", "1", "--steps", "2"), "either --last N or --steps"),
    }.values(),
)
def test_what_cannot_be_averaged_is_refused(arguments, said, run, tmp_path, capsys):
    assert averaged(run, tmp_path / "mean", *arguments) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_occupied_directory_and_a_run_without_checkpoints_are_refused(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert averaged(run, tmp_path / "full", "--last", "1") == 2
    assert averaged(tmp_path / "nowhere", tmp_path / "mean", "--last", "1") == 5
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    (
        pytest.param({"model.feed_forward.hidden_dim": 32}, "stack/0/feed_forward/up/kernel", id="shapes"),
        pytest.param({"model.norm.epsilon": 1e-3}, "model.norm.epsilon", id="settings", marks=pytest.mark.slow),
    ),
)
def test_checkpoints_of_another_model_are_refused(changes, said, run, tmp_path, capsys):
    """Such as those that were copied into one directory from several runs."""
    settings = {"train.steps": 10, "checkpoint.every": 10, "model.num_layers": 1, **changes}
    helpers.train(helpers.tiny(tmp_path, settings), tmp_path / "other")
    mixed = shutil.copytree(run, tmp_path / "mixed")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "10", mixed / "checkpoints" / "10")
    assert averaged(mixed, tmp_path / "mean", "--last", "2") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "mean").exists()


def test_a_damaged_checkpoint_is_not_averaged(run, tmp_path, capsys):
    damaged = shutil.copytree(run, tmp_path / "damaged")
    folder = damaged / "checkpoints" / "6"
    victim = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    assert averaged(damaged, tmp_path / "mean", "--last", "2") == 5
    assert str(folder) in capsys.readouterr().err
    assert checkpoint.newest_usable(damaged / "checkpoints")[0].name == "8"
