"""A run can always be stopped, and one that hangs stops itself, also where Python does not run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.signals import StopSignal, Watchdog

ROOT = Path(__file__).resolve().parents[2]
STOPPED = """
import hashlib, sys, time
from train.signals import StopSignal
with StopSignal() as stop:
    print("ready", flush=True)
    while sys.argv[1] == "python" and not stop.requested:
        time.sleep(0.01)
    if sys.argv[1] == "python":
        print(stop.requested, flush=True)
    # As in a compile: minutes in C, without the interpreter's lock, and no Python handler runs.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
HUNG = """
import ctypes, sys, time
from train.signals import Watchdog
with Watchdog(float(sys.argv[2])) as watchdog:
    for step in range(5):
        watchdog.beat(f"step {step}")
        time.sleep(0.05)
    def forward_pass():
        {"sleep": lambda: time.sleep(60), "lock": lambda: ctypes.PyDLL(None).sleep(60)}[sys.argv[1]]()
    forward_pass()
"""


def started(code: str, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_asks_and_the_second_ends_at_once(number, code):
    process = started(STOPPED, "python")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == f"{number.name}\n"
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=10)
    assert process.returncode == code and said.count("\n") == 1 and number.name in said


def test_a_compile_can_be_ended():
    process = started(STOPPED, "compile")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM" in process.stderr.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130


def test_one_request_that_arrives_twice_is_one():
    """`timeout` signals the process, and then its group."""
    with StopSignal() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        time.sleep(0.2)
        assert stop.requested == "SIGTERM"


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopSignal() as stop:
        assert stop.requested is None
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("how", ["sleep", "lock"])
def test_a_hang_ends_with_its_stacks(how):
    process = started(HUNG, how, 0.5)
    began = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 124 or (how == "lock" and sys.platform != "linux")
    assert time.monotonic() - began < 10
    assert "in forward_pass" in said
    if how == "sleep":
        assert "No progress for 0.5 seconds since step 4" in said.splitlines()[-1]


def test_a_clock_that_jumps_is_no_hang(monkeypatch):
    with Watchdog(0.4) as watchdog:
        monkeypatch.setattr(time, "time", lambda: 1e12)
        for step in range(8):
            watchdog.beat(f"step {step}")
            time.sleep(0.1)
    time.sleep(0.8)  # nothing fires afterwards
