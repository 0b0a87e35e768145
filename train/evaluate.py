"""Evaluation: sums over every row once, divided once, so that no number depends on the batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import jax

from train.optim import merge
from train.task import Task

NATS_PER_BIT = math.log(2.0)


def make_eval_step(task: Task) -> Callable:
    """`(params, frozen, batch) -> (metric sums, term weights)`, float32 scalars, without dropout."""

    def eval_step(params, frozen, batch):
        _, metrics = task.sums(merge(params, frozen), batch, None, None)
        return metrics, task.weights(batch)

    return eval_step


def sums(task: Task, eval_step: Callable, params, frozen, batches: Iterable[dict]) -> dict[str, float]:
    """Over all batches the sum of each metric and the weight of each term, by name, float64."""
    results = [eval_step(params, frozen, batch) for batch in batches]  # dispatched ahead, read once at the end
    return added(task, ({**metrics, **weights} for metrics, weights in jax.device_get(results)))


def added(task: Task, parts: Iterable[dict]) -> dict[str, float]:
    """The sums of metrics and weights of several parts; 0 where there are none."""
    totals: dict[str, float] = dict.fromkeys((*task.metrics, *task.coefficients), 0.0)
    for part in parts:
        for name, value in part.items():
            totals[name] += float(value)
    return totals


def means(task: Task, totals: dict[str, float]) -> dict[str, float]:
    """Each metric of the task as its sum divided by its term's weight; 0 / 0 is 0."""
    return {name: totals[name] / totals[term] if totals[term] else 0.0 for name, term in task.metrics.items()}


def evaluate(task: Task, eval_step: Callable, params, frozen, batches: Iterable[dict]) -> dict[str, float]:
    """Each metric of the task over all batches."""
    return means(task, sums(task, eval_step, params, frozen, batches))


def bits_per_byte(nats_per_token: float, tokens: int, text_bytes: int) -> float:
    """Loss in bits for each UTF-8 byte of the text; its end-of-text predictions are paid for, too."""
    return nats_per_token * tokens / (text_bytes * NATS_PER_BIT)
