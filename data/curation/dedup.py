"""Duplicates, exact and near: what is written of each document, which ones fall, and the stage that drops them.

Documents are counted through all tasks in their order, task by task; of documents that are the same the first stays.
Signatures and their buckets are datatrove's. Its clustering is not used, since which document stays there depends on
the order in which pairs are found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupSignature,
    _mersenne_prime,
)

from data.curation import config as asked
from data.curation.folders import put, task_name
from data.curation.stages import Stage
from data.curation.words import Words, normalized
from data.errors import DataError

DIGEST = 16  # bytes: two of 10^12 different documents meet once in 10^14 times
ROWS = 1 << 12  # n-grams whose hashes are made at a time
PAIR = np.dtype([("task", "<u4"), ("document", "<u4"), ("later_task", "<u4"), ("later_document", "<u4")])
FALLEN = np.dtype([("document", "<u4"), ("kept_task", "<u4"), ("kept_document", "<u4")])


class Digests(PipelineStep):
    """Writes the digest of each document that passes."""

    type, name = "exact_dedup", "digests"

    def __init__(self, folder: str, normalize: bool):
        super().__init__()
        self.folder, self.normalize = folder, normalize

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        digests = bytearray()
        for document in data:
            digests += digest(document.text, self.normalize)
            yield document
        put(Path(self.folder) / f"{task_name(rank)}.bin", bytes(digests))


def digest(text: str, normalize: bool) -> bytes:
    """What is equal for texts that are the same; `normalize`: but for case, white space and Unicode's spelling."""
    same = " ".join(normalized(text).split()) if normalize else text
    return hashlib.sha256(same.encode()).digest()[:DIGEST]


class FindExact(PipelineStep):
    """Which documents are copies of one before them, from the digests of all tasks. Runs as one task."""

    type, name = "exact_dedup", "find"

    def __init__(self, digests: str, tasks: int, folder: str):
        super().__init__()
        self.digests, self.tasks, self.folder = digests, tasks, folder

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        paths = [Path(self.digests) / f"{task_name(task)}.bin" for task in range(self.tasks)]
        contents = [path.read_bytes() for path in paths]
        starts = np.cumsum([0] + [len(content) // DIGEST for content in contents])
        halves = np.frombuffer(b"".join(contents), "<u8").reshape(-1, 2)
        first = first_of_equal(halves)
        write_fallen(Path(self.folder), starts, np.arange(len(halves)), first)


def first_of_equal(rows: np.ndarray) -> np.ndarray:
    """For each row of [rows, columns] the number of the first row that equals it: [rows] int64."""
    order = np.lexsort(rows.T)  # stable: equal rows stay in their order
    if not len(order):
        return order
    ordered = rows[order]
    new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(1)])
    first = np.empty_like(order)
    first[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return first


def write_fallen(folder: Path, starts: np.ndarray, documents: np.ndarray, kept: np.ndarray):
    """Writes for each task which of its documents fall, and for the sake of which.

    Args:
      starts: number of each task's first document, then of all documents: [tasks + 1].
      documents, kept: numbers of documents, and of the ones that stay for them; equal where a document stays.
    """
    falls = documents != kept
    documents, kept = documents[falls], kept[falls]
    order = np.argsort(documents)
    documents, kept = documents[order], kept[order]
    tasks = np.searchsorted(starts, documents, "right") - 1
    kept_tasks = np.searchsorted(starts, kept, "right") - 1
    for task in range(len(starts) - 1):
        mine = tasks == task
        fallen = np.empty(mine.sum(), FALLEN)
        fallen["document"] = documents[mine] - starts[task]
        fallen["kept_task"] = kept_tasks[mine]
        fallen["kept_document"] = kept[mine] - starts[kept_tasks[mine]]
        put(folder / f"{task_name(task)}.fallen", fallen.tobytes())


class DropStage(Stage):
    """Drops the documents of this task that a step before has found."""

    name = "duplicates"

    def __init__(self, tally: str, samples: int, folder: str, reason: str):
        super().__init__(tally, samples)
        self.folder, self.reason = folder, reason

    def begin(self, rank):
        self.path = Path(self.folder) / f"{task_name(rank)}.fallen"
        self.fallen = np.frombuffer(self.path.read_bytes(), FALLEN)
        self.index = self.place = 0

    def run(self, data, rank=0, world_size=1):
        yield from super().run(data, rank, world_size)
        if self.place != len(self.fallen):
            raise DataError(f"{self.path} names documents that are not there. Remove the folder of `output`.")

    def judge(self, document):
        index, self.index = self.index, self.index + 1
        if self.place == len(self.fallen) or self.fallen["document"][self.place] != index:
            return None
        _, task, kept = self.fallen[self.place].tolist()
        self.place += 1
        return self.reason, f"document {kept} of task {task} stays"


def minhash_config(stage: asked.MinHash) -> MinhashConfig:
    return MinhashConfig(
        n_grams=stage.n_grams, num_buckets=stage.buckets, hashes_per_bucket=stage.hashes, seed=stage.seed
    )


class Signatures(MinhashDedupSignature):
    """datatrove's, in memory that does not grow with a document, and with words of any script."""

    def __init__(self, folder: str, stage: asked.MinHash):
        super().__init__(folder, minhash_config(stage), language=Words())

    def get_signature(self, shingles):
        a, b = self.parameters
        least = np.full(self.num_hashes, _mersenne_prime)
        for start in range(0, len(shingles), ROWS):
            hashes = (shingles[start : start + ROWS] * a + b) % _mersenne_prime
            np.minimum(least, hashes.min(0), out=least)
        return [bucket.tolist() for bucket in np.split(least, self.config.num_buckets)]


def buckets(signatures: str, folder: str, stage: asked.MinHash) -> MinhashDedupBuckets:
    """The block that finds pairs; one task a bucket."""
    return MinhashDedupBuckets(signatures, folder, config=minhash_config(stage), lines_to_buffer=1000)


class FindNear(PipelineStep):
    """Which documents are joined by pairs to one before them, from the pairs of all buckets. Runs as one task."""

    type, name = "minhash", "find"

    def __init__(self, pairs: str, buckets: int, counts: list[str], folder: str):
        """`counts`: for each task the note that says how many documents it has."""
        super().__init__()
        self.pairs, self.buckets, self.counts, self.folder = pairs, buckets, counts, folder

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        counts = [json.loads(Path(note).read_bytes())["documents"] for note in self.counts]
        starts = np.cumsum([0, *counts])
        files = sorted(Path(self.pairs).glob("*.dups"))
        if len(files) != self.buckets:
            raise DataError(f"{self.pairs} holds {len(files)} files of pairs, not {self.buckets}, one a bucket.")
        roots: dict[int, int] = {}
        for file in files:
            found = np.frombuffer(file.read_bytes(), PAIR)
            earlier = starts[found["task"]] + found["document"]
            later = starts[found["later_task"]] + found["later_document"]
            for one, other in zip(earlier.tolist(), later.tolist(), strict=True):
                join(roots, one, other)
        documents = np.array(sorted(roots), np.int64)
        kept = np.array([root(roots, document) for document in documents.tolist()], np.int64)
        write_fallen(Path(self.folder), starts, documents, kept)


def root(roots: dict[int, int], node: int) -> int:
    """The first document of those that `node` is joined to."""
    while (above := roots.setdefault(node, node)) != node:
        roots[node] = roots.setdefault(above, above)  # halves the path for the next one
        node = above
    return node


def join(roots: dict[int, int], one: int, other: int):
    first, second = sorted((root(roots, one), root(roots, other)))
    roots[second] = first
