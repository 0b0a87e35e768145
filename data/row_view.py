"""Rows of any objective as a person reads them: what is read, what is to be predicted, where documents begin.

Which of these a row is follows from its keys, as `data.objectives.batch_spec` declares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np

from data.spelling import Speller, Token, legible

Row = dict[str, np.ndarray]


class Piece(NamedTuple):
    """Tokens that stand together and are alike."""

    text: str
    loss: bool  # whether they are to be predicted
    special: bool = False  # a token that text cannot spell
    read: str | None = None  # what is read in their place; None: only what stands before them, or they themselves


class Stretch(NamedTuple):
    """A segment of a row, or a side of it."""

    title: str
    pieces: list[Piece]


class RowView(NamedTuple):
    source: str
    epoch: int
    row: int  # of the source's
    tokens: int  # positions that are read
    padding: int  # positions that are not
    predicted: int  # tokens that carry loss
    stretches: list[Stretch]


def view(row: Row, speller: Speller, source: str, epoch: int, index: int, limit: int) -> RowView:
    """The view of one row, of which about `limit` tokens are spelt."""
    tokens, padding = occupied(row)
    return RowView(source, epoch, index, tokens, padding, predictions(row), _stretches(row, speller, limit))


def occupied(row: Row) -> tuple[int, int]:
    """(positions that hold a token, positions that are padding) of a row, or of rows."""
    segments = [row[key] for key in ("segment_ids", "source_segment_ids") if key in row]
    tokens = sum(int((ids > 0).sum()) for ids in segments)
    return tokens, sum(ids.size for ids in segments) - tokens


def predictions(row: Row) -> int:
    """How many tokens of a row, or of rows, carry loss; of questions the tokens of the answers."""
    if "start_positions" in row:
        return int(np.where(row["end_positions"] > 0, row["end_positions"] - row["start_positions"] + 1, 0).sum())
    return int((row["weights"] > 0).sum())


def _stretches(row: Row, speller: Speller, limit: int) -> list[Stretch]:
    if "masked_positions" in row:
        return [_masked(row, speller, limit)]
    if "start_positions" in row:
        return [_answered(row, speller, limit)]
    found = []
    if "source_tokens" in row:
        ids = row["source_tokens"][row["source_segment_ids"] > 0]
        found.append(_stretch(f"source: {_count(ids.size)}", ids, np.zeros(ids.size, bool), speller, limit))
    return found + _predicted(row, speller, limit)


def _predicted(row: Row, speller: Speller, limit: int) -> list[Stretch]:
    """The segments of a row whose targets are the next tokens: its first token, and behind it the targets."""
    found: list[Stretch] = []
    segments = int(row["segment_ids"].max(initial=0))
    for segment in range(1, segments + 1):
        places = np.flatnonzero(row["segment_ids"] == segment)
        ids = np.append(row["tokens"][places[0]], row["targets"][places])
        loss = np.append(False, row["weights"][places] > 0)
        title = f"segment {segment}: {_count(places.size)}, {int(loss.sum()):,} to predict"
        if "order" in row:
            title += f", a prefix of {int(row['order'][places[0]]) + 1:,}"
        if "source_tokens" not in row and speller.begins_document(ids[0]):
            title += ", begins a document"
        found.append(_stretch(title, ids, loss, speller, limit))
        limit -= ids.size
        if limit <= 0 and segment < segments:
            return [*found, Stretch(f"{_count(segments - segment, 'segment')} more", [])]
    return found


def _masked(row: Row, speller: Speller, limit: int) -> Stretch:
    """A row of which single tokens are hidden: each with what is read in its place."""
    ids = row["tokens"][row["segment_ids"] > 0]
    slots = row["masked_positions"][row["weights"] > 0]
    clean = ids.copy()
    clean[slots] = row["targets"][row["weights"] > 0]
    title = f"{_count(ids.size)}, {slots.size:,} to predict"
    if "next_sentence" in row:
        title += ", B is from elsewhere" if row["next_sentence"] else ", B follows A"
    read, pieces = speller.tokens(ids[:limit]), []
    kinds = np.zeros(ids.size, np.int64)  # 0 for what is read as it is, a number of its own for each hidden token
    kinds[slots] = np.arange(1, slots.size + 1)
    place = 0
    for (slot, special), group in _alike(kinds, speller.tokens(clean[:limit])):
        shown = legible(read[place].content).strip() if slot else None
        pieces.append(Piece(_joined(group), bool(slot), special, shown))
        place += len(group)
    return Stretch(title, _ended(pieces, ids.size, limit))


def _answered(row: Row, speller: Speller, limit: int) -> Stretch:
    """A question and a window on its context, the answer's tokens being those that are looked for."""
    ids = row["tokens"][row["segment_ids"] > 0]
    start, end = int(row["start_positions"]), int(row["end_positions"])
    places = np.arange(ids.size)
    loss = (places >= start) & (places <= end) & (end > 0)
    where = f"the answer from {start:,} to {end:,}" if end else "no answer in this window"
    return _stretch(f"{_count(ids.size)}, {where}", ids, loss, speller, limit)


def _stretch(title: str, ids: np.ndarray, loss: np.ndarray, speller: Speller, limit: int) -> Stretch:
    limit = max(limit, 0)
    alike = _alike(loss, speller.tokens(ids[:limit]))
    pieces = [Piece(_joined(group), bool(predicted), special) for (predicted, special), group in alike]
    return Stretch(title, _ended(pieces, ids.size, limit))


def _alike(kinds: np.ndarray, tokens: list[Token]) -> Iterator[tuple[tuple[int, bool], list[Token]]]:
    """((kind, whether they are special), the tokens) of each run of the same."""
    pairs = zip(kinds[: len(tokens)].tolist(), tokens, strict=True)
    for key, group in groupby(pairs, key=lambda pair: (pair[0], pair[1].special)):
        yield key, [token for _, token in group]


def _ended(pieces: list[Piece], size: int, limit: int) -> list[Piece]:
    """The pieces and, where not all tokens are shown, how many are not."""
    return [*pieces, Piece(f" ... {_count(size - limit)} more", False)] if size > limit else pieces


def _joined(tokens: Iterable[Token]) -> str:
    """Of tokens together, so that a character of several is whole."""
    return legible(b"".join(token.content for token in tokens))


def _count(size: int, what: str = "token") -> str:
    return f"{size:,} {what}{'' if size == 1 else 's'}"
