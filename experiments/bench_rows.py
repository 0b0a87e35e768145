"""Rows from a token store, by ours and by others: what `experiments.bench_data` times batch by batch.

`python -m experiments.bench_rows LAYOUT STORE...` opens a loader in a fresh process and prints JSON: the seconds
from its construction to the first batch, at step 0 and at step 1,000,000, and the anonymous memory that it holds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data import tokenizer, verified
from data.cli import run_command
from data.encoding import TextEncoder
from data.loader import Loader
from data.mixture import Mixture, Supply
from data.packing import make_rows
from data.store import SHARD_TOKENS, Store
from data.store_writer import Piece, write_store

LENGTH, ROWS = 2048, 32
LATE = 1_000_000  # the step at which a run goes on
# Lengths of documents, lognormal: 600 tokens on average, half of them below 330, one in a hundred above 4,200.
LOG_MEAN, LOG_DEVIATION = 5.8, 1.1
CHUNK = 1 << 24  # tokens made at a time
LAYOUTS = ("concat", "best_fit", "mixture")


def make_store(directory: Path, tokens: int, tokenizer_file: Path) -> Store:
    """A store of about `tokens` random ids, by our writer, its bytes remembered as whole, its rows planned."""
    made = tokenizer.load(tokenizer_file)
    write_store(directory, _random_pieces(tokens, made), TextEncoder(made), {}, SHARD_TOKENS)
    store = Store(directory)
    if tokens * store.dtype.itemsize > verified.REMEMBERED:
        time.sleep(1.5 * verified.SETTLED / 1e9)  # it trusts no file that was written to just now
    store.verify()
    make_rows(store, LENGTH, "best_fit")
    return store


def _random_pieces(tokens: int, made: tokenizer.Tokenizer) -> Iterator[Piece]:
    generator = np.random.default_rng(0)
    while tokens > 0:
        lengths = generator.lognormal(LOG_MEAN, LOG_DEVIATION, 2 * min(CHUNK, tokens) // 600 + 1).astype(np.uint64) + 2
        ends = np.cumsum(lengths)
        lengths = lengths[: max(1, int(np.searchsorted(ends, min(CHUNK, tokens))))]
        ids = generator.integers(0, made.vocab_size, int(lengths.sum()), dtype=np.uint16)
        ids[(np.cumsum(lengths) - lengths).astype(np.int64)] = made.end_of_text
        yield Piece(ids, lengths, {}, int(ids.max()), 0, 0)
        tokens -= ids.size


def make_flat(store: Store, path: Path):
    """The ids of a store in one file, as nanoGPT keeps them."""
    with open(path, "wb") as file:
        for shard in sorted(store.directory.glob("tokens-*.bin")):
            with open(shard, "rb") as content:
                shutil.copyfileobj(content, file, 1 << 24)


def our_loader(layout: str, directories: Sequence[Path]) -> Loader:
    """Opens the stores as a run does, remembered digests checked; a mixture has two, of which it takes 7 and 3 rows."""
    stores = [Store(directory) for directory in directories]
    for store in stores:
        store.verify(every_byte=False)
    packing = "concat" if layout == "mixture" else layout
    rows = {str(index): make_rows(store, LENGTH, packing) for index, store in enumerate(stores)}
    mixture = None
    if layout == "mixture":
        mixture = Mixture([Supply(len(found)) for found in rows.values()], [(0, [0.7, 0.3])], 0)
    return Loader(rows, ROWS, 0, True, mixture=mixture)


def ours(packing: str, directory: Path) -> Callable[[], object]:
    """Batches of a shuffled epoch: tokens, targets, weights, segments, positions."""
    loader, step = our_loader(packing, [directory]), iter(range(LATE))
    return lambda: loader.batch(next(step))


def nanogpt(path: Path) -> Callable[[], object]:
    """Tokens and targets at random places, as nanoGPT's `get_batch` takes them: a new memmap for each batch."""
    import torch

    def batch():
        ids = np.memmap(path, dtype=np.uint16, mode="r")
        places = torch.randint(len(ids) - LENGTH, (ROWS,))
        tokens = torch.stack([torch.from_numpy(ids[i : i + LENGTH].astype(np.int64)) for i in places])
        targets = torch.stack([torch.from_numpy(ids[i + 1 : i + 1 + LENGTH].astype(np.int64)) for i in places])
        return tokens, targets

    return batch


