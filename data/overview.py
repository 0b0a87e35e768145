"""What a recipe's data come to, in numbers: its sources, their documents, the share of padding under each packing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.best_fit import BLOCK, best_fit, pieces
from data.kinds import ObjectiveRows
from data.packing import PACKINGS, Rows
from data.row_view import occupied, predictions
from data.store import Stream

SAMPLED_ROWS = 256  # on which padding and predictions are measured, evenly over an epoch


class Source(NamedTuple):
    """One source of the rows."""

    name: str
    documents: int
    tokens: int  # stored, ends of text included
    bytes_per_token: float | None  # of UTF-8; None where nobody knows the bytes
    rows: int  # an epoch
    share: float  # of the rows of the stream, from its first row
    epochs: float  # that the steps before the first one shown have read
    max_epochs: float | None
    padding: float  # share of the positions, on SAMPLED_ROWS
    predicted: float  # share of the tokens that carry loss, on the same rows
    packings: dict[str, float] | None  # {packing: share of padding}; None where the objective lays out rows itself
    about: str  # as the rows describe themselves
    lengths: list[tuple[int, int]]  # (shortest length of a bin, documents in it), in tokens with their end of text


def source_of(
    name: str, stream: Stream, rows: ObjectiveRows, share: float, epochs: float, max_epochs: float | None
) -> Source:
    """The numbers of a source."""
    count = min(SAMPLED_ROWS, len(rows))
    sampled = rows.rows((2 * np.arange(count) + 1) * len(rows) // (2 * count))
    tokens, padding = occupied(sampled)
    size = stream.text_bytes
    packed = rows if isinstance(rows, Rows) else getattr(rows, "inputs", None)
    return Source(
        name,
        stream.num_documents,
        stream.num_tokens,
        None if size is None else size / stream.num_tokens,
        len(rows),
        share,
        epochs,
        max_epochs,
        padding / (tokens + padding),
        predictions(sampled) / tokens,
        padding_shares(stream, packed.length) if isinstance(packed, Rows) else None,
        rows.describe(),
        histogram(stream),
    )


def padding_shares(stream: Stream, length: int) -> dict[str, float]:
    """{packing: share of padding in an epoch's rows}, documents longer than a row being split.

    Of best_fit, which takes a while, that of the first block of documents.
    """
    apart, first = 0, 0.0
    for block, sizes in enumerate(_sizes(stream)):
        apart += int((-(-sizes // length)).sum())
        if not block:
            stops = np.cumsum(sizes)
            parts = pieces(stops - sizes, stops, length, drop=False)["length"].astype(np.int64)
            rows = int(best_fit(parts, length)[1][-1]) + 1
            first = 1 - int(sizes.sum()) / (rows * length)
    whole = -(-stream.num_tokens // length)
    shares = {
        "concat": 1 - stream.num_tokens / (whole * length),
        "best_fit": first,
        "unpacked": 1 - stream.num_tokens / (apart * length),
    }
    return {packing: shares[packing] for packing in PACKINGS}


def histogram(stream: Stream) -> list[tuple[int, int]]:
    """(shortest length, documents) of each bin of lengths from a power of two up to the next, up to the last used."""
    counts = np.zeros(64, np.int64)
    for sizes in _sizes(stream):
        counts += np.bincount(np.frexp(sizes.astype(np.float64))[1] - 1, minlength=counts.size)
    used = np.flatnonzero(counts)
    return [(1 << power, int(counts[power])) for power in range(int(used[0]), int(used[-1]) + 1)]


def _sizes(stream: Stream) -> Iterator[np.ndarray]:
    """int64 [documents]: how many tokens each document of a block has."""
    for first in range(0, stream.num_documents, BLOCK):
        bounds = stream.document_starts[first : first + BLOCK + 1].astype(np.int64)
        if first + BLOCK >= stream.num_documents:
            bounds = np.append(bounds, stream.num_tokens)
        yield np.diff(bounds)
