"""Whose turn each row of a mixture is: closed forms equal to counting, shares that hold, orders that do not change."""

import time
from fractions import Fraction

import numpy as np
import pytest

from data.config import Data, check, missing_inputs
from data.loader import Fill, Loader
from data.mixture import CIRCLE, GOLDEN, Mixture, Supply, floor_sum
from data.mixture_config import Component, MixtureSource, Stage
from data.source_config import TextSource
from tests.data.test_loader import Numbered

MIXTURES = {
    "two": ([Supply(100), Supply(100)], [(0, [0.5, 0.5])]),
    "uneven": ([Supply(100), Supply(10), Supply(1)], [(0, [0.7, 0.299, 0.001])]),
    "one has weight 0": ([Supply(7), Supply(7), Supply(7)], [(0, [1.0, 0.0, 3.0])]),
    "stages": ([Supply(50), Supply(50)], [(0, [1.0, 0.0]), (300, [1.0, 1.0]), (301, [0.0, 1.0]), (900, [9.0, 1.0])]),
    "limits": ([Supply(100), Supply(50, 120), Supply(7, 14)], [(0, [0.7, 0.25, 0.05]), (1000, [0.1, 0.5, 0.4])]),
    "limits that end it": ([Supply(300, 300), Supply(90, 450)], [(0, [0.2, 0.8])]),
}
ROWS = 1500


def made(name, seed=0) -> Mixture:
    return Mixture(*MIXTURES[name], seed)


def turns(mixture: Mixture, rows: int) -> np.ndarray:
    return mixture.sources(0, rows if mixture.num_rows is None else min(rows, mixture.num_rows))


