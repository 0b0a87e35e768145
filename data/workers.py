"""Worker processes: a job for all of them, numbered tasks for each, and what they answer.

They are started as commands of their own: nothing of the starting process (JAX, its main module, its threads and
locks) gets into them, and they leave with it, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.errors import DataError


def usable_cpus() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """`count` processes of a module, each given the pickled job, then one task number at a time."""

    def __init__(self, module: str, job: object, tasks: Iterable[int], count: int, threads: int):
        """`job` must pickle; `threads`: of the tokenizers library in each. Call `close` at the end, in any case."""
        self._job, self._tasks, self._lock = pickle.dumps(job), iter(tasks), threading.Lock()
        self._answers: queue.SimpleQueue[dict] = queue.SimpleQueue()
        root = str(Path(__file__).parents[1])
        paths = [root, *(os.path.abspath(path) for path in sys.path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        environment |= {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": str(threads > 1).lower()}
        self._processes: list[subprocess.Popen] = []
        try:
            for _ in range(count):
                self._start([sys.executable, "-P", "-m", module], environment)
        except BaseException:
            self.close()
            raise

    def _start(self, command: list[str], environment: dict[str, str]):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        try:
            # A process group of its own: an interrupt from the terminal is ours to hand on.
            process = subprocess.Popen(command, env=environment, process_group=0, **pipes)
        except OSError as error:
            raise DataError(
                f"Worker process {len(self._processes) + 1} cannot be started: {error.strerror}. Set data.workers to a "
                "smaller number."
            ) from error
        self._processes.append(process)
        threading.Thread(target=self._serve, args=(process,), daemon=True).start()

    def _next(self) -> int | None:
        with self._lock:
            return next(self._tasks, None)

    def _serve(self, process: subprocess.Popen):
        """Hands tasks to one process; runs in a thread."""
        task = None
        with contextlib.suppress(BrokenPipeError, ValueError):
            process.stdin.write(self._job)
            while (task := self._next()) is not None:
                process.stdin.write(f"{task}\n".encode())
                process.stdin.flush()
                if not self._pass_on(process):
                    break
            else:
                process.stdin.close()
                return
        self._answers.put({"died": task, "status": process.wait()})

    def _pass_on(self, process: subprocess.Popen) -> bool:
        """Puts what a process says of its task among the answers; False when it falls silent before the end."""
        for line in process.stdout:
            answer = json.loads(line)
            self._answers.put(answer)
            if {"done", "error", "bug"} & answer.keys():
                return True
        return False

    def answer(self, timeout: float) -> dict | None:
        """The next answer of any worker; None after `timeout` seconds without one."""
        with contextlib.suppress(queue.Empty):
            return self._answers.get(timeout=timeout)
        return None

    def close(self):
        """Ends every process."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


@contextlib.contextmanager
def started(module: str, job: object, tasks: Iterable[int], count: int, threads: int) -> Iterator[Workers]:
    """Workers that are gone behind the block."""
    workers = Workers(module, job, tasks, count, threads)
    try:
        yield workers
    finally:
        workers.close()
