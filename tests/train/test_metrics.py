"""metrics.jsonl has each step once, whatever interrupts it; a writer that fails stops nothing."""

import json
import math
import resource
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import ConfigError
from train import progress
from train.config import Log
from train.metrics import JsonlWriter, Writers, decode, encode, make_writers, read_metrics
from train.progress import Pace, make_progress, summary

PLAIN = Log(tensorboard=False)


def record(step: int) -> dict:
    return {"step": step, "loss": 1.0 / (step + 3), "tokens": 10**15 + step, "skipped": 0}


def written(path, steps, **options):
    writers = make_writers(PLAIN, path.parent, options.get("resume", 0), primary=True)
    for step in steps:
        writers.write(record(step))
    writers.close()


def test_numbers_read_back_as_they_were(tmp_path):
    values = {
        "step": np.int32(2**31 - 1),
        "tokens": 2**62 + 1,
        "loss": np.float32(0.1),
        "mfu": jnp.float32(1e-8),
        "x": 0.1,
    }
    special = {"a": math.nan, "b": math.inf, "c": -math.inf, "none": None}
    writer = JsonlWriter(tmp_path / "m")
    writer.write({**values, **special})
    writer.close()
    line = (tmp_path / "m").read_text()
    json.loads(line, parse_constant=pytest.fail)  # legal JSON
    (got,) = read_metrics(tmp_path / "m")
    assert math.isnan(got.pop("a"))
    expected = {
        "step": 2**31 - 1,
        "tokens": 2**62 + 1,
        "loss": float(np.float32(0.1)),
        "mfu": float(np.float32(1e-8)),
        "x": 0.1,
    }
    assert got == {**expected, "b": math.inf, "c": -math.inf, "none": None}
    assert all(type(got[name]) is type(value) for name, value in expected.items())


@pytest.mark.parametrize("torn", range(0, 60, 7))
def test_an_interrupted_run_has_the_lines_of_an_uninterrupted_one(tmp_path, torn):
    whole, path = tmp_path / "whole" / "metrics.jsonl", tmp_path / "cut" / "metrics.jsonl"
    for each in (whole, path):
        each.parent.mkdir()
    written(whole, range(1, 31))
    written(path, range(1, 18))
    with open(path, "ab") as file:
        file.write(encode(record(18))[:torn])
    assert [line["step"] for line in read_metrics(path)] == list(range(1, 18))
    written(path, range(11, 31), resume=10)
    assert path.read_bytes() == whole.read_bytes()


def test_a_cut_keeps_the_bytes_of_other_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = [b'{"step": 1, "loss":1.50}\n', b'{ "step": 2, "eval/validation/loss": 3 }\n', b'{"note": "no step"}\n']
    later, garbage = b'{"step": 7}\n', b'{"step": 1, "lo\n'
    path.write_bytes(kept[0] + later + garbage + kept[1] + kept[2] + later + b'{"st')
    writer = JsonlWriter(path)
    writer.cut(2)
    writer.write({"step": 3})
    writer.sync()
    writer.close()
    assert path.read_bytes() == b"".join(kept) + b'{"step": 3}\n'
    assert [child.name for child in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_cut_needs_no_space_where_later_lines_come_last(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    written(path, range(1, 9))
    before = path.stat().st_ino
    written(path, (), resume=3)
    assert path.stat().st_ino == before and [line["step"] for line in read_metrics(path)] == [1, 2, 3]


def test_non_records_are_not_read():
    assert decode(b"[1]\n") is None and decode(b"{}") is None and decode(b"\xff\n") is None


class Broken:
    def __init__(self):
        self.calls = 0

    def write(self, record):
        self.calls += 1
        raise OSError(28, "No space left on device")

    sync = close = write


def test_a_failing_writer_is_named_once_and_dropped(tmp_path, capsys):
    broken, good = Broken(), JsonlWriter(tmp_path / "m")
    writers = Writers([broken, good])
    for step in (1, 2, 3):
        writers.write(record(step))
    writers.sync()
    writers.close()
    assert broken.calls == 1 and len(read_metrics(tmp_path / "m")) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Broken failed ([Errno 28] No space left on device)" in said


def test_a_full_disk_does_not_stop_training_or_tear_a_line(tmp_path, capsys):
    writers = make_writers(PLAIN, tmp_path, 0, primary=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for step in range(1, 100):
            writers.write(record(step))
        writers.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert writers == [] and capsys.readouterr().err.count("JsonlWriter failed ([Errno 27]") == 1
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")
    kept = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert 5 < len(kept) < 20 and kept == list(range(1, len(kept) + 1))


def test_an_unwritable_log_does_not_stop_training(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").mkdir()
    assert make_writers(PLAIN, tmp_path, 0, primary=True) == []
    assert "JsonlWriter failed" in capsys.readouterr().err


def test_tensorboard_has_the_scalars_and_needs_no_tensorflow(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writers = make_writers(Log(tensorboard=True), tmp_path, 0, primary=True)
    for step in (1, 2):
        writers.write(record(step))
    writers.write({"step": 2, "eval/validation/loss": np.float32(0.5)})
    writers.sync()
    writers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["tensors"]) == {"loss", "tokens", "skipped", "eval/validation/loss"}
    assert [event.step for event in events.Tensors("loss")] == [1, 2]
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named(tmp_path, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"Install the package {name}"):
        make_writers(Log(tensorboard=False, **{name: "project"}), tmp_path, 0, primary=True)


def test_other_processes_have_no_writers(tmp_path):
    writers = make_writers(Log(tensorboard=True, wandb="x"), tmp_path, 0, primary=False)
    writers.write(record(1))
    writers.sync()
    writers.close()
    assert writers == [] and not list(tmp_path.iterdir())


# --- progress


def test_lines_come_at_the_first_step_the_last_and_now_and_then(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bar = make_progress(total_steps=100, first_step=20, primary=True)
    for step in range(21, 101):
        bar.update({"step": step, "loss": 2.5, "tokens_per_second": 12345.0, "mfu": 0.031, "skipped": 0})
        clock[0] += 1.0
    bar.message("evaluated")
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 21/100  loss 2.5000  12.3k tokens/s  MFU 3.1%  left -"
    assert lines[1] == "step 31/100  loss 2.5000  12.3k tokens/s  MFU 3.1%  left 0:01:09"
    assert [int(line.split()[1].split("/")[0]) for line in lines[:-1]] == [21, 31, 41, 51, 61, 71, 81, 91, 100]
    assert lines[-1] == "evaluated"


def test_a_terminal_gets_a_bar(capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    bar = make_progress(total_steps=4, first_step=2, primary=True)
    bar.update({"step": 3, "loss": 2.5, "tokens_per_second": 500.0})
    bar.message("eval [validation]")
    bar.close()
    said = capfd.readouterr().err
    assert "3/4" in said and "loss 2.5000  500 tokens/s" in said and "eval [validation]" in said


def test_time_left_and_summary_never_fail():
    pace = Pace(10)
    assert pace.left(3) == "-" and pace.left(3) == "-"
    assert summary({"step": 3}) == "" and "nan" in summary({"loss": math.nan, "skipped": 1})
