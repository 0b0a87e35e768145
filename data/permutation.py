"""A pseudo-random permutation of range(n) with random access: no table, no state, any n below 2**62.

A Feistel network (Luby and Rackoff 1988) on the smallest even number of bits that holds n, walked along its cycles
until the value falls below n (Black and Rogaway 2002). Affine maps correlate neighbouring batches, and
grain's index shuffle repeats rows in silence above 2**32 of them; this does neither, and shuffles a batch at once.
"""

from __future__ import annotations

import hashlib

import numpy as np

NUM_ROUNDS = 6


def permute(indices: np.ndarray, size: int, key: bytes) -> np.ndarray:
    """Where the permutation of range(size) named by `key` sends `indices`, integers [k] below `size`; int64 [k]."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.frombuffer(hashlib.sha512(key).digest(), dtype="<u8")[:NUM_ROUNDS]
    values = np.asarray(indices, dtype=np.uint64).copy()
    outside = np.arange(values.size)
    while outside.size:
        values[outside] = _feistel(values[outside], keys, half, mask)
        outside = outside[values[outside] >= np.uint64(size)]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half: np.uint64, mask: np.uint64) -> np.ndarray:
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014); uint64 arrays wrap by definition."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
