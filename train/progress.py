"""What a person sees of a run: a bar on a terminal, a line now and then everywhere else."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

INTERVAL = 10.0  # seconds between plain lines


class Pace:
    """Time left, from the steps this launch has seen. The first one, which compiles, does not count."""

    def __init__(self, total_steps: int):
        self.total_steps = total_steps
        self._start: tuple[int, float] | None = None

    def left(self, step: int) -> str:
        """`0:12:34`, or `-` while nothing can be said."""
        now = time.monotonic()
        if self._start is None:
            self._start = (step, now)
        first, began = self._start
        if step == first:
            return "-"
        return str(timedelta(seconds=round((self.total_steps - step) * (now - began) / (step - first))))


def summary(record: dict) -> str:
    """`loss 4.1234  12.3k tokens/s  MFU 3.1%` of those that the record has."""
    parts = []
    if (loss := record.get("loss")) is not None:
        parts.append(f"loss {float(loss):.4f}")
    if (rate := record.get("tokens_per_second")) is not None:
        parts.append(f"{float(rate) / 1e3:.1f}k tokens/s" if rate >= 1e3 else f"{float(rate):.0f} tokens/s")
    if (mfu := record.get("mfu")) is not None:
        parts.append(f"MFU {100 * float(mfu):.1f}%")
    if record.get("skipped"):
        parts.append(f"skipped {int(record['skipped'])}")
    return "  ".join(parts)


class PlainProgress:
    """Lines on stderr: the first step, the last, and one about every ten seconds between them."""

    def __init__(self, total_steps: int):
        self._total = total_steps
        self._pace = Pace(total_steps)
        self._printed: float | None = None

    def update(self, record: dict) -> None:
        step, now = record["step"], time.monotonic()
        left = self._pace.left(step)
        if self._printed is None or now - self._printed >= INTERVAL or step >= self._total:
            self._printed = now
            self.message(f"step {step}/{self._total}  {summary(record)}  left {left}")

    def message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is left open."""


class BarProgress:
    """A bar on a terminal, with messages above it."""

    def __init__(self, total_steps: int, first_step: int):
        self._pace = Pace(total_steps)
        columns = (
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[summary]}  left {task.fields[left]}"),
        )
        self._progress = Progress(TextColumn("step"), *columns, console=Console(stderr=True))
        self._task = self._progress.add_task(
            "train", total=total_steps, completed=first_step, summary="compiling", left="-"
        )
        self._progress.start()

    def update(self, record: dict) -> None:
        step = record["step"]
        self._progress.update(self._task, completed=step, summary=summary(record), left=self._pace.left(step))

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


class NoProgress:
    """What the other processes of a run show: nothing."""

    def update(self, record: dict) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def make_progress(total_steps: int, first_step: int, primary: bool) -> PlainProgress | BarProgress | NoProgress:
    """An object with `update(record)` for every step's record, `message(text)` and `close()`.

    `first_step`: updates that were done before this launch. A bar where stderr is a terminal, else plain
    lines; nothing where this process is not the `primary` one.
    """
    if not primary:
        return NoProgress()
    if sys.stderr.isatty():
        return BarProgress(total_steps, first_step)
    return PlainProgress(total_steps)
