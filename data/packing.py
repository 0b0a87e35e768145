"""Documents to rows: which tokens of a store make row i, in O(log documents) and without state.

The stream of a store is its tokens with one virtual end of text behind them. Each stored token is an
input exactly once in an epoch and its target is the token behind it, so a cut loses no target, the
first byte of a document is predicted from its end-of-text token, and its end is learned.
"""

from __future__ import annotations

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
    """Rows of `length` input positions. A subclass says which tokens a row holds and where its segments start.

    Attributes:
      num_targets: sum of the weights over an epoch.    dropped: stored tokens that no row holds.
      fingerprint: of the store, which the order of the rows depends on.
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
        """Offsets in the row, above 0, at which another segment starts."""
        raise NotImplementedError

    def empty(self, count: int) -> dict[str, np.ndarray]:
        """A batch of `count` padding rows, [count, length] each."""
        return {key: np.zeros((count, self.length), dtype) for key, dtype in DTYPES.items()}

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Row `index`: `tokens`, `targets`, `segment_ids`, `positions` int32 and `weights` float32, [length] each.

        Segments are numbered from 1 in order; padding has segment 0, weight 0 and token 0.
        Positions restart at 0 where a segment starts and where the row does.
        """
        return {key: value[0] for key, value in self.rows([index]).items()}

    def rows(self, indices) -> dict[str, np.ndarray]:
        """The rows `indices`, [len(indices), length] each."""
        batch = self.empty(len(indices))
        for place, index in enumerate(indices):
            self._fill(int(index), batch, place)
        return batch

    def _fill(self, index: int, batch: dict[str, np.ndarray], place: int):
        start, stop = self._span(index)
        count = stop - start
        if stop < self.store.num_tokens:
            ids = self.store.tokens(start, stop + 1)
            batch["targets"][place, :count] = ids[1:]
        else:
            ids = self.store.tokens(start, stop)
            batch["targets"][place, : count - 1] = ids[1:]
            batch["targets"][place, count - 1] = self.store.end_of_text
        batch["tokens"][place, :count] = ids[:count]
        batch["weights"][place, :count] = 1.0
        starts = self._starts(start, stop)
        segments, positions = batch["segment_ids"][place], batch["positions"][place]
        if not starts.size:
            segments[:count] = 1
            positions[:count] = self._arange[:count]
            return
        bounds = np.concatenate(([0], starts, [count]))
        lengths = np.diff(bounds)
        segments[:count] = np.repeat(self._arange[: lengths.size] + 1, lengths)
        positions[:count] = self._arange[:count] - np.repeat(bounds[:-1].astype(np.int32), lengths)


class ConcatRows(Rows):
    """Documents one after the other, cut every `length` tokens; only the last row is padded."""

    def __len__(self) -> int:
        return -(-self.store.num_tokens // self.length)

    def _span(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start = index * self.length
        return start, min(start + self.length, self.store.num_tokens)

    def _starts(self, start, stop):
        starts = self.store.document_starts
        # A Python integer would make numpy compare in float64, on a copy of the whole array.
        low, high = np.searchsorted(starts, np.array([start + 1, stop], dtype=np.uint64))
        return starts[low:high].astype(np.int64) - start


class UnpackedRows(Rows):
    """Every document apart, cut into pieces of `length`, the last piece of each padded."""

    def __init__(self, store: Store, length: int):
        super().__init__(store, length)
        ends = np.append(store.document_starts[1:], np.uint64(store.num_tokens))
        pieces = -(-(ends - store.document_starts).astype(np.int64) // length)
        self._last_row = np.cumsum(pieces)  # one behind the last row of each document

    def __len__(self) -> int:
        return int(self._last_row[-1])

    def _span(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        document = int(np.searchsorted(self._last_row, index, side="right"))
        piece = index - (int(self._last_row[document - 1]) if document else 0)
        last = document + 1 == self.store.num_documents
        end = self.store.num_tokens if last else int(self.store.document_starts[document + 1])
        start = int(self.store.document_starts[document]) + piece * self.length
        return start, min(start + self.length, end)

    def _starts(self, start, stop):
        return np.empty(0, dtype=np.int64)


ROWS = {"concat": ConcatRows, "unpacked": UnpackedRows}


def make_rows(store: Store, length: int, packing: str) -> Rows:
    """The rows of `store` under a packing of `ROWS`."""
    return ROWS[packing](store, length)
