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
        _, metrics = task.sums(merge(params, frozen), batch, None)
        return metrics, task.weights(batch)

    return eval_step


def evaluate(task: Task, eval_step: Callable, params, frozen, batches: Iterable[dict]) -> dict[str, float]:
    """Each metric of the task as its sum over all batches divided by its term's weight (float64; 0 / 0 is 0)."""
    results = [eval_step(params, frozen, batch) for batch in batches]  # dispatched ahead, read once at the end
    totals: dict[str, float] = dict.fromkeys((*task.metrics, *task.coefficients), 0.0)
    for metrics, weights in jax.device_get(results):
        for name, value in (*metrics.items(), *weights.items()):
            totals[name] += float(value)
    return {name: totals[name] / totals[term] if totals[term] else 0.0 for name, term in task.metrics.items()}


def bits_per_byte(nats_per_token: float, tokens: int, text_bytes: int) -> float:
    """Loss in bits for each UTF-8 byte of the text; its end-of-text predictions are paid for, too."""
    return nats_per_token * tokens / (text_bytes * NATS_PER_BIT)
