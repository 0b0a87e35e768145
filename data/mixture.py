"""Which source each row of a mixed stream is from: closed forms in exact integers, no state and no table of rows.

Row i of the stream is put at the point frac(i * A + offset) of the unit circle, where A is the golden ratio: such
points fall into any arc in proportion to its length, and evenly (Weyl 1916). Each source has an arc as long as its
share. How many of the rows before i are a source's is a sum of floors, which Euclid's algorithm takes in as many
steps as a number has bits; so any process finds the rows of any step at once. A source's own rows come in its own
order, which neither the weights nor the other sources can change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from data import draws
from data.mixture_config import MixtureSource

CIRCLE = 1 << 63
GOLDEN = 0x4F1BBCDCBFA53E0B  # CIRCLE over the golden ratio, odd


@dataclass(frozen=True)
class Supply:
    """A source's rows: how many an epoch has, and how many of them, counted over epochs, may be read at the most."""

    rows: int
    limit: int | None = None


def supplies_of(source: MixtureSource, rows: Iterable[Sized]) -> list[Supply]:
    """What the components of `source` may give, of which `rows` are an epoch."""
    limits = [None if part.max_epochs is None else Fraction(part.max_epochs) for part in source.components]
    sizes = map(len, rows)
    return [
        Supply(size, None if limit is None else math.floor(limit * size))
        for size, limit in zip(sizes, limits, strict=True)
    ]


@dataclass(frozen=True)
class Stretch:
    """Rows of the stream, up to the next stretch, under the same shares."""

    first: int
    bounds: tuple[int, ...]  # where each source's arc ends; the last one at CIRCLE
    taken: tuple[int, ...]  # rows of each source before `first`


def floor_sum(count: int, modulus: int, factor: int, offset: int) -> int:
    """The sum of floor((factor * i + offset) / modulus) over i of range(count), all of them not negative."""
    total = 0
    while count:
        total += (count - 1) * count // 2 * (factor // modulus) + count * (offset // modulus)
        factor, offset = factor % modulus, offset % modulus
        top = factor * count + offset
        # The points below the line, counted by columns, are those left of it, counted by rows.
        count, offset, modulus, factor = top // modulus, top % modulus, factor, modulus
    return total


class Mixture:
    """The sources of the rows of a stream."""

    def __init__(self, supplies: Sequence[Supply], stages: Sequence[tuple[int, Sequence[float]]], seed: int):
        """`stages`: (first row, weight of each source), by row, the first one at 0."""
        self.supplies, self.stages = tuple(supplies), tuple(stages)
        self.offset = draws.key(f"plumbline mixture 1:{seed}") % CIRCLE

    @cached_property
    def _laid_out(self) -> tuple[tuple[Stretch, ...], int | None]:
        """(every stretch, the number of rows): shares change at a stage and where a source has reached its limit."""
        stretches: list[Stretch] = []
        first, taken = 0, [0] * len(self.supplies)
        for place, (_, weights) in enumerate(self.stages):
            end = self.stages[place + 1][0] if place + 1 < len(self.stages) else None
            while end is None or first < end:
                left = [
                    None if supply.limit is None else supply.limit - have
                    for supply, have in zip(self.supplies, taken, strict=True)
                ]
                bounds = _bounds([0 if rest == 0 else weight for weight, rest in zip(weights, left, strict=True)])
                if bounds is None:
                    return tuple(stretches), first
                stretches.append(Stretch(first, bounds, tuple(taken)))
                stop = self._exhausted(first, bounds, left, end)
                if stop is None:
                    break
                taken = [have + more for have, more in zip(taken, self._between(bounds, first, stop), strict=True)]
                first = stop
        return tuple(stretches), None

    @property
    def num_rows(self) -> int | None:
        """How many rows there are until all sources of a stage have reached their limits; None: no end."""
        return self._laid_out[1]

    def counts(self, row: int) -> list[int]:
        """How many of the rows before `row` are each source's."""
        stretch = self._stretch(row)
        more = self._between(stretch.bounds, stretch.first, row)
        return [have + count for have, count in zip(stretch.taken, more, strict=True)]

    def sources(self, start: int, stop: int) -> np.ndarray:
        """The source of each of the rows start..stop, int64 [stop - start]."""
        if self.num_rows is not None and stop > self.num_rows:
            raise IndexError(f"row {stop - 1} of a mixture of {self.num_rows}")
        parts = [np.empty(0, np.int64)]
        while start < stop:
            place = self._place(start)
            stretches = self._laid_out[0]
            end = min(stop, stretches[place + 1].first) if place + 1 < len(stretches) else stop
            # Sums and products wrap at 2**64, a multiple of CIRCLE.
            steps = np.arange(end - start, dtype=np.uint64) * np.uint64(GOLDEN)
            points = (steps + np.uint64((start * GOLDEN + self.offset) % CIRCLE)) & np.uint64(CIRCLE - 1)
            edges = np.array(stretches[place].bounds[:-1], np.uint64)
            parts.append(np.searchsorted(edges, points, side="right"))
            start = end
        return np.concatenate(parts)

    def _place(self, row: int) -> int:
        stretches = self._laid_out[0]
        return max(place for place, stretch in enumerate(stretches) if stretch.first <= row)

    def _stretch(self, row: int) -> Stretch:
        return self._laid_out[0][self._place(row)]

    def _below(self, bound: int, rows: int) -> int:
        """How many of the first `rows` rows have their point below `bound`."""
        reached = floor_sum(rows, CIRCLE, GOLDEN, self.offset)
        return reached - floor_sum(rows, CIRCLE, GOLDEN, self.offset + CIRCLE - bound) + rows

    def _between(self, bounds: tuple[int, ...], start: int, stop: int) -> list[int]:
        """How many of the rows start..stop are each source's, its arcs being those up to `bounds`."""
        below = [self._below(bound, stop) - self._below(bound, start) for bound in (0, *bounds)]
        return [high - low for low, high in zip(below[:-1], below[1:], strict=True)]

    def _exhausted(self, first: int, bounds: tuple[int, ...], left: list[int | None], end: int | None) -> int | None:
        """The row behind that with which a source first reaches its limit, or the end of the stage; None: never."""
        stops = [end] if end is not None else []
        for source, (rest, low, high) in enumerate(zip(left, (0, *bounds), bounds, strict=False)):
            if rest and high > low:
                reach = rest * CIRCLE // (high - low)
                lowest, highest = first, first + 2 * reach + 64
                while self._between(bounds, first, highest)[source] < rest:
                    highest += reach + 64
                while lowest < highest:  # the fewest rows that hold all that is left
                    middle = (lowest + highest) // 2
                    if self._between(bounds, first, middle)[source] < rest:
                        lowest = middle + 1
                    else:
                        highest = middle
                stops.append(lowest)
        return min(stops, default=None)


def _bounds(weights: Sequence[float]) -> tuple[int, ...] | None:
    """Where the arc of each weight ends; None where all weights are 0."""
    exact = [Fraction(weight) for weight in weights]
    total, reached, bounds = sum(exact), Fraction(0), []
    if not total:
        return None
    for weight in exact:
        reached += weight
        bounds.append(round(reached * CIRCLE / total))
    return tuple(bounds)
