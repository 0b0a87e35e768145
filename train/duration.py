"""Durations in steps: "500 steps", "1e6 tokens", "2 epochs", "10%", or a number of steps."""

from __future__ import annotations

import math

from data.errors import ConfigError
from data.schema import split_duration
from train.ramp import Batches


def to_steps(
    duration: int | str,
    *,
    total_steps: int | None,
    batches: Batches,
    rows_per_epoch: int,
    start: int = 0,
    end: int | None = None,
) -> int:
    """The fewest whole steps that cover `duration`, counted from step `start` or, where it is given, before `end`.

    Tokens are input positions, those of padded rows' ends included; rows that a ramp leaves out do not count.

    Args:
        duration: a number of steps, or text with a unit.
        total_steps: steps of the run, of which "10%" is a share; None while `train.steps` itself is resolved.
        batches: the rows of each step.
        rows_per_epoch: rows of one pass over the training data.

    Raises:
        ConfigError: where the text has no such shape, or `train.steps` is a share of itself.
    """
    try:
        amount, unit = split_duration(duration)
    except ValueError as error:
        raise ConfigError(f"the duration {duration!r} {error}") from None
    if unit == "%":
        if total_steps is None:
            raise ConfigError(f"train.steps is {duration!r}, a share of itself; give steps, tokens or epochs")
        return math.ceil(amount * total_steps / 100)
    if unit == "steps":
        return int(amount)
    rows = math.ceil(amount / batches.length if unit == "tokens" else amount * rows_per_epoch)
    return batches.steps(rows, start) if end is None else batches.last_steps(rows, end)
