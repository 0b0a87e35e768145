"""Batches as a pure function of the step, their order, and a thread that makes them ahead of time."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from data.errors import DataError, HungError, UserError
from data.mixture import Mixture
from data.packing import Rows
from data.permutation import permute

DATA_ORDER_VERSION = 1  # of the order below; a run resumes only under its own

Batch = dict[str, np.ndarray]


class Fill(NamedTuple):
    """Which places of a batch hold rows: of every `parts` in turn the first `used`. The others are padding."""

    first: int  # row of the stream with which the batch begins
    used: int
    parts: int

    def rows_before(self, place: int) -> int:
        """Rows at the places before `place`."""
        turns, rest = divmod(place, self.parts)
        return turns * self.used + min(rest, self.used)


class Place(NamedTuple):
    """Where a row of the stream is from."""

    source: str
    epoch: int
    row: int


class Order:
    """The rows of one source without end, in a new permutation each epoch: number i is row i mod n of epoch i div n."""

    def __init__(self, rows: Rows, seed: int, shuffle: bool):
        self.rows, self.seed, self.shuffle = rows, seed, shuffle

    def take(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, row) int64 [stop - start] of a stretch; Python integers carry the large numbers."""
        nothing, size = np.empty(0, dtype=np.int64), len(self.rows)
        epochs, rows = [nothing], [nothing]
        while start < stop:
            epoch, offset = divmod(start, size)
            count = min(size - offset, stop - start)
            indices = np.arange(offset, offset + count)
            rows.append(permute(indices, size, self._key(epoch)) if self.shuffle else indices)
            epochs.append(np.full(count, epoch, dtype=np.int64))
            start += count
        return np.concatenate(epochs), np.concatenate(rows)

    def _key(self, epoch: int) -> bytes:
        name = f"plumbline rows {DATA_ORDER_VERSION}:{self.rows.fingerprint}:{self.seed}:{epoch}"
        return hashlib.sha256(name.encode()).digest()


class Loader:
    """The infinite stream of rows, cut into batches: of one source, or of several as a mixture has them.

    Of each source a row is the next one in its order, so a batch may hold the end of one epoch and the start of
    the next. Everything follows from (rows, fingerprints, shares, seed, step): calls leave no trace.
    """

    def __init__(
        self,
        sources: dict[str, Rows],
        batch_size: int,
        seed: int,
        shuffle: bool,
        fill: Callable[[int], Fill] | None = None,
        mixture: Mixture | None = None,
    ):
        """`sources`: rows by name, all of equal keys; `mixture` says whose turn it is where they are several.

        `fill` says what of the batch of a step holds rows; None: all of it.
        """
        self.sources, self.batch_size, self.seed, self.mixture = sources, batch_size, seed, mixture
        self.orders = {name: Order(rows, seed, shuffle) for name, rows in sources.items()}
        self.fill = fill or (lambda step: Fill(step * batch_size, 1, 1))

    def batch(self, step: int, start: int = 0, stop: int | None = None) -> Batch:
        """Rows start..stop, by default all, of the global batch of `step`: [stop - start, length] each."""
        stop = self.batch_size if stop is None else stop
        fill = self.fill(step)
        first, last = (fill.first + fill.rows_before(place) for place in (start, stop))
        found = self._rows(first, last, stop - start)
        if fill.used == fill.parts:
            return found
        padding = np.arange(start, stop) % fill.parts >= fill.used
        order = np.argsort(np.argsort(padding, kind="stable"))  # rows come first in `found`, padding behind them
        return {key: value[order] for key, value in found.items()}

    def place(self, index: int) -> Place:
        """Where the `index`-th row of the stream is from."""
        name, begin = next((name, begin) for name, begin, end, _ in self._turns(index, index + 1) if end > begin)
        epoch, row = self.orders[name].take(begin, begin + 1)
        return Place(name, int(epoch[0]), int(row[0]))

    def consumed(self, step: int) -> dict[str, int]:
        """How many rows of each source the steps before `step` have taken."""
        first = self.fill(step).first
        counts = [first] if self.mixture is None else self.mixture.counts(first)
        return dict(zip(self.sources, counts, strict=True))

    def _turns(self, first: int, last: int) -> list[tuple[str, int, int, np.ndarray]]:
        """(source, its next row, the one behind its last, their places) of a stretch of the stream, by source."""
        if self.mixture is None:
            return [(next(iter(self.sources)), first, last, np.arange(last - first))]
        turn, before = self.mixture.sources(first, last), self.mixture.counts(first)
        places = [np.flatnonzero(turn == source) for source in range(len(before))]
        return [
            (name, begin, begin + where.size, where)
            for name, begin, where in zip(self.sources, before, places, strict=True)
        ]

    def _rows(self, first: int, last: int, count: int) -> Batch:
        """The rows first..last of the stream, then padding up to `count` rows."""
        batch: Batch = {}
        for name, begin, end, places in self._turns(first, last):
            epochs, rows = self.orders[name].take(begin, end)
            if places.size == last - first:  # all rows of one source, or none at all
                return self.sources[name].rows(rows, count, epochs)
            if places.size:
                found = self.sources[name].rows(rows, epochs=epochs)
                batch = batch or {key: np.zeros((count, *value.shape[1:]), value.dtype) for key, value in found.items()}
                for key, value in found.items():
                    batch[key][places] = value
        return batch


