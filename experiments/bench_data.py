"""`python -m experiments.bench_data`: the data engine beside what others use for the same, in turn, on this machine.

    text    100 MB of text to a token store, beside `tokenizers` alone, Hugging Face `datasets` and datatrove
    rows    shuffled rows of 2,048 from a store of 10^9 tokens, beside nanoGPT's sampling and grain
    model   the same, beside what one training step of experiments.bench consumes
    open    seconds until the first batch, and anonymous memory, for stores of 10^7 and of 10^9 tokens

Contenders take turns, so that a slow moment meets them all; a ratio is that of one round, and the median of the
rounds is what to quote. Needs requirements-bench.txt, 5 GB of disk in a folder of its own, which is removed at the
end, and as much memory for the disk's cache. With `--output FILE` the figures are written as JSON.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from data.cli import Parser, run_command
from data.errors import ConfigError, DataError
from experiments import bench_rows, bench_text

PARTS = ("text", "rows", "model", "open")
PEERS = ("datasets", "datatrove", "grain", "torch")
PACKINGS = ("concat", "best_fit")
MEGABYTE = 10**6
SIZES = {
    "megabytes": (100, "of text"),
    "tokens": (10**9, "of the large store; the small one has one in a hundred of them"),
    "rounds": (3, "of all but rows"),
    "turns": (15, "rounds of rows"),
    "batches": (30, "of 32 rows, in a turn"),
    "read": (2000, "batches while which memory is looked at"),
}


def _child(module: str, *arguments: object) -> dict:
    """What a contender in a process of its own prints."""
    command = [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"`{' '.join(command)}` ended with code {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ratios(times: dict[str, list[float]], other: str, mine: str) -> dict:
    """How many times as fast `mine` is as `other`: median and range of the rounds."""
    found = [theirs / ours for theirs, ours in zip(times[other], times[mine], strict=True)]
    return {"median": statistics.median(found), "range": [min(found), max(found)]}


def text(folder: Path, size: int, rounds: int) -> dict:
    """Megabytes a second of each contender, and how many times as fast ours is."""
    size, names = bench_text.make_text(folder, size), list(bench_text.CONTENDERS)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        made = {name: _child("bench_text", name, folder) for name in names}
        _say(
            f"text, round {number + 1} of {rounds}: " + ", ".join(f"{n} {f['seconds']:.1f} s" for n, f in made.items())
        )
        if len({found["ids"] for found in made.values()}) > 1:
            raise DataError(f"The contenders made different numbers of ids: {made}.")
        for name, found in made.items():
            times[name].append(found["seconds"])
    return {
        "bytes": size,
        "megabytes_per_second": {name: size / MEGABYTE / statistics.median(found) for name, found in times.items()},
        "ratio": {name: ratios(times, name, "ours") for name in names[1:]},
    }


def rows(store: Path, flat: Path, rounds: int, batches: int) -> dict:
    """Microseconds a row of each contender, and how many times as fast ours is."""
    best, grain_batch, taken = bench_rows.best_grain(flat, batches)
    contenders: dict[str, Callable[[], object]] = {
        **{packing: bench_rows.ours(packing, store) for packing in PACKINGS},
        "nanogpt": bench_rows.nanogpt(flat),
        "grain": grain_batch,
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, make_batch in contenders.items():
            found = bench_rows.seconds_of(make_batch, batches)
            if number:  # the first round warms up
                times[name].append(found)
    micro = 1e6 / (batches * bench_rows.ROWS)
    return {
        "microseconds_per_row": {name: micro * statistics.median(found) for name, found in times.items()},
        "ratio": {
            other: {packing: ratios(times, other, packing) for packing in PACKINGS} for other in ("nanogpt", "grain")
        },
        "grain": {"fastest": best, "microseconds_per_row": {name: micro * found for name, found in taken.items()}},
    }


def model(store: Path, rounds: int, batches: int) -> dict:
    """Tokens a second that a training step of experiments.bench consumes, in its faster dtype, and that rows bring."""
    import jax.numpy as jnp
    import numpy as np

    from experiments import bench

    tokens = jnp.asarray(np.random.default_rng(0).integers(0, bench.VOCABULARY, (bench.ROWS, bench.LENGTH)), jnp.int32)
    consumed, delivered = {}, {packing: [] for packing in PACKINGS}
    contenders = {packing: bench_rows.ours(packing, store) for packing in PACKINGS}
    for dtype in ("float32", "bfloat16"):
        step, _ = bench.ours(bench.our_config(dtype, bench.LAYERS, 1), tokens, jnp.roll(tokens, -1, axis=1))
        bench.seconds(step, 1)  # compiles
        rates = []
        for _ in range(rounds):
            rates.append(tokens.size / bench.seconds(step, 1))
            for packing, make_batch in contenders.items():
                taken = bench_rows.seconds_of(make_batch, batches)
                delivered[packing].append(batches * bench_rows.ROWS * bench_rows.LENGTH / taken)
        consumed[dtype] = statistics.median(rates)
    rates = {packing: statistics.median(found) for packing, found in delivered.items()}
    most = max(consumed.values())
    return {
        "consumed_tokens_per_second": consumed,
        "delivered_tokens_per_second": rates,
        "ratio": {packing: rate / most for packing, rate in rates.items()},
    }


def opened(small: Path, large: Path, rounds: int, batches: int) -> dict:
    """Start-up, resume and anonymous memory of each layout on both stores, each time in a fresh process."""
    found = {}
    for layout in bench_rows.LAYOUTS:
        for size, store in (("small", small), ("large", large)):
            stores = [store, small] if layout == "mixture" else [store]
            made = [_child("bench_rows", layout, *stores, "--batches", batches) for _ in range(rounds)]
            found[f"{layout}, {size}"] = {key: statistics.median(one[key] for one in made) for key in made[0]}
    return found


def _say(line: str):
    print(f"bench_data: {line}", file=sys.stderr, flush=True)


def _size(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _check_packages(parts: Sequence[str]):
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if missing and {"text", "rows"} & set(parts):
        raise ConfigError(f"{', '.join(missing)}: not installed here. pip install -r requirements-bench.txt")


def measure(known: argparse.Namespace, folder: Path) -> dict:
    """The figures of each part that is asked for."""
    found: dict[str, dict] = {}
    folder.mkdir(parents=True, exist_ok=True)
    if "text" in known.parts:
        found["text"] = text(folder, known.megabytes * MEGABYTE, known.rounds)
    else:
        bench_text.make_text(folder, 0)
    if set(known.parts) - {"text"}:
        stores = folder / "small", folder / "large"
        for store, tokens in zip(stores, (known.tokens // 100, known.tokens), strict=True):
            _say(f"a store of {tokens:,} tokens")
            bench_rows.make_store(store, tokens, folder / "tokenizer.json")
    if "rows" in known.parts:
        bench_rows.make_flat(bench_rows.Store(stores[1]), folder / "flat.bin")
        found["rows"] = rows(stores[1], folder / "flat.bin", known.turns, known.batches)
    if "open" in known.parts:
        _say("loaders in fresh processes")
        found["open"] = opened(*stores, known.rounds, known.read)
    if "model" in known.parts:
        _say("training steps")
        found["model"] = model(stores[1], known.rounds, known.batches)
    return found


def report(found: dict) -> list[tuple[str, str, str]]:
    """(what, how it came out, what is wanted) of each figure."""
    lines = []
    if part := found.get("text"):
        rates, wanted = part["megabytes_per_second"], {"tokenizers": "0.9"}
        for name, ratio in part["ratio"].items():
            what = f"text to store, {rates['ours']:.1f} MB/s, to {name}, {rates[name]:.1f} MB/s"
            lines.append((what, _ranged(ratio), f"at least {wanted[name]}" if name in wanted else "above 1"))
    if part := found.get("rows"):
        taken = part["microseconds_per_row"]
        for other, wanted in (("nanogpt", "at least 0.8"), ("grain", "above 1")):
            for packing, ratio in part["ratio"][other].items():
                what = f"rows, {packing}, {taken[packing]:.1f} us, to {other}, {taken[other]:.1f} us"
                lines.append((what, _ranged(ratio), wanted))
    if part := found.get("model"):
        used = max(part["consumed_tokens_per_second"].values())
        for packing, ratio in part["ratio"].items():
            lines.append((f"rows, {packing}, to a training step, {used:,.0f} tokens/s", f"{ratio:,.0f}", "at least 50"))
    for name, part in found.get("open", {}).items():
        first, late = (f"{1000 * part[key]:.0f} ms" for key in ("start", "resume"))
        lines.append(
            (f"first batch of a loader, and at step {bench_rows.LATE:,}, {name}", f"{first}, {late}", "below 1 s")
        )
        memory = f"{part['most'] / MEGABYTE:.1f} MB, {part['before'] / MEGABYTE:.1f} MB before it"
        lines.append((f"anonymous memory, {name}", memory, "below 500 MB"))
    return lines


def _ranged(ratio: dict) -> str:
    low, high = ratio["range"]
    return f"{ratio['median']:.2f} ({low:.2f} to {high:.2f})"


def main(arguments: Sequence[str]) -> None:
    parser = Parser("experiments.bench_data", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    for name, (default, text) in SIZES.items():
        parser.add_argument(f"--{name}", type=_size, default=default, help=f"{text} (default: {default:,})")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder for text and stores, which stays")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    known = parser.parse_args(arguments)
    _check_packages(known.parts)
    if known.keep is not None and known.keep.exists():
        raise ConfigError(f"--keep {known.keep} is there already; name a folder that is not.")
    began, folder = time.monotonic(), known.keep or Path(tempfile.mkdtemp(prefix="bench_data-"))
    try:
        found = measure(known, folder)
    finally:
        if known.keep is None:
            shutil.rmtree(folder)
    from train.rundir import environment

    peers = {name: importlib.metadata.version(name) for name in PEERS if importlib.util.find_spec(name)}
    where = {"machine": platform.processor() or platform.machine(), "date": time.strftime("%Y-%m-%d")}
    where |= {**environment(), **peers, "tokenizers": importlib.metadata.version("tokenizers")}
    print(f"{where['machine']}, {where['visible_cpus']} CPUs, {time.monotonic() - began:.0f} s")
    print("| what | median (range) | wanted |\n|---|---|---|")
    for line in report(found):
        print(f"| {' | '.join(line)} |")
    if known.output is not None:
        settings = {name: value for name, value in vars(known).items() if name not in ("output", "keep")}
        known.output.write_text(json.dumps({"settings": settings, "where": where, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
