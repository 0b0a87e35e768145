"""A run as a whole: idempotent, compiled once, ended by what must end it, and never saving what is not finite."""

import logging
import shutil
import time
from dataclasses import replace as with_field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import DataError, HungError
from data.loader import Loader
from data.packing import make_rows
from data.prepare import prepare
from tests.helpers import digests, lines, replaced, steps, tiny, train
from train import loop, metrics
from train.assembly import assemble
from train.checkpoint import load_params
from train.config import Group, Log
from train.errors import CheckpointError, DivergedError, MismatchError
from train.inspect import digest, report
from train.metrics import read_metrics
from train.optim import merge


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished")
    config = tiny(directory, {"checkpoint.every": 4})
    train(config, directory / "run")
    return config, directory / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run, for a test to change."""
    return finished[0], shutil.copytree(finished[1], tmp_path / "run")


def contents(directory):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.rglob("*") if path.is_file()}


def test_a_run_has_what_its_readers_rely_on(finished):
    config, run = finished
    expected = {"config.json", "environment.json", "metrics.jsonl", "checkpoints", "tokenizer.json"}
    assert {path.name for path in run.iterdir()} == expected
    assert steps(run) == [4, 6]
    records = [record for record in read_metrics(run / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    keys = {
        "step",
        "loss",
        "tokens",
        "tokens_per_second",
        "step_seconds",
        "learning_rate",
        "grad_norm",
        "mfu",
        "skipped",
    }
    assert all(keys <= set(record) for record in records)
    assert records[-1]["loss"] < records[0]["loss"] - 1
    rows = make_rows(prepare(config.data).train, config.data.length, config.data.packing)
    targets = [Loader({"text": rows}, 8, 0, True).batch(step)["weights"].sum() for step in range(6)]
    assert [record["tokens"] for record in records] == np.cumsum(targets).tolist()  # padding is not counted
    assert targets[0] < 8 * 16 and records[-1]["tokens"] == report(run, None)["tokens"]


def test_finishing_a_finished_run_does_nothing(run, capsys):
    config, run = run
    before = contents(run)
    capsys.readouterr()
    train(config, run)
    assert contents(run) == before
    assert capsys.readouterr().err.count("has its 6 steps") == 1


def test_one_more_step_is_one_step(run):
    config, run = run
    before = lines(run)
    train(replaced(config, {"train.steps": 7}), run)
    assert steps(run) == [4, 6, 7] and lines(run)[: len(before)] == before
    step, evaluation = read_metrics(run / "metrics.jsonl")[len(before) :]
    assert step["step"] == evaluation["step"] == 7 and "loss" in step and "eval/validation/loss" in evaluation
    assert digests(run)["counters"]["tokens"] == step["tokens"]


def test_every_program_compiles_once(finished, tmp_path, caplog):
    config, _ = finished
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        train(replaced(config, {"eval.every": 2, "checkpoint.every": 2}), tmp_path / "run")
    texts = [record.getMessage() for record in caplog.records]
    names = [text.split("(")[1].split(")")[0] for text in texts if text.startswith("Compiling jit(")]
    assert names.count("train_step") == names.count("eval_step") == 1, names
    assert names.count("all_finite") <= 1  # the same one for every run of a process


def test_a_resume_reads_the_newest_checkpoint_that_is_sound_and_says_so_once(run, capfd):
    config, run = run
    before = digests(run), lines(run)
    array = max((run / "checkpoints" / "6").rglob("*"), key=lambda path: path.stat().st_size)
    damaged = bytearray(array.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    array.write_bytes(damaged)
    capfd.readouterr()
    train(config, run)
    said = capfd.readouterr().err
    assert said.count("Passing over checkpoint 6") == 1 and str(array) in said and "step 4 of 6" in said
    assert (digests(run), lines(run)) == before


def test_no_sound_checkpoint_is_an_end_of_its_own(run):
    config, run = run
    for manifest in (run / "checkpoints").glob("*/MANIFEST.json"):
        manifest.unlink()
    before = contents(run)
    with pytest.raises(CheckpointError, match="No usable checkpoint") as caught:
        train(config, run)
    assert caught.value.exit_code == 5 and contents(run) == before


def test_other_text_than_before_is_refused_and_nothing_is_cut(run, tmp_path):
    config, run = run
    other = tiny(tmp_path, {"train.steps": 8})
    (tmp_path / "text.txt").write_text((tmp_path / "text.txt").read_text().replace("Counting", "Counted "))
    before = contents(run)
    with pytest.raises(Exception, match="its store_fingerprint was") as caught:
        train(other, run)
    assert caught.value.exit_code == 2 and contents(run) == before


def test_weights_of_another_run_begin_a_new_one(finished, tmp_path):
    """Weights alone: step 0, a fresh optimizer, this run's own groups."""
    config, source = finished
    changes = {"train.init_from": str(source), "optim.groups": (Group("final_norm", freeze=True),)}
    assembly = assemble(replaced(config, changes))
    state = loop.initial(assembly)
    whole = merge(state.params, state.frozen)
    assert (
        digest(whole) == digest(load_params(source, assembly.abstract_params)) == report(source, None)["params_sha256"]
    )
    assert int(state.step) == 0 and not any(leaf.any() for leaf in jax.tree.leaves(state.opt_state))
    train(replaced(config, {"train.init_from": str(source)}), tmp_path / "run")
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert first["step"] == 1 and first["loss"] < 4.0  # 5.6 from initial values


