"""Stopped and resumed = never stopped: every bit of the state, every digit of the log."""

import math
import re

import pytest

from data.loader import Loader
from data.packing import make_rows
from data.prepare import prepare
from tests.helpers import digests, lines, replaced, spoilt, steps, tiny, train
from train.config import Cosine
from train.errors import DivergedError, Stopped
from train.metrics import read_metrics

# All at once: an epoch is not a whole number of steps, and seven of them take more than two epochs.
RICH = {
    "model.dropout": 0.1,
    "model.attention.dropout": 0.1,
    "optim.schedule": Cosine(warmup=3),
    "optim.ema_decay": 0.9,
    "data.length": 64,
    "train.steps": 7,
    "train.batch_size": 24,
    "train.accumulate": 2,
    "train.max_bad_steps": 3,
    "eval.every": 3,
    "eval.ema": True,
    "checkpoint.every": 4,
}
SLOW = pytest.mark.slow


def interrupted(config, run, *stops: int):
    """Train in launches that stop after so many steps each, and a last one that finishes."""
    for count in stops:
        before = steps(run)[-1] if run.exists() else 0
        with pytest.raises(Stopped, match=f"SIGTERM after step {before + count}, which is saved") as stopped:
            train(config, run, stop_after=count)
        assert stopped.value.exit_code == 75 and steps(run)[-1] == before + count
    train(config, run)


def same_end(one, other):
    assert digests(one) == digests(other)
    assert lines(one) == lines(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    config = tiny(directory, RICH)
    train(config, directory / "whole")
    return config, directory / "whole"


def test_the_runs_below_cross_two_ends_of_an_epoch(whole):
    config, _ = whole
    rows = make_rows(prepare(config.data).train, config.data.length, config.data.packing)
    loader = Loader({"text": rows}, config.train.batch_size, 0, True)
    epochs = [loader.place(step * config.train.batch_size).epoch for step in range(8)]
    assert epochs[-1] == 2 and len(rows) % config.train.batch_size


@pytest.mark.parametrize("stop", [pytest.param(stop, marks=() if stop in (1, 4) else SLOW) for stop in range(1, 7)])
def test_a_run_stopped_at_any_step_goes_on_as_if_it_had_not(stop, whole, tmp_path):
    config, run = whole
    interrupted(config, tmp_path / "run", stop)
    same_end(tmp_path / "run", run)


def test_a_run_stopped_at_every_step_goes_on_as_if_it_had_not(whole, tmp_path):
    config, run = whole
    interrupted(config, tmp_path / "run", *(1,) * 6)
    same_end(tmp_path / "run", run)


ALONE = {
    "dropout": {"model.dropout": 0.1},
    "accumulation": {"train.accumulate": 4},
    "an average": {"optim.ema_decay": 0.9},
    "a packed row": {"data.packing": "concat"},
}


@pytest.mark.slow
@pytest.mark.parametrize("what", ALONE)
def test_each_by_itself(what, tmp_path):
    config = tiny(tmp_path, {"train.steps": 5, **ALONE[what]})
    train(config, tmp_path / "whole")
    interrupted(config, tmp_path / "run", 2, 1)
    same_end(tmp_path / "run", tmp_path / "whole")


def test_a_run_with_refused_steps_goes_on_as_if_it_had_not_stopped(whole, tmp_path):
    """Steps 2, 3 and 6 are refused; the stops are inside the first streak and right behind the last one."""
    config, clean = whole
    with spoilt(1, 2, 5):
        train(config, tmp_path / "whole")
        interrupted(config, tmp_path / "run", 2, 4)
    same_end(tmp_path / "run", tmp_path / "whole")
    records = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6, 7]
    assert [record["skipped"] for record in records] == [0, 1, 2, 2, 2, 3, 3]
    assert [record["step"] for record in records if record["loss"] != record["loss"]] == [2, 3, 6]  # NaN
    assert digests(tmp_path / "run")["counters"]["skipped"] == 3
    # Its batches and its learning rates are those of the run in which nothing was refused.
    unharmed = [record for record in read_metrics(clean / "metrics.jsonl") if "loss" in record]
    for name in ("learning_rate", "tokens"):
        assert [record[name] for record in records] == [record[name] for record in unharmed]


def test_the_learning_rate_is_what_the_schedule_says_across_a_resume(whole, tmp_path):
    """Cosine to a tenth after three steps of warm-up, from the formula."""
    config, _ = whole
    interrupted(config, tmp_path / "run", 2, 3)
    rates = [record["learning_rate"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in record]
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(1, 5)]
    assert rates == pytest.approx([0.01 * share for share in (1 / 3, 2 / 3, 1.0, *cosine)], rel=1e-6)


def test_too_many_refused_steps_in_a_row_end_the_run(whole, tmp_path):
    """The streak survives a resume, the message names the batch, and what was saved before is sound."""
    config, _ = whole
    with spoilt(2, 3, 4, 5):
        with pytest.raises(DivergedError) as at_once:
            train(config, tmp_path / "whole")
        with pytest.raises(Stopped):
            train(config, tmp_path / "run", stop_after=4)
        assert digests(tmp_path / "run")["counters"]["bad_streak"] == 2
        with pytest.raises(DivergedError) as resumed:
            train(config, tmp_path / "run")
    assert resumed.value.exit_code == 4 and str(resumed.value) == str(at_once.value)
    text = str(at_once.value)
    assert "3 steps in a row, up to step 5" in text and "loader.batch(4) under seed 0" in text
    epoch, row = map(int, re.search(r"row (\d+) of epoch (\d+)", text).groups()[::-1])
    rows = make_rows(prepare(config.data).train, config.data.length, config.data.packing)
    assert Loader({"text": rows}, 24, 0, True).place(4 * 24)[1:] == (epoch, row)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert steps(tmp_path / "whole") == [4]  # the save of step 4 was committed, though the run ended meanwhile
    train(config, tmp_path / "whole")  # the same command with sound data
    assert steps(tmp_path / "whole")[-1] == 7


def test_a_resume_that_changes_a_schedule_field_says_so(whole, tmp_path, capsys):
    config, _ = whole
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop_after=2)
    capsys.readouterr()
    train(replaced(config, {"train.max_bad_steps": 4, "eval.every": 2}), tmp_path / "run")
    said = capsys.readouterr().err
    assert "changed on resume: train.max_bad_steps: 3 -> 4" in said and "eval.every" not in said
    history = (tmp_path / "run" / "config-history.jsonl").read_text()
    assert history == '{"step": 2, "path": "train.max_bad_steps", "old": 3, "new": 4}\n'
