"""Durations in steps: "500 steps", "1e6 tokens", "2 epochs", "10%", or a number of steps."""

from __future__ import annotations

import math

from data.errors import ConfigError
from data.schema import split_duration


def to_steps(
    duration: int | str,
    *,
    total_steps: int | None,
    tokens_per_step: int,
    rows_per_step: int,
    rows_per_epoch: int,
) -> int:
    """The fewest whole steps that cover `duration`.

    Args:
        duration: a number of steps, or text with a unit.
        total_steps: steps of the run, of which "10%" is a share; None while `train.steps` itself is resolved.
        tokens_per_step: input positions of the global batch, padding included.
        rows_per_step: rows of the global batch.
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
    if unit == "tokens":
        return math.ceil(amount / tokens_per_step)
    if unit == "epochs":
        return math.ceil(amount * rows_per_epoch / rows_per_step)
    return int(amount)
