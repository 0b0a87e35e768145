"""How many rows each step takes, and how many the steps before it took: closed forms in Python integers.

Under a ramp (Brown et al. 2020, appendix B) the batch grows in proportion to the rows consumed: behind r of the
ramp's R rows it has grown by `increment` rows floor(r * n / R) times, of the n times that lead from `start` to the
whole batch. Steps of one size make a level, and a table of levels, made once, answers every question by bisection.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from data.schema import split_duration
from train.config import Config, LinearRamp, NoRamp


class Level(NamedTuple):
    """A stretch of steps that take equally many rows."""

    step: int  # its first
    row: int  # of the stream, at which that step begins
    rows: int  # that each of its steps takes


@dataclass(frozen=True)
class Batches:
    """The rows of every step of a run: `batch_size`, or fewer while `ramp` lasts. `length` tokens a row."""

    batch_size: int
    ramp: NoRamp | LinearRamp
    length: int

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """Every level that has steps, the last one without an end."""
        if self.ramp.name == "none":
            return (Level(0, 0, self.batch_size),)
        ramp, growths = self.ramp, (self.batch_size - self.ramp.start) // self.ramp.increment
        whole = math.ceil(split_duration(ramp.duration)[0] / self.length)
        levels, step, row = [], 0, 0
        for growth in range(growths):
            rows, end = ramp.start + growth * ramp.increment, -(-whole * (growth + 1) // growths)
            count = -(-(end - row) // rows)
            if count > 0:
                levels.append(Level(step, row, rows))
                step, row = step + count, row + count * rows
        return (*levels, Level(step, row, self.batch_size))

    def rows(self, step: int) -> int:
        """The rows that `step` takes."""
        return self._at_step(step).rows

    def before(self, step: int) -> int:
        """The rows that the steps before `step` take: the row of the stream at which it begins."""
        level = self._at_step(step)
        return level.row + (step - level.step) * level.rows

    def steps(self, rows: int, start: int = 0) -> int:
        """The fewest steps, from `start` on, that take at least `rows` rows."""
        target = self.before(start) + rows
        level = self.levels[max(bisect_right(self.levels, target - 1, key=lambda level: level.row) - 1, 0)]
        return max(level.step + -(-(target - level.row) // level.rows) - start, 0)

    def last_steps(self, rows: int, end: int) -> int:
        """The fewest steps, the last of them before `end`, that take at least `rows` rows; `end` where all do not."""
        left = self.before(end) - rows
        return end if left < 0 else end - (self.steps(left + 1) - 1)

    def _at_step(self, step: int) -> Level:
        return self.levels[bisect_right(self.levels, step, key=lambda level: level.step) - 1]


def batches_of(config: Config) -> Batches:
    """The rows of every step of a run of `config`."""
    return Batches(config.train.batch_size, config.train.batch_ramp, config.data.length)
