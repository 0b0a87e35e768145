"""Random numbers that are a pure function of a name: SplitMix64 (Steele, Lea and Flood 2014), counted from a key.

NumPy and Python promise no stream but that of raw bits from one version to the next; masks and pairs made of
these numbers are the same under every version.
"""

from __future__ import annotations

import hashlib

import numpy as np

from data.permutation import mix

INCREMENT = 0x9E3779B97F4A7C15
LAST = 2**64 - 1


def key(name: str) -> int:
    """A key of 64 bits."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def words(keys: np.ndarray, count: int) -> np.ndarray:
    """The first `count` words of each stream: uint64 [streams, count] of uint64 [streams]."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(INCREMENT)
    return mix(keys[:, None] + steps[None, :])


def shares(found: np.ndarray) -> np.ndarray:
    """Each word as a number of [0, 1): float64 of uint64."""
    return (found >> np.uint64(11)).astype(np.float64) / 2.0**53


def below(found: np.ndarray, bounds: np.ndarray | int) -> np.ndarray:
    """Each word as an integer of range(its bound), each as likely to one part in 2**32 / bound: int64 of uint64."""
    # 32 bits of the word times a bound below 2**32 stay in 64.
    return (((found >> np.uint64(32)) * np.asarray(bounds, np.uint64)) >> np.uint64(32)).astype(np.int64)


class Draws:
    """One stream, a word at a time: the same words, for code that cannot say how many it will take."""

    def __init__(self, name: str):
        self._state = key(name)

    def word(self) -> int:
        self._state = (self._state + INCREMENT) & LAST
        value = self._state
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & LAST
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & LAST
        return value ^ (value >> 31)

    def below(self, bound: int) -> int:
        """An integer of range(bound), each as likely to one part in 2**64 / bound."""
        return self.word() * bound >> 64

    def chance(self, share: float) -> bool:
        """True with the probability `share`."""
        return self.word() < share * 2.0**64
