"""The stream as a whole: a batch is the same whoever makes it, however far ahead, and after any stop."""

import hashlib

import numpy as np
import pytest

from data.config import Data
from data.loader import Loader, Prefetcher
from data.mixture import Mixture, Supply
from data.objectives import objective_rows
from data.packing import PACKINGS

BATCH = 8
SHARES = {"a": (["a text of its own " * (1 + number % 5) for number in range(30)], 0.7), "b": (["other"] * 20, 0.3)}
STREAMS = [*PACKINGS, "mixture"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    from data import store
    from data.tokenizer import byte_tokenizer

    made = {}
    for name, (texts, _) in SHARES.items():
        directory = tmp_path_factory.mktemp("stream") / name
        store.write(directory, texts, byte_tokenizer(), about={})
        made[name] = store.Store(directory)
    return made


def loader(stores, stream: str) -> Loader:
    """A new one each time: as another process, or another launch, has it."""
    packing = "best_fit" if stream == "mixture" else stream
    config = Data(length=24, packing=packing)
    names = list(SHARES) if stream == "mixture" else ["a"]
    sources = {name: objective_rows(config, stores[name], seed=5) for name in names}
    supplies = [Supply(len(rows)) for rows in sources.values()]
    shares = [share for _, share in SHARES.values()]
    mixture = Mixture(supplies, [(0, shares)], 5) if stream == "mixture" else None
    return Loader(sources, BATCH, 5, True, mixture=mixture)


def digest(batch) -> str:
    found = hashlib.sha256()
    for key in sorted(batch):
        found.update(key.encode() + np.ascontiguousarray(batch[key]).tobytes())
    return found.hexdigest()


def steps(made: Loader) -> list[int]:
    """Around the first two ends of an epoch, the beginning, and one far away."""
    rows = sum(map(len, made.sources.values()))
    ends = [epoch * rows // BATCH + shift for epoch in (1, 2) for shift in (-1, 0, 1)]
    return [0, 1, *ends, 10**6]


@pytest.mark.parametrize("stream", STREAMS)
def test_any_number_of_processes_makes_the_same_batch(stores, stream):
    for step in steps(loader(stores, stream)):
        whole = digest(loader(stores, stream).batch(step))
        for processes in (1, 2, 4):
            share = BATCH // processes
            parts = [loader(stores, stream).batch(step, share * i, share * (i + 1)) for i in range(processes)]
            assert digest({key: np.concatenate([part[key] for part in parts]) for key in parts[0]}) == whole


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("depth", [0, 1, 2, 7])
def test_neither_a_stop_nor_prefetching_changes_a_batch(stores, stream, depth):
    last = max(step for step in steps(loader(stores, stream)) if step < 10**6) + 2
    expected = [digest(loader(stores, stream).batch(step)) for step in range(last)]
    assert len(set(expected)) == last
    for first in (0, *(step for step in steps(loader(stores, stream)) if step < last)):
        with Prefetcher(loader(stores, stream).batch, first, last, depth, timeout=60) as batches:
            assert [digest(batches.get(step)) for step in range(first, last)] == expected[first:]
