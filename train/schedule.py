"""Learning rates as closed forms of the step.

All schedules share their conventions. With `warmup` steps of warm-up in a run of `total_steps`:

- step `s` counts attempted updates from 0, so the update at step 0 is the first;
- for `s < warmup` the rate is `peak * (s + 1) / warmup`: the first update moves, and the peak is reached at
  step `warmup - 1` (step 0 without a warm-up);
- after it comes the shape, whose last value, that of step `total_steps - 1`, is exactly `peak * final`;
- later steps keep the value of step `total_steps - 1`. A warm-up longer than the run is cut by its end.

Distances between steps are taken in int32 before they become float32, so that values close to the end of a
run of two billion steps are as exact as those of a short one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from data.errors import ConfigError
from train.config import Duration

Resolve = Callable[[Duration], int]
MAX_STEPS = 2**31 - 1  # steps are int32


def remaining(step, start: int, last: int):
    """Share of the way from `start` to `last` that is left at `step`, float32 in [0, 1]."""
    return jnp.clip(last - step, 0).astype(jnp.float32) / max(last - start, 1)


def between(final: float, share):
    """1 where `share` is 1, `final` where it is 0, linear between."""
    return final + (1.0 - final) * share


def constant(config, peak_step: int, last: int, resolve: Resolve):
    return lambda step: jnp.ones_like(step, jnp.float32)


def linear(config, peak_step: int, last: int, resolve: Resolve):
    return lambda step: between(config.final, remaining(step, peak_step, last))


def cosine(config, peak_step: int, last: int, resolve: Resolve):
    """Half a cosine (Loshchilov and Hutter 2016, no restarts), as sin^2 of the rest: exact near the end."""
    return lambda step: between(config.final, jnp.square(jnp.sin(jnp.pi / 2 * remaining(step, peak_step, last))))


def wsd(config, peak_step: int, last: int, resolve: Resolve):
    """The peak, then a line over the last `decay` steps (Hu et al. 2024), never before the warm-up ends."""
    start = max(peak_step, last - resolve(config.decay))
    return lambda step: jnp.where(step <= start, 1.0, between(config.final, remaining(step, start, last)))


def inverse_sqrt(config, peak_step: int, last: int, resolve: Resolve):
    return lambda step: jnp.sqrt((peak_step + 1) / (step + 1).astype(jnp.float32))


# Each `(config, step of the peak, last step, resolve)` -> the share of the peak at an int32 step after it.
SHAPES: dict[str, Callable] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "wsd": wsd,
    "inverse_sqrt": inverse_sqrt,
}


def build(schedule: Any, learning_rate: float, total_steps: int, resolve: Resolve) -> Callable:
    """The learning rate as a function of the step: int (Python, or traced int32) -> float32 scalar.

    `schedule` is one of the schedules of `train.config`, `learning_rate` its peak, `resolve` turns a
    `Duration` into steps. Raises ConfigError where the run is longer than int32 counts, or empty.
    """
    if not 1 <= total_steps <= MAX_STEPS:
        raise ConfigError(f"train.steps comes to {total_steps} steps; a run has at least 1 and at most {MAX_STEPS}.")
    last, peak_step = total_steps - 1, max(resolve(schedule.warmup) - 1, 0)
    shape = SHAPES[schedule.name](schedule, peak_step, last, resolve)

    def rate(step):
        step = jnp.minimum(jnp.asarray(step, jnp.int32), last)
        ramp = (step + 1).astype(jnp.float32) / (peak_step + 1)
        # Equality is spelt out because a compiler may multiply by a reciprocal instead of dividing.
        share = jnp.where(step < peak_step, ramp, jnp.where(step == peak_step, 1.0, shape(step)))
        return jnp.float32(learning_rate) * share.astype(jnp.float32)

    return rate
