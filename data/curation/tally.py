"""What a stage did to the documents: how many, how many bytes, why, and a few of them to look at.

A task counts its own documents into one file; the report adds the files up. Which documents are quoted follows from a
hash of their names, so that it depends on no order.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from data.curation.folders import put
from data.errors import DataError
from data.files import canonical_json

EXCERPT = 240  # characters of a text that are quoted


class Sample(NamedTuple):
    rank: str  # decides which samples are kept: the smallest
    document: str  # its id
    text: str
    note: str


class Tally:
    """Documents and UTF-8 bytes in and out; per reason how many fell; per kind how many places were changed."""

    def __init__(self, samples: int):
        self.most = samples
        self.totals = Counter()  # documents_in, bytes_in, documents_out, bytes_out, documents_changed
        self.dropped = Counter()
        self.changes = Counter()
        self.samples: dict[str, list[Sample]] = {}

    def enters(self, text: str):
        self.totals["documents_in"] += 1
        self.totals["bytes_in"] += len(text.encode())

    def leaves(self, text: str, changed: bool = False):
        self.totals["documents_out"] += 1
        self.totals["bytes_out"] += len(text.encode())
        self.totals["documents_changed"] += changed

    def drops(self, document: str, text: str, reason: str, note: str = ""):
        self.dropped[reason] += 1
        self.quote(reason, document, text, note)

    def changes_in(self, document: str, kind: str, excerpts: list[str]):
        """`kind` was found at the places of a document that the excerpts show."""
        self.changes[kind] += len(excerpts)
        for excerpt in excerpts:
            self.quote(kind, document, excerpt)

    def quote(self, label: str, document: str, text: str, note: str = ""):
        if not self.most:
            return
        rank = hashlib.sha256(f"{document}\n{text[:EXCERPT]}".encode()).hexdigest()[:16]
        kept = self.samples.setdefault(label, [])
        if len(kept) == self.most and rank >= kept[-1].rank:
            return
        excerpt = text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"
        kept.append(Sample(rank, document, excerpt, note))
        kept.sort()
        del kept[self.most :]

    def add(self, other: Tally):
        self.totals.update(other.totals)
        self.dropped.update(other.dropped)
        self.changes.update(other.changes)
        for label, samples in other.samples.items():
            merged = sorted([*self.samples.get(label, []), *samples])
            self.samples[label] = merged[: self.most]

    def plain(self) -> dict:
        """JSON-able, in an order of its own."""
        return {
            "totals": dict(sorted(self.totals.items())),
            "dropped": dict(sorted(self.dropped.items())),
            "changes": dict(sorted(self.changes.items())),
            "samples": {label: [list(sample) for sample in self.samples[label]] for label in sorted(self.samples)},
        }

    def write(self, path: Path):
        put(path, canonical_json({"most": self.most, **self.plain()}))


def read(path: Path) -> Tally:
    """The tally of one task. Raises DataError when it is not there whole."""
    try:
        found = json.loads(path.read_bytes())
        tally = Tally(found["most"])
        tally.totals.update(found["totals"])
        tally.dropped.update(found["dropped"])
        tally.changes.update(found["changes"])
        tally.samples = {label: [Sample(*item) for item in items] for label, items in found["samples"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} does not hold the counts of a finished task: {error}. Remove the folder of `output` and curate "
            "again."
        ) from error
    return tally


def total(tallies: Iterable[Tally], samples: int) -> Tally:
    result = Tally(samples)
    for tally in tallies:
        result.add(tally)
    return result
