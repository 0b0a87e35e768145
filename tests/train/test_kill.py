"""Real commands, really stopped: by signals, by `kill -9` at any moment, alone and as two processes."""

import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.schema import to_plain
from tests.helpers import TIMES, digests, environment, lines, replaced, steps, tiny
from train.config import Mesh
from train.metrics import read_metrics

STEPS = 120
CHANGES = {
    "model.dropout": 0.1,
    "optim.ema_decay": 0.9,
    "train.steps": STEPS,
    "train.accumulate": 2,
    "checkpoint.every": 25,
    "checkpoint.keep": 2,
    "eval.every": 40,
}


class Command:
    """`python -m train.main` on a configuration and a run's directory, as a process."""

    def __init__(self, config, run: Path, devices: int = 1, **variables: str):
        self.run = run
        file = run.with_suffix(".json")
        file.write_text(json.dumps(to_plain(config)))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "train.main", "--config", file, "--workdir", run],
            env=environment(devices, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def reached(self, step: int) -> None:
        """Return when the log has a line of `step`."""
        deadline = time.monotonic() + 180
        while self.process.poll() is None and time.monotonic() < deadline:
            log = self.run / "metrics.jsonl"
            if log.exists() and any(record["step"] >= step for record in read_metrics(log)):
                return
            time.sleep(0.01)
        self.process.kill()
        raise AssertionError(f"step {step} was not reached: {self.process.communicate()[1]}")

    def ended(self, code: int) -> str:
        """What it said on stderr, having ended with `code`."""
        out, said = self.process.communicate(timeout=300)
        ours = [line for line in out.splitlines() if not line.startswith("[Gloo]")]  # printed by XLA's collectives
        assert (self.process.returncode, ours) == (code, []), said
        assert "Traceback" not in said, said
        return said


def finished(config, run: Path, devices: int = 1) -> Path:
    with Command(config, run, devices) as command:
        command.ended(0)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    config = tiny(directory, CHANGES)
    return config, finished(config, directory / "whole")


def same_end(one: Path, other: Path) -> None:
    assert digests(one) == digests(other)
    assert lines(one) == lines(other)
    assert steps(one) == steps(other) == [100, STEPS]


def test_signals_stop_a_run_that_then_goes_on_as_if_they_had_not(whole, tmp_path):
    """SIGTERM, later SIGINT: each finishes the step, saves it and exits 75; the same command finishes the run."""
    config, uninterrupted = whole
    done = 0
    for number, wait in ((signal.SIGTERM, 9), (signal.SIGINT, 10)):
        with Command(config, tmp_path / "run") as command:
            command.reached(done + wait)
            command.process.send_signal(number)
            said = command.ended(75)
        last = said.splitlines()[-1]
        stopped_at = steps(tmp_path / "run")[-1]
        assert done + wait <= stopped_at < STEPS
        assert last.startswith(f"error: stopped by {number.name} after step {stopped_at}, which is saved"), said
        assert "run the same command again" in last and said.count("error:") == 1
        done = stopped_at
    finished(config, tmp_path / "run")
    same_end(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_harms_nothing(whole, tmp_path):
    """While the first one waits for a step that compiles; what was saved before is still there."""
    config, uninterrupted = whole
    with Command(config, tmp_path / "run") as command:
        command.reached(5)
        command.process.send_signal(signal.SIGTERM)
        command.ended(75)
    saved = steps(tmp_path / "run")
    with Command(config, tmp_path / "run") as command:
        for line in command.process.stderr:
            if line.startswith("frozen:"):  # the last one before the first step
                break
        command.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # more than what counts as one request
        command.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        code = command.process.wait(timeout=60)
    assert code == 130 and time.monotonic() - began < 2
    assert steps(tmp_path / "run") == saved
    finished(config, tmp_path / "run")
    same_end(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path):
    """A save every second step, so that most moments are inside one; relaunched until it is done."""
    config = tiny(tmp_path, {**CHANGES, "train.steps": 700, "checkpoint.every": 2, "eval.every": 50})
    finished(config, tmp_path / "whole")
    generator, kills, before = random.Random(0), 0, 0
    while kills < 10:
        with Command(config, tmp_path / "run") as command:
            command.reached(before + 1)
            time.sleep(generator.uniform(0.0, 0.7))
            assert command.process.poll() is None, "the run is too short for ten kills"
            command.process.send_signal(signal.SIGKILL)
            assert command.process.wait() == -signal.SIGKILL
        kills += 1
        saved = steps(tmp_path / "run")
        assert saved and saved[-1] >= before - 2 and len(saved) <= 3
        before = saved[-1]
    finished(config, tmp_path / "run")
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert steps(tmp_path / "run") == steps(tmp_path / "whole") == [698, 700]
    left = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert left == {"698", "700", ".incoming", ".deleting"}


@pytest.mark.slow
def test_a_kill_before_anything_is_saved_is_a_fresh_start(whole, tmp_path):
    config, uninterrupted = whole
    with Command(config, tmp_path / "run") as command:
        command.reached(10)
        command.process.send_signal(signal.SIGKILL)
        command.process.wait()
    assert steps(tmp_path / "run") == []
    finished(config, tmp_path / "run")
    same_end(tmp_path / "run", uninterrupted)


def pair(config, run: Path) -> list[Command]:
    """Two processes of one run, with a device each, that find one another by the environment alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    places = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [Command(config, run, **places, JAX_PROCESS_ID=str(index)) for index in range(2)]


def numbers(run: Path) -> list[dict]:
    return [
        {name: v for name, v in record.items() if name not in TIMES} for record in read_metrics(run / "metrics.jsonl")
    ]


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path):
    """The same numbers as one process with two devices; one log, one set of checkpoints, which either restores."""
    changes = {"mesh": Mesh(), "train.steps": 12, "checkpoint.every": 5, "eval.every": 4, "optim.ema_decay": 0.9}
    config = tiny(tmp_path, changes)
    finished(config, tmp_path / "alone", devices=2)
    first, second = pair(config, tmp_path / "pair")
    with first, second:
        said = [first.ended(0), second.ended(0)]
    assert "step 12/12" in said[0] and "step 1/12" not in said[1]
    one, two = numbers(tmp_path / "alone"), numbers(tmp_path / "pair")
    assert [set(record) for record in one] == [set(record) for record in two]
    for expected, found in zip(one, two, strict=True):
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-6), (name, expected)
    assert steps(tmp_path / "pair") == steps(tmp_path / "alone") == [5, 10, 12]
    environment_of_pair = json.loads((tmp_path / "pair" / "environment.json").read_text())
    assert (environment_of_pair["process_count"], environment_of_pair["device_count"]) == (2, 2)
    longer = replaced(config, {"train.steps": 14})
    finished(longer, tmp_path / "pair")
    finished(longer, tmp_path / "alone")
    for expected, found in zip(numbers(tmp_path / "alone"), numbers(tmp_path / "pair"), strict=True):
        np.testing.assert_allclose(found.get("loss", 0), expected.get("loss", 0), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("told", (0, 1))
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(told, tmp_path):
    config = tiny(tmp_path, {"mesh": Mesh(), "train.steps": 3000, "checkpoint.every": 5000})
    both = pair(config, tmp_path / "run")
    with both[0], both[1]:
        both[told].reached(20)
        both[told].process.send_signal(signal.SIGTERM)
        said = [command.ended(75) for command in both]
    (saved,) = steps(tmp_path / "run")
    assert saved >= 20 and all(f"after step {saved}, which is saved" in text for text in said)
    assert "stopped by SIGTERM" in said[told] and "by a signal to another process" in said[1 - told]
