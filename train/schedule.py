"""Learning rates as closed forms of the step.

All schedules share their conventions. With `warmup` steps of warm-up in a run of `total_steps`:

- step `s` counts attempted updates from 0, so the update at step 0 is the first;
- for `s < warmup` the rate is `peak * (s + 1) / warmup`: the first update moves, and the peak is reached at
  step `warmup - 1` (step 0 without a warm-up);
- after it comes the shape, whose last value, that of the step that ends the decay, else of step
  `total_steps - 1`, is exactly `peak * final`;
- later steps keep that value. A warm-up or a decay longer than the run is cut by its end.

Under a batch ramp the same holds of rows instead of steps: within the warm-up the rate is in proportion to the rows
read, this step's included, and so after it, while every part still begins and ends with the step that its duration
names. What is "linear over 375e6 tokens" is so however many tokens a step reads.

Distances between steps are taken in int32 before they become float32, so that values close to the end of a
run of two billion steps are as exact as those of a short one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from data.errors import ConfigError
from train.config import Duration
from train.ramp import Batches

Resolve = Callable[..., int]  # a duration -> steps, from `start` (by default the run's) on, or before `end`
MAX_STEPS = 2**31 - 1  # steps are int32


@dataclass(frozen=True)
class Clock:
    """What a schedule counts: steps, or where a ramp lasts the rows that they have read, in the largest equal unit."""

    batches: Batches | None

    @property
    def ramped(self) -> bool:
        return self.batches is not None and len(self.batches.levels) > 1

    @property
    def unit(self) -> int:
        """Rows that divide every step's."""
        return math.gcd(*(level.rows for level in self.batches.levels))

    def at(self, step: int) -> int:
        """The time of a step: itself, or the units that it and those before it have read, less one."""
        return self.batches.before(step + 1) // self.unit - 1 if self.ramped else step

    def traced(self, step):
        """`at` of an int32 array."""
        if not self.ramped:
            return step
        units = [(level.step, level.row // self.unit, level.rows // self.unit) for level in self.batches.levels]
        start, read, size = at_level(units, step)
        return read + (step + 1 - start) * size - 1


def at_level(table: list[tuple[int, ...]], step):
    """The last row, int32, of a table whose first column, steps, is at most an int32 `step`."""
    # What is beyond int32 is beyond the run, which is counted in it.
    rows = jnp.asarray([[min(value, MAX_STEPS) for value in row] for row in table], jnp.int32)
    return rows[jnp.sum(rows[:, 0] <= step, dtype=jnp.int32) - 1]


def micro_batches(batches: Batches, accumulate: int) -> Callable | None:
    """step -> how many of its `accumulate` micro-batches hold rows, int32; None where all always do."""
    if len(batches.levels) == 1:
        return None

    def used(step):
        counts = [(level.step, level.rows * accumulate // batches.batch_size) for level in batches.levels]
        return at_level(counts, step)[1]

    return used


@dataclass(frozen=True)
class Run:
    """The steps between which a schedule's shape lies."""

    peak: int
    last: int
    resolve: Resolve
    clock: Clock

    def to_the_end(self, decay: Duration | None) -> tuple[int, int]:
        """The times of the peak and of the end of a `decay` that follows it; None: of the run."""
        steps = self.last if decay is None else self.resolve(decay, start=self.peak + 1)
        return self.clock.at(self.peak), self.clock.at(min(self.last, self.peak + steps))

    def at_the_end(self, decay: Duration) -> tuple[int, int]:
        """The times at which the run's last `decay` begins and ends."""
        steps = self.resolve(decay, end=self.last + 1)
        return self.clock.at(max(self.peak, self.last - steps)), self.clock.at(self.last)


def remaining(time, start: int, last: int):
    """Share of the way from `start` to `last` that is left at `time`, float32 in [0, 1]."""
    return jnp.clip(last - time, 0).astype(jnp.float32) / max(last - start, 1)


def between(final: float, share):
    """1 where `share` is 1, `final` where it is 0, linear between."""
    return final + (1.0 - final) * share


def constant(config, run: Run):
    return lambda time: jnp.ones_like(time, jnp.float32)


def linear(config, run: Run):
    peak, end = run.to_the_end(config.decay)
    return lambda time: between(config.final, remaining(time, peak, end))


def cosine(config, run: Run):
    """Half a cosine (Loshchilov and Hutter 2016, no restarts), as sin^2 of the rest: exact near the end."""
    peak, end = run.to_the_end(config.decay)
    return lambda time: between(config.final, jnp.square(jnp.sin(jnp.pi / 2 * remaining(time, peak, end))))


def wsd(config, run: Run):
    """The peak, then a line over the last `decay` of the run (Hu et al. 2024), never before the warm-up ends."""
    start, end = run.at_the_end(config.decay)
    return lambda time: jnp.where(time <= start, 1.0, between(config.final, remaining(time, start, end)))


def inverse_sqrt(config, run: Run):
    held = run.clock.at(min(run.last, max(run.peak, run.resolve(config.hold) - 1)))
    return lambda time: jnp.sqrt((held + 1) / (jnp.maximum(time, held) + 1).astype(jnp.float32))


# Each `(config, run)` -> the share of the peak at an int32 time after it.
SHAPES: dict[str, Callable] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "wsd": wsd,
    "inverse_sqrt": inverse_sqrt,
}


def build(
    schedule: Any, learning_rate: float, total_steps: int, resolve: Resolve, batches: Batches | None = None
) -> Callable:
    """The learning rate as a function of the step: int (Python, or traced int32) -> float32 scalar.

    `schedule` is one of the schedules of `train.config`, `learning_rate` its peak, `resolve` turns a `Duration` into
    steps, `batches` are the rows of each step, None: all alike. Raises ConfigError where the run is longer than int32
    counts, or empty.
    """
    if not 1 <= total_steps <= MAX_STEPS:
        raise ConfigError(f"train.steps comes to {total_steps} steps; a run has at least 1 and at most {MAX_STEPS}.")
    last, peak_step, clock = total_steps - 1, max(resolve(schedule.warmup) - 1, 0), Clock(batches)
    shape = SHAPES[schedule.name](schedule, Run(peak_step, last, resolve, clock))
    peak = clock.at(peak_step)
    if max(peak, clock.at(last)) >= MAX_STEPS:
        raise ConfigError(
            f"this run reads {batches.before(total_steps)} rows, more than {MAX_STEPS} times {clock.unit}, by which "
            "its schedule counts them; make train.batch_ramp.start and train.batch_ramp.increment larger"
        )

    def rate(step):
        time = clock.traced(jnp.minimum(jnp.asarray(step, jnp.int32), last))
        warmup = (time + 1).astype(jnp.float32) / (peak + 1)
        # Equality is spelt out because a compiler may multiply by a reciprocal instead of dividing.
        share = jnp.where(time < peak, warmup, jnp.where(time == peak, 1.0, shape(time)))
        return jnp.float32(learning_rate) * share.astype(jnp.float32)

    return rate
