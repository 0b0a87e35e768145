"""Documents to rows: which tokens of a store make row i, at random and without state.

The stream of a store is its tokens with one virtual end of text behind them. Each stored token is an
input exactly once in an epoch and its target is the token behind it, so a cut loses no target, the
first byte of a document is predicted from its end-of-text token, and its end is learned.

    concat     documents one after the other, cut every `length` tokens; only the last row is padded
    best_fit   whole documents together in rows, as data.best_fit plans them; only what is longer than a row is cut
    unpacked   every document apart, padded; what is longer than a row takes several
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from data.marks import FIRST
from data.packing_plan import plan
from data.store import Store

DTYPES = {
    "tokens": np.int32,
    "targets": np.int32,
    "weights": np.float32,
    "segment_ids": np.int32,
    "positions": np.int32,
}


class Rows:
    """Rows of `length` input positions, each of them one or more pieces of the stream.

    A subclass says which pieces.

    Attributes:
      num_targets: targets of an epoch; under a weight mark those with weight are fewer.
      dropped: stored tokens that no row holds.
      fingerprint: of the store and the rows, on which the order of the rows depends.
    """

    def __init__(self, store: Store, length: int, weight_mark: str | None = None):
        """`weight_mark` names the mark of the store that says which tokens are to be predicted; None: all."""
        self.store, self.length, self.weight_mark = store, length, weight_mark
        self.fingerprint = store.fingerprint
        self.dropped = 0

    def __len__(self) -> int:
        raise NotImplementedError

    def _pieces(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(place in `indices` of the row, first token, the one behind the last) of each piece, int64, row by row."""
        raise NotImplementedError

    def _borders(self, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(piece, token) of each place inside a piece, not at its start, where another document starts, in order."""
        nothing = np.empty(0, np.int64)
        return nothing, nothing

    @property
    def num_targets(self) -> int:
        return self.store.num_tokens - self.dropped

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
        indices = self._checked(indices)
        count = indices.size if count is None else count
        # One allocation, since the allocator hands back five large ones to the system after each batch.
        memory = np.empty((len(DTYPES), count, self.length), dtype=np.int32)
        batch = {key: memory[place].view(dtype) for place, (key, dtype) in enumerate(DTYPES.items())}
        rows, starts, stops = self._pieces(indices)
        flat, used = self._places(rows, starts, stops, indices.size)
        self._fill_tokens(flat, starts, stops, batch)
        self._fill_segments(rows, flat, starts, stops, used, batch)
        for row in np.flatnonzero(used < self.length):
            for value in batch.values():
                value[row, used[row] :] = 0
        for value in batch.values():
            value[indices.size :] = 0
        return batch

    def marked(self, name: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """bool [rows, length]: the store's mark of each token of the rows `indices`; false in padding."""
        indices = self._checked(indices)
        found = np.zeros((indices.size, self.length), bool)
        rows, starts, stops = self._pieces(indices)
        flat, _ = self._places(rows, starts, stops, indices.size)
        for place, start, stop in zip(flat.tolist(), starts.tolist(), stops.tolist(), strict=True):
            found.reshape(-1)[place : place + stop - start] = self.store.marked(name, start, stop)
        return found

    def _checked(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        indices = np.asarray(indices, dtype=np.int64)
        beyond = (indices < 0) | (indices >= len(self))
        if beyond.any():
            raise IndexError(f"row {indices[beyond][0]} of {len(self)}")
        return indices

    def _places(self, rows, starts, stops, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(where in the flattened batch each piece begins, how many tokens each row has)."""
        sizes = stops - starts
        ends = np.cumsum(sizes)
        used = np.bincount(rows, weights=sizes, minlength=count).astype(np.int64)
        before = np.cumsum(used) - used
        return rows * self.length + (ends - sizes - before[rows]), used

    def _fill_tokens(self, flat, starts, stops, batch: dict[str, np.ndarray]):
        store, tokens, targets, weights = self.store, *(batch[key].reshape(-1) for key in list(DTYPES)[:3])
        last, end_of_text, mark = store.num_tokens, store.end_of_text, self.weight_mark
        if mark is None:
            weights[:] = 1.0
        for place, start, stop in zip(flat.tolist(), starts.tolist(), stops.tolist(), strict=True):
            behind = place + stop - start
            if stop < last:
                ids = store.tokens(start, stop + 1)
                tokens[place:behind] = ids[:-1]
                targets[place:behind] = ids[1:]
            else:
                ids = store.tokens(start, stop)
                tokens[place:behind], targets[place : behind - 1] = ids, ids[1:]
                targets[behind - 1] = end_of_text
            if mark is not None:  # of the targets; the virtual end of text is what begins a document elsewhere
                marked = store.marked(mark, start + 1, min(stop + 1, last))
                weights[place : place + marked.size] = marked
                weights[place + marked.size : behind] = FIRST[mark]

    def _fill_segments(self, rows, flat, starts, stops, used, batch: dict[str, np.ndarray]):
        """Segments and positions of all rows at once: every one begins where a piece does, or a document inside."""
        piece, token = self._borders(starts, stops)
        begins = np.concatenate([flat, flat[piece] + token - starts[piece]])
        if piece.size:
            order = np.argsort(begins, kind="stable")
            begins, rows = begins[order], np.concatenate([rows, rows[piece]])[order]
        first = np.flatnonzero(np.diff(rows, prepend=-1))  # of each row
        counts = np.diff(first, append=rows.size)
        numbers = np.arange(1, rows.size + 1) - np.repeat(first, counts)
        lengths = np.diff(begins, append=used.size * self.length)  # the last one of a row takes its padding, too
        total = used.size * self.length
        segments, positions = (batch[key].reshape(-1)[:total] for key in ("segment_ids", "positions"))
        segments[:] = np.repeat(numbers.astype(np.int32), lengths)
        np.subtract(np.arange(total, dtype=np.int32), np.repeat(begins.astype(np.int32), lengths), out=positions)


class ConcatRows(Rows):
    """Documents one after the other, cut every `length` tokens; only the last row is padded."""

    def __len__(self) -> int:
        return -(-self.store.num_tokens // self.length)

    def _pieces(self, indices):
        starts = indices * self.length
        return np.arange(indices.size), starts, np.minimum(starts + self.length, self.store.num_tokens)

    def _borders(self, starts, stops):
        documents = self.store.document_starts
        # Signed integers would make numpy compare in another type, on a copy of the whole array.
        low, high = (np.searchsorted(documents, edges.astype(np.uint64)) for edges in (starts + 1, stops))
        counts = high - low
        piece = np.repeat(np.arange(starts.size), counts)
        document = np.arange(piece.size) + np.repeat(low - (np.cumsum(counts) - counts), counts)
        return piece, documents[document].astype(np.int64)


class PlannedRows(Rows):
    """Rows of whole documents, or of a cut one's piece, as a kept plan has them."""

    def __init__(self, store: Store, length: int, packing: str, drop: bool, weight_mark: str | None = None):
        super().__init__(store, length, weight_mark)
        self.plan = plan(store, length, packing, drop)
        self.dropped = self.plan.facts["dropped_tokens"]
        if packing != "unpacked" or drop:
            self.fingerprint = self.plan.fingerprint

    def __len__(self) -> int:
        return len(self.plan.rows) - 1

    def describe(self) -> str:
        facts, whole = self.plan.facts, len(self) * self.length
        return (
            f"{super().describe()}; {facts['cut_documents']:,} documents cut, {facts['dropped_documents']:,} dropped, "
            f"{100 * (1 - facts['tokens'] / whole):.2f} % padding"
        )

    def _pieces(self, indices):
        first, behind = (self.plan.rows[places].astype(np.int64) for places in (indices, indices + 1))
        counts = behind - first
        rows = np.repeat(np.arange(indices.size), counts)
        found = self.plan.pieces[np.arange(rows.size) + np.repeat(first - (np.cumsum(counts) - counts), counts)]
        starts = found["start"].astype(np.int64)
        return rows, starts, starts + found["length"]


PACKINGS: dict[str, Callable[..., Rows]] = {
    "concat": lambda store, length, drop, mark: ConcatRows(store, length, mark),
    "best_fit": lambda store, length, drop, mark: PlannedRows(store, length, "best_fit", drop, mark),
    "unpacked": lambda store, length, drop, mark: PlannedRows(store, length, "unpacked", drop, mark),
}


def make_rows(
    store: Store, length: int, packing: str, long_documents: str = "split", weight_mark: str | None = None
) -> Rows:
    """The rows of `store` under a packing of PACKINGS.

    `long_documents`: what becomes of those longer than a row, split or drop; concat cuts wherever a row ends.
    `weight_mark`: the mark of the store that says which tokens are to be predicted; None: all are.
    """
    return PACKINGS[packing](store, length, long_documents == "drop", weight_mark)
