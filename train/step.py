"""One step of training: (state, batch) -> (state, metrics), pure, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from train.optim import Optimizer, clip_by_global_norm, global_norm, merge
from train.state import State
from train.task import Task

DROPOUT_STREAM, ROW_STREAM = 1, 2  # folded into the seed's key; initial values draw from stream 0


@dataclass(frozen=True, eq=False)  # by identity, as jit wants its functions
class Step:
    """A pure function of state and batch, with everything it closes over named."""

    task: Task
    optimizer: Optimizer
    schedule: Callable  # step -> learning rate, float32
    seed: int
    accumulate: int = 1  # micro-batches
    clip_norm: float | None = None
    ema_decay: float | None = None
    micro_batches: Callable | None = None  # step -> how many of them hold rows, int32; None: all, always

    __name__ = "train_step"  # in logs and profiles

    def __call__(self, state: State, batch: dict) -> tuple[State, dict]:
        """One attempted update.

        The new state has `step` + 1 always; where the loss or the gradient's norm is not finite, its
        parameters, optimizer state and average are the old ones bit for bit, and `skipped` + 1.

        Returns float32 scalars beside the state: the task's metrics over the global batch, `grad_norm`
        (before clipping; of each branch, too, where the task has any), `learning_rate`; int32 `targets` (the
        batch's tokens, as the task counts them) and `skipped`.
        """
        objective, metrics, grads = self.gradients(state, batch)
        grads, norms = self.clipped(grads)
        rate = self.schedule(state.step)
        params, opt_state = self.optimizer.update(grads, state.opt_state, state.params, rate)
        ema = state.ema
        if self.ema_decay is not None:
            decay = jnp.float32(self.ema_decay)
            ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
        finite = jnp.isfinite(objective) & jnp.isfinite(norms["grad_norm"])
        new, old = (params, opt_state, ema), (state.params, state.opt_state, state.ema)
        params, opt_state, ema = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        skipped = state.skipped + jnp.where(finite, 0, 1).astype(jnp.int32)
        state = State(params, state.frozen, opt_state, ema, state.step + 1, skipped)
        counts = {"targets": self.task.tokens(batch), "skipped": skipped}
        return state, {**metrics, **norms, "learning_rate": rate, **counts}

    def clipped(self, grads) -> tuple[dict, dict]:
        """(gradients, clipped as one or each branch of the task by itself; norms before that, by name in the log)."""
        if not self.task.branches:
            grads, norm = clip_by_global_norm(grads, self.clip_norm)
            return grads, {"grad_norm": norm}
        norms = {"grad_norm": global_norm(grads)}
        for branch in (name for name in self.task.branches if name in grads):  # not one that is frozen
            part, norms[f"grad_norm/{branch}"] = clip_by_global_norm(grads[branch], self.clip_norm)
            grads = {**grads, branch: part}
        return grads, norms

    def gradients(self, state: State, batch: dict):
        """(loss, metrics, gradient of the loss) over the global batch, whatever its division."""
        totals = self.task.weights(batch)
        shares = {term: _share(1.0, total) for term, total in totals.items()}
        batch = (batch, self.row_keys(state.step, len(next(iter(batch.values())))))

        def loss_of(params, micro_batch, index):
            whole = merge(params, state.frozen)
            terms, metrics = self.task.sums(whole, micro_batch[0], self.key(state.step, index), micro_batch[1])
            loss = sum(self.task.coefficients[term] * terms[term] * shares[term] for term in terms)
            names = self.task.metrics | self.task.training_metrics
            return loss, {name: metrics[name] * shares[term] for name, term in names.items()}

        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        if self.accumulate == 1:
            (loss, metrics), grads = differentiate(state.params, batch, 0)
            return loss, metrics, grads

        def add(carry, inputs):
            micro_batch, index = inputs
            return jax.tree.map(jnp.add, carry, differentiate(state.params, micro_batch, index)), None

        def add_at(index, carry):
            at = partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False)
            return add(carry, (jax.tree.map(at, micro_batches), index))[0]

        micro_batches = split_batch(batch, self.accumulate)
        first = jax.tree.map(lambda x: x[0], micro_batches)
        shapes = jax.eval_shape(differentiate, state.params, first, 0)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
        if self.micro_batches is not None:
            used = self.micro_batches(state.step)
            (loss, metrics), grads = jax.lax.fori_loop(jnp.int32(0), used, add_at, zeros)
            return loss, metrics, grads
        indices = jnp.arange(self.accumulate, dtype=jnp.int32)
        ((loss, metrics), grads), _ = jax.lax.scan(add, zeros, (micro_batches, indices))
        return loss, metrics, grads

    def row_keys(self, step, rows: int):
        """A key for each of the `rows` of a global batch, from seed, step and row; None where nothing draws by row."""
        if not self.task.draws_by_row:
            return None
        stream = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), ROW_STREAM), step)
        return jax.vmap(jax.random.fold_in, (None, 0))(stream, jnp.arange(rows, dtype=jnp.uint32))

    def key(self, step, micro_batch):
        """The key of all dropout in a micro-batch, from seed, step and index; None where nothing is drawn."""
        if not self.task.dropout:
            return None
        stream = jax.random.fold_in(jax.random.key(self.seed), DROPOUT_STREAM)
        return jax.random.fold_in(jax.random.fold_in(stream, step), micro_batch)


def _share(value, total):
    """value / total, 0 where the total is 0: a batch without targets has loss 0 and no gradient."""
    return jnp.where(total > 0, value / jnp.where(total > 0, total, 1.0), 0.0)


def split_batch(batch, parts: int):
    """Each `[batch, ...]` as `[parts, batch / parts, ...]`: part i takes rows i, i + parts, ...

    Taken in strides, every part has its share of each device's rows, and no row changes its device.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
