"""Signals that stop a run, and a watchdog for one that has stopped by itself.

Both must work while the main thread sits in a compile or a collective, where Python's own handlers do not
run: the interpreter writes the signal's number to a pipe as it arrives, and a thread reads it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time

STOPPING = (signal.SIGTERM, signal.SIGINT)
HUNG = 124  # exit code
STDERR = 2  # the descriptor: sys.stderr may be anything
ECHO = 0.1  # seconds; `timeout` and Slurm signal a process and then its group: that is one request


class StopSignal:
    """The first SIGTERM or SIGINT sets `requested` to its name; a second one ends the process with 128 + its number.

    A context manager, for the main thread only. Enter it after `jax.distributed.initialize`, which takes
    SIGTERM too.
    """

    def __init__(self):
        self.requested: str | None = None

    def __enter__(self) -> StopSignal:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._old_wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, lambda *_: None) for number in STOPPING}
        self._watcher = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._write_end)  # ends the watcher
        self._watcher.join()
        os.close(self._read_end)

    def _watch(self) -> None:
        first = 0.0
        while numbers := os.read(self._read_end, 1):
            number = numbers[0]
            if number not in STOPPING:
                continue
            if self.requested is not None:
                if time.monotonic() - first > ECHO:
                    os._exit(128 + number)
                continue
            first = time.monotonic()
            self.requested = signal.Signals(number).name
            print(
                f"{self.requested}: finishing the step and saving; a second signal ends at once.",
                file=sys.stderr,
            )


class Watchdog:
    """Ends the process with exit code 124 when nothing has called `beat` for `timeout` seconds of monotonic time.

    Every thread's stack goes to stderr, and a paragraph that says what was last heard of. A thread of Python
    watches; behind it stand timers in C for the case that something holds the interpreter's lock.
    """

    def __init__(self, timeout: float):
        self.timeout = timeout
        self._period = min(timeout / 4, 5.0)
        self._last, self._what = time.monotonic(), "the start"
        self._done = threading.Event()

    def beat(self, what: str) -> None:
        """There is progress; `what` names what is about to happen, such as "step 12"."""
        self._last, self._what = time.monotonic(), what

    def __enter__(self) -> Watchdog:
        self._last = time.monotonic()
        self._exit_timer = ExitTimer(HUNG)
        self._rearm()
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._watcher.join()
        faulthandler.cancel_dump_traceback_later()
        self._exit_timer.close()

    def _rearm(self) -> None:
        limit = self.timeout + 2 * self._period
        faulthandler.dump_traceback_later(limit, exit=not self._exit_timer.works, file=STDERR)
        self._exit_timer.set(limit + self._period)

    def _watch(self) -> None:
        while not self._done.wait(self._period):
            if time.monotonic() - self._last >= self.timeout:
                self._end()
            self._rearm()

    def _end(self) -> None:
        faulthandler.dump_traceback(file=STDERR, all_threads=True)
        print(
            f"No progress for {self.timeout:g} seconds since {self._what}: the run hangs, and ends here. The stacks "
            "above say where. Run the same command again; raise train.hang_timeout if this was only slow.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(HUNG)


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", _Timespec), ("value", _Timespec)]


class _Sigevent(ctypes.Structure):
    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_char * 32),
    ]


class ExitTimer:
    """Calls C's `_exit(code)` from a thread of the C library: no Python, so no interpreter lock, is needed.

    POSIX timers with SIGEV_THREAD. `works` is False where there are none, as on macOS.
    """

    SIGEV_THREAD, CLOCK_MONOTONIC = 2, 1

    def __init__(self, code: int):
        self._library = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        self.works = sys.platform == "linux" and hasattr(self._library, "timer_create")
        if self.works:
            leave = ctypes.cast(self._library._exit, ctypes.c_void_p).value
            event = _Sigevent(value=code, notify=self.SIGEV_THREAD, function=leave)
            failed = self._library.timer_create(self.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer))
            self.works = failed == 0

    def set(self, seconds: float) -> None:
        """Fire `seconds` from now; 0 disarms."""
        if self.works:
            whole = int(seconds)
            spec = _Itimerspec(value=_Timespec(whole, int((seconds - whole) * 1e9)))
            self._library.timer_settime(self._timer, 0, ctypes.byref(spec), None)

    def close(self) -> None:
        if self.works:
            self._library.timer_delete(self._timer)
            self.works = False