class FlatSource:
    """Row i of a flat file, as a user of grain writes it."""

    def __init__(self, path: Path):
        self.ids = np.memmap(path, dtype=np.uint16, mode="r")

    def __len__(self) -> int:
        return (len(self.ids) - 1) // LENGTH

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        found = self.ids[index * LENGTH : (index + 1) * LENGTH + 1].astype(np.int32)
        return {"tokens": found[:-1], "targets": found[1:]}


def grain_loader(path: Path, workers: int) -> Iterator:
    """grain's DataLoader: tokens and targets alone."""
    import grain

    source = FlatSource(path)
    sampler = grain.samplers.IndexSampler(len(source), grain.sharding.NoSharding(), shuffle=True, seed=0)
    batches = [grain.transforms.Batch(ROWS, drop_remainder=True)]
    return iter(grain.DataLoader(data_source=source, sampler=sampler, operations=batches, worker_count=workers))


def grain_dataset(path: Path, threads: int, workers: int) -> Iterator:
    """grain's MapDataset: tokens and targets alone."""
    import grain

    rows = grain.MapDataset.source(FlatSource(path)).shuffle(seed=0).repeat().batch(ROWS, drop_remainder=True)
    rows = rows.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(1, threads)))
    return iter(rows.mp_prefetch(grain.MultiprocessingOptions(workers)) if workers else rows)


GRAIN: dict[str, Callable[[Path], Iterator]] = {
    "DataLoader": lambda path: grain_loader(path, 0),
    "DataLoader, 2 workers": lambda path: grain_loader(path, 2),
    "MapDataset": lambda path: grain_dataset(path, 0, 0),
    "MapDataset, 16 threads": lambda path: grain_dataset(path, 16, 0),
    "MapDataset, 2 workers": lambda path: grain_dataset(path, 0, 2),
}


def seconds_of(make_batch: Callable[[], object], batches: int) -> float:
    began = time.perf_counter()
    for _ in range(batches):
        make_batch()
    return time.perf_counter() - began


def best_grain(path: Path, batches: int, turns: int = 5) -> tuple[str, Callable[[], object], dict[str, float]]:
    """(the fastest of GRAIN, its batches, seconds of each one's best turn): one at a time, since workers read ahead."""
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain's worker processes ask for it
    taken = {}
    for name, start in GRAIN.items():
        next_batch = start(path).__next__
        seconds_of(next_batch, batches)
        taken[name] = min(seconds_of(next_batch, batches) for _ in range(turns))
    best = min(taken, key=taken.get)
    return best, GRAIN[best](path).__next__, taken


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def open_and_read(layout: str, directories: Sequence[Path], batches: int) -> dict:
    """Start-up and memory of a loader; for a fresh process."""
    before = anonymous()
    began = time.perf_counter()
    our_loader(layout, directories).batch(0)
    started = time.perf_counter()
    loader = our_loader(layout, directories)
    loader.batch(LATE)
    resumed = time.perf_counter()
    most = anonymous()
    for step in range(LATE, LATE + batches):
        loader.batch(step)
        if not step % 50:
            most = max(most, anonymous())
    return {"start": started - began, "resume": resumed - started, "before": before, "most": most}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_rows", description=__doc__, allow_abbrev=False)
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--batches", type=int, default=2000)
    known = parser.parse_args(arguments)
    print(json.dumps(open_and_read(known.layout, known.stores, known.batches)))


if __name__ == "__main__":
    run_command(main)
