"""Documents to rows: which tokens of a store make row i, in O(log documents) and without state.

The stream of a store is its tokens with one virtual end of text behind them. Each stored token is an
input exactly once in an epoch and its target is the token behind it, so a cut loses no target, the
first byte of a document is predicted from its end-of-text token, and its end is learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.store import Store

DTYPES = {
    "tokens": np.int32,
    "targets": np.int32,
    "weights": np.float32,
    "segment_ids": np.int32,
    "positions": np.int32,
}


class Rows:
    """Rows of `length` input positions, read at random.

    A subclass says which tokens a row holds and where segments start in it.

    Attributes:
      num_targets: sum of the weights over an epoch.
      dropped: stored tokens that no row holds.
      fingerprint: of the store, on which the order of the rows depends.
    """

    def __init__(self, store: Store, length: int):
        self.store, self.length = store, length
        self.fingerprint = store.fingerprint
        self.num_targets, self.dropped = store.num_tokens, 0
        self._arange = np.arange(length, dtype=np.int32)

    def __len__(self) -> int:
        raise NotImplementedError

    def _span(self, index: int) -> tuple[int, int]:
        """First stored token of row `index`, and the one behind its last."""
        raise NotImplementedError

    def _starts(self, start: int, stop: int) -> np.ndarray:
        """Stored tokens behind `start` and before `stop` at which another segment starts, int64."""
        raise NotImplementedError

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Row `index`, [length] each: `weights` float32, the other keys int32.

        Segments are numbered from 1 in order; padding has segment 0, weight 0 and token 0.
        Positions restart at 0 where a segment starts and where the row does.
        """
        return {key: value[0] for key, value in self.rows([index]).items()}

    def describe(self) -> str:
        return f"{len(self):,} rows, {self.num_targets:,} targets, {self.dropped} tokens dropped"

    def rows(
        self, indices: Sequence[int] | np.ndarray, count: int | None = None, epochs: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The rows `indices`, then padding up to `count` rows, [count, length] each; the same in all `epochs`."""
        count = len(indices) if count is None else count
        # One allocation, since the allocator hands back five large ones to the system after each batch.
        memory = np.empty((len(DTYPES), count, self.length), dtype=np.int32)
        batch = {key: memory[place].view(dtype) for place, (key, dtype) in enumerate(DTYPES.items())}
        for place, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(f"row {index} of {len(self)}")
            self._fill(int(index), {key: value[place] for key, value in batch.items()})
        for value in batch.values():
            value[len(indices) :] = 0
        return batch

    def marked(self, name: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """bool [rows, length]: the store's mark of each token of the rows `indices`; false in padding."""
        found = np.zeros((len(indices), self.length), bool)
        for place, index in enumerate(indices):
            start, stop = self._span(int(index))
            found[place, : stop - start] = self.store.marked(name, start, stop)
        return found

    def _fill(self, index: int, row: dict[str, np.ndarray]):
        start, stop = self._span(index)
        count = stop - start
        ids = self.store.tokens(start, min(stop + 1, self.store.num_tokens))
        row["tokens"][:count] = ids[:count]
        row["targets"][: ids.size - 1] = ids[1:]
        if ids.size == count:
            row["targets"][count - 1] = self.store.end_of_text
        row["weights"][:count] = 1.0
        self._fill_segments(self._starts(start, stop) - start, count, row["segment_ids"], row["positions"])
        if count < self.length:
            for value in row.values():
                value[count:] = 0

    def _fill_segments(self, starts: np.ndarray, count: int, segments: np.ndarray, positions: np.ndarray):
        bounds = [0, *starts.tolist(), count]
        for number, (first, last) in enumerate(zip(bounds[:-1], bounds[1:], strict=True), 1):
            segments[first:last] = number
            positions[first:last] = self._arange[: last - first]


class ConcatRows(Rows):
    """Documents one after the other, cut every `length` tokens; only the last row is padded."""

    def __len__(self) -> int:
        return -(-self.store.num_tokens // self.length)

    def _span(self, index):
        start = index * self.length
        return start, min(start + self.length, self.store.num_tokens)

    def _starts(self, start, stop):
        starts = self.store.document_starts
        # Python integers would make numpy compare in another type, on a copy of the whole array.
        low, high = np.searchsorted(starts, np.array([start + 1, stop], dtype=np.uint64))
        return starts[low:high].astype(np.int64)


class UnpackedRows(Rows):
    """Every document apart, cut into pieces of `length`, the last piece of each padded."""

    def __init__(self, store: Store, length: int):
        super().__init__(store, length)
        ends = np.append(store.document_starts[1:], np.uint64(store.num_tokens))
        pieces = -(-(ends - store.document_starts).astype(np.int64) // length)
        self._last_row = np.cumsum(pieces)  # one behind the last row of each document
        self._no_starts = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._last_row[-1])

    def _span(self, index):
        document = int(np.searchsorted(self._last_row, index, side="right"))
        piece = index - (int(self._last_row[document - 1]) if document else 0)
        first, end = self.store.bounds(document)
        start = first + piece * self.length
        return start, min(start + self.length, end)

    def _starts(self, start, stop):
        return self._no_starts


ROWS = {"concat": ConcatRows, "unpacked": UnpackedRows}


def make_rows(store: Store, length: int, packing: str) -> Rows:
    """The rows of `store` under a packing of `ROWS`."""
    return ROWS[packing](store, length)
