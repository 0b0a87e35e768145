"""The stream of rows is a function of (store, seed, step), whoever computes it and whenever."""

import threading
import time

import numpy as np
import pytest

from data.errors import ConfigError, DataError, HungError
from data.loader import DATA_ORDER_VERSION, Loader, Prefetcher, evaluation_batches
from data.packing import make_rows
from data.permutation import permute


class Numbered:
    """As many rows as wanted, each of which holds its own number."""

    def __init__(self, size: int, fingerprint: str = "f"):
        self.size, self.fingerprint = size, fingerprint

    def __len__(self):
        return self.size

    def rows(self, indices, count=None, epochs=None):
        values = np.full(len(indices) if count is None else count, -1, np.int64)
        values[: len(indices)] = list(indices)
        return {"row": values}


def stream(loader: Loader, count: int) -> list[int]:
    return [loader.place(index).row for index in range(count)]


@pytest.mark.parametrize("size", [*range(1, 40), 255, 256, 257, 1000])
def test_a_permutation_of_every_size(size):
    assert sorted(permute(np.arange(size), size, b"key").tolist()) == list(range(size))


@pytest.mark.parametrize("size", [2**31, 2**32 + 1, 10**12, 2**61])
def test_large_sizes_neither_overflow_nor_repeat(size):
    ends = np.concatenate([np.arange(20_000), np.arange(size - 20_000, size)])
    found = permute(ends, size, b"key")
    assert len(set(found.tolist())) == ends.size
    assert found.min() >= 0 and found.max() < size
    assert abs(found.mean() / size - 0.5) < 0.01


def test_permutations_are_uniform_and_neighbours_unrelated():
    """Chi-squared of where indices go over 4000 keys; and differences of neighbours, which affine maps repeat."""
    size, keys = 10, 4000
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), permute(np.arange(size), size, str(key).encode())] += 1
    expected = keys / size
    assert ((counts - expected) ** 2 / expected).sum() < 81 + 5 * np.sqrt(2 * 81)
    many = permute(np.arange(50_000), 50_000, b"key")
    differences = len(set((np.diff(many) % 50_000).tolist()))
    assert abs(differences / 50_000 - (1 - np.exp(-1))) < 0.01
    assert abs(np.corrcoef(many[:-1], many[1:])[0, 1]) < 0.02


def test_order_is_the_golden_one(golden):
    """The first 32 rows of two epochs of 1000. Whoever changes them raises DATA_ORDER_VERSION."""
    loader = Loader({"text": Numbered(1000)}, 8, seed=0, shuffle=True)
    lines = [f"version {DATA_ORDER_VERSION}"]
    for epoch in range(2):
        rows = [loader.place(epoch * 1000 + place)[1:] for place in range(32)]
        assert {epoch} == {found for found, _ in rows}
        lines.append(f"epoch {epoch}: {' '.join(str(row) for _, row in rows)}")
    golden("data_order.txt", "\n".join(lines) + "\n")


