"""A run's plan in steps, once its data is known: how long, and what is due when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from data.errors import ConfigError
from data.mixture_config import WHOLE, MixtureSource
from data.schema import split_duration
from train.config import Config, Duration
from train.duration import to_steps
from train.ramp import Batches, batches_of

# What an evaluation under each objective gives that is best where it is lowest; of others the loss alone.
LOSS = "eval/validation/loss"
EVALUATED = {"causal": (LOSS, "eval/validation/bits_per_byte")}


@dataclass(frozen=True)
class Every:
    """An interval that begins again where it ends: so many steps or, where batches grow, so many rows."""

    amount: int
    done: Callable[[int], int]  # how much of it the steps up to one have done

    def due(self, step: int) -> bool:
        """Whether `step`, counted from 1, ends an interval."""
        return self.done(step) // self.amount > self.done(step - 1) // self.amount


@dataclass(frozen=True)
class Plan:
    total_steps: int
    eval_every: Every
    save_every: Every
    keep_every: int | None  # steps
    resolve: Callable[..., int]  # a duration of this run in steps, from `start` on or before `end`
    batches: Batches

    def eval_due(self, step: int) -> bool:
        return self.eval_every.due(step) or step == self.total_steps

    def save_due(self, step: int) -> bool:
        return self.save_every.due(step) or step == self.total_steps


def make_plan(config: Config, rows_per_epoch: int) -> Plan:
    """Every duration of `config` in steps. ConfigError where one is shorter than a step."""
    batches = batches_of(config)
    convert = partial(to_steps, batches=batches, rows_per_epoch=rows_per_epoch)
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
    best, evaluated = config.checkpoint.best, evaluated_metrics(config)
    if best is not None and best not in evaluated:
        raise ConfigError(f"checkpoint.best is {best!r}, must be one of {', '.join(evaluated)}, or none")
    intervals = (every_of(config.eval.every, resolve, batches), every_of(config.checkpoint.every, resolve, batches))
    return Plan(total_steps, *intervals, steps["checkpoint.keep_every"], resolve, batches)


def evaluated_metrics(config: Config) -> list[str]:
    """What each evaluation gives that is best where it is lowest: of all held-out text, and of each component's."""
    source = config.data.source
    parts = [part.name for part in source.components] if isinstance(source, MixtureSource) else []
    names = EVALUATED.get(config.data.objective.name, (LOSS,))
    return [metric.replace(f"/{WHOLE}/", f"/{part}/") for part in (WHOLE, *parts) for metric in names]


def every_of(duration: Duration, resolve: Callable[..., int], batches: Batches) -> Every:
    """The interval of a duration. Under a ramp tokens and epochs are counted in rows, which its steps differ in."""
    if len(batches.levels) == 1 or split_duration(duration)[1] in ("steps", "%"):
        return Every(resolve(duration), lambda step: step)
    whole = batches.levels[-1].step  # from here on all steps take as many rows
    return Every(resolve(duration, start=whole) * batches.batch_size, batches.before)