def test_a_sum_of_floors_is_that_of_its_terms():
    draw = np.random.default_rng(0)
    for _ in range(300):
        count, modulus, factor, offset = (int(value) for value in draw.integers([0, 1, 0, 0], [40, 90, 200, 300]))
        assert floor_sum(count, modulus, factor, offset) == sum((factor * i + offset) // modulus for i in range(count))


def test_the_step_is_the_golden_ratio():
    """Its square is 1 - itself, to the last bit."""
    ratio = Fraction(GOLDEN, CIRCLE)
    assert abs(ratio * ratio + ratio - 1) < Fraction(4, CIRCLE)


@pytest.mark.parametrize("name", MIXTURES)
def test_counts_are_those_of_counting(name):
    mixture = made(name)
    found = turns(mixture, ROWS)
    counted = np.zeros((len(found) + 1, len(mixture.supplies)), int)
    np.add.at(counted, (np.arange(1, len(found) + 1), found), 1)
    counted = counted.cumsum(axis=0)
    for row in (*range(0, len(found), 13), len(found)):
        assert mixture.counts(row) == counted[row].tolist()
    for start, stop in ((0, 0), (5, 9), (290, 310), (len(found) - 7, len(found))):
        assert mixture.sources(start, stop).tolist() == found[start:stop].tolist()


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_stretch_holds_its_shares(name, seed):
    """Of 100 rows in a row none has more than three too many or too few, within one stretch of equal shares."""
    mixture = made(name, seed)
    stretches, end = mixture._laid_out
    stops = [*(stretch.first for stretch in stretches[1:]), ROWS if end is None else end]
    for stretch, stop in zip(stretches, stops, strict=True):
        shares = np.diff([0, *stretch.bounds]) / CIRCLE
        for start in range(stretch.first, stop - 100, 37):
            found = np.bincount(mixture.sources(start, start + 100), minlength=len(shares))
            assert np.abs(found - 100 * shares).max() <= 3


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_source_gets_its_share(seed):
    mixture = Mixture([Supply(10**6), Supply(10**6)], [(0, [1 - 5e-4, 5e-4])], seed)
    assert abs(mixture.counts(20_000)[1] - 10) <= 1
    assert abs(mixture.counts(10**15)[1] - 5 * 10**11) < 40


def test_no_source_is_read_more_often_than_it_may():
    mixture = made("limits")
    found = turns(mixture, 4000)
    assert np.bincount(found)[1:].tolist() == [120, 14]
    last = np.flatnonzero(found == 2)[-1]
    before, behind = found[:last], found[last + 1 :]
    assert abs((before == 1).mean() - 0.25) < 0.03
    # The others share what it leaves: 70 to 25.
    other = np.flatnonzero(found == 1)[-1]
    assert abs((behind[: other - last] == 1).mean() - 25 / 95) < 0.03


def test_a_mixture_ends_where_all_are_read_as_often_as_they_may():
    mixture = made("limits that end it")
    assert mixture.num_rows == 750
    assert np.bincount(mixture.sources(0, 750)).tolist() == [300, 450]
    with pytest.raises(IndexError):
        mixture.sources(700, 751)
    assert made("limits").num_rows is None


def test_any_row_is_found_at_once():
    mixture = made("limits")
    mixture.counts(0)
    started = time.perf_counter()
    for row in range(10**15, 10**15 + 20):
        mixture.counts(row)
        mixture.sources(row, row + 8)
    assert time.perf_counter() - started < 1


class Named(Numbered):
    """Rows that hold their source's number, too."""

    def __init__(self, size, source):
        super().__init__(size, fingerprint=str(source))
        self.source = source

    def rows(self, indices, count=None, epochs=None):
        found = super().rows(indices, count)
        source = np.where(found["row"] < 0, -1, self.source)
        epoch = np.full_like(source, -1)
        epoch[: len(indices)] = epochs
        return found | {"source": source, "epoch": epoch}


def loader(weights=(0.6, 0.3, 0.1), batch_size=8, fill=None, limits=(None, None, None)) -> Loader:
    sources = {"a": Named(40, 0), "b": Named(30, 1), "c": Named(5, 2)}
    supplies = [Supply(len(rows), limit) for rows, limit in zip(sources.values(), limits, strict=True)]
    return Loader(sources, batch_size, 3, True, fill, Mixture(supplies, [(0, weights)], 3))


def sequence(mixed: Loader, source: int, steps: int) -> list[int]:
    batches = [mixed.batch(step) for step in range(steps)]
    return [int(row) for batch in batches for row in batch["row"][batch["source"] == source]]


def test_each_source_comes_in_its_own_order_whatever_the_weights():
    alone = Loader({"b": Named(30, 1)}, 8, 3, True)
    expected = np.concatenate([alone.batch(step)["row"] for step in range(60)]).tolist()
    for weights in ((0.6, 0.3, 0.1), (0.1, 0.8, 0.1), (1.0, 1.0, 0.0)):
        found = sequence(loader(weights), 1, 60)
        assert len(found) > 90 and found == expected[: len(found)]


def test_a_mixed_batch_is_the_same_for_any_number_of_processes():
    for step in (0, 3, 17, 10**9):
        whole = loader().batch(step)
        for processes in (2, 4, 8):
            share = 8 // processes
            parts = [loader().batch(step, share * i, share * (i + 1)) for i in range(processes)]
            for key, value in whole.items():
                assert np.concatenate([part[key] for part in parts]).tolist() == value.tolist()


def test_a_mixed_batch_is_the_rows_of_its_stream():
    mixed = loader()
    for step in (0, 5, 30):
        batch = mixed.batch(step)
        for place in range(8):
            name, epoch, row = mixed.place(step * 8 + place)
            assert ("abc"[batch["source"][place]], batch["epoch"][place], batch["row"][place]) == (name, epoch, row)


def test_padding_of_a_ramp_stands_where_it_does_without_a_mixture():
    def fill(step):
        return Fill(step * 4, 1, 2)

    batch = loader(fill=fill).batch(3)
    assert not any(value[1::2].any() for value in batch.values())
    rows = np.concatenate([loader(fill=fill).batch(step)["row"][::2] for step in range(10)])
    assert rows.tolist() == np.concatenate([loader().batch(step)["row"] for step in range(5)]).tolist()
    assert loader(fill=fill).batch(3, 1, 2)["row"].tolist() == [-1]


def test_what_a_run_has_taken_of_each_source():
    mixed = loader()
    taken = mixed.consumed(50)
    assert sum(taken.values()) == 400
    assert taken == {name: len(sequence(mixed, source, 50)) for source, name in enumerate("abc")}
    assert Loader({"a": Named(40, 0)}, 8, 3, True).consumed(50) == {"a": 400}


def component(name="a", **fields) -> Component:
    return Component(name, TextSource(paths=("a.txt",)), **fields)


REFUSED = {
    "no name": ((component(""),), (), "source.components.0.name"),
    "a name twice": ((component(), component()), (), "source.components.1.name"),
    "the name of all": ((component("validation"),), (), "source.components.0.name"),
    "a name with a slash": ((component("a/b"),), (), "source.components.0.name"),
    "a negative weight": ((component(weight=-1.0),), (), "source.components.0.weight"),
    "no weight at all": ((component(weight=0.0), component("b", weight=0.0)), (), "source.components"),
    "no epochs": ((component(max_epochs=0.0),), (), "source.components.0.max_epochs"),
    "too few weights": ((component(), component("b")), (Stage(5, (1.0,)),), "source.stages.0.weights"),
    "weights of 0": ((component(), component("b")), (Stage(5, (0.0, 0.0)),), "source.stages.0.weights"),
    "a weight below 0": ((component(), component("b")), (Stage(5, (2.0, -1.0)),), "source.stages.0.weights"),
    "a stage at the start": ((component(),), (Stage(0, (1.0,)),), "source.stages.0.start"),
    "stages out of order": ((component(),), (Stage(9, (1.0,)), Stage("8 steps", (1.0,))), "source.stages.1.start"),
    "what a component's source refuses": (
        (Component("a", TextSource(paths=("a.txt",), document="page")),),
        (),
        "source.components.0.source.document",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_mixed_is_refused(case):
    components, stages, key = REFUSED[case]
    problems = dict(check(Data(source=MixtureSource(components=components, stages=stages))))
    assert key in problems and problems[key]


def test_what_is_missing_is_named():
    assert dict(missing_inputs(Data(source=MixtureSource()))).keys() == {"source.components"}
    nothing = MixtureSource(components=(component(), Component("b", TextSource())))
    assert dict(missing_inputs(Data(source=nothing))).keys() == {"source.components.1.source.paths"}
    assert not check(Data(source=MixtureSource(components=(component(), component("b")))))
