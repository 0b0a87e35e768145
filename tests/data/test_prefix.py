"""A prefix of each segment sees itself, what it does not hold is predicted, and no target can be seen."""

import numpy as np
import pytest

from data.config import Data
from data.objective_config import PrefixObjective
from data.objectives import objective_rows
from data.packing import make_rows

LENGTH = 32


@pytest.fixture
def opened(make_store):
    generator = np.random.default_rng(0)
    return make_store(["".join(generator.choice(list("abcdefgh"), generator.integers(1, 60))) for _ in range(50)])


def rows_of(opened, packing="concat", seed=0):
    return objective_rows(Data(objective=PrefixObjective(), length=LENGTH, packing=packing), opened, seed)


def segments(batch):
    """(row, slice) of each segment of a batch."""
    for row, ids in enumerate(batch["segment_ids"]):
        for number in range(1, ids.max() + 1):
            places = np.flatnonzero(ids == number)
            yield row, slice(places[0], places[-1] + 1)


@pytest.mark.parametrize("packing", ["concat", "unpacked", "best_fit"])
def test_what_the_prefix_does_not_hold_is_predicted(opened, packing):
    rows = rows_of(opened, packing)
    batch, clean = rows.rows(range(len(rows))), make_rows(opened, LENGTH, packing).rows(range(len(rows)))
    assert all((batch[key] == clean[key]).all() for key in ("tokens", "targets", "segment_ids", "positions"))
    for row, place in segments(batch):
        order, positions = batch["order"][row, place], batch["positions"][row, place]
        size, prefix = order.size, order[0] + 1
        assert 1 <= prefix <= size
        assert order.tolist() == np.maximum(positions, prefix - 1).tolist()
        assert batch["weights"][row, place].tolist() == [0.0] * (prefix - 1) + [1.0] * (size - prefix + 1)
    padding = batch["segment_ids"] == 0
    assert not any(batch[key][padding].any() for key in batch)


def test_no_token_with_weight_sees_its_target(opened):
    """By the definition of visibility: the key at i + 1 is hidden from the query at i, where i is predicted."""
    batch = rows_of(opened).rows(range(20))
    same = batch["segment_ids"][:, :-1] == batch["segment_ids"][:, 1:]
    seen = same & (batch["order"][:, 1:] <= batch["order"][:, :-1])
    assert seen.any() and not (seen & (batch["weights"][:, :-1] > 0)).any()
    assert (seen == (same & (batch["weights"][:, :-1] == 0))).all()  # what is seen is all that is not predicted


def test_prefixes_are_of_all_lengths_alike(make_store):
    """Of segments of 8 tokens: 1 to 8, by 5 standard deviations."""
    opened = make_store(["1234567"] * 40)
    rows = rows_of(opened)
    found = [rows.rows(range(10), epochs=np.full(10, epoch))["order"] for epoch in range(100)]
    counts = np.bincount(np.concatenate([order[:, ::8].ravel() for order in found]), minlength=8)
    assert counts.sum() == 4000 and counts.size == 8 and abs(counts - 500).max() < 5 * np.sqrt(500 * 7 / 8)
