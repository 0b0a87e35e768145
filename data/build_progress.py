"""What a person sees of a store being built: a bar on a terminal, a line now and then everywhere else."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

INTERVAL = 10.0  # seconds between plain lines


class BuildProgress:
    """Counts what was encoded in this launch, on standard error."""

    def __init__(self, title: str, parts: int, finished: int = 0):
        """`finished` of the `parts` are there from an earlier launch."""
        self.title, self.parts, self.done, self.earlier = title, parts, finished, finished
        self.documents = self.tokens = self.text_bytes = 0
        self._began = self._printed = time.monotonic()
        self._bar = self._task = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[line]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(title, total=parts, completed=finished, line="")
            self._bar.start()

    def add(self, documents: int, tokens: int, text_bytes: int):
        self.documents += documents
        self.tokens += tokens
        self.text_bytes += text_bytes
        self.show()

    def part_done(self):
        self.done += 1
        self.show()

    def left(self) -> str:
        """`0:12:34`, from the parts of this launch; `-` while nothing can be said."""
        made = self.done - self.earlier
        if not made:
            return "-"
        return str(timedelta(seconds=round((self.parts - self.done) * (time.monotonic() - self._began) / made)))

    def line(self) -> str:
        rate = self.text_bytes / 1e6 / max(time.monotonic() - self._began, 1e-9)
        parts = f"part {self.done}/{self.parts}  " if self.parts > 1 else ""
        left = f"  left {self.left()}" if self.parts > 1 else ""
        return f"{parts}{self.documents:,} documents  {self.tokens:,} tokens  {rate:.1f} MB/s{left}"

    def show(self):
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, line=self.line())
        elif now - self._printed >= INTERVAL:
            self._printed = now
            self.say(f"{self.title}: {self.line()}")

    def say(self, text: str):
        print(f"prepare: {text}", file=sys.stderr, flush=True)

    def close(self):
        if self._bar is not None:
            self._bar.stop()