def evaluation_batches(
    rows: Rows, batch_size: int, limit: int | None = None, start: int = 0, stop: int | None = None
) -> Iterator[Batch]:
    """Every row once and in order, at most `limit` batches; padding rows of weight 0 fill up the last.

    `start` and `stop` choose the rows of each batch that a process takes; all of them by default.
    """
    stop = batch_size if stop is None else stop
    count = -(-len(rows) // batch_size)
    for step in range(count if limit is None else min(count, limit)):
        first = step * batch_size
        indices = range(min(first + start, len(rows)), min(first + stop, len(rows)))
        yield rows.rows(indices, stop - start)


class Prefetcher:
    """Makes the batches of first_step <= step < last_step on a thread, at most `depth` ahead of the reader.

    A context manager. `get` hands them out in order. Depth 0 makes a batch when it is asked for.
    """

    def __init__(self, make_batch: Callable[[int], Batch], first_step: int, last_step: int, depth: int, timeout: float):
        self._make_batch, self._last, self._depth, self._timeout = make_batch, last_step, depth, timeout
        self._next = first_step  # the step that `get` hands out next
        self._allowed = first_step + depth  # steps below it may be made
        self._ready: dict[int, Batch] = {}
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        # A daemon, since one stuck in a read must not keep the process alive.
        threading.Thread(target=self._work, args=(first_step,), daemon=True, name="prefetch").start()

    def get(self, step: int) -> Batch:
        """The batch of `step`, which must be the one behind the last.

        Raises DataError when making it failed (a UserError as it is), HungError when it takes longer than
        `timeout` seconds.
        """
        if self._closed or step != self._next or step >= self._last:
            raise ValueError(f"step {step} asked of a prefetcher at {self._next} of {self._last}")
        deadline = time.monotonic() + self._timeout
        with self._changed:
            self._allowed = step + 1 + self._depth
            self._changed.notify_all()
            while step not in self._ready:
                if self._error is not None:
                    self._fail(step)
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise HungError(
                        f"The batch of step {step} did not come within {self._timeout:g} seconds "
                        "(data.timeout): the loader hangs. Check the disk that holds data.cache_dir, then "
                        "run the same command again."
                    )
            self._next = step + 1
            return self._ready.pop(step)

    def close(self):
        """Lets the thread end after the batch it is making; does not wait for it."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_):
        self.close()

    def _fail(self, step: int):
        if isinstance(self._error, UserError):
            raise self._error
        raise DataError(
            f"The loader died at the batch of step {step}: {type(self._error).__name__}: {self._error}."
        ) from self._error

    def _work(self, step: int):
        while step < self._last:
            with self._changed:
                self._changed.wait_for(lambda at=step: self._closed or at < self._allowed)
                if self._closed:
                    return
            try:
                batch = self._make_batch(step)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                if self._closed:
                    return
                self._ready[step] = batch
                self._changed.notify_all()
            step += 1
