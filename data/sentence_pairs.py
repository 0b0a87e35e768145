"""Rows `[CLS] A [SEP] B [SEP]` of sentences that follow one another or do not (Devlin et al. 2018, section 3.1).

By the algorithm of BERT's create_pretraining_data.py: sentences of a document are gathered until they fill a row,
cut in two at random; half of the time, and where there is but one, B comes from another document instead and the
sentences that it has driven out begin the next pair. What is too long loses tokens from its longer side, front or
back. Everything is drawn from (seed, copy, document), made once into an index, and kept beside the store.
"""

from __future__ import annotations

import hashlib
import os
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data import marks
from data.draws import Draws
from data.files import canonical_json, locked, storage_errors
from data.store import SHARD_TOKENS, Store

VERSION = 1  # of the index and of what is drawn for it
# Where A and B lie in the store, in tokens; whether B is random.
PAIR = np.dtype([("a", "<u8"), ("b", "<u8"), ("a_length", "<u4"), ("b_length", "<u4"), ("random", "<u4")])
SPECIAL_TOKENS = 3  # [CLS] and two [SEP]
TRIES = 10  # at another document; in a store of one B is from the same
BLOCK = 1 << 16  # pairs written at a time
DIGEST_BYTES = 32
HASH_DIGITS = 16

Span = tuple[int, int]  # first token, and the one behind the last
Pair = tuple[Span, Span, bool]


class Sentences:
    """Where the sentences of a store lie; each document has one at least."""

    def __init__(self, store: Store):
        self.store = store
        parts = [np.empty(0, np.int64)]
        for start in range(0, store.num_tokens, SHARD_TOKENS):
            stop = min(start + SHARD_TOKENS, store.num_tokens)
            parts.append(np.flatnonzero(store.marked(marks.SENTENCES, start, stop)) + start)
        self.starts = np.concatenate(parts)
        bounds = np.append(store.document_starts.astype(np.int64), store.num_tokens)
        self.first = np.searchsorted(self.starts, bounds)  # sentences before each document, and in all

    def edges(self, document: int, first: int = 0, count: int | None = None) -> list[int]:
        """Where `count` sentences (None: all) of a document from its `first` start, and where the last ends."""
        begin, end = int(self.first[document]) + first, int(self.first[document + 1])
        stop = end if count is None else min(end, begin + count)
        last = self.store.bounds(document)[1] if stop == end else int(self.starts[stop])
        return [*self.starts[begin:stop].tolist(), last]

    def number(self, document: int) -> int:
        return int(self.first[document + 1] - self.first[document])


def document_pairs(sentences: Sentences, document: int, limit: int, short_rate: float, draws: Draws) -> Iterator[Pair]:
    """(A, B, whether B is random) of one document, each pair at most `limit` tokens in all."""
    target = 2 + draws.below(limit - 1) if draws.chance(short_rate) else limit
    edges, first = sentences.edges(document), 0
    while first < len(edges) - 1:
        stop = _reaching(edges, first, target)
        middle = first + 1 if stop - first == 1 else first + 1 + draws.below(stop - first - 1)
        a, b = (edges[first], edges[middle]), (edges[middle], edges[stop])
        random = stop - first == 1 or draws.chance(0.5)
        if random:
            b = _elsewhere(sentences, document, target - (a[1] - a[0]), draws)
        yield *_truncated(a, b, limit, draws), random
        first = middle if random else stop


def _reaching(edges: list[int], first: int, tokens: int) -> int:
    """The sentence behind those that, from `first`, have `tokens` together; at least one, at most all."""
    return min(bisect_left(edges, edges[first] + tokens, first + 1), len(edges) - 1)


def _elsewhere(sentences: Sentences, document: int, tokens: int, draws: Draws) -> Span:
    """Sentences of another document, from a random one on, that have `tokens` together where it is long enough."""
    other = document
    for _ in range(TRIES):
        other = draws.below(sentences.store.num_documents)
        if other != document:
            break
    first = draws.below(sentences.number(other))
    edges = sentences.edges(other, first, max(1, tokens))  # a sentence has a token
    return edges[0], edges[_reaching(edges, 0, tokens)]


def _truncated(a: Span, b: Span, limit: int, draws: Draws) -> tuple[Span, Span]:
    """A and B of `limit` tokens at most: each that goes is the first or last of the longer one, of B where equal."""
    lengths = a[1] - a[0], b[1] - b[0]
    excess = sum(lengths) - limit
    if excess <= 0:
        return a, b
    gap = min(excess, abs(lengths[0] - lengths[1]))
    from_a, from_b = (excess - gap) // 2, (excess - gap + 1) // 2
    from_a, from_b = (from_a + gap, from_b) if lengths[0] > lengths[1] else (from_a, from_b + gap)
    return _shortened(a, from_a, draws), _shortened(b, from_b, draws)


def _shortened(span: Span, tokens: int, draws: Draws) -> Span:
    """The span without `tokens`, each of which a coin takes from the front or the back."""
    front, left = 0, tokens
    while left > 0:
        front += (draws.word() >> max(0, 64 - left)).bit_count()
        left -= 64
    return span[0] + front, span[1] - (tokens - front)