def test_weights_that_do_not_fit_are_named_before_anything_is_written(finished, tmp_path):
    config, source = finished
    wider = replaced(config, {"train.init_from": str(source), "model.feed_forward.hidden_dim": 72})
    with pytest.raises(
        MismatchError, match=r"up/kernel: saved float32\[2, 32, 64\], expected float32\[2, 32, 72\]"
    ) as e:
        train(wider, tmp_path / "run")
    assert e.value.exit_code == 2 and "down/kernel" in str(e.value) and "query" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


def failing(act):
    """A loader that does `act` at the batch of step 5."""
    original = Loader.batch

    def batch(self, step, *rows):
        if step == 5:
            act()
        return original(self, step, *rows)

    return batch


def test_a_loader_that_dies_ends_the_run(finished, tmp_path, monkeypatch):
    config, _ = finished
    monkeypatch.setattr(Loader, "batch", failing(lambda: 1 // 0))
    with pytest.raises(DataError, match="died at the batch of step 5: ZeroDivisionError") as caught:
        train(config, tmp_path / "run")
    assert caught.value.exit_code == 3
    assert steps(tmp_path / "run") == [4] and lines(tmp_path / "run")[-1].startswith('{"step": 4')


def test_a_loader_that_hangs_ends_the_run(finished, tmp_path, monkeypatch):
    config, _ = finished
    monkeypatch.setattr(Loader, "batch", failing(lambda: time.sleep(30)))
    began = time.monotonic()
    with pytest.raises(HungError, match="step 5 did not come within 0.5 seconds") as caught:
        train(replaced(config, {"data.timeout": 0.5}), tmp_path / "run")
    assert caught.value.exit_code == 124 and time.monotonic() - began < 20
    assert steps(tmp_path / "run") == [4]
    monkeypatch.undo()
    train(config, tmp_path / "run")
    assert digests(tmp_path / "run") == digests(finished[1]) and lines(tmp_path / "run") == lines(finished[1])


def test_nothing_that_is_not_finite_is_saved(finished, tmp_path, monkeypatch):
    """Finite gradients may overflow in the update; the step after it is refused, but the state is lost."""
    config, _ = finished

    def overflown(assembly):
        state = assembly.fresh()
        scale = state.params["final_norm"]["scale"].at[0].set(jnp.inf)
        return with_field(state, params={**state.params, "final_norm": {"scale": scale}})

    monkeypatch.setattr(loop, "initial", overflown)
    with pytest.raises(DivergedError, match="after step 4 the parameters .* are not finite") as caught:
        train(config, tmp_path / "run")
    assert caught.value.exit_code == 4 and steps(tmp_path / "run") == []


def test_a_writer_that_is_missing_is_refused_before_anything_is_written(finished, tmp_path, monkeypatch):
    config, _ = finished
    real = metrics.importlib.import_module

    def without(name):
        if name == "wandb":
            raise ImportError("No module named 'wandb'")
        return real(name)

    monkeypatch.setattr(metrics.importlib, "import_module", without)
    with pytest.raises(Exception, match="asks for wandb, which is not installed") as caught:
        train(replaced(config, {"log": Log(tensorboard=False, wandb="project")}), tmp_path / "run")
    assert caught.value.exit_code == 2 and list(tmp_path.iterdir()) == []


def test_a_log_that_fails_does_not_stop_the_run(finished, tmp_path, monkeypatch, capsys):
    config, source = finished

    def full(self, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics.JsonlWriter, "write", full)
    train(config, tmp_path / "run")
    assert capsys.readouterr().err.count("JsonlWriter failed") == 1
    assert digests(tmp_path / "run") == digests(source)
