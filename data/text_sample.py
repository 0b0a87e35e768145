"""A sample of documents that does not depend on their order, in bounded memory."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable


def sample(documents: Iterable[str], size: int | None) -> Iterable[str]:
    """The documents whose hashes are smallest, by hash, until they hold `size` bytes of UTF-8; None: all, as they come.

    The last one is not cut, so a sample holds at least `size` bytes where there are as many. Every document is as
    likely as any other, and the sample is the same whatever their order. Memory holds it and one document more.
    """
    return documents if size is None else _smallest(documents, size)


def _smallest(documents: Iterable[str], size: int) -> list[str]:
    kept: list[tuple[int, int, int, str]] = []  # (minus the hash, minus the index, bytes, text), the largest hash first
    held = 0
    for index, text in enumerate(documents):
        encoded = text.encode()
        digest = int.from_bytes(hashlib.blake2b(encoded, digest_size=8, person=b"tokenizer").digest(), "big")
        if held >= size and -digest <= kept[0][0]:
            continue
        heapq.heappush(kept, (-digest, -index, len(encoded), text))
        held += len(encoded)
        while held - kept[0][2] >= size:
            held -= heapq.heappop(kept)[2]
    return [text for _, _, _, text in sorted(kept, reverse=True)]
