"""How a run is watched, saved and fed changes nothing in what it learns."""

import pytest

from tests.helpers import digests, lines, replaced, tiny, train
from train.config import Log


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("plain")
    config = tiny(directory)
    train(config, directory / "run")
    return config, directory / "run"


def learned(run):
    """The state, and the log of the steps without that of evaluations."""
    return digests(run), [line for line in lines(run) if "eval/" not in line]


@pytest.mark.parametrize(
    "changes",
    (
        {"eval.every": 1, "eval.batch_size": 3},
        {"eval.every": 2, "eval.batches": 1, "checkpoint.every": 3},
        {"checkpoint.every": 1, "checkpoint.keep": 1, "checkpoint.best": "eval/validation/loss"},
        {"log": Log(tensorboard=True)},
        {"data.prefetch": 0},
        {"data.prefetch": 5, "data.verify": False, "train.hang_timeout": 60.0},
    ),
    ids=lambda changes: " ".join(changes),
)
def test_intervals_logs_and_prefetching_change_nothing(changes, plain, tmp_path):
    config, run = plain
    train(replaced(config, changes), tmp_path / "run")
    assert learned(tmp_path / "run") == learned(run)


def test_equal_runs_are_equal_and_other_seeds_are_not(plain, tmp_path):
    config, run = plain
    train(config, tmp_path / "again")
    assert learned(tmp_path / "again") == learned(run)
    train(replaced(config, {"train.seed": 1}), tmp_path / "other")
    assert digests(tmp_path / "other")["params"] != digests(run)["params"]
