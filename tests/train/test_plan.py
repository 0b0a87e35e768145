"""A run's durations, in steps of its own data."""

import pytest

from data.errors import ConfigError
from tests.helpers import TINY, lines, replaced, tiny, train
from train.config import WarmupStableDecay
from train.metrics import read_metrics
from train.plan import make_plan

ROWS = 177  # of an epoch; a step is 8 rows of 16 tokens


def plan(changes):
    return make_plan(replaced(TINY, changes), ROWS)


@pytest.mark.parametrize(
    ("duration", "steps"),
    (
        (7, 7),
        ("7 steps", 7),
        ("1e3 steps", 1000),
        ("1280 tokens", 10),
        ("1281 tokens", 11),  # the fewest steps that cover it
        ("1e6 tokens", 7813),
        ("1 epochs", 23),
        ("2 epochs", 45),
        ("0.5 epochs", 12),
    ),
)
def test_the_steps_of_a_run(duration, steps):
    assert plan({"train.steps": duration}).total_steps == steps


def test_parts_of_a_run():
    found = plan(
        {
            "train.steps": "2 epochs",
            "eval.every": "10%",
            "checkpoint.every": "640 tokens",
            "checkpoint.keep_every": "1 epochs",
            "optim.schedule": WarmupStableDecay(),
        }
    )
    assert (found.total_steps, found.eval_every.amount, found.save_every.amount, found.keep_every) == (45, 5, 5, 23)
    assert (found.resolve("20%"), found.resolve("100%"), found.resolve(3)) == (9, 45, 3)


def test_what_is_due_when():
    found = plan({"train.steps": 10, "eval.every": 4, "checkpoint.every": 3})
    assert [step for step in range(1, 11) if found.eval_due(step)] == [4, 8, 10]
    assert [step for step in range(1, 11) if found.save_due(step)] == [3, 6, 9, 10]
    assert found.keep_every is None


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"train.steps": "10%"}, "a share of itself"),
        ({"train.steps": "0.0 epochs"}, "train.steps comes to 0 steps"),
        ({"eval.every": "0%"}, "eval.every comes to 0 steps"),
        ({"checkpoint.best": "loss"}, "checkpoint.best is 'loss', must be one of eval/validation/loss"),
    ),
)
def test_what_cannot_be_planned(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        plan(changes)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_a_run_given_in_epochs(tmp_path):
    """Each stored token is an input once an epoch; what does not fill a batch is made up from the next."""
    config = tiny(tmp_path, {"train.steps": "1 epochs", "train.batch_size": 64, "eval.every": "50%"})
    train(config, tmp_path / "run")
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3]
    assert [record["step"] for record in records if "loss" not in record] == [2, 3]
    assert len(lines(tmp_path / "run")) == 5
