"""A pseudo-random permutation of range(n) with random access: no table, no state, any n below 2**62.

A Feistel network over Z_a x Z_b (Black and Rogaway 2002) with a * b just above n, walked along its cycles
until the value falls below n. Affine maps correlate neighbouring batches, and grain's index shuffle repeats
rows in silence above 2**32 of them; this does neither, and shuffles a batch in a few array operations.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

NUM_ROUNDS = 8  # Patarin 2004: from 5 on, a large network is not told from random; small ones want more


def permute(indices: np.ndarray, size: int, key: bytes) -> np.ndarray:
    """Where the permutation of range(size) that `key` names sends `indices`, integers [k]; int64 [k]."""
    width = np.uint64(math.isqrt(size))
    height = np.uint64(-(-size // math.isqrt(size)))
    keys = np.frombuffer(hashlib.sha512(key).digest(), dtype="<u8")[:NUM_ROUNDS]
    values = np.array(indices, dtype=np.uint64)
    outside = np.arange(values.size)
    while outside.size:
        values[outside] = _feistel(values[outside], keys, width, height)
        outside = outside[values[outside] >= np.uint64(size)]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, width: np.uint64, height: np.uint64) -> np.ndarray:
    """A permutation of range(width * height): each round adds to one digit a function of the other."""
    high, low = values // width, values % width
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
        high = (high + _mix(low ^ even)) % height
        low = (low + _mix(high ^ odd)) % width
    return high * width + low


def _mix(values: np.ndarray) -> np.ndarray:
    """62 bits of each, lest a sum with a digit wrap."""
    return mix(values) >> np.uint64(2)


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014), uint64 of uint64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