def test_every_epoch_holds_every_row_once_in_a_new_order():
    loader = Loader({"text": Numbered(37)}, 5, seed=1, shuffle=True)
    epochs = [tuple(stream(loader, 37 * 4)[37 * epoch : 37 * (epoch + 1)]) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert len(set(epochs)) == 4


def test_order_follows_seed_and_store():
    orders = {
        tuple(stream(Loader({"text": Numbered(50, fingerprint)}, 4, seed, shuffle), 100))
        for fingerprint, seed, shuffle in (("f", 0, True), ("f", 1, True), ("g", 0, True), ("f", 0, False))
    }
    assert len(orders) == 4
    assert stream(Loader({"text": Numbered(5)}, 4, 0, False), 12) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_the_stream_cut_anywhere(shuffle):
    """Batches cross the ends of epochs, even several in one batch, and lose nothing there."""
    for size, batch_size in ((7, 3), (7, 7), (3, 8), (1, 4), (100, 16)):
        loader = Loader({"text": Numbered(size)}, batch_size, seed=3, shuffle=shuffle)
        steps = range(3 * size // batch_size + 2)
        rows = np.concatenate([loader.batch(step)["row"] for step in steps]).tolist()
        assert rows == stream(loader, len(rows))


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_any_split_over_processes_gives_the_same_batch(processes):
    loader = Loader({"text": Numbered(50)}, 8, seed=0, shuffle=True)
    share = 8 // processes
    for step in (0, 5, 6, 7, 12, 10**9):  # 6 holds the end of an epoch
        others = [Loader({"text": Numbered(50)}, 8, seed=0, shuffle=True) for _ in range(processes)]
        parts = [other.batch(step, share * i, share * (i + 1))["row"] for i, other in enumerate(others)]
        assert np.concatenate(parts).tolist() == loader.batch(step)["row"].tolist()


def test_steps_beyond_every_integer_of_32_bits():
    loader = Loader({"text": Numbered(10**12)}, 1024, seed=0, shuffle=True)
    _, epoch, row = loader.place(10**18 + 5)
    assert epoch == 10**6 and 0 <= row < 10**12
    assert loader.batch(10**15)["row"].size == 1024
    started = time.perf_counter()
    loader.batch(10**12)
    assert time.perf_counter() - started < 1


def test_real_rows_of_any_step(make_store):
    rows = make_rows(make_store([f"document number {i}" for i in range(40)]), 16, "concat")
    loader = Loader({"text": rows}, 4, seed=0, shuffle=True)
    batch = loader.batch(123)
    for place in range(4):
        expected = rows.row(loader.place(123 * 4 + place).row)
        for key, value in expected.items():
            assert (batch[key][place] == value).all()
    fresh = Loader({"text": rows}, 4, seed=0, shuffle=True).batch(123)
    assert all((fresh[key] == batch[key]).all() for key in batch)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_evaluation_holds_every_row_once(make_store, batch_size):
    rows = make_rows(make_store([f"document number {i}" for i in range(20)]), 16, "concat")
    batches = list(evaluation_batches(rows, batch_size))
    assert {value.shape for batch in batches for value in batch.values()} == {(batch_size, 16)}
    assert sum(batch["weights"].sum() for batch in batches) == rows.num_targets
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    for index in range(len(rows)):
        assert (tokens[index] == rows.row(index)["tokens"]).all()
    for value in (np.concatenate([batch[key] for batch in batches]) for key in batches[0]):
        assert not value[len(rows) :].any()
    halves = zip(*(evaluation_batches(rows, 4, None, start, start + 2) for start in (0, 2)), strict=True)
    joined = [np.concatenate([first["tokens"], second["tokens"]]) for first, second in halves]
    assert np.concatenate(joined)[: len(rows)].tolist() == tokens[: len(rows)].tolist()


def test_evaluation_can_be_limited(make_store):
    rows = make_rows(make_store(["x" * 100]), 8, "concat")
    assert len(list(evaluation_batches(rows, 2, limit=3))) == 3
    assert len(list(evaluation_batches(rows, 2, limit=1000))) == len(list(evaluation_batches(rows, 2))) == 7


@pytest.mark.parametrize("depth", [0, 1, 2, 5, 100])
def test_prefetched_batches_are_the_batches(depth):
    with Prefetcher(lambda step: {"step": step}, 3, 20, depth, timeout=30) as prefetcher:
        assert [prefetcher.get(step)["step"] for step in range(3, 20)] == list(range(3, 20))
        with pytest.raises(ValueError):
            prefetcher.get(20)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetches_depth_batches_and_no_more(depth):
    made, changed = [], threading.Event()

    def make(step):
        made.append(step)
        changed.set()
        return {}

    def settled(count):
        deadline = time.monotonic() + 10
        while len(made) < count and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.05)
        return len(made)

    with Prefetcher(make, 0, 100, depth, timeout=30) as prefetcher:
        assert settled(depth) == depth
        prefetcher.get(0)
        assert settled(depth + 1) == depth + 1
        prefetcher.get(1)
        assert settled(depth + 2) == depth + 2


def test_a_loader_that_dies_is_a_data_error_at_its_step():
    def make(step):
        if step == 2:
            raise RuntimeError("the disk is gone")
        return {"step": step}

    with Prefetcher(make, 0, 10, 5, timeout=30) as prefetcher:
        assert [prefetcher.get(step)["step"] for step in range(2)] == [0, 1]
        with pytest.raises(DataError, match="step 2: RuntimeError: the disk is gone") as raised:
            prefetcher.get(2)
        assert isinstance(raised.value.__cause__, RuntimeError)


def test_an_error_of_the_user_passes_as_it_is():
    def make(step):
        raise ConfigError("as it is")

    with Prefetcher(make, 0, 10, 2, timeout=30) as prefetcher, pytest.raises(ConfigError, match="as it is"):
        prefetcher.get(0)


def test_a_loader_that_hangs_is_named_and_closed_at_once():
    release = threading.Event()

    def make(step):
        if step == 1:
            release.wait(60)
        return {}

    started = time.monotonic()
    with Prefetcher(make, 0, 10, 2, timeout=0.3) as prefetcher:
        prefetcher.get(0)
        with pytest.raises(HungError, match=r"step 1 did not come within 0\.3 seconds"):
            prefetcher.get(1)
    assert time.monotonic() - started < 10
    release.set()


def test_closing_ends_the_thread():
    before = threading.active_count()
    for _ in range(5):
        with Prefetcher(lambda step: {}, 0, 10, 2, timeout=30) as prefetcher:
            prefetcher.get(0)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
    with pytest.raises(ValueError):
        prefetcher.get(1)