def pair_index(store: Store, length: int, short_rate: float, copies: int, seed: int) -> np.ndarray:
    """PAIR [pairs] of all copies of a store's documents, memory-mapped from a file beside the store.

    The file is written whole or not at all, by one of the processes that ask for it, and holds its own digest:
    one that is damaged is made again. Raises StorageError when the disk refuses.
    """
    settings = [VERSION, store.fingerprint, length, short_rate, copies, seed]
    name = hashlib.sha256(canonical_json(settings)).hexdigest()[:HASH_DIGITS]
    path = store.directory.with_name(f"{store.directory.name}.pairs-{name}.bin")
    found = _opened(path)
    if found is None:
        with locked(path.with_name(f".{path.name}.lock"), f"prepare: waiting for another process that writes {path}"):
            found = _opened(path)
            if found is None:
                with storage_errors(path):
                    _write(path, store, length, short_rate, copies, seed)
                found = _opened(path)
                print(f"prepare: {found.size:,} pairs of sentences in {path}", file=sys.stderr, flush=True)
    return found


def _opened(path: Path) -> np.ndarray | None:
    """The pairs of a file; None where it is missing or damaged."""
    if not path.exists() or path.stat().st_size <= DIGEST_BYTES:
        return None
    with open(path, "rb") as file:
        digest = file.read(DIGEST_BYTES)
        if hashlib.file_digest(file, "sha256").digest() != digest:
            return None
    return np.memmap(path, dtype=PAIR, mode="r", offset=DIGEST_BYTES).view(np.ndarray)


def _write(path: Path, store: Store, length: int, short_rate: float, copies: int, seed: int):
    sentences, digest = Sentences(store), hashlib.sha256()
    incoming = path.with_name(f".{path.name}.incoming")
    with open(incoming, "wb") as file:
        file.write(bytes(DIGEST_BYTES))
        for block in _blocks(sentences, length, short_rate, copies, seed):
            digest.update(block)
            file.write(block)
        file.seek(0)
        file.write(digest.digest())
        file.flush()
        os.fsync(file.fileno())
    os.replace(incoming, path)


def _blocks(sentences: Sentences, length: int, short_rate: float, copies: int, seed: int) -> Iterator[bytes]:
    block: list[tuple] = []
    for copy in range(copies):
        for document in range(sentences.store.num_documents):
            draws = Draws(f"plumbline pairs {VERSION}:{seed}:{copy}:{document}")
            for a, b, random in document_pairs(sentences, document, length - SPECIAL_TOKENS, short_rate, draws):
                block.append((a[0], b[0], a[1] - a[0], b[1] - b[0], random))
            if len(block) >= BLOCK:
                yield np.array(block, PAIR).tobytes()
                block = []
    yield np.array(block, PAIR).tobytes()


class PairRows:
    """Pairs as rows of `length`, read at random: all of copy 0, then all of copy 1, and so on."""

    def __init__(self, store: Store, length: int, index: np.ndarray):
        """`index`: PAIR [pairs], of `pair_index`."""
        self.store, self.length, self.index = store, length, index
        self.fingerprint = store.fingerprint
        self.cls, self.sep = store.tokenizer.cls, store.tokenizer.sep
        self._arange = np.arange(length, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, indices: Sequence[int] | np.ndarray, count: int | None = None) -> dict[str, np.ndarray]:
        """The rows `indices`, then padding up to `count` rows: int32 [count, length], `next_sentence` int32 [count].

        `token_types` is 0 up to the first [SEP] and 1 behind it, `segment_ids` 1; both are 0 in padding, as is
        all else. `next_sentence` is 0 where B follows A, 1 where it is random.
        """
        count = len(indices) if count is None else count
        keys = ("tokens", "token_types", "segment_ids", "positions")
        batch = {key: np.zeros((count, self.length), np.int32) for key in keys}
        batch["next_sentence"] = np.zeros(count, np.int32)
        for place, index in enumerate(indices):
            a, b, random = self._pair(int(index))
            middle, end = 2 + a[1] - a[0], 3 + a[1] - a[0] + b[1] - b[0]
            tokens = batch["tokens"][place]
            tokens[0], tokens[middle - 1], tokens[end - 1] = self.cls, self.sep, self.sep
            tokens[1 : middle - 1], tokens[middle : end - 1] = self.store.tokens(*a), self.store.tokens(*b)
            batch["token_types"][place, middle:end] = 1
            batch["segment_ids"][place, :end] = 1
            batch["positions"][place, :end] = self._arange[:end]
            batch["next_sentence"][place] = random
        return batch

    def marked(self, name: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """bool [rows, length]: the store's mark of each token; false in padding and for special tokens."""
        found = np.zeros((len(indices), self.length), bool)
        for place, index in enumerate(indices):
            a, b, _ = self._pair(int(index))
            middle = 2 + a[1] - a[0]
            found[place, 1 : middle - 1] = self.store.marked(name, *a)
            found[place, middle : middle + b[1] - b[0]] = self.store.marked(name, *b)
        return found

    def _pair(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        a, b, a_length, b_length, random = self.index[index].item()
        return (a, a + a_length), (b, b + b_length), bool(random)
