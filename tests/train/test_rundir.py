"""One run a directory, refused before anything is written; what it was run with, on and by."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import ConfigError, StorageError
from data.schema import to_plain
from train import rundir
from train.config import Config
from train.rundir import environment, open_run, scope, scope_difference

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import os, sys, time
from pathlib import Path
from train.rundir import open_run
with open_run(Path(sys.argv[1]), primary=True):
    if not os.fork():
        print(os.getppid(), flush=True)
    time.sleep(60)
"""


def held(path: Path) -> tuple[subprocess.Popen, int]:
    """A process that holds `path`, with a forked child that outlives it."""
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    return process, int(process.stdout.readline())


def test_a_second_run_is_refused_and_a_killed_one_lets_go(tmp_path):
    process, number = held(tmp_path / "run")
    try:
        with (
            pytest.raises(ConfigError, match=f"in use by process {number} on") as caught,
            open_run(tmp_path / "run", True),
        ):
            pass
        assert caught.value.exit_code == 2
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
        os.kill(number, signal.SIGKILL)
        process.wait()
        with open_run(tmp_path / "run", True):  # the child that was forked still lives
            assert f"process {os.getpid()} " in (tmp_path / "run" / ".lock").read_text()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def test_a_run_that_ended_lets_go(tmp_path):
    for _ in range(2):
        with open_run(tmp_path, True):
            pass


def test_a_launch_that_writes_nothing_leaves_nothing(tmp_path):
    (tmp_path / "runs").mkdir()
    with open_run(tmp_path / "runs" / "a" / "b", True):
        pass
    assert list((tmp_path / "runs").iterdir()) == []
    with open_run(tmp_path / "runs" / "a" / "b", True) as run:
        run.write_environment()
    assert [path.name for path in (tmp_path / "runs" / "a" / "b").iterdir()] == ["environment.json"]


def test_a_launch_does_not_hold_a_lock_that_another_has_removed(tmp_path, monkeypatch):
    """The first to open the file may be the last to hold it: the holder removes it as it ends."""
    first, second, opened = open_run(tmp_path / "run", True), open_run(tmp_path / "run", True), os.open

    def late(path, *arguments):
        lock = opened(path, *arguments)
        monkeypatch.setattr(os, "open", opened)
        first.close()
        return lock

    with first:
        (tmp_path / "run" / "kept").touch()
        monkeypatch.setattr(os, "open", late)
        with second, pytest.raises(ConfigError, match="in use"), open_run(tmp_path / "run", True):
            pass


def test_a_stale_lock_is_taken_over(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on elsewhere\n")
    with open_run(tmp_path, True):
        pass


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    with (
        pytest.raises(StorageError, match="file.*Not a directory") as caught,
        open_run(tmp_path / "file" / "run", True),
    ):
        pass
    assert caught.value.exit_code == 6
    assert (tmp_path / "file").read_text() == "kept"


def test_the_probe_finds_a_disk_that_takes_no_bytes(tmp_path):
    code = (
        "import resource; from pathlib import Path\n"
        "from data.cli import run_command; from train.rundir import open_run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "run_command(lambda arguments: open_run(Path(arguments[0]), True).__enter__() and None)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 6 and "File too large" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_read_only_directory_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(StorageError, match="Permission denied"), open_run(tmp_path / "run", True):
        pass


def test_other_processes_write_nothing(tmp_path):
    with open_run(tmp_path / "run", primary=False) as run:
        run.write_config({"a": 1})
        run.write_environment()
    assert not (tmp_path / "run").exists()


def changed(**steps) -> dict:
    plain = to_plain(Config())
    plain["train"] |= steps
    return plain


def test_config_history_keeps_each_changed_schedule_field_once(tmp_path):
    with open_run(tmp_path, True) as run:
        assert run.read_config() is None
        run.write_config(changed(steps=100))
        run.write_config(changed(steps=100, hang_timeout=9.0), step=10)  # a free field is no history
        assert not (tmp_path / "config-history.jsonl").exists()
        run.write_config(changed(steps=200), step=40)
        assert run.read_config() == changed(steps=200)
        (tmp_path / "config.json").write_text(json.dumps(changed(steps=100)))  # killed between the two writes
        with open(tmp_path / "config-history.jsonl", "ab") as file:
            file.write(b'{"step": 4')
        run.write_config(changed(steps=200), step=40)
        plain = changed(steps=200)
        plain["optim"]["schedule"] = {"name": "constant", "warmup": 0}
        run.write_config(plain, step=50)
    lines = [json.loads(line) for line in (tmp_path / "config-history.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 40, "path": "train.steps", "old": 100, "new": 200}
    assert {"step": 50, "path": "optim.schedule.name", "old": "cosine", "new": "constant"} in lines
    assert {"step": 50, "path": "optim.schedule.final", "old": 0.1} in lines
    assert len(lines) == len({json.dumps(line) for line in lines})


def test_a_damaged_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"a"')
    with open_run(tmp_path, True) as run, pytest.raises(ConfigError, match=r"config\.json is damaged"):
        run.read_config()


def test_environment_says_what_decides_the_bits(tmp_path):
    with open_run(tmp_path, True) as run:
        assert run.read_environment() is None
        now = run.write_environment()
        assert run.read_environment() == now
    assert (now["backend"], now["device_count"], now["process_count"]) == ("cpu", 8, 1)
    assert scope_difference(None, now) is None and scope_difference(now, dict(now)) is None
    other = {**now, "device_count": 4, "python": "3.99", "code": "0" * 64}
    line = scope_difference(other, now)
    assert "device_count 4 -> 8" in line and "code 000000000000 -> " in line and "python" not in line
    assert "\n" not in line
    assert set(scope(now)) == set(rundir.SCOPE)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity masks")
def test_visible_cpus_are_those_of_this_process():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert environment()["visible_cpus"] == 1
    finally:
        os.sched_setaffinity(0, allowed)
