"""A run's plan in steps, once its data is known: how long, and what is due when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from data.errors import ConfigError
from train.config import Config, Duration
from train.duration import to_steps

# What an evaluation under each objective gives that is best where it is lowest.
EVALUATED = {
    "causal": ("eval/validation/loss", "eval/validation/bits_per_byte"),
    "masked": ("eval/validation/loss",),
}


@dataclass(frozen=True)
class Plan:
    total_steps: int
    eval_every: int
    save_every: int
    keep_every: int | None
    resolve: Callable[[Duration], int]  # a duration of this run in steps

    def eval_due(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.total_steps

    def save_due(self, step: int) -> bool:
        return step % self.save_every == 0 or step == self.total_steps


def make_plan(config: Config, rows_per_epoch: int) -> Plan:
    """Every duration of `config` in steps. ConfigError where one is shorter than a step."""
    rows = config.train.batch_size
    convert = partial(
        to_steps,
        tokens_per_step=rows * config.data.length,
        rows_per_step=rows,
        rows_per_epoch=rows_per_epoch,
    )
    total_steps = convert(config.train.steps, total_steps=None)
    resolve = partial(convert, total_steps=total_steps)
    every = {
        "eval.every": config.eval.every,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep_every": config.checkpoint.keep_every,
    }
    steps = {key: None if duration is None else resolve(duration) for key, duration in every.items()}
    for key, count in {"train.steps": total_steps, **steps}.items():
        if count is not None and count < 1:
            raise ConfigError(f"{key} comes to {count} steps of this run; it must be at least 1")
    best, evaluated = config.checkpoint.best, EVALUATED[config.data.objective.name]
    if best is not None and best not in evaluated:
        raise ConfigError(f"checkpoint.best is {best!r}, must be one of {', '.join(evaluated)}, or none")
    return Plan(total_steps, steps["eval.every"], steps["checkpoint.every"], steps["checkpoint.keep_every"], resolve)
